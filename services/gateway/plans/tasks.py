"""Routes: the tasks of a plan."""

from typing import Annotated, Any

import msgspec
from litestar import Request, Response, Router, get, patch, post
from litestar.datastructures import State
from litestar.di import NamedDependency, Provide
from litestar.params import FromPath, HeaderParameter, JSONBody, QueryParameter

from services.gateway.accounts.access import Caller
from services.gateway.agents.roster import roster
from services.gateway.archives.rows import is_imported
from services.gateway.conditions import ETAG, check_if_match, etag, wanted_if_match
from services.gateway.database.tables import Mode, Project
from services.gateway.paging import Asked, Page
from services.gateway.plans.commands import NOTE_MAX_CHARS, REFUSED, Accepted, Note, command_task, note_of
from services.gateway.plans.lookup import find_execution, find_imported, find_task, promptly, reading_plan
from services.gateway.plans.planner_client import check_edit
from services.gateway.plans.watching import watching_router, with_what_lies_there
from services.gateway.problems import Problem, ProblemError, documented
from services.gateway.projection import reads
from services.gateway.projection.reads import MinSeq, TaskFilters, asked_tasks, fresh, json_answer
from services.gateway.projection.task_view import TaskView
from services.gateway.projection.views import PlanFold
from shared import commands as c
from shared.clock import utc_now
from shared.events import TaskApprovalRequested, TaskDispatched, TaskReadied
from shared.plan import ENDED, Candidate
from shared.requests import EditRequest
from shared.spec import DELIVER, DESCRIPTION_MAX_BYTES, ProjectAgent
from shared.subjects import is_draft
from shared.task import INITIAL, evolve
from shared.transact import fold as folded
from shared.transact import load_task

IfMatch = Annotated[
    str | None, HeaderParameter(name="If-Match", description="The task's ETag as it was read. Without it: 428.")
]
Unset = msgspec.UnsetType
UNSET = msgspec.UNSET
Word = Annotated[str | None, QueryParameter(max_length=64)]

IS_CUT = b'"input_is_cut":true'
"""In the JSON of a task whose approval is not shown whole."""
NOT_DISPATCHED = Problem(
    status=409, code="not_dispatched", title="Not dispatched yet", detail="task T1 has not been dispatched yet"
)
NOT_READIED = Problem(
    status=409,
    code="not_readied",
    title="Not readied",
    detail="task T1 is pending: what it waits for is not done yet, or it is not a manual task",
)


