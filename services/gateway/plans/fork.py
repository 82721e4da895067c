"""Route: a plan that goes on from a moment of another one. The planner knows what of it is kept; it stores the fork."""

from typing import Annotated, Any

import msgspec
from litestar import Request, Response, Router, post
from litestar.datastructures import State
from litestar.openapi import ResponseSpec
from litestar.params import FromPath, JSONBody

from services.gateway.accounts.access import Caller
from services.gateway.agents.roster import roster
from services.gateway.database.tables import Mode
from services.gateway.idempotency import ids_of
from services.gateway.plans.candidates import FIRST, refuse_closed_meanwhile
from services.gateway.plans.commands import REFUSED, command_plan
from services.gateway.plans.draft_limit import TOO_MANY_DRAFTS, room_for_draft
from services.gateway.plans.kept_commits import COMMITS_GONE, why_not_looked
from services.gateway.plans.lookup import find_plan, promptly
from services.gateway.plans.planner_client import PLAN_TOO_LARGE, fork_plan
from services.gateway.problems import documented
from services.gateway.projects.lookup import BEING_DELETED, find_open_project
from shared.clock import utc_now
from shared.commands import RecordFork, Refused
from shared.events import ForkOf, PlanDrafted
from shared.history.fork import END
from shared.plan import EARLY
from shared.requests import ForkedTask, ForkReply, ForkRequest
from shared.spec import NAME_MAX_CHARS, PLAN_MAX_BYTES, TASKS_MAX
from shared.store import Recorded
from shared.subjects import PLAN

LOOKED_THEN = "the fork was made by an earlier request with this key, and its commits were looked at then, if at all"
_WORD_MAX_CHARS = 70
_Word = Annotated[str, msgspec.Meta(min_length=1, max_length=_WORD_MAX_CHARS)]


