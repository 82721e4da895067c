"""What others want of a mirror, for whoever fetches next: one fetch then serves all who wait for it.

Notes on disk, since the others may be other processes. They are hints only: who finds nothing done fetches for itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from services.runner.git import checked_commit, checked_ids
from shared.spec import DELIVER


@contextmanager
def wanting(mirror: Path, plan: str, commits: Sequence[str]) -> Iterator[None]:
    """Notes that somebody waits for these commits, as long as it is open."""
    directory = mirror / "wanted"
    directory.mkdir(parents=True, exist_ok=True)
    with ExitStack() as noted:
        for commit in commits:
            note = directory / f"{plan}.{commit}"
            note.touch()
            noted.callback(note.unlink, missing_ok=True)
        yield


def wanted_by_others(mirror: Path, own: Sequence[str], at_most: int = 500) -> dict[str, str]:
    """The plan for each commit that somebody else waits for."""
    found: dict[str, str] = {}
    for note in sorted((mirror / "wanted").glob("*"))[:at_most]:
        plan, _, commit = note.name.partition(".")
        with suppress(ValueError):
            checked_ids(plan, DELIVER)
            if checked_commit(commit) not in own:
                found[commit] = plan
    return found


def forget(mirror: Path, wanted: dict[str, str]) -> None:
    """Removes others' notes: one of them can't be had, or was left by a process that was killed."""
    for commit, plan in wanted.items():
        (mirror / "wanted" / f"{plan}.{commit}").unlink(missing_ok=True)
