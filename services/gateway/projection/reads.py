"""What routes read of plans and tasks: lists, filters, who may see what.

A row holds its view as JSON already, so a list is answered by joining bytes: nothing is decoded or encoded again.
"""

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Annotated, Any

import msgspec
from litestar import Response
from litestar.datastructures import State
from litestar.params import QueryParameter
from sqlalchemy import ColumnElement, Select, and_, select
from sqlalchemy.ext.asyncio import AsyncSession

from services.gateway.accounts.access import Caller
from services.gateway.database.tables import (
    Delivery,
    HeldFinalization,
    PlanRow,
    Project,
    ProjectionHead,
    TaskRow,
    Webhook,
)
from services.gateway.paging import CURSOR_MAX_CHARS, SORT_MAX_CHARS, Asked, Order
from services.gateway.problems import RETRY_AFTER_S, ProblemError, bad_request, not_found
from services.gateway.projection.live import LivePlans
from services.gateway.projection.projector import Projector
from services.gateway.projection.views import PlanFold
from shared.plan import EARLY
from shared.spec import DELIVER, TASK_CODE
from shared.subjects import PLAN_ID

FRESH_TIMEOUT_S = 5.0
SEQUENCE_MAX = 2**53
BUSY_WITHIN = timedelta(hours=24)
"""How long a plan that a person makes, and a notification that fails, are waited for where nobody uses the suite."""
TASKS_LIMIT = 200
TASKS_LIMIT_MAX = 1_000

MinSeq = Annotated[
    int,
    QueryParameter(ge=0, le=SEQUENCE_MAX, description="Wait until the event of this sequence is in the answer."),
]

PLANS = Order(
    {
        "created_at": PlanRow.created_at,
        "updated_at": PlanRow.updated_at,
        "name": PlanRow.name,
        "seq": PlanRow.seq,
        "standing": PlanRow.standing,
    },
    id_=PlanRow.id,
    default="-created_at",
)
TASKS = Order(
    {"place": TaskRow.place, "code": TaskRow.code, "status": TaskRow.status}, id_=TaskRow.code, default="place"
)


class _Request(msgspec.Struct, frozen=True):
    by_hand: bool


class _Asked(msgspec.Struct, frozen=True):
    """Of a `PlanView`, what was asked for and is not there."""

    requests: tuple[_Request, ...] = ()


class PlanFilters(msgspec.Struct, frozen=True, kw_only=True):
    """Which plans a list shows; None: whichever."""

    project: str | None = None
    status: str | None = None
    standing: str | None = None


class TaskFilters(msgspec.Struct, frozen=True, kw_only=True):
    """Which tasks a list shows; None: whichever."""

    status: str | None = None
    agent: str | None = None


async def asked_tasks(
    cursor: Annotated[str | None, QueryParameter(max_length=CURSOR_MAX_CHARS)] = None,
    limit: Annotated[int, QueryParameter(ge=1, le=TASKS_LIMIT_MAX)] = TASKS_LIMIT,
    sort: Annotated[str | None, QueryParameter(max_length=SORT_MAX_CHARS, description="place, code or status")] = None,
) -> Asked:
    """The dependency `asked` of a list of tasks, whose pages may be larger than others."""
    return Asked(cursor=cursor, limit=limit, sort=sort)


async def fresh(state: State, min_seq: int) -> None:
    """Waits until the projection has that event.

    Raises `ProblemError` 503 `not_fresh`, and 400 for an event that the log does not have.
    """
    projector: Projector = state.projector
    if projector.position >= min_seq:
        return
    if min_seq > (end := await projector.log_end()):
        raise bad_request("min_seq", f"the log ends at event {end}: no event {min_seq} to wait for", source="query")
    try:
        await projector.at_least(min_seq, FRESH_TIMEOUT_S)
    except TimeoutError as error:
        detail = f"the gateway's view does not have event {min_seq} yet: it is at {projector.position}; try again"
        headers = {"Retry-After": str(RETRY_AFTER_S)}
        raise ProblemError(503, "not_fresh", "Not that far yet", detail, headers=headers) from error


async def find_plan(session: AsyncSession, caller: Caller, plan: str) -> PlanRow:
    """The plan, if the caller may know of it. Raises `ProblemError` 404 `not_found`."""
    found = None
    if PLAN_ID.fullmatch(plan):
        found = (await session.scalars(_visible(select(PlanRow), caller).where(PlanRow.id == plan))).one_or_none()
    if found is None:
        raise not_found(f"plan {plan}", "treadle ls")
    return found


async def find_task(session: AsyncSession, caller: Caller, plan: str, code: str) -> TaskRow:
    """A task of a finalized plan that the caller may know of. Raises `ProblemError` 404 `not_found`."""
    row = await find_plan(session, caller, plan)
    found = None
    if code == DELIVER or TASK_CODE.fullmatch(code):
        query = select(TaskRow).where(*_of_plan(row), TaskRow.code == code)
        found = (await session.scalars(query)).one_or_none()
    if found is None:
        raise not_found(f"task {code} of plan {plan}", f"treadle status {plan}")
    return found


