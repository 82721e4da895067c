"""Whole directories that an agent may have filled, of any depth and width: removed, measured, looked through.

Nothing here recurses with the depth of what it finds (Python and the paths of the kernel both end before what an agent
can nest), holds more than a few directories open, or follows a link. No process of the agent should be at work there;
one that is gets the result wrong, but leads nobody out of the directory.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
"""How a directory is opened where a link may lie in its place."""

_DEPTH_AT_ONCE = 8
_OWNERS = 0o700


def remove_tree(path: Path) -> None:
    """Removes a directory and whatever an agent made of it; harmless when it is gone already. Raises `OSError`."""
    try:
        parent = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        remove_below(parent, path.name)
    finally:
        os.close(parent)


def remove_below(parent: int, name: str) -> None:
    """The same, of an entry of an open directory; files and links are removed too."""
    try:
        mode = os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode
        if not stat.S_ISDIR(mode):
            os.unlink(name, dir_fd=parent)
            return
        with _opened(parent, name) as root:
            while not _emptied(root, root, _DEPTH_AT_ONCE):
                pass
        os.rmdir(name, dir_fd=parent)
    except FileNotFoundError:
        pass  # somebody else removes it too


def size_bytes(path: Path) -> int:
    """What the files in a directory take on the disk. What can't be looked into counts nothing."""
    return sum(status.st_blocks * 512 for status in files_in(path))


def holds_anything(path: Path) -> bool:
    """Whether there is a link, or a file with something in it, at that place or below it."""
    try:
        status = path.lstat()
    except OSError:
        return False
    found = files_in(path) if stat.S_ISDIR(status.st_mode) else iter((status,))
    return any(stat.S_ISLNK(each.st_mode) or (stat.S_ISREG(each.st_mode) and each.st_size > 0) for each in found)


def files_in(path: Path) -> Iterator[os.stat_result]:
    """Of everything in a directory and below that is no directory. Only one directory is open at a time."""
    try:
        at = os.open(path, DIRECTORY)
    except OSError:
        return
    try:
        statuses, names = _look(at)
        yield from statuses
        levels = [(_identity(at), names)]
        while levels:
            if names := levels[-1][1]:
                below = _opened_to_look(at, names.pop())
                if below is None:
                    continue
                os.close(at)
                at = below
                statuses, names = _look(at)
                yield from statuses
                levels.append((_identity(at), names))
                continue
            levels.pop()
            if levels:
                above = os.open("..", DIRECTORY, dir_fd=at)
                os.close(at)
                at = above
                if _identity(at) != levels[-1][0]:
                    return  # somebody moves it about meanwhile: this would lead out of it
    except OSError:
        return  # as above
    finally:
        os.close(at)


def _emptied(root: int, at: int, levels: int) -> bool:
    """Removes what is in a directory, and returns whether that was all: what lies too deep is moved up into `root`."""
    whole = True
    with os.scandir(at) as found:
        entries = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in found]
    for name, is_directory in entries:
        with suppress(FileNotFoundError):  # somebody else removes it too
            if not is_directory:
                os.unlink(name, dir_fd=at)
            elif levels:
                with _opened(at, name) as below:
                    whole = _emptied(root, below, levels - 1) and whole
                os.rmdir(name, dir_fd=at)
            else:
                with _opened(at, name):  # which makes it ours to move
                    os.rename(name, uuid4().hex, src_dir_fd=at, dst_dir_fd=root)
                whole = False
    return whole


@contextmanager
def _opened(parent: int, name: str) -> Iterator[int]:
    """A directory, made its owner's to read and change: an agent may have taken both away."""
    try:
        opened = os.open(name, DIRECTORY, dir_fd=parent)
    except PermissionError:
        os.chmod(name, _OWNERS, dir_fd=parent)
        opened = os.open(name, DIRECTORY, dir_fd=parent)
    try:
        if os.fstat(opened).st_mode & _OWNERS != _OWNERS:
            os.fchmod(opened, _OWNERS)
        yield opened
    finally:
        os.close(opened)


def _opened_to_look(at: int, name: str) -> int | None:
    """A directory that can be looked through and left again; None for any other."""
    try:
        below = os.open(name, DIRECTORY, dir_fd=at)
    except OSError:
        return None
    try:
        os.close(os.open("..", DIRECTORY, dir_fd=below))
    except OSError:
        os.close(below)
        return None
    return below


def _look(at: int) -> tuple[list[os.stat_result], list[str]]:
    statuses, directories = [], []
    with os.scandir(at) as found:
        for entry in found:
            if entry.is_dir(follow_symlinks=False):
                directories.append(entry.name)
            else:
                with suppress(FileNotFoundError):  # a running agent's files come and go
                    statuses.append(entry.stat(follow_symlinks=False))
    return statuses, directories


def _identity(at: int) -> tuple[int, int]:
    status = os.fstat(at)
    return status.st_dev, status.st_ino
