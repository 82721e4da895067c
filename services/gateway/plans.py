"""Routes: plans and tasks. Each command answers once its event is stored, with the sequence."""

import asyncio
from pathlib import PurePosixPath
from time import monotonic
from typing import Annotated

import msgspec
from litestar import Router, get, post
from litestar.datastructures import State
from litestar.params import Parameter
from nats.errors import Error as NatsError
from nats.errors import MaxPayloadError, NoRespondersError

from services.gateway.lookup import find_plan, find_task, read_model
from services.gateway.problems import ProblemError
from services.gateway.views import PlanView, TaskView, event_json
from shared import commands as c
from shared.clock import new_id, new_plan_id
from shared.events import TaskDispatched
from shared.repo_url import BadRepoUrl, check_repo_url, is_local_path
from shared.requests import ImportReply, ImportRequest
from shared.spec import PLAN_MAX_BYTES
from shared.store import Meta, Recorded, StoreUnavailable
from shared.subjects import PLANNER_IMPORT
from shared.transact import to_plan, to_task

COMMAND_PATIENCE_S = 5.0
"""How long a caller waits for the log before 503: long enough for a server that is being restarted."""
IMPORT_TIMEOUT_S = 60.0
PLANNER_PATIENCE_S = 15.0
"""How long nobody may hear an import: the suite counts as ready without a planner, and a killed one comes back."""
PLANNER_AGAIN_S = 0.1
EVENTS_PAGE_MAX = 1_000
SEQUENCE_MAX = 2**53
ACTOR = "user:local"
"""There are no accounts yet: whoever holds the token is the machine's user."""
CANDIDATE = "1"


class NewPlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A plan file and the repository that it is for."""

    text: str
    repo_url: str
    base_commit: str


class Note(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Why a person does it; kept with the event."""

    note: Annotated[str, msgspec.Meta(max_length=2_000)] = ""


