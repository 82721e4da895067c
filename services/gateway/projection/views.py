"""A plan's fold as the API shows it: plain records made from the board."""

from base64 import b64encode
from datetime import datetime
from hashlib import sha256

import msgspec

from services.gateway.notifications.happenings import Happening, Looked, Noting
from services.gateway.projection.approval_view import approval_view
from services.gateway.projection.draft_view import (
    GOAL_SHOWN_MAX_CHARS,
    candidate_view,
    name_from,
    request_view,
)
from services.gateway.projection.fork_view import ForkedFrom, forked_from, forks_made, inherited_view
from services.gateway.projection.plan_view import PlanView
from services.gateway.projection.review_view import review_view
from services.gateway.projection.task_view import WAITING_FOR_SHOWN_MAX, TaskView
from shared.board import Board
from shared.events import ForkOf, Kept, PlanRequested, TaskApprovalRequested, TaskInherited, Usage
from shared.plan import Candidate
from shared.skipped import skipped_seq, take
from shared.spec import DELIVER, PlanSpec, encode_spec
from shared.store import Recorded
from shared.subjects import PLAN, is_draft
from shared.task import LEASED, TaskState

_LEASE_ENDS = ("completed", "failed", "cancelled", "released", "approval_requested")
_TASK_ENDS = ("abandoned", "marked_complete", "decided", "cancel_requested")
"""End a person's lease too, which has no event of its own for that; what has ended keeps its time."""
_STANDS = ("seq", "time", "plan", "task", "type", "actor")
"""Where an event stands, as people and programs see it."""
UNREADABLE_SHOWN_MAX_BYTES = 64 * 1024
TASK_BYTES = 4096
"""What a task takes in memory beside the texts that its plan gives it."""


class TaskTimes(msgspec.Struct):
    """When a task's newest attempt began and ended, by the log's clock."""

    started_at: datetime | None = None
    ended_at: datetime | None = None


class _Text(msgspec.Struct, frozen=True):
    """What is known of a candidate's one spelling. It takes long to make: a candidate can be megabytes."""

    spec: PlanSpec
    digest: str
    size_bytes: int


