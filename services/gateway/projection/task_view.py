"""What the API shows of a task."""

from datetime import datetime

import msgspec

from services.gateway.database.tables import Mode
from services.gateway.projection.approval_view import ApprovalView
from services.gateway.projection.fork_view import InheritedView
from services.gateway.projection.review_view import ReviewView
from shared.events import Conflict, FailureKind, Usage
from shared.task import TaskStatus

WAITING_FOR_SHOWN_MAX = 20


class TaskView(msgspec.Struct, frozen=True, kw_only=True):
    """A task as it stands."""

    code: str
    place: int
    """In topological order, from 0."""
    seq: int
    """Sequence of the task's newest event: its ETag."""
    name: str
    status: TaskStatus
    dispatch_mode: Mode
    """`manual`: a person does it."""
    agent: str
    depends_on: tuple[str, ...]
    """None for `_deliver`, which waits for all others."""
    timeout_minutes: float | None
    budget_usd: float
    """The most that one attempt may cost."""
    attempt: int
    lease: int
    runner: str
    started_at: datetime | None
    ended_at: datetime | None
    retry_at: datetime | None
    usage: Usage
    failure: FailureKind | None
    message: str
    summary: str
    commit: str
    base_commit: str
    approval: ApprovalView | None
    """What the newest attempt asked a person last."""
    conflict: Conflict | None
    """Whose work could not be merged, and which files; only of a failure that is shown."""
    inherited: InheritedView | None
    """Set where another plan has done it, of which this one is a fork; its cost is not in `usage`."""
    waiting_for: tuple[str, ...]
    """Predecessors that have not ended, at most `WAITING_FOR_SHOWN_MAX`; only while the task is pending."""
    reviews: str
    """The task whose work this one judges; empty: it does work of its own."""
    review: ReviewView | None
    """What it said of that."""
    is_decision: bool
    """Nobody does it: it completes once all reviews that it depends on approve."""
    max_review_rounds: int | None
    """Only of a decision."""
    round: int
    """Of a review loop."""
    deadline: datetime | None
    """When a manual task's person is late; while nobody can look for the result, it stands still."""
    result_repo_url: str
    """Of a manual task that was handed out: where its result is looked for; else empty."""
    result_path: str
    """In that repository, from its root."""
    watch_fault: str
    """Why nobody can look for it; empty: they can."""
    watch_fault_since: datetime | None
