"""Two generations of the projection, row by row: whether the one that is read is what the log says."""

from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import Table as SqlTable
from sqlalchemy import select, tuple_
from sqlalchemy.ext.asyncio import AsyncSession

from services.gateway.database.tables import PlanRow, TaskRow

CHUNK_ROWS = 500
SHOWN_MAX = 100
VALUE_SHOWN_CHARS = 300
ABSENT = "no row"
"""In the place of a value."""

Key = tuple[Any, ...]
Values = Mapping[str, Any]


class RowDifference(msgspec.Struct, frozen=True, kw_only=True):
    """One field of one row that is not as the log says."""

    plan: str
    task: str
    """Its code; empty: it is the plan's own row."""
    field: str
    """A column, or `view.…` of what is answered; empty: the whole row."""
    stored: str
    """What is read now, as JSON, its beginning; `no row`: nothing is."""
    right: str
    """What the log says, likewise."""


class Compared(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it."""

    rows: int
    """How many were compared."""
    differences: int
    first: tuple[RowDifference, ...]
    """The first of them, at most `SHOWN_MAX`."""


class Side(NamedTuple):
    """One of the two, as its session sees it."""

    session: AsyncSession
    generation: int


async def compare_generations(stored: Side, right: Side) -> Compared:
    """Compares all rows of both."""
    rows, count, first = 0, 0, list[RowDifference]()
    for table, keys in ((PlanRow.__table__, ("id",)), (TaskRow.__table__, ("plan_id", "code"))):
        async for key, left, good in _pairs(table, keys, stored, right):  # type: ignore[arg-type] # is one
            rows += 1
            plan, task = key if len(key) == len(("plan", "task")) else (*key, "")
            for field, was, should_be in _differences(left, good):
                count += 1
                if len(first) < SHOWN_MAX:
                    first.append(RowDifference(plan=plan, task=task, field=field, stored=was, right=should_be))
    return Compared(rows=rows, differences=count, first=tuple(first))


async def _pairs(
    table: SqlTable, keys: tuple[str, ...], stored: Side, right: Side
) -> AsyncIterator[tuple[Key, Values | None, Values | None]]:
    """Each row of either generation with its like in the other one, some at a time."""
    columns = [table.c[name] for name in keys]
    for one, other in ((right, stored), (stored, right)):
        after: Key | None = None
        while True:
            query = select(table).where(table.c.generation == one.generation).order_by(*columns).limit(CHUNK_ROWS)
            if after is not None:
                query = query.where(tuple_(*columns) > tuple_(*after))
            found = _by_key(keys, (await one.session.execute(query)).mappings())
            if not found:
                break
            theirs = select(table).where(table.c.generation == other.generation, tuple_(*columns).in_(list(found)))
            like = _by_key(keys, (await other.session.execute(theirs)).mappings())
            for key, values in found.items():
                if one is right:
                    yield key, like.get(key), values
                elif key not in like:
                    yield key, values, None
            after = list(found)[-1]


def _by_key(keys: tuple[str, ...], rows: Any) -> dict[Key, Values]:
    return {tuple(row[name] for name in keys): row for row in rows}


def _differences(stored: Values | None, right: Values | None) -> Iterator[tuple[str, str, str]]:
    if stored is None or right is None:
        yield "", ABSENT if stored is None else "a row", ABSENT if right is None else "a row"
        return
    for name, should_be in right.items():
        was = stored[name]
        if name == "generation" or was == should_be:
            continue
        if name == "view":
            yield from _view_differences(was, should_be)
        else:
            yield name, _shown(was), _shown(should_be)


def _view_differences(stored: bytes, right: bytes) -> Iterator[tuple[str, str, str]]:
    try:
        was, should_be = msgspec.json.decode(stored, type=dict[str, Any]), msgspec.json.decode(right)
    except (msgspec.MsgspecError, RecursionError, UnicodeError):
        was, should_be = {}, {}
    fields = [name for name in {**was, **should_be} if was.get(name, _NONE) != should_be.get(name, _NONE)]
    for name in fields:
        yield f"view.{name}", _shown(was.get(name, _NONE)), _shown(should_be.get(name, _NONE))
    if not fields:  # the same in another spelling, or not even JSON
        yield "view", _shown(stored.decode(errors="replace")), _shown(right.decode(errors="replace"))


_NONE = object()


def _shown(value: Any) -> str:
    if value is _NONE:
        return "absent"
    return msgspec.json.encode(value).decode()[:VALUE_SHOWN_CHARS]