async def list_plans(session: AsyncSession, caller: Caller, filters: PlanFilters, asked: Asked) -> bytes:
    """The plans that the caller may see: a page of `PlanView`s in JSON."""
    query = _visible(select(PlanRow), caller)
    for column, wanted in (
        (PlanRow.project_id, filters.project),
        (PlanRow.status, filters.status),
        (PlanRow.standing, filters.standing),
    ):
        if wanted is not None:
            query = query.where(column == _text(wanted))
    rows, following = await PLANS.fetch(session, query, asked)
    return _page_json([await plan_json(session, row) for row in rows], following)


async def plan_json(session: AsyncSession, row: PlanRow) -> bytes:
    """The plan's `PlanView` in JSON, with what the log does not know: why it can't be finalized by itself."""
    held = await session.get(HeldFinalization, row.id) if row.is_due else None
    if held is None:
        return row.view
    # Never within a text, where quotes are escaped.
    return row.view.replace(b'"held_up":""', b'"held_up":' + msgspec.json.encode(held.why), 1)


async def list_tasks(session: AsyncSession, plan: PlanRow, filters: TaskFilters, asked: Asked) -> bytes:
    """The plan's tasks, none until it is finalized: a page of `TaskView`s in JSON."""
    query = select(TaskRow.view, TaskRow.place, TaskRow.code, TaskRow.status).where(*_of_plan(plan))
    if filters.status is not None:
        query = query.where(TaskRow.status == _text(filters.status))
    if filters.agent is not None:
        query = query.where(TaskRow.agent == _text(filters.agent))
    rows, following = await TASKS.fetch_columns(session, query, asked)
    return _page_json((row[0] for row in rows), following)


async def tasks_in_memory(state: State, caller: Caller, plan: str, filters: TaskFilters, asked: Asked) -> bytes | None:
    """What `list_tasks` answers, from the plan's fold where that is in memory; None: ask the database.

    It is used only where it shows neither less nor more than the database has: what one read showed, the next one
    shows too, whichever way it went. Raises `ProblemError` 404 `not_found`.
    """
    live: LivePlans = state.live
    projector: Projector = state.projector
    if asked.sort not in (None, "place") or asked.cursor is not None or filters != TaskFilters():
        return None
    fold = live.wanted(plan)
    if fold is None:
        return None
    if not caller.is_admin:  # who sees everything
        async with state.db.read() as session:
            await find_plan(session, caller, plan)
    if not fold.seq <= projector.position <= live.seq:
        return None
    shown = fold.board.codes[: asked.limit]
    more = len(shown) < len(fold.board.codes)
    return _page_json(map(fold.task_json, shown), TASKS.cursor(len(shown) - 1, shown[-1]) if more else None)


def tasks_of(fold: PlanFold, filters: TaskFilters, asked: Asked) -> bytes:
    """What `list_tasks` answers, of a plan that is in no projection."""
    tasks = (fold.task(code) for code in fold.board.codes)
    wanted = [task for task in tasks if filters.status in (None, task.status) and filters.agent in (None, task.agent)]
    shown, following = TASKS.page_of(wanted, asked)
    return _page_json((fold.task_json(task.code) for task in shown), following)


async def is_any_busy(session: AsyncSession, now: datetime) -> bool:
    """Whether anything goes on without a person at the command: a plan, the look for one, a notification."""
    plan = select(PlanRow.id).join(ProjectionHead, _current()).where(PlanRow.is_busy).limit(1)
    if (await session.scalar(plan)) is not None:
        return True
    told = (
        select(Delivery.id)
        .join(Webhook, Webhook.id == Delivery.webhook_id)
        .where(Delivery.status == "waiting", Webhook.is_active, Delivery.created_at > now - BUSY_WITHIN)
        .limit(1)
    )
    return (await session.scalar(told)) is not None or await _is_any_looked_for(session, now)


async def _is_any_looked_for(session: AsyncSession, now: datetime) -> bool:
    """Whether a repository is looked into for a plan that somebody was to make by hand, not long ago."""
    early = select(PlanRow.view).join(ProjectionHead, _current())
    early = early.where(PlanRow.status.in_(sorted(EARLY)), PlanRow.updated_at > now - BUSY_WITHIN)
    views = (msgspec.json.decode(view, type=_Asked) for view in (await session.scalars(early)).all())
    return any(one.by_hand for view in views for one in view.requests)


def json_answer(body: bytes, headers: dict[str, str] | None = None) -> Response[Any]:
    """An answer of JSON that is there already."""
    return Response(body, media_type="application/json", headers=headers)


def _current() -> ColumnElement[bool]:
    return and_(ProjectionHead.generation == PlanRow.generation, ProjectionHead.is_current)


def _visible(query: Select[PlanRow], caller: Caller) -> Select[PlanRow]:
    """Admins see all plans, others those of their own projects."""
    query = query.join(ProjectionHead, _current())
    if caller.is_admin:
        return query
    return query.join(Project, Project.id == PlanRow.project_id).where(Project.owner_id == caller.id)


def _of_plan(plan: PlanRow) -> tuple[ColumnElement[bool], ...]:
    return TaskRow.generation == plan.generation, TaskRow.plan_id == plan.id


def _text(wanted: str) -> str:
    """A filter as a column can hold it: PostgreSQL refuses NUL, which no row has anyway."""
    return wanted.replace("\x00", "\ufffd")


def _page_json(views: Iterable[bytes], following: str | None) -> bytes:
    return b'{"items":[' + b",".join(views) + b'],"next":' + msgspec.json.encode(following) + b"}"
