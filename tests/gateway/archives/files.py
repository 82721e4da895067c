"""Archives of plans that were lived through in a simulation, to be imported."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

import httpx
import msgspec

from services.gateway.projection.views import PlanFold
from shared.events import TaskCompleted
from shared.history.archive import ArchiveWriter
from shared.history.archive_format import EVENTS, About, result_name
from shared.history.event_file import line_of
from shared.store import Recorded
from tests.gateway.projection.histories import simulated

WHEN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


class File(NamedTuple):
    """An archive, and what it was made of."""

    content: bytes
    digest: str
    records: list[Recorded]
    fold: PlanFold


def lived(seed: int = 0, tasks: int = 3) -> list[Recorded]:
    """The events of a finalized plan of a simulated world that has at least so many tasks."""
    plans: dict[str, list[Recorded]] = {}
    for _, record in simulated(seed):
        plans.setdefault(record.plan, []).append(record)
    for records in plans.values():
        if len(folded(records).board.codes) > tasks and any(isinstance(r.event, TaskCompleted) for r in records):
            return records
    raise AssertionError(f"no plan of world {seed} has {tasks} tasks of which one is completed")


def folded(records: list[Recorded]) -> PlanFold:
    """The plan as the gateway that it ran at showed it."""
    fold = PlanFold(records[0].plan, records[0])
    for record in records:
        fold.apply(record)
    return fold


def archive(records: list[Recorded], more: Mapping[str, bytes] | None = None, **about: Any) -> File:
    """An archive of these events and other members."""
    plan = records[0].plan
    writer = ArchiveWriter(About(plan=plan, treadle="0.1.0", exported_at=WHEN, **about))
    writer.add(EVENTS, b"".join(map(line_of, records)))
    results = {
        result_name(r.entity): msgspec.json.encode(r.event.result)
        for r in records
        if isinstance(r.event, TaskCompleted)
    }
    members = {**results, **(more or {})}
    for name in sorted(members, key=lambda name: (["results", "diffs", "transcripts"].index(name.split("/")[0]), name)):
        writer.add(name, members[name])
    digest = writer.close()
    return File(writer.taken(), digest, records, folded(records))


async def imported(client: httpx.AsyncClient, file: File, status: int = 0) -> dict[str, Any]:
    """What the gateway makes of it, whether it has it already or not."""
    answer = await client.post("/api/plans/import-log", content=file.content)
    assert answer.status_code in ((status,) if status else (200, 201)), answer.text
    found: dict[str, Any] = answer.json()
    return found
