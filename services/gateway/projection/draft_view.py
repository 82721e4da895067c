"""What the API shows of candidates: of those that are there, and of those that were asked for."""

from typing import Literal

import msgspec

from shared.events import PlanFault, Usage
from shared.plan import Candidate, DraftRequest
from shared.spec import NAME_MAX_CHARS, PlanningMode
from shared.subjects import draft
from shared.task import TaskState, TaskStatus

GOAL_SHOWN_MAX_CHARS = 1000
FAULTS_SHOWN_MAX = 50


class CandidateView(msgspec.Struct, frozen=True, kw_only=True):
    """A plan that may be chosen."""

    candidate: str
    name: str
    digest: str
    """SHA-256 of it: its ETag, and what a choice may insist on."""
    tasks: int
    base_commit: str
    draft: str
    """The task under which an agent made it, such as `_draft-1`: its transcript is there. Empty: nobody's goal."""
    model: str
    """Which made it; empty where none did."""
    cost_usd: float
    """Of making it."""
    duration_s: float
    template: str
    """Id of the template that it was made from; empty: of none."""


class RequestView(msgspec.Struct, frozen=True, kw_only=True):
    """A candidate that was asked for and is not there."""

    candidate: str
    """The name that it will have."""
    by_hand: bool
    """A person makes it, with the prompt of `GET /api/plans/{plan}/prompt`."""
    state: Literal["open", "failed"]
    """`failed`: it did not come about. By hand: what was put there is no plan; another one is still taken."""
    goal: str
    """Its beginning."""
    planning_mode: PlanningMode
    message: str
    """Why it failed."""
    faults: tuple[PlanFault, ...]
    """What is wrong with the plan that came of it; the first of them."""
    draft: str
    """The task under which an agent makes it, such as `_draft-1`; empty: by hand."""
    status: TaskStatus | None
    """Of that task; null: it has not begun."""
    runner: str
    model: str
    cost_usd: float
    """So far."""
    budget_usd: float
    path: str
    """By hand: where the plan may be put, from the collaboration repository's root."""


def candidate_view(name: str, candidate: Candidate, tag: str) -> CandidateView:
    """`tag` is its digest, which takes long to make."""
    origin = candidate.origin
    return CandidateView(
        candidate=name,
        name=candidate.spec.name,
        digest=tag,
        tasks=len(candidate.spec.tasks),
        base_commit=candidate.base_commit,
        draft=origin.draft,
        model=origin.model,
        cost_usd=origin.usage.cost_usd,
        duration_s=origin.duration_s,
        template=origin.template,
    )


def request_view(plan: str, name: str, asked: DraftRequest, drafts: dict[str, TaskState]) -> RequestView:
    """The request as it stands; `drafts` are the plan's."""
    request, failed = asked.request, asked.failed
    entity = "" if request.by_hand else draft(name)
    making = drafts.get(entity)
    usage = making.usage if making is not None else Usage()
    if failed is not None and making is None:
        usage = failed.origin.usage
    return RequestView(
        candidate=name,
        by_hand=request.by_hand,
        state="open" if failed is None else "failed",
        goal=request.goal[:GOAL_SHOWN_MAX_CHARS],
        planning_mode=request.planning_mode,
        message=failed.message if failed is not None else "",
        faults=failed.faults[:FAULTS_SHOWN_MAX] if failed is not None else (),
        draft=entity,
        status=making.status if making is not None else None,
        runner=making.runner if making is not None else "",
        model=(request.planner.model or "") if request.planner is not None else "",
        cost_usd=usage.cost_usd,
        budget_usd=request.budget_usd,
        path=request.collab.plan_path(plan) if request.by_hand else "",
    )


def name_from(goal: str) -> str:
    """What a plan is called as long as it has no candidate: its goal's first line."""
    first = next((line.strip() for line in goal.splitlines() if line.strip()), "")
    return first if len(first) <= NAME_MAX_CHARS else first[: NAME_MAX_CHARS - 1] + "…"
