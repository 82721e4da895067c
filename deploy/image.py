"""Builds what an image holds, in the first stage of `services/<service>/Dockerfile`. It needs nothing but pip.

    python deploy/image.py dependencies gateway    the part of the lock that this service needs, into /opt/treadle
    python deploy/image.py service gateway         `shared` and the service themselves, beside it

Two steps, so that a change of our code leaves the layer with the dependencies as it is.
"""

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

HOME = Path("/opt/treadle")
BUILD = Path("/opt/build")
"""What makes our wheels; it stays behind in the first stage."""
WHEELS = Path("/opt/wheels-of-treadle")

_NAME = re.compile(r"([a-z0-9][a-z0-9._-]*)==")
_VIA = re.compile(r"    # (?:via\s*|  )(\S*)$")


def locked(lock: str, roots: Sequence[str]) -> str:
    """The entries of a lock, hashes included, that the roots need: the lock notes of each who wants it (`# via`).

    Raises ValueError for a root that nothing in the lock is there for. An extra that somebody else asked for may
    bring a package too many; one too few can't pass, since pip refuses what is not listed with a hash.
    """
    entries = re.split(r"^(?=[^\s#])", lock, flags=re.MULTILINE)
    text: dict[str, str] = {}
    wanted_by: dict[str, set[str]] = {}
    for entry in entries:
        if match := _NAME.match(entry):
            text[match[1]] = entry
            wanted_by[match[1]] = {via[1] for line in entry.splitlines() if (via := _VIA.match(line)) and via[1]}
    taken = {root for root in roots if root in text}
    for root in roots:
        if root not in text and not any(root in by for by in wanted_by.values()):
            raise ValueError(f"the lock has nothing for {root}: run make lock")
    found = taken | set(roots)
    while more := {name for name, by in wanted_by.items() if by & found} - found:
        found |= more
    return "".join(entry for name, entry in text.items() if name in found)


def dependencies(service: str) -> None:
    """Installs the service's part of requirements.lock into /opt/treadle, and hatchling beside it."""
    for home, lock, roots in (
        (HOME, "requirements.lock", ("treadle-shared", f"treadle-{service}")),
        (BUILD, "requirements-dev.lock", ("hatchling",)),
    ):
        _run(sys.executable, "-m", "venv", "--without-pip", str(home))
        part = Path(f"{home}.lock")
        part.write_text(locked(Path(lock).read_text(encoding="utf-8"), roots), encoding="utf-8")
        _pip(home, "install", "--require-hashes", "--requirement", str(part))


def service(name: str) -> None:
    """Builds and installs `shared` and the service; nothing is fetched. Fails where a dependency is missing."""
    folders = ["./shared", f"./services/{name}"]
    _run(str(BUILD / "bin/python"), "-c", _WHEELS_OF, str(WHEELS), *folders)
    _pip(HOME, "install", "--no-index", "--no-deps", *map(str, WHEELS.glob("*.whl")))
    _pip(HOME, "check")


_WHEELS_OF = """
import os, sys
from pathlib import Path
from hatchling.build import build_wheel
to, *folders = (Path(name).resolve() for name in sys.argv[1:])
to.mkdir()
for folder in folders:
    os.chdir(folder)
    build_wheel(str(to))
"""


def _pip(home: Path, *words: str) -> None:
    _run(sys.executable, "-m", "pip", "--python", str(home / "bin/python"), "--no-cache-dir", *words)


def _run(*argv: str) -> None:
    subprocess.run(argv, check=True)


if __name__ == "__main__":
    {"dependencies": dependencies, "service": service}[sys.argv[1]](sys.argv[2])
