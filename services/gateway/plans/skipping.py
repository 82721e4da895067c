"""Route: an operator has an event left out that nobody can read. The log keeps it; whoever folds goes on without it."""

from typing import Annotated, Any

import msgspec
from litestar import Request, Router, post
from litestar.datastructures import State
from litestar.params import FromPath, JSONBody

from services.gateway.accounts import audit
from services.gateway.accounts.access import Caller, admin_only
from services.gateway.direct_get import read_events
from services.gateway.plans.commands import GRACE_S, NOTE_MAX_CHARS, Accepted, new_meta
from services.gateway.plans.lookup import LOG_PATIENCE_S, find_plan, promptly
from services.gateway.problems import Problem, ProblemError, documented, not_found
from services.gateway.projection.reads import SEQUENCE_MAX
from services.gateway.projection.views import PlanFold
from shared.clock import utc_now
from shared.commands import Skip
from shared.store import Recorded, StoreUnavailable
from shared.subjects import PLAN, can_be
from shared.transact import Contended, to_plan, to_task

READABLE = Problem(
    status=409,
    code="readable",
    title="This event can be read",
    detail="event 12 (started) of T1 can be read: only what nobody can read may be left out",
)


class Skipping(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Why the event is left out; kept with the word itself."""

    reason: Annotated[str, msgspec.Meta(min_length=1, max_length=NOTE_MAX_CHARS)]


@post(
    "/plans/{plan:str}/events/{seq:int}/skip",
    status_code=202,
    guards=[admin_only],
    responses=documented(400, 401, 403, 404, READABLE),
)
async def skip_event(
    plan: FromPath[str],
    seq: FromPath[int],
    data: JSONBody[Skipping],
    state: State,
    request: Request[Caller, Any, Any],
) -> Accepted:
    """Has an event left out from now on that this Treadle can't read, so that its plan goes on without it.

    What the event said is lost to the plan: look at it first (`GET /api/plans/{plan}/events` shows its bytes). Where a
    newer Treadle wrote it, run that one instead.
    """
    fold = await find_plan(state, request.user, plan)
    record = await _find(state, plan, seq)
    _check_unreadable(record, fold)
    meta, command = new_meta(state, request.user), Skip(seq=seq, reason=data.reason)
    if record.entity == PLAN:
        sent: Any = to_plan(state.store, plan, command, meta, patience_s=LOG_PATIENCE_S)
    else:
        sent = to_task(state.store, plan, record.entity, command, meta, patience_s=LOG_PATIENCE_S)
    try:
        decided = await promptly(sent, LOG_PATIENCE_S + GRACE_S)
    except Contended as error:
        raise StoreUnavailable(str(error)) from error
    changed = decided.event is not None
    if changed:
        details = {"seq": seq, "entity": record.entity, "type": record.type, "reason": data.reason}
        async with state.db.write() as session:
            await audit.record(session, request.user.actor, "event.skipped", plan, details, utc_now())
    return Accepted(plan, decided.seq, changed=changed)


async def _find(state: State, plan: str, seq: int) -> Recorded:
    """Raises `ProblemError` 404 where the plan has no such event."""
    if 0 < seq <= SEQUENCE_MAX:
        read = await promptly(read_events(state.nc, state.store, plan, after=seq - 1, limit=1))
        if read.records and read.records[0].seq == seq and can_be(plan, read.records[0].entity):
            return read.records[0]
    raise not_found(f"event {seq} of plan {plan}", f"GET /api/plans/{plan}/events")


def _check_unreadable(record: Recorded, fold: PlanFold) -> None:
    if record.event is None or fold.board.fault_seq == record.seq:
        return
    what = f"event {record.seq} ({record.type}) of {record.entity}"
    detail = f"{what} can be read: only what nobody can read may be left out"
    raise ProblemError(READABLE.status, READABLE.code, READABLE.title, detail)


skipping_router = Router(path="/", tags=["plans"], route_handlers=[skip_event])
