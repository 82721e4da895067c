"""How batches of events become rows: what changed, and writing it."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, cast

import msgspec
from sqlalchemy import Table as SqlTable
from sqlalchemy import delete, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncSession

from services.gateway.database.engine import Database
from services.gateway.database.tables import PlanRow, ProjectionHead, Table, TaskRow
from services.gateway.notifications.happenings import Happening
from services.gateway.projection.folds import Folds, is_ours, read_fold
from services.gateway.projection.views import PlanFold
from shared.plan import ENDED
from shared.skipped import skipped_seq
from shared.store import EventStore, Recorded

BREATH_STEPS = 200
"""Events folded, or rows made, before others get the event loop."""
NAME_MAX_CHARS = 200
AGENT_MAX_CHARS = 63

Row = dict[str, Any]


class Changes(msgspec.Struct, frozen=True):
    """The rows that a batch of events leaves behind, without their generation."""

    plans: list[Row]
    tasks: list[Row]
    anew: set[str] = set()
    """Plans of which `tasks` are all that there are: others are not the plan's any more."""
    happened: list[Happening] = []
    """What people may want to be told of the batch's events, in their order. No rows: they are not made anew."""


class Folding:
    """Folds the log in order, batch by batch, and says which rows change."""

    def __init__(self, store: EventStore) -> None:
        self._store = store
        self._folds = Folds()

    async def fold(self, events: Sequence[Recorded], are_known: Callable[[set[str]], Awaitable[set[str]]]) -> Changes:
        """The rows as they are after the batch, which follows on the one before.

        `are_known` tells which plans had events before this batch: only those have to be read from the log.
        """
        ours = [record for record in events if is_ours(record)]
        missing = {record.plan for record in ours if self._folds.get(record.plan) is None}
        known = await are_known(missing) if missing else set()
        changed: dict[str, dict[str, None]] = {}
        folds: dict[str, PlanFold] = {}
        happened: list[Happening] = []
        anew: set[str] = set()
        for step, record in enumerate(ours):
            if skipped_seq(record):
                folds[record.plan] = await self._read(record)
                changed[record.plan] = dict.fromkeys(folds[record.plan].board.codes)
                anew.add(record.plan)
                continue
            if record.plan not in folds:
                folds[record.plan] = await self._find(record, is_known=record.plan in known)
            changed.setdefault(record.plan, {}).update(dict.fromkeys(folds[record.plan].apply(record)))
            happened += folds[record.plan].happened
            if step % BREATH_STEPS == 0:
                await asyncio.sleep(0)
        changes = Changes([], [], anew, happened)
        for plan, codes in changed.items():
            await self._describe(folds[plan], list(codes), changes)
        return changes

    async def _find(self, record: Recorded, *, is_known: bool) -> PlanFold:
        fold = self._folds.get(record.plan)
        if fold is None and (is_known or record.type not in ("requested", "drafted")):  # with which every plan begins
            fold = await read_fold(self._store, record.plan, before=record.seq)
        return fold or PlanFold(record.plan, record)

    async def _read(self, skipped: Recorded) -> PlanFold:
        """The plan as it is without the event that is left out from now on."""
        fold = await read_fold(self._store, skipped.plan, before=skipped.seq + 1)
        return fold or PlanFold(skipped.plan, skipped)

    async def _describe(self, fold: PlanFold, codes: list[str], changes: Changes) -> None:
        changes.plans.append(_plan_row(fold))
        for step, code in enumerate(codes):
            changes.tasks.append(_task_row(fold, code))
            if step % BREATH_STEPS == 0:
                await asyncio.sleep(0)
        if fold.board.plan.status in ENDED:  # few events come after its end
            self._folds.drop(fold.plan)
        else:
            self._folds.keep(fold)


def _plan_row(fold: PlanFold) -> Row:
    view = fold.view()
    return {
        "id": fold.plan,
        "project_id": _fitting(view.project, NAME_MAX_CHARS),
        "name": _fitting(view.name, NAME_MAX_CHARS),
        "status": view.status,
        "standing": view.standing,
        "is_busy": view.is_busy,
        "is_due": view.is_due,
        "created_at": view.created_at,
        "updated_at": view.updated_at,
        "seq": view.seq,
        "view": fold.view_json(),
    }


def _task_row(fold: PlanFold, code: str) -> Row:
    view = fold.task(code)
    return {
        "plan_id": fold.plan,
        "code": code,
        "place": view.place,
        "name": _fitting(view.name, NAME_MAX_CHARS),
        "status": view.status,
        "agent": _fitting(view.agent, AGENT_MAX_CHARS),
        "seq": view.seq,
        "view": fold.task_json(code),
    }


def _fitting(text: str, chars_max: int) -> str:
    """Text as a column takes it: an event in the log did happen, and must not stop the projection."""
    return text.replace("\x00", "")[:chars_max]


# Writing ----------------------------------------------------------------------------------------------------------


async def write_changes(db: Database, session: AsyncSession, generation: int, changes: Changes) -> None:
    """Writes the rows over what was there."""
    if changes.anew:
        gone = TaskRow.generation == generation, TaskRow.plan_id.in_(changes.anew)
        await session.execute(delete(TaskRow).where(*gone))
    for table, rows in ((PlanRow, changes.plans), (TaskRow, changes.tasks)):
        if rows:
            await session.execute(_upsert(db, table), [{**row, "generation": generation} for row in rows])


def _upsert(db: Database, table: type[Table]) -> Any:
    target = cast(SqlTable, table.__table__)
    insert = sqlite.insert(target) if db.is_sqlite else postgresql.insert(target)
    keys = list(target.primary_key)
    others = {c.name: insert.excluded[c.name] for c in target.columns if c not in keys}
    return insert.on_conflict_do_update(index_elements=keys, set_=others)


async def known_plans(db: Database, generation: int | None, plans: set[str]) -> set[str]:
    """Which of the plans have a row in the generation; None: the current one."""
    query = select(PlanRow.id).where(PlanRow.id.in_(plans))
    if generation is None:
        head = select(ProjectionHead.generation).where(ProjectionHead.is_current).scalar_subquery()
        query = query.where(PlanRow.generation == head)
    else:
        query = query.where(PlanRow.generation == generation)
    async with db.read() as session:
        return set(await session.scalars(query))