class Chosen(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which candidate to finalize."""

    candidate: str


class Accepted(msgspec.Struct, frozen=True):
    """A command was carried out. `changed` is False where it had been before."""

    plan: str
    seq: int
    changed: bool = True


class EventsPage(msgspec.Struct, frozen=True):
    """Some events of a plan; `next_after` continues, None at the end."""

    events: list[dict[str, object]]
    next_after: int | None


@post("/plans", status_code=201)
async def import_plan(data: NewPlan, state: State) -> Accepted:
    """Makes a plan of a file. Answers 422 with every fault where the file is not a valid plan."""
    if len(data.text.encode()) > PLAN_MAX_BYTES:
        raise _too_large()
    try:
        repo_url = check_repo_url(data.repo_url, allow_local=True, allow_private_hosts=True)
        if is_local_path(repo_url) and not PurePosixPath(repo_url).is_absolute():
            raise BadRepoUrl("a path must be absolute: the gateway does not know your directory")
    except BadRepoUrl as error:
        raise ProblemError(422, "bad_repository", "Not a repository's address", str(error)) from error
    if not _is_object_id(data.base_commit):
        raise ProblemError(422, "bad_commit", "Not a commit", "base_commit wants a full object id in hex")
    request = ImportRequest(
        plan=new_plan_id(),
        candidate=CANDIDATE,
        text=data.text,
        repo_url=repo_url,
        base_commit=data.base_commit,
        actor=ACTOR,
        correlation=new_id(),
    )
    reply = await _ask_planner(state, request)
    if reply.faults:
        detail = "\n".join(fault.message for fault in reply.faults[:20])
        raise ProblemError(422, "invalid_plan", "Not a valid plan", detail, reply.faults)
    if reply.refused:
        raise c.Refused(reply.refused)
    return await _accepted(state, request.plan, reply.seq)


@get("/plans")
async def list_plans(state: State) -> list[PlanView]:
    """All plans, the newest first."""
    return [fold.view() for fold in sorted(read_model(state).plans.values(), key=lambda f: f.created_at, reverse=True)]


@get("/plans/{plan:str}")
async def read_plan(plan: str, state: State) -> PlanView:
    """One plan."""
    return find_plan(state, plan).view()


@post("/plans/{plan:str}/finalize", status_code=202)
async def finalize_plan(plan: str, data: Chosen, state: State) -> Accepted:
    """Chooses a candidate: from here on the plan runs."""
    return await _to_plan(state, plan, c.Finalize(candidate=data.candidate))


@post("/plans/{plan:str}/pause", status_code=202)
async def pause_plan(plan: str, state: State, data: Note) -> Accepted:
    """Starts nothing new; what runs goes on."""
    return await _to_plan(state, plan, c.Pause(reason=data.note))


@post("/plans/{plan:str}/resume", status_code=202)
async def resume_plan(plan: str, state: State) -> Accepted:
    """Starts tasks again."""
    return await _to_plan(state, plan, c.Resume())


@post("/plans/{plan:str}/cancel", status_code=202)
async def cancel_plan(plan: str, state: State, data: Note) -> Accepted:
    """Ends the plan: nothing starts any more, what runs is stopped."""
    return await _to_plan(state, plan, c.CancelPlan(reason=data.note))


@get("/plans/{plan:str}/tasks")
async def list_tasks(plan: str, state: State) -> list[TaskView]:
    """The plan's tasks in topological order; none until the plan is finalized."""
    return find_plan(state, plan).tasks()


@get("/plans/{plan:str}/tasks/{code:str}")
async def read_task(plan: str, code: str, state: State) -> TaskView:
    """One task."""
    return find_task(state, plan, code).task(code)


@get("/plans/{plan:str}/tasks/{code:str}/prompt")
async def read_prompt(plan: str, code: str, state: State) -> dict[str, object]:
    """What the agent was told at the newest dispatch."""
    find_task(state, plan, code)
    for record in reversed(await state.store.read(plan, code)):
        if isinstance(record.event, TaskDispatched):
            return {"attempt": record.event.attempt, "prompt": record.event.prompt}
    raise ProblemError(409, "not_dispatched", "Not dispatched yet", f"task {code} has not been dispatched yet")


@post("/plans/{plan:str}/tasks/{code:str}/redispatch", status_code=202)
async def redispatch_task(plan: str, code: str, data: Note, state: State) -> Accepted:
    """Asks for another attempt."""
    return await _to_task(state, plan, code, c.Redispatch(note=data.note))


@post("/plans/{plan:str}/tasks/{code:str}/abandon", status_code=202)
async def abandon_task(plan: str, code: str, data: Note, state: State) -> Accepted:
    """Gives the task up: its successors don't wait for it."""
    return await _to_task(state, plan, code, c.Abandon(note=data.note))


@post("/plans/{plan:str}/tasks/{code:str}/complete", status_code=202)
async def complete_task(plan: str, code: str, data: Note, state: State) -> Accepted:
    """Takes a person's word that the task is done."""
    return await _to_task(state, plan, code, c.MarkComplete(note=data.note))


@post("/plans/{plan:str}/tasks/{code:str}/cancel", status_code=202)
async def cancel_task(plan: str, code: str, data: Note, state: State) -> Accepted:
    """Stops the task; it then needs attention."""
    fold = find_task(state, plan, code)
    phase = fold.board.plan.phase
    return await _to_task(state, plan, code, c.CancelTask(phase=phase, reason=data.note or "cancelled by a person"))


@get("/plans/{plan:str}/events")
async def list_events(
    plan: str,
    state: State,
    after: Annotated[int, Parameter(ge=0, le=SEQUENCE_MAX)] = 0,
    limit: Annotated[int, Parameter(ge=1, le=EVENTS_PAGE_MAX)] = 100,
) -> EventsPage:
    """The plan's events from the log itself."""
    find_plan(state, plan)
    page: list[Recorded] = await state.store.read(plan, after=after, limit=limit)
    return EventsPage([event_json(r) for r in page], page[-1].seq if len(page) == limit else None)


async def _ask_planner(state: State, request: ImportRequest) -> ImportReply:
    """Waits for a planner that is just being started. Repeating the request is harmless: it names the candidate."""
    body = msgspec.json.encode(request)
    until_s = monotonic() + PLANNER_PATIENCE_S
    while True:
        try:
            answer = await state.nc.request(PLANNER_IMPORT, body, timeout=IMPORT_TIMEOUT_S)
            return msgspec.json.decode(answer.data, type=ImportReply)
        except MaxPayloadError as error:
            raise _too_large() from error
        except (NatsError, TimeoutError) as error:
            if not isinstance(error, NoRespondersError) or monotonic() > until_s:
                raise StoreUnavailable(f"the planner does not answer: {error!r}") from error
            await asyncio.sleep(PLANNER_AGAIN_S)


async def _to_plan(state: State, plan: str, command: c.PlanCommand) -> Accepted:
    find_plan(state, plan)
    meta = _meta(state)
    decided = await to_plan(state.store, plan, command, meta, patience_s=COMMAND_PATIENCE_S)
    return await _accepted(state, plan, decided.seq, changed=decided.event is not None)


async def _to_task(state: State, plan: str, code: str, command: c.TaskCommand) -> Accepted:
    find_task(state, plan, code)
    meta = _meta(state)
    decided = await to_task(state.store, plan, code, command, meta, patience_s=COMMAND_PATIENCE_S)
    return await _accepted(state, plan, decided.seq, changed=decided.event is not None)


def _meta(state: State) -> Meta:
    return Meta(actor=ACTOR, command_id=new_id(), correlation=new_id(), seen=read_model(state).seq)


async def _accepted(state: State, plan: str, seq: int, *, changed: bool = True) -> Accepted:
    """Answers once our own view has the event too, so that a read that follows sees it."""
    try:
        await read_model(state).at_least(seq)
    except TimeoutError as error:
        raise StoreUnavailable(f"event {seq} is stored, but the gateway's view lags behind") from error
    return Accepted(plan, seq, changed)


def _too_large() -> ProblemError:
    limit = f"{PLAN_MAX_BYTES // 1024**2} MiB"
    return ProblemError(413, "plan_too_large", "Plan too large", f"a plan may be {limit} at most: split it")


def _is_object_id(text: str) -> bool:
    return len(text) == 40 and all(ch in "0123456789abcdef" for ch in text)


plans_router = Router(
    path="/",
    tags=["plans"],
    route_handlers=[
        import_plan, list_plans, read_plan, finalize_plan, pause_plan, resume_plan, cancel_plan, list_tasks, read_task,
        read_prompt, redispatch_task, abandon_task, complete_task, cancel_task, list_events,
    ],
)  # fmt: skip
