"""Routes: a plan's candidates, which may be added and changed until one of them is chosen."""

import re
from typing import Annotated, Any

import msgspec
from litestar import Request, Response, Router, get, post, put
from litestar.datastructures import ResponseHeader, State
from litestar.params import FromPath, HeaderParameter, JSONBody, QueryParameter

from services.gateway.accounts.access import Caller
from services.gateway.agents.connection_test import NO_RUNNER
from services.gateway.agents.roster import roster
from services.gateway.conditions import ETAG, check_if_match, etag, wanted_if_match
from services.gateway.database.tables import Mode, Project
from services.gateway.idempotency import ids_of
from services.gateway.plans.commands import REFUSED
from services.gateway.plans.draft_limit import TOO_MANY_DRAFTS, room_for_draft
from services.gateway.plans.head import NO_HEAD, head_of
from services.gateway.plans.lookup import find_plan, promptly
from services.gateway.plans.planner_client import PLAN_TOO_LARGE, import_text
from services.gateway.problems import Problem, ProblemError, documented, not_found
from services.gateway.projection.draft_view import CandidateView, candidate_view
from services.gateway.projects.lookup import BEING_DELETED, find_open_project
from shared.clock import utc_now
from shared.commands import CancelPlan, Refused
from shared.events import PlanDrafted, PlanRequested
from shared.plan import EARLY, INITIAL, Candidate, PlanState, evolve
from shared.requests import ImportRequest
from shared.spec import PlanSpec, ProjectAgent, digest
from shared.store import Meta, Recorded, StoreUnavailable
from shared.subjects import PLAN
from shared.transact import Loaded, fold, load_plan, to_plan

FIRST = "1"
TRIES_MAX = 5
"""Candidates that others add meanwhile take the number that we would have."""
CLEAN_UP_PATIENCE_S = 5.0
_OBJECT_ID = re.compile(r"[0-9a-f]{40}")

BAD_COMMIT = Problem(
    status=422, code="bad_commit", title="Not a commit", detail="base_commit wants a full object id: 40 hex digits"
)
WHICH_CANDIDATE = Problem(
    status=400,
    code="bad_request",
    title="Bad request",
    detail="candidate: the plan has candidates 1, 2: name one",
)
NEW_ETAG = ResponseHeader(
    name="ETag", documentation_only=True, description="Of the new text; not sent where another one is there already."
)
SHOWN_CANDIDATE = ResponseHeader(
    name="Treadle-Candidate", documentation_only=True, required=True, description="Which candidate it is."
)
CandidateName = Annotated[
    str | None, QueryParameter(max_length=64, description="Its name; needed where the plan has several.")
]
IfMatch = Annotated[
    str | None, HeaderParameter(name="If-Match", description="The candidate's ETag as it was read. Without it: 428.")
]


class NewPlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A plan file, for the project's code repository."""

    text: str
    """YAML or JSON, a Markdown fence around it or not."""
    base_commit: str
    """Full object id that every task starts from; the repository has it."""


