"""Stops taking new work before the disk is full: what runs needs the rest to come to its end."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

log = logging.getLogger("treadle.runner")

_ROOM = 1.05
"""So much more than the floor must be free before work is taken again: no going to and fro at the border."""


class DiskFloor:
    """What a runner asks before it takes work."""

    def __init__(self, directory: Path, floor_bytes: int) -> None:
        self._directory = directory
        self._floor_bytes = floor_bytes
        self._full = ""

    def __call__(self) -> str:
        """Why nothing new may begin, for a person; empty when it may. Cheap. Says a change in the log, once."""
        full = self._look()
        if bool(full) != bool(self._full):
            if full:
                log.warning("no new work is taken: %s; `treadle clean` tells what may go", full)
            else:
                log.info("there is room on the disk again: work is taken")
        self._full = full
        return full

    def _look(self) -> str:
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self._directory).free
        except OSError as error:
            return f"the data directory can't be used: {error.strerror}"
        if free >= self._floor_bytes * (_ROOM if self._full else 1):
            return ""
        return f"{free >> 20} MiB are free on the disk, fewer than the {self._floor_bytes >> 20} MiB to be kept free"