class NewFork(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """From when on, and what is to be different."""

    at: Annotated[str, msgspec.Meta(max_length=_WORD_MAX_CHARS)] | int = END
    """A sequence, a time (RFC 3339), or `end`: what was completed by then is kept."""
    only: Annotated[list[_Word], msgspec.Meta(min_length=1, max_length=TASKS_MAX)] | None = None
    """The tasks that are to run, again if they were completed: their codes, `..` behind one for all that wait for it
    too. What they rest on and was not completed runs as well. null: whatever is not kept."""
    edit: Annotated[str, msgspec.Meta(max_length=PLAN_MAX_BYTES)] = ""
    """What is to be different, as a plan file: a task's fields by its `code`, new tasks, the plan's own fields; and
    `remove: [codes]`. Null clears a field."""
    name: Annotated[str, msgspec.Meta(max_length=NAME_MAX_CHARS)] = ""
    """Of the new plan. Empty: the origin's."""
    dry_run: bool = False
    """Whether it is only a question: nothing is stored."""


class Fork(msgspec.Struct, frozen=True, kw_only=True):
    """A plan that goes on from a moment of another one; it is to be finalized like any plan."""

    plan: str
    """Empty: it was a dry run."""
    candidate: str
    seq: int
    """Of the event that stored it; 0: it was a dry run."""
    origin: str
    at: int
    """The moment: the origin's newest event that counts."""
    name: str
    kept: tuple[ForkedTask, ...]
    """With what each cost, which is the origin's."""
    runs: tuple[ForkedTask, ...]
    left_out: tuple[ForkedTask, ...]
    kept_usd: float
    most_usd: float
    """What the tasks that run may cost at most, decisions with all their rounds."""
    not_looked: str
    """Why nobody has looked whether what is kept is still in the code repository; empty: it is there."""


@post(
    "/plans/{plan:str}/fork",
    status_code=201,
    responses={
        200: ResponseSpec(Fork, generate_examples=False, description="What would be; nothing was stored."),
        **documented(400, 401, 404, REFUSED, BEING_DELETED, TOO_MANY_DRAFTS, PLAN_TOO_LARGE, COMMITS_GONE, 422),
    },
)
async def fork(
    plan: FromPath[str], data: JSONBody[NewFork], state: State, request: Request[Caller, Any, Any]
) -> Response[Fork]:
    """Makes a plan that keeps what this one had completed by a moment, and runs the rest. A dry run answers 200.

    Its agents and limits are checked as the project has them now; it starts from the origin's commit. Answers 422 with
    every fault at once. Where a runner answers, it looks whether the commits of what is kept are still there.
    """
    known = (await find_plan(state, request.user, plan)).board.plan
    if known.status in (*EARLY, "finalizing"):
        raise Refused(f"the plan is {known.status}: there is nothing to fork before it is finalized")
    chosen = known.chosen
    if chosen is None:
        raise AssertionError("a plan that was finalized has a chosen candidate")
    ids = ids_of(request)
    new_plan, correlation = ids.new_plan_id(), ids.new_id()
    wanted = await _request(state, request.user, plan, known.project, new_plan, correlation, data)
    if data.dry_run:
        looked = await fork_plan(state.nc, wanted)
        not_looked = await why_not_looked(state, plan, chosen, looked)
        return Response(_shown(wanted, looked, not_looked), status_code=200)
    if before := _made_before(await promptly(state.store.read(new_plan, PLAN)), correlation):
        # What was kept then, also where the origin has gone on since.
        seq, of = before
        reply = await fork_plan(state.nc, msgspec.structs.replace(wanted, at=str(of.seq), dry_run=True))
        reply, not_looked = msgspec.structs.replace(reply, seq=seq), LOOKED_THEN
    else:
        looked = await fork_plan(state.nc, msgspec.structs.replace(wanted, dry_run=True))
        not_looked = await why_not_looked(state, plan, chosen, looked)
        owner_id = await _owner_of(state, request.user, known.project)
        async with room_for_draft(state, request.user, owner_id):
            reply = await fork_plan(state.nc, wanted)
        await refuse_closed_meanwhile(state, request.user, known.project, new_plan)
    await command_plan(state, request.user, plan, RecordFork(plan=new_plan, seq=reply.at))
    return Response(_shown(wanted, reply, not_looked), status_code=201)


async def _request(
    state: State, caller: Caller, plan: str, project_id: str, new_plan: str, correlation: str, data: NewFork
) -> ForkRequest:
    async with state.db.read() as session:
        project = await find_open_project(session, caller, project_id)
        agents = await roster(session, project, utc_now())
    return ForkRequest(
        plan=new_plan,
        candidate=FIRST,
        origin=plan,
        at=str(data.at),
        edit=data.edit,
        only=tuple(data.only) if data.only is not None else None,
        name=data.name,
        dry_run=data.dry_run,
        actor=caller.actor,
        correlation=correlation,
        project=project.id,
        mode=msgspec.convert(project.mode, Mode),
        agents=agents,
    )


async def _owner_of(state: State, caller: Caller, project_id: str) -> str:
    async with state.db.read() as session:
        return (await find_open_project(session, caller, project_id)).owner_id


def _made_before(records: list[Recorded], correlation: str) -> tuple[int, ForkOf] | None:
    """What this very request stored, whose answer was lost, with its sequence."""
    for record in records:
        event = record.event
        if record.meta.correlation == correlation and isinstance(event, PlanDrafted) and event.fork is not None:
            return record.seq, event.fork
    return None


def _shown(wanted: ForkRequest, reply: ForkReply, not_looked: str) -> Fork:
    return Fork(
        plan="" if wanted.dry_run else wanted.plan,
        candidate=wanted.candidate,
        seq=reply.seq,
        origin=wanted.origin,
        at=reply.at,
        name=reply.name,
        kept=reply.kept,
        runs=reply.runs,
        left_out=reply.left_out,
        kept_usd=sum(task.cost_usd for task in reply.kept),
        most_usd=reply.most_usd,
        not_looked=not_looked,
    )


fork_router = Router(path="/", tags=["plans"], route_handlers=[fork])
