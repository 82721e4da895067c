"""The services' log files: opened for a child, kept small, and read for the line that explains its end."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

from treadle.supervision.private_files import PRIVATE_FILE_MODE

SIZE_MAX_BYTES = 8 << 20
_TAIL_BYTES = 16 << 10
_LINE_MAX = 400


def open_log(path: Path, size_max_bytes: int = SIZE_MAX_BYTES) -> BinaryIO:
    """Opens a log for appending; one that has grown past `size_max_bytes` first becomes `<name>.1`, replacing that."""
    if path.exists() and path.stat().st_size > size_max_bytes:
        path.replace(path.with_name(path.name + ".1"))
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, PRIVATE_FILE_MODE), "ab", buffering=0)


def last_useful_line(path: Path, since_byte: int = 0, preferring: tuple[str, ...] = ()) -> str:
    """The last line that contains one of `preferring`, else the last that is not blank, else "" (after `since_byte`).

    Control characters are removed (a log repeats what others wrote), and a long line is cut.
    """
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(since_byte, size - _TAIL_BYTES))
        tail = file.read().decode("utf-8", "replace")
    lines = ["".join(c for c in line if c.isprintable()).strip() for line in tail.splitlines()]
    lines = [line for line in lines if line]
    preferred = [line for line in lines if any(mark in line for mark in preferring)]
    return ((preferred or lines or [""])[-1])[:_LINE_MAX]
