"""Where an archive is written to and read from: plain files, and what only looks like one.

A path may name a device, a FIFO or a link. None of them is ever replaced: what is no plain file is written into, and
of a link it is the file behind it that is replaced. What can't be read twice (standard input, a FIFO) is read into a
temporary file first.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from shared.history.archive_format import SUFFIX
from shared.history.packing import LARGEST, MEBIBYTE
from treadle.bad_input import BadInput
from treadle.plain_text import one_line

PIECE_BYTES = 256 * 1024
STANDARD_STREAM = "-"
Deliver = Callable[[Path], None]


class Target:
    """Where an export goes. Nothing is there, or is changed, before `deliver`."""

    def __init__(self, output: Path | None) -> None:
        """`output`: None and `-` are standard output. Raises `BadInput` for what nothing can be written to."""
        self.output = output
        """As it was named; None: standard output."""
        self.directory = Path(tempfile.gettempdir())
        """Where the file is to be made that is delivered."""
        self._deliver: Deliver = _print
        if output is None or str(output) == STANDARD_STREAM:
            self.output = None
        else:
            with _words_for(output):
                self._choose(output)
        if self.output is None and sys.stdout.isatty():
            raise _no_text_for_a_terminal("redirect the output")

    def deliver(self, made: Path) -> None:
        """Moves or copies the whole file there. Raises `BadInput`; `BrokenPipeError` of standard output."""
        if self.output is None:
            self._deliver(made)
            return
        with _words_for(self.output):
            self._deliver(made)

    def _choose(self, output: Path) -> None:
        behind = Path(os.path.realpath(output))
        try:
            found = output.stat()
        except FileNotFoundError:
            self._replace(behind)
            return
        if stat.S_ISDIR(found.st_mode):
            shown = one_line(str(output))
            raise BadInput(f"{shown} is a directory: name a file in it, such as {shown.rstrip('/')}/plan{SUFFIX}")
        if _is_open_as(found, 1):  # /dev/stdout: with its own position in the file, if it is one
            self.output = None
        elif stat.S_ISREG(found.st_mode) and _is_at(found, behind):
            self._replace(behind)
        else:  # no plain file; or one that has no name any more, such as /dev/fd/3
            self._deliver = lambda made: _write_into(output, made)

    def _replace(self, path: Path) -> None:
        self.directory = path.parent
        self._deliver = lambda made: _rename(made, path)


def _rename(made: Path, path: Path) -> None:
    made.rename(path)


def _print(made: Path) -> None:
    with made.open("rb") as file:
        shutil.copyfileobj(file, sys.stdout.buffer)
    sys.stdout.buffer.flush()


def _write_into(path: Path, made: Path) -> None:
    # Neither made nor made anew: it is there, and a device has to be the one that is there.
    opened = os.open(path, os.O_WRONLY | os.O_NOCTTY | os.O_CLOEXEC)
    with os.fdopen(opened, "wb") as into, made.open("rb") as file:
        if os.isatty(opened):
            raise _no_text_for_a_terminal("name another one")
        if stat.S_ISREG(os.fstat(opened).st_mode):
            into.truncate(0)
        shutil.copyfileobj(file, into)


def _no_text_for_a_terminal(instead: str) -> BadInput:
    return BadInput(f"what is exported is no text for a terminal: name a file by -o FILE, or {instead}")


def _is_at(found: os.stat_result, path: Path) -> bool:
    try:
        return os.path.samestat(found, path.lstat())
    except FileNotFoundError:
        return False


def _is_open_as(found: os.stat_result, number: int) -> bool:
    try:
        return os.path.samestat(found, os.fstat(number))
    except OSError:  # it is closed
        return False


@contextlib.contextmanager
def _words_for(path: Path) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError as error:
        raise BadInput(f"whoever read from {one_line(str(path))} left before the export's end") from error
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise BadInput(f"nothing can be written to {one_line(str(path))}: {why}") from error


# Reading ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def readable(path: Path) -> Iterator[Path]:
    """A file that can be read twice, with what is at `path`; `-` is standard input. Raises `BadInput`.

    What can be read only once is put into a temporary file, as long as the block takes and as large as an archive may
    be at most.
    """
    with contextlib.ExitStack() as held:
        try:
            file = _only_once(path, held)
            if file is not None:
                directory = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="treadle-")))
                path = _spooled(file, directory / _name(path))
        except (OSError, ValueError) as error:  # a path with a NUL is a ValueError
            why = error.strerror if isinstance(error, OSError) else str(error)
            raise BadInput(f"{one_line(str(path))} can't be read: {why}") from error
        yield path


def _only_once(path: Path, held: contextlib.ExitStack) -> BinaryIO | None:
    """What is to be read from, if it is no plain file. Raises `BadInput`, `OSError`."""
    if str(path) != STANDARD_STREAM:
        kind = path.stat().st_mode
        return None if stat.S_ISREG(kind) or stat.S_ISDIR(kind) else held.enter_context(path.open("rb"))
    return standard_input()


def standard_input() -> BinaryIO:
    """Its bytes. Raises `BadInput` where a person would have to type them, or it is closed."""
    if sys.stdin is None or sys.stdin.isatty():
        raise BadInput("nothing is at standard input: redirect a file to it, or name one")
    return sys.stdin.buffer


def _spooled(file: BinaryIO, path: Path) -> Path:
    left_bytes = LARGEST.file_max_bytes
    with path.open("xb") as spool:
        while piece := file.read(PIECE_BYTES):
            left_bytes -= len(piece)
            if left_bytes < 0:
                raise BadInput(f"{path.name} is over the {LARGEST.file_max_bytes // MEBIBYTE} MiB that are read")
            spool.write(piece)
    return path


def _name(path: Path) -> str:
    """The temporary file's: it is what people are told about."""
    return "standard input" if str(path) in (STANDARD_STREAM, "/dev/stdin") else path.name
