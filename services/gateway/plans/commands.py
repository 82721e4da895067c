"""Commands to plans and tasks over HTTP. Each answers once its event is stored, without waiting for any view of it."""

from typing import Annotated

import msgspec
from litestar.datastructures import State

from services.gateway.accounts.access import Caller
from services.gateway.plans.lookup import LOG_PATIENCE_S, promptly
from services.gateway.problems import Problem
from services.gateway.projection.views import PlanFold
from shared.clock import new_id
from shared.commands import PlanCommand, TaskCommand
from shared.store import Meta, StoreUnavailable
from shared.task import TaskState
from shared.transact import Contended, Loaded, to_plan, to_task

GRACE_S = 0.5
"""The transaction ends by itself after `LOG_PATIENCE_S`; one of its reads may be waiting then."""

NOTE_MAX_CHARS = 2_000

REFUSED = Problem(
    status=409,
    code="refused",
    title="Not possible now",
    detail="the plan is completed: it can't be paused",
)


class Note(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Why a person does it; kept with the event."""

    note: Annotated[str, msgspec.Meta(max_length=NOTE_MAX_CHARS)] = ""


def note_of(body: Note | None) -> str:
    """A request without a body is one without a note."""
    return body.note if body is not None else ""


class Accepted(msgspec.Struct, frozen=True):
    """A command was carried out. `changed` is False where it had been before.

    Reads take the sequence as `min_seq` to be at least that fresh.
    """

    plan: str
    seq: int
    changed: bool = True


async def command_plan(state: State, caller: Caller, plan: str, command: PlanCommand) -> Accepted:
    """Gives a command to a plan that the caller was found to see. Raises `Refused`, `StoreUnavailable`."""
    meta = new_meta(state, caller)
    try:
        decided = await promptly(
            to_plan(state.store, plan, command, meta, patience_s=LOG_PATIENCE_S), LOG_PATIENCE_S + GRACE_S
        )
    except Contended as error:
        raise StoreUnavailable(str(error)) from error
    return Accepted(plan, decided.seq, changed=decided.event is not None)


async def command_task(
    state: State,
    caller: Caller,
    fold: PlanFold,
    code: str,
    command: TaskCommand,
    *,
    known: Loaded[TaskState] | None = None,
    only_at: int | None = None,
) -> Accepted:
    """Gives a command to a task of a plan that the caller was found to see. Raises `Refused`, `StoreUnavailable`."""
    meta = new_meta(state, caller)
    if known is None:
        known = Loaded(fold.board.tasks[code], fold.board.seqs[code])
    sent = to_task(state.store, fold.plan, code, command, meta, known=known, only_at=only_at, patience_s=LOG_PATIENCE_S)
    try:
        decided = await promptly(sent, LOG_PATIENCE_S + GRACE_S)
    except Contended as error:
        raise StoreUnavailable(str(error)) from error
    return Accepted(fold.plan, decided.seq, changed=decided.event is not None)


def new_meta(state: State, caller: Caller, correlation: str = "") -> Meta:
    """Who wants it, and as of when."""
    return Meta(
        actor=caller.actor, command_id=new_id(), correlation=correlation or new_id(), seen=state.live.seq
    )  # fmt: skip
