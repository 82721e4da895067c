from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB: less than a suite needs."""
    yield from _disk(tmp_path, "4m")


@pytest.fixture
def large_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 100 MiB: enough for a suite, and soon filled."""
    yield from _disk(tmp_path, "100m")


def fill(filler: Path) -> None:
    """Takes all the space that is left."""
    with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(bytes(1 << 20))


def _disk(tmp_path: Path, size: str) -> Iterator[Path]:
    if os.getuid() != 0 or not shutil.which("mount"):
        pytest.skip("mounting a small file system needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk], capture_output=True, text=True)
    if made.returncode != 0:
        pytest.skip(f"mounting a small file system is not allowed here: {made.stderr.strip()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)