class NewCandidate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Another plan file for the same plan."""

    text: str
    base_commit: str | None = None
    """null: that of the first candidate, of the one that is replaced, or of what was asked for."""


class Imported(msgspec.Struct, frozen=True):
    """A candidate is stored."""

    plan: str
    candidate: str
    seq: int


class CandidatesPage(msgspec.Struct, frozen=True):
    """All candidates of a plan; once one is chosen, that one."""

    items: list[CandidateView]
    chosen: str | None


@post(
    "/projects/{project:str}/plans",
    status_code=201,
    responses=documented(400, 401, 404, REFUSED, BEING_DELETED, TOO_MANY_DRAFTS, PLAN_TOO_LARGE, 422, BAD_COMMIT),
)
async def import_plan(
    project: FromPath[str], data: JSONBody[NewPlan], state: State, request: Request[Caller, Any, Any]
) -> Imported:
    """Makes a plan of a file, with this as its first candidate. Answers 422 with every fault at once."""
    ids = ids_of(request)
    plan, correlation = ids.new_plan_id(), ids.new_id()
    base_commit = checked_commit(data.base_commit)
    async with state.db.read() as session:
        owner_id = (await find_open_project(session, request.user, project)).owner_id
    if before := made_before(await promptly(state.store.read(plan, PLAN)), correlation):
        return before
    async with room_for_draft(state, request.user, owner_id):
        seq = await import_candidate(state, request.user, project, plan, FIRST, data.text, base_commit, correlation)
    return Imported(plan, FIRST, seq)


@post(
    "/plans/{plan:str}/candidates",
    status_code=201,
    responses=documented(400, 401, 404, REFUSED, BEING_DELETED, NO_HEAD, PLAN_TOO_LARGE, 422, BAD_COMMIT, NO_RUNNER),
)
async def add_candidate(
    plan: FromPath[str], data: JSONBody[NewCandidate], state: State, request: Request[Caller, Any, Any]
) -> Imported:
    """Adds a candidate, while none is chosen: what was asked for by hand, else another one under the next number."""
    await find_plan(state, request.user, plan)
    correlation = ids_of(request).new_id()
    for _ in range(TRIES_MAX):
        records = await promptly(state.store.read(plan, PLAN))
        if before := made_before(records, correlation):
            return before
        known = fold(INITIAL, evolve, records).state
        name, repo_url, base_commit = _next(known)
        by_hand = asked_by_hand(known)
        if not (data.base_commit or base_commit):  # nobody could tell it when the plan was asked for
            base_commit = await head_of(state, known.project, repo_url)
        base_commit = checked_commit(data.base_commit or base_commit)
        try:
            seq = await import_candidate(
                state, request.user, known.project, plan, name, data.text, base_commit, correlation, url=repo_url,
                among=by_hand.agents if by_hand is not None else None,
            )  # fmt: skip
        except Refused:
            now = (await promptly(load_plan(state.store, plan))).state
            if name in now.candidates or name in now.requests.keys() - known.requests.keys():
                continue  # somebody else's has that number now
            raise
        return Imported(plan, name, seq)
    raise StoreUnavailable(f"others added candidates to plan {plan} all the while")


@get("/plans/{plan:str}/candidates", responses=documented(401, 404))
async def list_candidates(plan: FromPath[str], state: State, request: Request[Caller, Any, Any]) -> CandidatesPage:
    """The plan's candidates by their numbers: 2 comes before 10."""
    known = (await find_plan(state, request.user, plan)).board.plan
    ordered = sorted(known.candidates.items(), key=lambda named: _by_number(named[0]))
    items = [candidate_view(name, one, digest(one.spec)) for name, one in ordered]
    if known.chosen is not None:
        items = [candidate_view(known.chosen_name, known.chosen, known.digest)]
    return CandidatesPage(items, known.chosen_name or None)


@get(
    "/plans/{plan:str}/spec", response_headers=[ETAG, SHOWN_CANDIDATE], responses=documented(WHICH_CANDIDATE, 401, 404)
)
async def read_spec(
    plan: FromPath[str], state: State, request: Request[Caller, Any, Any], candidate: CandidateName = None
) -> Response[PlanSpec]:
    """A candidate as its author could have written it: the project's agents are named in it, not declared.

    Once one is chosen it is shown with what the project's settings make of it.
    """
    await find_plan(state, request.user, plan)
    loaded = await promptly(load_plan(state.store, plan))
    name, found = _named(plan, loaded.state, candidate)
    tag = loaded.state.digest if loaded.state.chosen is not None else digest(found.spec)
    own = {agent: spec for agent, spec in found.spec.agents.items() if not spec.agent_id}
    body = msgspec.structs.replace(found.spec, agents=own)
    return Response(body, headers={"ETag": etag(tag), "Treadle-Candidate": name})


@put(
    "/plans/{plan:str}/spec",
    status_code=200,
    response_headers=[NEW_ETAG],
    responses=documented(400, 401, 404, REFUSED, BEING_DELETED, 412, PLAN_TOO_LARGE, 422, BAD_COMMIT, 428),
)
async def replace_spec(
    plan: FromPath[str],
    data: JSONBody[NewCandidate],
    state: State,
    request: Request[Caller, Any, Any],
    candidate: CandidateName = None,
    if_match: IfMatch = None,
) -> Response[Imported]:
    """Puts another text in a candidate's place, while none is chosen."""
    seen = wanted_if_match(if_match)
    await find_plan(state, request.user, plan)
    loaded = await promptly(load_plan(state.store, plan))
    _check_early(loaded.state)
    name, found = _named(plan, loaded.state, candidate)
    if found.fork is not None:
        raise Refused(
            f"the plan is a fork of {found.fork.plan}: fork that one again with other changes, POST "
            f"/api/plans/{found.fork.plan}/fork"
        )
    replaces = digest(found.spec)
    check_if_match(seen, replaces)
    seq = await import_candidate(
        state,
        request.user,
        found.project,
        plan,
        name,
        data.text,
        checked_commit(data.base_commit or found.base_commit),
        ids_of(request).new_id(),
        url=found.repo_url,
        replaces=replaces,
    )
    now = await _stored_at(state, plan, name, seq)
    return Response(Imported(plan, name, seq), headers={"ETag": etag(digest(now.spec))} if now is not None else {})


def made_before(records: list[Recorded], correlation: str) -> Imported | None:
    """What this very request stored, whose answer was lost; only with an idempotency key it has the same ids again."""
    for record in records:
        if record.meta.correlation == correlation and isinstance(record.event, PlanDrafted):
            return Imported(record.plan, record.event.candidate, record.seq)
    return None