class RetryChange(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """How often a failing task is tried."""

    max_attempts: int | Unset = UNSET
    backoff_s: float | Unset = UNSET


class TaskChanges(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is to be different: a field left out stays, null clears it. A plan file's fields, under its rules.

    `code`, `depends_on` and `reviews` stay as they were planned: naming others is answered with a fault that says so.
    """

    code: str | Unset = UNSET
    depends_on: list[str] | Unset | None = UNSET
    name: str | Unset | None = UNSET
    description: Annotated[str, msgspec.Meta(max_length=DESCRIPTION_MAX_BYTES)] | Unset | None = UNSET
    assignee: str | Unset | None = UNSET
    expected_output: str | Unset | None = UNSET
    timeout_minutes: float | Unset | None = UNSET
    verify: list[str] | Unset | None = UNSET
    verify_rounds: int | Unset | None = UNSET
    requires_approval: bool | Unset | None = UNSET
    allow_no_change: bool | Unset | None = UNSET
    retry: RetryChange | Unset | None = UNSET
    budget_usd: float | Unset | None = UNSET
    reviews: str | Unset | None = UNSET
    max_review_rounds: int | Unset | None = UNSET
    fixer: str | Unset | None = UNSET
    note: Annotated[str, msgspec.Meta(max_length=NOTE_MAX_CHARS)] = ""
    """Why; kept with the event."""


class Prompt(msgspec.Struct, frozen=True, kw_only=True):
    """What a task's agent is told, or a person gives to theirs."""

    plan: str
    task: str
    attempt: int
    dispatched: bool
    """False: it waits for its person."""
    prompt: str


@get("/plans/{plan:str}/tasks", dependencies={"asked": Provide(asked_tasks)}, responses=documented(400, 401, 404))
async def list_tasks(
    plan: FromPath[str],
    state: State,
    request: Request[Caller, Any, Any],
    asked: NamedDependency[Asked],
    status: Word = None,
    agent: Word = None,
    min_seq: MinSeq = 0,
) -> Response[Page[TaskView]]:
    """The plan's tasks in topological order; none until the plan is finalized."""
    filters = TaskFilters(status=status, agent=agent)
    if is_imported(plan):
        return json_answer(reads.tasks_of(await find_imported(state, request.user, plan), filters, asked))
    await fresh(state, min_seq)
    if (quick := await reads.tasks_in_memory(state, request.user, plan, filters, asked)) is not None:
        return json_answer(quick)
    async with reading_plan(state, request.user, plan, min_seq) as (session, row):
        return json_answer(await reads.list_tasks(session, row, filters, asked))


@get("/plans/{plan:str}/tasks/{code:str}", response_headers=[ETAG], responses=documented(400, 401, 404, 503))
async def read_task(
    plan: FromPath[str], code: FromPath[str], state: State, request: Request[Caller, Any, Any], min_seq: MinSeq = 0
) -> Response[TaskView]:
    """One task. Its ETag is what a change of it must carry as `If-Match`."""
    if is_imported(plan):
        fold = await find_task(state, request.user, plan, code)
        body, seq = fold.task_json(code), fold.board.seqs[code]
    else:
        async with reading_plan(state, request.user, plan, min_seq) as (session, _):
            task = await reads.find_task(session, request.user, plan, code)
        body, seq = task.view, task.seq
    if IS_CUT in body:  # never within a text, where quotes are escaped
        body = await _with_whole_input(state, plan, code, body)
    return json_answer(body, {"ETag": etag(seq)})


async def _with_whole_input(state: State, plan: str, code: str, body: bytes) -> bytes:
    """What an agent wants to do can be a megabyte: rows hold its beginning, the log all of it."""
    task = msgspec.json.decode(body, type=TaskView)
    shown = task.approval
    for record in reversed(await promptly(state.store.read(plan, code))):
        event = record.event
        if isinstance(event, TaskApprovalRequested) and shown is not None and event.approval == shown.approval:
            whole = msgspec.structs.replace(shown, input=event.input, input_is_cut=False)
            return msgspec.json.encode(msgspec.structs.replace(task, approval=whole))
    return body


@get("/plans/{plan:str}/tasks/{code:str}/prompt", responses=documented(401, 404, NOT_DISPATCHED))
async def read_prompt(
    plan: FromPath[str], code: FromPath[str], state: State, request: Request[Caller, Any, Any]
) -> Prompt:
    """What the agent was told at the newest dispatch, or what a manual task's person is to give to their agent."""
    await find_execution(state, request.user, plan, code)
    for record in reversed(await promptly(state.store.read(plan, code))):
        event = record.event
        if isinstance(event, TaskDispatched | TaskReadied):
            return Prompt(
                plan=plan,
                task=code,
                attempt=event.attempt,
                dispatched=isinstance(event, TaskDispatched),
                prompt=event.prompt,
            )
    detail = f"task {code} has not been dispatched yet"
    raise ProblemError(NOT_DISPATCHED.status, NOT_DISPATCHED.code, NOT_DISPATCHED.title, detail)


@patch(
    "/plans/{plan:str}/tasks/{code:str}",
    status_code=202,
    response_headers=[ETAG],
    responses=documented(400, 401, 404, REFUSED, 412, 422, 428),
)
async def change_task(
    plan: FromPath[str],
    code: FromPath[str],
    data: JSONBody[TaskChanges],
    state: State,
    request: Request[Caller, Any, Any],
    if_match: IfMatch = None,
) -> Response[Accepted]:
    """Changes what is to be done, while the task has not begun or needs attention."""
    seen = wanted_if_match(if_match)
    fold = await find_task(state, request.user, plan, code)
    loaded = await promptly(load_task(state.store, plan, code))
    check_if_match(seen, loaded.seq)
    task = loaded.state
    if code == DELIVER or task.spec is None:
        raise c.Refused(f"{code} makes the plan's branch: there is nothing in it to edit")
    chosen = _chosen(fold)
    mode, agents = await _team(state, chosen)
    changes = {name: value for name, value in msgspec.to_builtins(data).items() if value is not UNSET}
    note = changes.pop("note", "")
    if isinstance(changes.get("retry"), dict) and task.spec.retry is not None:
        changes["retry"] = {**msgspec.to_builtins(task.spec.retry), **changes["retry"]}
    edited = await check_edit(
        state.nc,
        EditRequest(
            task=task.spec, agent=task.agent, changes=changes, mode=mode, agents=agents, declared=chosen.spec.agents
        ),
    )
    if edited.task is None or (edited.agent is None and not edited.task.is_decision):
        raise c.Refused("the planner gave no task back: it is older than this gateway; update it")
    command = c.Edit(spec=edited.task, agent=edited.agent, note=note)
    accepted = await command_task(state, request.user, fold, code, command, known=loaded, only_at=loaded.seq)
    return Response(accepted, status_code=202, headers={"ETag": etag(accepted.seq)})


@post(
    "/plans/{plan:str}/tasks/{code:str}/dispatch",
    status_code=202,
    responses=documented(400, 401, 404, NOT_READIED, REFUSED, 412),
)
async def dispatch_task(
    plan: FromPath[str],
    code: FromPath[str],
    state: State,
    request: Request[Caller, Any, Any],
    data: JSONBody[Note | None] = None,
) -> Accepted:
    """Hands a manual task out that is readied: its person has the prompt, and begins.

    What lies at the result's place now, as far as it can be told, is no result of it.
    """
    fold = await find_task(state, request.user, plan, code)
    records = await promptly(state.store.read(plan, code))
    readied = next((r.event for r in reversed(records) if isinstance(r.event, TaskReadied)), None)
    if readied is None:
        detail = (
            f"task {code} is {fold.board.tasks[code].status}: only a manual task that is readied is dispatched by hand"
        )
        raise ProblemError(NOT_READIED.status, NOT_READIED.code, NOT_READIED.title, detail)
    chosen = _chosen(fold)
    task = folded(INITIAL, evolve, records).state
    place = task.place
    if task.status == "readied" and place is not None:
        place = await with_what_lies_there(state, chosen.project, place, task)
    command = c.HandOut(
        phase=fold.board.plan.phase,
        readied=readied,
        project=chosen.project,
        repo_url=chosen.repo_url,
        plan_name=chosen.spec.name,
        place=place,
        note=note_of(data),
    )
    return await command_task(state, request.user, fold, code, command)


@post("/plans/{plan:str}/tasks/{code:str}/redispatch", status_code=202, responses=documented(400, 401, 404, REFUSED))
async def redispatch_task(
    plan: FromPath[str],
    code: FromPath[str],
    state: State,
    request: Request[Caller, Any, Any],
    data: JSONBody[Note | None] = None,
) -> Accepted:
    """Asks for another attempt."""
    fold = await find_task(state, request.user, plan, code)
    status = fold.board.plan.status
    if status in ENDED or status == "cancelling":
        raise c.Refused(
            f"the plan is {status}: none of its tasks runs any more; import it as a new plan to do it again"
        )
    return await command_task(state, request.user, fold, code, c.Redispatch(note=note_of(data)))


@post("/plans/{plan:str}/tasks/{code:str}/abandon", status_code=202, responses=documented(400, 401, 404, REFUSED))
async def abandon_task(
    plan: FromPath[str],
    code: FromPath[str],
    state: State,
    request: Request[Caller, Any, Any],
    data: JSONBody[Note | None] = None,
) -> Accepted:
    """Gives the task up: its successors don't wait for it."""
    fold = await find_task(state, request.user, plan, code)
    return await command_task(state, request.user, fold, code, c.Abandon(note=note_of(data)))


@post("/plans/{plan:str}/tasks/{code:str}/complete", status_code=202, responses=documented(400, 401, 404, REFUSED))
async def complete_task(
    plan: FromPath[str],
    code: FromPath[str],
    state: State,
    request: Request[Caller, Any, Any],
    data: JSONBody[Note | None] = None,
) -> Accepted:
    """Takes a person's word that the task is done."""
    fold = await find_task(state, request.user, plan, code)
    return await command_task(state, request.user, fold, code, c.MarkComplete(note=note_of(data)))


@post("/plans/{plan:str}/tasks/{code:str}/cancel", status_code=202, responses=documented(400, 401, 404, REFUSED))
async def cancel_task(
    plan: FromPath[str],
    code: FromPath[str],
    state: State,
    request: Request[Caller, Any, Any],
    data: JSONBody[Note | None] = None,
) -> Accepted:
    """Stops the task; it then needs attention. Of a candidate that is being made (`_draft-1`), the making ends."""
    fold = await find_execution(state, request.user, plan, code)
    if is_draft(code):
        known = await promptly(load_task(state.store, plan, code))
        command = c.CancelTask(phase="cancelling", reason=note_of(data) or "cancelled by a person")
        return await command_task(state, request.user, fold, code, command, known=known)
    command = c.CancelTask(phase=fold.board.plan.phase, reason=note_of(data) or "cancelled by a person")
    return await command_task(state, request.user, fold, code, command)


def _chosen(fold: PlanFold) -> Candidate:
    chosen = fold.board.plan.chosen
    if chosen is None:
        raise c.Refused(f"plan {fold.plan} is not finalized")
    return chosen


async def _team(state: State, chosen: Candidate) -> tuple[Mode, tuple[ProjectAgent, ...]]:
    """The project's mode and agents as they are now; of a project that is gone, what the plan itself knows."""
    async with state.db.read() as session:
        project = await session.get(Project, chosen.project)
        if project is None:
            return ("auto" if all(agent.is_auto for agent in chosen.spec.agents.values()) else "manual"), ()
        return msgspec.convert(project.mode, Mode), await roster(session, project, utc_now())


tasks_router = Router(
    path="/",
    tags=["tasks"],
    route_handlers=[
        list_tasks, read_task, read_prompt, change_task, dispatch_task, redispatch_task, abandon_task, complete_task,
        cancel_task, watching_router,
    ],
)  # fmt: skip
