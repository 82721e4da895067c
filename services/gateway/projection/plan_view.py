"""What the API shows of a plan."""

from datetime import datetime

import msgspec

from services.gateway.projection.draft_view import CandidateView, RequestView
from services.gateway.projection.fork_view import ForkedFrom, ForkMade
from services.gateway.projection.imported_view import ImportedFrom
from shared.board import Standing
from shared.events import Usage
from shared.plan import PlanStatus
from shared.task import TaskStatus


class PlanView(msgspec.Struct, frozen=True, kw_only=True):
    """A plan as it stands."""

    plan: str
    project: str
    """Empty for a plan that was made before there were projects."""
    name: str
    status: PlanStatus
    standing: Standing
    reason: str
    repo_url: str
    base_commit: str
    head_commit: str
    branch: str
    created_at: datetime
    updated_at: datetime
    seq: int
    """Sequence of the plan's newest event."""
    tasks: int
    """Without `_deliver`."""
    counts: dict[TaskStatus, int]
    usage: Usage
    """Of its tasks."""
    planning_usage: Usage
    """Of making its candidates, which is not of its budget."""
    budget_usd: float | None
    """The most that the whole plan may cost; null: no limit."""
    max_parallel: int | None
    goal: str
    """What candidates were asked for last; its beginning. Empty: never."""
    requests: tuple[RequestView, ...]
    """Candidates that were asked for and are not there; only while none is chosen."""
    candidates: tuple[CandidateView, ...]
    """Only while none is chosen."""
    candidate: str
    """The chosen one's name."""
    digest: str
    """The chosen one's."""
    is_busy: bool
    """Whether it goes on by itself, without a person."""
    is_due: bool
    """Whether its only candidate is to be finalized by itself."""
    held_up: str
    """Why that could not be done; it is tried again. Empty: nothing hinders it. Not told in streams."""
    forked_from: ForkedFrom | None
    """Set where it goes on from a moment of another plan."""
    forks: tuple[ForkMade, ...]
    """Plans that go on from a moment of this one; the newest 100."""
    fault: str
    """Set where the log holds an event of the plan that can't be read."""
    imported: ImportedFrom | None = None
    """Set where the plan was brought as a file: it is read-only."""