async def import_candidate(
    state: State,
    caller: Caller,
    project_id: str,
    plan: str,
    candidate: str,
    text: str,
    base_commit: str,
    correlation: str,
    *,
    url: str = "",
    replaces: str = "",
    template: str = "",
    among: tuple[ProjectAgent, ...] | None = None,
) -> int:
    """Has the planner store a candidate; the sequence of its event.

    `among` are those of the project's agents that its tasks may be given to; None: all.
    """
    async with state.db.read() as session:
        project = await find_open_project(session, caller, project_id)
        agents = await roster(session, project, utc_now())
    if among is not None:
        wanted = {agent.spec.agent_id for agent in among}
        agents = tuple(agent for agent in agents if agent.spec.agent_id in wanted)
    request = ImportRequest(
        plan=plan,
        candidate=candidate,
        text=text,
        repo_url=url or project.code_repo_url,
        base_commit=base_commit,
        actor=caller.actor,
        correlation=correlation,
        project=project.id,
        mode=msgspec.convert(project.mode, Mode),
        agents=agents,
        replaces=replaces,
        template=template,
    )
    seq = await import_text(state.nc, request)
    await refuse_closed_meanwhile(state, caller, project.id, plan)
    return seq


async def refuse_closed_meanwhile(state: State, caller: Caller, project_id: str, plan: str) -> None:
    """Raises `ProblemError` 409: whoever deletes the project may have looked at its plans before this was stored."""
    async with state.db.read() as session:
        project = await session.get(Project, project_id)
    if project is None or project.deleting_since is not None:
        meta = Meta(actor=caller.actor)
        command = CancelPlan(reason="its project is being deleted")
        await to_plan(state.store, plan, command, meta, patience_s=CLEAN_UP_PATIENCE_S)
        raise ProblemError(BEING_DELETED.status, BEING_DELETED.code, BEING_DELETED.title, BEING_DELETED.detail)


async def _stored_at(state: State, plan: str, candidate: str, seq: int) -> Candidate | None:
    """The candidate as that event made it."""
    records = [record for record in await promptly(state.store.read(plan, PLAN)) if record.seq <= seq]
    loaded: Loaded[PlanState] = fold(INITIAL, evolve, records)
    return loaded.state.candidates.get(candidate)


def _check_early(plan: PlanState) -> None:
    """Raises `Refused` where one is chosen."""
    if plan.status not in EARLY:
        raise Refused(f"the plan is {plan.status}: its candidates can't be changed any more, and none added")


def asked_by_hand(plan: PlanState) -> PlanRequested | None:
    """What a person is asked to make."""
    return next((asked.request for asked in plan.requests.values() if asked.request.by_hand), None)


def _next(plan: PlanState) -> tuple[str, str, str]:
    """Name, repository and commit of the next candidate; the commit is empty where none is known. Raises `Refused`."""
    _check_early(plan)
    if by_hand := asked_by_hand(plan):
        return by_hand.candidates[0], by_hand.repo_url, by_hand.base_commit
    numbers = (int(name) for name in (*plan.candidates, *plan.requests) if name.isdecimal())
    name = str(max(numbers, default=0) + 1)
    if first := next(iter(plan.candidates.values()), None):
        return name, first.repo_url, first.base_commit
    asked_for = next(reversed(plan.requests.values())).request
    return name, asked_for.repo_url, asked_for.base_commit


def _by_number(name: str) -> tuple[bool, int, str]:
    """Names that are no numbers come last."""
    number = int(name) if name.isdecimal() else 0
    return not name.isdecimal(), number, name


def _named(plan: str, state: PlanState, name: str | None) -> tuple[str, Candidate]:
    """The candidate that is meant: the chosen or the only one where none is named."""
    known = {state.chosen_name: state.chosen} if state.chosen is not None else state.candidates
    if name is None and len(known) == 1:
        name = next(iter(known))
    if name is None:
        detail = f"candidate: the plan has candidates {', '.join(known)}: name one"
        raise ProblemError(WHICH_CANDIDATE.status, WHICH_CANDIDATE.code, WHICH_CANDIDATE.title, detail)
    found = known.get(name)
    if found is None:
        raise not_found(f"candidate {name[:64]} of plan {plan}", f"GET /api/plans/{plan}/candidates")
    return name, found


def checked_commit(text: str) -> str:
    """Raises `ProblemError` 422 `bad_commit` for what is no full object id."""
    if not _OBJECT_ID.fullmatch(text):
        raise ProblemError(BAD_COMMIT.status, BAD_COMMIT.code, BAD_COMMIT.title, BAD_COMMIT.detail)
    return text


candidates_router = Router(
    path="/",
    tags=["plans"],
    route_handlers=[import_plan, add_candidate, list_candidates, read_spec, replace_spec],
)
