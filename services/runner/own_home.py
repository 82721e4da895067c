"""The home that verification has for itself: with what set-up left in it, and with nothing of the agent's.

A home can change what programs do that know nothing of it: Python, Node and shells read files there as they start.
Verification in the agent's own home would say whatever the agent wants, without a trace in the commit. So the home, the
temporary files and the view of the caches are moved away while it runs, and others are put in their place, under the
same paths, which are all that a sandbox shows. To be used while no process of the agent is alive.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from services.runner.caches import LeaseCache, make_view
from services.runner.workspace import remove_tree

_HOME, _TEMPORARY = "home", "tmp"
_SET_UP = "home-of-set-up"
_AWAY = "-of-agent"


def remember_home(scratch: Path) -> None:
    """Keeps the home as set-up left it, for `own_home`. Blocks; raises OSError."""
    _copy(scratch / _HOME, scratch / _SET_UP)


@contextmanager
def own_home(scratch: Path, cache: LeaseCache | None) -> Iterator[None]:
    """Puts a home of its own in the place of the agent's, and that one back in the end. Blocks; raises OSError."""
    places = [scratch / _HOME, scratch / _TEMPORARY, *([cache.view] if cache else [])]
    try:
        for place in places:
            if place.exists():
                place.rename(_away(place))
        if (scratch / _SET_UP).exists():
            _copy(scratch / _SET_UP, scratch / _HOME)
        for place in places:
            place.mkdir(mode=0o700, exist_ok=True)
        if cache:
            make_view(cache)
        yield
    finally:
        for place in places:
            if _away(place).exists():
                remove_tree(place)
                _away(place).rename(place)


def _away(place: Path) -> Path:
    return place.with_name(place.name + _AWAY)


def _copy(home: Path, to: Path) -> None:
    """Links stay links; sockets and pipes stay behind."""

    def special(directory: str, names: list[str]) -> list[str]:
        paths = {name: Path(directory, name) for name in names}
        return [name for name, path in paths.items() if not (path.is_symlink() or path.is_file() or path.is_dir())]

    if home.is_dir() and not home.is_symlink():
        shutil.copytree(home, to, symlinks=True, ignore=special)
