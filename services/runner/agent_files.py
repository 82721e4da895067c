"""Single files below a directory that an agent may change, read and written with the runner's rights.

A path there may lead anywhere: any part of it may be a link, and the last one a pipe that never says a word. So every
part is opened by itself, below the one before it and never through a link. `root` itself must not be the agent's to
replace; in a sandbox, what is bound there is not.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath

from services.runner.trees import DIRECTORY, remove_below

_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def read_below(root: Path, inner: PurePath | str, max_bytes: int, *, cut: bool = False) -> bytes | None:
    """What is in a regular file; None where there is none, and with more in it than `max_bytes`.

    With `cut` its beginning is returned then.
    """
    path = _inner(inner)
    try:
        with _directory(root, path.parts[:-1], make=False) as at:
            opened = os.open(path.name, _FILE, dir_fd=at)
    except OSError:
        return None  # missing, or not to be followed: both mean that there is no such file
    status = os.fstat(opened)
    if not stat.S_ISREG(status.st_mode) or (status.st_size > max_bytes and not cut):
        os.close(opened)
        return None
    with os.fdopen(opened, "rb") as file:
        return file.read(max_bytes)


def write_below(root: Path, inner: PurePath | str, pieces: Iterable[bytes], mode: int = 0o600) -> None:
    """Writes a file anew, with the directories that it needs; whatever lay in the place of either is removed first.

    Raises `OSError`.
    """
    path = _inner(inner)
    with _directory(root, path.parts[:-1], make=True) as at:
        remove_below(at, path.name)
        with os.fdopen(os.open(path.name, _NEW, mode, dir_fd=at), "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.writelines(pieces)


def delete_below(root: Path, inner: PurePath | str) -> None:
    """Removes a file, or whatever lies in its place; harmless where there is none."""
    path = _inner(inner)
    try:
        with _directory(root, path.parts[:-1], make=False) as at:
            remove_below(at, path.name)
    except (FileNotFoundError, NotADirectoryError):
        pass


def make_directory_below(root: Path, inner: PurePath | str) -> None:
    """Makes sure of a directory that is none of somebody else's: what is not one in its path is removed first."""
    with _directory(root, _inner(inner).parts, make=True):
        pass


def _inner(inner: PurePath | str) -> PurePath:
    path = PurePath(inner)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise ValueError(f"not a path below a directory: {path}")
    return path


@contextmanager
def _directory(root: Path, parts: Iterable[str], *, make: bool) -> Iterator[int]:
    at = os.open(root, DIRECTORY)
    try:
        for part in parts:
            below = _made(at, part) if make else os.open(part, DIRECTORY, dir_fd=at)
            os.close(at)
            at = below
        yield at
    finally:
        os.close(at)


def _made(at: int, name: str) -> int:
    try:
        return os.open(name, DIRECTORY, dir_fd=at)
    except FileNotFoundError:
        pass
    except OSError:  # a link, a file, or a directory that was closed to us: nothing of ours
        remove_below(at, name)
    os.mkdir(name, 0o700, dir_fd=at)
    return os.open(name, DIRECTORY, dir_fd=at)
