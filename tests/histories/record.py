"""Makes a recorded history: `python -m tests.histories.record NAME [DIRECTORY]`, or `all`.

A file that is there is never written over: what an earlier version recorded is the point. A story that changed gets a
new name.
"""

from __future__ import annotations

import sys
from pathlib import Path

from shared.history.archive import ArchiveWriter
from shared.history.archive_format import EVENTS, SUFFIX, About
from shared.history.event_file import line_of
from shared.store import Recorded
from tests.histories.stage import BEGINNING, PLAN_ID, Stage, fixed_ids
from tests.histories.stories import STORIES
from tests.simulation.virtual_time import run_in_virtual_time

HERE = Path(__file__).parent


def told(name: str) -> list[Recorded]:
    """The story's events, as this version tells it."""

    async def tell() -> Stage:
        return await STORIES[name]()

    with fixed_ids():
        return run_in_virtual_time(tell()).records(PLAN_ID)


def archive(records: list[Recorded]) -> bytes:
    """The `.treadle` file of these."""
    writer = ArchiveWriter(About(plan=PLAN_ID, treadle="0.1.0", exported_at=BEGINNING, parts="events"))
    writer.add(EVENTS, b"".join(map(line_of, records)))
    writer.close()
    return writer.taken()


def main(name: str, directory: Path) -> None:
    """Raises FileExistsError."""
    for story in STORIES if name == "all" else (name,):
        with (directory / f"{story}{SUFFIX}").open("xb") as file:
            file.write(archive(told(story)))
            sys.stdout.write(f"{file.name}: {file.tell():,} bytes\n")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]) if len(sys.argv) > 2 else HERE)
