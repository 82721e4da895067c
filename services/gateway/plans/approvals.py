"""Routes: a person's answer to what an agent asked for."""

from typing import Annotated, Any

import msgspec
from litestar import Request, Router, post
from litestar.datastructures import State
from litestar.params import FromPath, JSONBody

from services.gateway.accounts import audit
from services.gateway.accounts.access import Caller
from services.gateway.plans.commands import REFUSED, Accepted, command_task
from services.gateway.plans.lookup import find_task, promptly
from services.gateway.problems import Problem, ProblemError, documented
from shared.clock import utc_now
from shared.commands import Approve, Deny
from shared.transact import load_task

NOTE_MAX_CHARS = 10_000
"""The answer to an agent's question may be longer than a reason."""

NOT_ASKED = Problem(
    status=409,
    code="not_asked",
    title="Not what is asked",
    detail="task T1 does not ask for that: look at what it asks for now, and answer with that approval's hash",
)


class Answer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A person's answer to exactly what they were shown."""

    approval: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$", examples=["9f86d081884c7d659a2feaa0c55ad015" * 2])]
    """The hash of what was shown: the task's `approval.approval`."""
    note: Annotated[str, msgspec.Meta(max_length=NOTE_MAX_CHARS, examples=["Only on a branch."])] = ""
    """Words for the agent; the answer itself where it asked a question."""


@post(
    "/plans/{plan:str}/tasks/{code:str}/approve",
    status_code=202,
    responses=documented(400, 401, 404, NOT_ASKED, REFUSED),
)
async def approve_task(
    plan: FromPath[str], code: FromPath[str], data: JSONBody[Answer], state: State, request: Request[Caller, Any, Any]
) -> Accepted:
    """Allows what the task asks for, once, or answers its question in `note`."""
    command = Approve(now=utc_now(), approval=data.approval, note=data.note)
    return await _answer(state, request.user, plan, code, command)


@post(
    "/plans/{plan:str}/tasks/{code:str}/deny",
    status_code=202,
    responses=documented(400, 401, 404, NOT_ASKED, REFUSED),
)
async def deny_task(
    plan: FromPath[str], code: FromPath[str], data: JSONBody[Answer], state: State, request: Request[Caller, Any, Any]
) -> Accepted:
    """Refuses what the task asks for; the agent goes on, and is told why in `note`."""
    return await _answer(state, request.user, plan, code, Deny(approval=data.approval, note=data.note))


async def _answer(state: State, caller: Caller, plan: str, code: str, command: Approve | Deny) -> Accepted:
    """Raises `ProblemError` 404 and 409, `Refused`, `StoreUnavailable`."""
    fold = await find_task(state, caller, plan, code)
    known = await promptly(load_task(state.store, plan, code))  # not from memory: what it asks may be a moment old
    asked = known.state.approval
    if asked is None or asked.approval != command.approval:
        asks_now = asked is not None and known.state.status == "awaiting_approval"
        detail = f"task {code} does not ask for that{' any more: it asks for something else' if asks_now else ''}; "
        detail += f"GET /api/plans/{plan}/tasks/{code} tells what it asks for"
        raise ProblemError(NOT_ASKED.status, NOT_ASKED.code, NOT_ASKED.title, detail)
    accepted = await command_task(state, caller, fold, code, command, known=known)
    if accepted.changed:
        details = {"kind": asked.kind, "tool": asked.tool, "approval": asked.approval, "seq": accepted.seq}
        action = "task.approved" if isinstance(command, Approve) else "task.denied"
        async with state.db.write() as session:
            await audit.record(session, caller.actor, action, f"{plan}/{code}", details, utc_now())
    return accepted


approvals_router = Router(path="/", tags=["tasks"], route_handlers=[approve_task, deny_task])