class PlanFold:
    """A plan's board, with the times that only people care for.

    Views are given as JSON too, which is made once for each state however many want it.
    """

    def __init__(self, plan: str, first: Recorded) -> None:
        self.plan = plan
        self.board = Board()
        self.created_at = self.updated_at = first.time
        self.seq = 0
        self.usage = Usage()
        self.planning_usage = Usage()
        self._goal = self._repo_url = self._base_commit = ""
        """Of the newest request."""
        self._finalizes_itself: set[str] = set()
        """Names of candidates that were asked for so."""
        self._times: dict[str, TaskTimes] = {}
        self._bases: dict[str, str] = {}
        self._kept: dict[str, Kept] = {}
        """What was inherited."""
        self._forked_from: tuple[ForkOf, ForkedFrom] | None = None
        """What is shown of it: what is kept can be thousands of tasks."""
        self._asked_bytes: dict[str, int] = {}
        """By task, what its newest approval takes in memory."""
        self._texts: dict[str, _Text] = {}
        self._places: dict[str, int] = {}
        """The visible tasks, in topological order."""
        self._view_json = b""
        self._task_json: dict[str, bytes] = {}
        self._noting = Noting(plan)
        self.happened: tuple[Happening, ...] = ()
        """What people may want to be told of the event that was folded last."""

    def apply(self, record: Recorded) -> list[str]:
        """Folds the plan's next event. The tasks that look otherwise than before, all of them once they are visible.

        Events that were folded before are passed over, so that two readings of the log may overlap.
        """
        self.happened = ()
        if record.seq <= self.seq:
            return []
        before = Looked.at(self.board, record.entity)
        changed = self._fold(record)
        self.happened = self._noting.note(record, self.board, before)
        self._view_json = b""
        for code in changed:
            self._task_json.pop(code, None)
        return changed

    def become(self, other: "PlanFold") -> None:
        """Takes the other's place for whoever looks at this one: it was folded anew."""
        vars(self).update(vars(other))

    def _fold(self, record: Recorded) -> list[str]:
        self.seq, self.updated_at = record.seq, record.time
        before = self.board.tasks.get(record.entity)
        if not take(self.board, record) or skipped_seq(record):
            return []
        if record.entity == PLAN:
            if isinstance(record.event, PlanRequested):
                self._keep_request(record.event)
            specs = {name: one.spec for name, one in self._held().items()}
            self._texts = {name: text for name, text in self._texts.items() if text.spec is specs.get(name)}
            return self._laid_out_anew()
        self._keep_times(record)
        if is_draft(record.entity):  # none of the plan's tasks
            return []
        if anew := self._laid_out_anew():
            return anew
        if record.entity not in self._places:  # added, but not all that was added with it is there yet
            also_before = self.board.plan.also_before.items()
            return [code for code, also in also_before if record.entity in also and code in self._places]
        after = self.board.tasks[record.entity]
        if before is not None and (before.satisfied, before.commit) == (after.satisfied, after.commit):
            return [record.entity]
        return [record.entity, *self._waiting_behind(record.entity)]

    def _keep_request(self, request: PlanRequested) -> None:
        self._goal = request.goal[:GOAL_SHOWN_MAX_CHARS]
        self._repo_url, self._base_commit = request.repo_url, request.base_commit
        by_itself = request.auto_finalize and not request.by_hand
        (self._finalizes_itself.update if by_itself else self._finalizes_itself.difference_update)(request.candidates)

    def _laid_out_anew(self) -> list[str]:
        """All tasks, where some of them were not there before: each may stand at another place, and wait for others."""
        codes = self.board.codes
        if len(codes) == len(self._places):
            return []
        self._places = {code: place for place, code in enumerate(codes)}
        return codes

    def _keep_times(self, record: Recorded) -> None:
        times = self._times.setdefault(record.entity, TaskTimes())
        usage = Usage()
        if record.type == "started":
            times.started_at, times.ended_at = record.time, None
            usage = getattr(record.event, "charged", Usage())
        elif record.type in _LEASE_ENDS:
            times.ended_at = record.time
            usage = getattr(record.event, "usage", Usage())
        elif record.type in _TASK_ENDS and times.ended_at is None and not self._is_leased(record.entity):
            times.ended_at = record.time
        if is_draft(record.entity):
            self.planning_usage += usage
        else:
            self.usage += usage
        if isinstance(record.event, TaskApprovalRequested):
            self._asked_bytes[record.entity] = len(record.event.input)
        if isinstance(record.event, TaskInherited):
            self._kept[record.entity] = record.event.kept
            self._bases[record.entity] = record.event.kept.base_commit
        if record.type == "completed":
            self._bases[record.entity] = getattr(record.event, "base_commit", "")

    def _is_leased(self, entity: str) -> bool:
        """Whether somebody still works on it: a runner that is asked to stop ends its lease itself."""
        state = self.board.drafts.get(entity) if is_draft(entity) else self.board.tasks.get(entity)
        return state is not None and state.status in LEASED

    def _waiting_behind(self, code: str) -> list[str]:
        """The tasks whose `waiting_for` may name this one, or name others in its place."""
        found: dict[str, None] = {}
        open_ = list(self.board.successors(code))
        while open_:
            one = open_.pop()
            if one in found:
                continue
            found[one] = None
            state = self.board.tasks[one]
            if state.satisfied and not state.commit:  # it stands for what came before it
                open_ += self.board.successors(one)
        return [one for one in found if self.board.tasks[one].status == "pending"]

    @property
    def weight_bytes(self) -> int:
        """How much memory it takes, about."""
        held = self._held()
        texts = sum(self._text(name, one.spec).size_bytes for name, one in held.items())
        if self.board.plan.chosen is not None:
            texts *= 2  # the tasks' own events bring it again
        drafts = self.board.drafts.values()
        texts += sum(len(draft.answer) for draft in drafts)
        texts += sum(len(asked.request.goal) for asked in self.board.plan.requests.values())
        tasks = len(self.board.tasks) + len(drafts) + sum(len(one.spec.tasks) for one in held.values())
        return (1 + tasks) * TASK_BYTES + texts + sum(self._asked_bytes.values())

    def _held(self) -> dict[str, Candidate]:
        """The candidates that are kept: all of them, or the chosen one."""
        state = self.board.plan
        return state.candidates if state.chosen is None else {state.chosen_name: state.chosen}

    @property
    def is_busy(self) -> bool:
        """Whether the plan can go on by itself, without a person."""
        board = self.board
        if board.standing() in ("running", "cancelling") or any(board.counts[status] for status in LEASED):
            return True
        requests = board.plan.requests.values()
        return any(asked.open and not asked.request.by_hand for asked in requests)

    @property
    def is_due(self) -> bool:
        """Whether the plan's only candidate is to be finalized by itself."""
        state = self.board.plan
        if state.status != "drafted" or any(asked.open for asked in state.requests.values()):
            return False
        return len(state.candidates) == 1 and self._finalizes_itself.issuperset(state.candidates)

    def has_execution(self, entity: str) -> bool:
        """Whether it is a task of the finalized plan, or the making of a candidate."""
        return self.has_task(entity) or entity in self.board.drafts

    def execution(self, entity: str) -> TaskState:
        """How that stands. Raises KeyError."""
        return self.board.drafts[entity] if is_draft(entity) else self.board.tasks[entity]

    def view_json(self) -> bytes:
        """`view` in JSON."""
        if not self._view_json:
            self._view_json = msgspec.json.encode(self.view())
        return self._view_json

    def task_json(self, code: str) -> bytes:
        """`task` in JSON. Raises KeyError."""
        json = self._task_json.get(code)
        if json is None:
            json = self._task_json[code] = msgspec.json.encode(self.task(code))
        return json

    def view(self) -> PlanView:
        """The plan, in time that does not depend on its size."""
        state = self.board.plan
        candidate = state.chosen or next(iter(state.candidates.values()), None)
        return PlanView(
            plan=self.plan,
            project=state.project,
            name=candidate.spec.name if candidate else name_from(self._goal),
            status=state.status,
            standing=self.board.standing(),
            reason=state.reason,
            repo_url=candidate.repo_url if candidate else self._repo_url,
            base_commit=candidate.base_commit if candidate else self._base_commit,
            head_commit=state.head_commit,
            branch=f"treadle/{self.plan}",
            created_at=self.created_at,
            updated_at=self.updated_at,
            seq=self.seq,
            tasks=self._count(candidate),
            counts={status: count for status, count in self.board.counts.items() if count},
            usage=self.usage,
            planning_usage=self.planning_usage,
            budget_usd=candidate.spec.budget_usd if candidate else None,
            max_parallel=candidate.spec.max_parallel if candidate else None,
            goal=self._goal,
            requests=tuple(
                request_view(self.plan, name, one, self.board.drafts) for name, one in state.requests.items()
            ),
            candidates=tuple(
                candidate_view(name, one, self._text(name, one.spec).digest) for name, one in state.candidates.items()
            ),
            candidate=state.chosen_name,
            digest=state.digest,
            is_busy=self.is_busy,
            is_due=self.is_due,
            held_up="",
            forked_from=self._origin(candidate),
            forks=forks_made(state.forks),
            fault=self.board.fault,
        )

    def _origin(self, candidate: Candidate | None) -> ForkedFrom | None:
        if candidate is None or candidate.fork is None:
            return None
        if self._forked_from is None or self._forked_from[0] is not candidate.fork:
            self._forked_from = candidate.fork, forked_from(candidate.fork)
        return self._forked_from[1]

    def _count(self, candidate: Candidate | None) -> int:
        if self._places:
            return len(self._places) - (DELIVER in self._places)
        return len(candidate.spec.tasks) if candidate else 0

    def _text(self, name: str, spec: PlanSpec) -> _Text:
        known = self._texts.get(name)
        if known is None or known.spec is not spec:
            text = encode_spec(spec)
            known = self._texts[name] = _Text(spec, sha256(text).hexdigest(), len(text))
        return known

    def tasks(self) -> list[TaskView]:
        """All tasks in topological order; none until the plan is finalized."""
        return [self.task(code) for code in self.board.codes]

    def has_task(self, code: str) -> bool:
        """Whether the finalized plan has that task."""
        return code in self._places

    def task(self, code: str) -> TaskView:
        """One task. Raises KeyError."""
        state = self.board.tasks[code]
        times = self._times.get(code, TaskTimes())
        waiting = self.board.missing(code, WAITING_FOR_SHOWN_MAX) if state.status == "pending" else []
        spec = state.spec
        return TaskView(
            code=code,
            place=self._places.get(code, state.index),
            seq=self.board.seqs[code],
            name=spec.name if spec else "",
            status=state.status,
            dispatch_mode="auto" if state.agent is None or state.agent.is_auto else "manual",
            agent=spec.assignee if spec and code != DELIVER else "",
            depends_on=self._depends_on(code),
            timeout_minutes=spec.timeout_minutes if spec else None,
            budget_usd=spec.budget_usd if spec else 0.0,
            attempt=state.attempt,
            lease=state.lease,
            runner=state.runner,
            started_at=times.started_at,
            ended_at=times.ended_at,
            retry_at=state.retry_at,
            usage=state.usage,
            failure=state.kind if _has_failed(state) else None,
            message=state.message,
            summary=state.summary,
            commit=state.commit,
            base_commit=self._bases.get(code, ""),
            approval=approval_view(state.approval) if state.approval else None,
            conflict=state.conflict if _has_failed(state) else None,
            inherited=inherited_view(self._kept[code]) if code in self._kept else None,
            waiting_for=tuple(waiting),
            reviews=spec.reviews if spec else "",
            review=review_view(state.review) if state.review else None,
            is_decision=state.is_decision,
            max_review_rounds=spec.max_review_rounds if spec else None,
            round=spec.round if spec else 1,
            deadline=state.deadline,
            result_repo_url=state.place.repo_url if state.place else "",
            result_path=state.place.path if state.place else "",
            watch_fault=state.watch_fault,
            watch_fault_since=state.watch_fault_since,
        )

    def _depends_on(self, code: str) -> tuple[str, ...]:
        spec = self.board.tasks[code].spec
        if spec is None or code == DELIVER:
            return ()
        also = self.board.plan.also_before.get(code, ())
        return (*spec.depends_on, *(one for one in also if one in self._places))


def _has_failed(state: TaskState) -> bool:
    return state.status in ("needs_attention", "retry_wait")


def event_json(record: Recorded) -> dict[str, object]:
    """One event as people and programs see it: where it stands, then its own fields.

    One of its own that is called like where it stands has the event's type before its name: `forked_plan`.
    """
    fields = msgspec.to_builtins(record.event) if record.event is not None else {"unreadable": _unreadable(record)}
    stands = {
        "seq": record.seq,
        "time": record.time,
        "plan": record.plan,
        "task": None if record.entity == "_plan" else record.entity,
        "type": record.type,
        "actor": record.meta.actor,
    }
    own = {f"{record.type}_{name}" if name in stands else name: value for name, value in fields.items()}
    return {**stands, **own}


def _unreadable(record: Recorded) -> dict[str, object]:
    """What is stored of an event that can't be read: for people, who have to decide what becomes of it."""
    shown = record.body[:UNREADABLE_SHOWN_MAX_BYTES]
    try:
        record.body.decode()
        text: str | None = shown.decode(errors="ignore")  # but for a character that was cut
    except UnicodeDecodeError:
        text = None
    return {
        "fault": record.fault,
        "version": record.version,
        "size": len(record.body),
        "bytes": b64encode(shown).decode(),
        "text": text,
    }
