"""A plan whose candidates are asked for from an agent: what is wanted of it, and how far each making is. Pure.

absent → planned → dispatched → running → completed → drafted, or failed with every fault
            └── released, retry ──┘        └→ needs attention → failed

Only so many are made at a time; the others wait for their turn, in the order in which they were asked for.
"""

from datetime import datetime
from itertools import islice
from typing import Literal

import msgspec

from services.planner.plan_schema import schema_text
from services.planner.planning_prompt import planning_prompt
from services.planner.wanted import team_of
from shared import commands as c
from shared import events as e
from shared import task
from shared.plan import MAKINGS_MAX
from shared.spec import TaskSpec, WorkRules
from shared.store import Recorded
from shared.subjects import PLAN, draft

CHECK_ROUNDS = 3
"""How often faults go back into the conversation that made the plan."""
UNSETTLED: frozenset[task.TaskStatus] = frozenset(
    {"pending", "readied", "queued", "running", "awaiting_approval", "retry_wait"}
)
"""A making that goes on by itself or could."""
_DEFAULTS = TaskSpec(code="", name="", assignee="")
NOBODY_MAKES_IT = "no agent is named that could make the plan: choose one that runs by itself"

Step = c.PlanTask | c.Dispatch | c.CancelTask | c.Deny | c.FailDraft | Literal["read the answer"]


class Making(msgspec.Struct):
    """How far one candidate is."""

    state: task.TaskState = task.INITIAL
    seq: int = 0
    began_at: datetime | None = None
    """Of its first dispatch."""
    ended_at: datetime | None = None
    handed_back: bool = False
    """The newest event is its release: to dispatch it again at once could turn in circles."""
    fault: str = ""
    """Why its record can't be read."""
    busy: bool = False
    """A step is being taken."""
    rests_until: datetime | None = None
    """A step failed: the next one is not to follow at once."""


class AskedPlan:
    """The fold of what concerns the candidates that one plan is asked for."""

    def __init__(self, plan: str, cause: Recorded) -> None:
        self.plan = plan
        self.cause = cause
        """The newest event: what is decided follows from that one."""
        self.wanted: dict[str, e.PlanRequested] = {}
        """By candidate: what is asked for and not there yet."""
        self.makings: dict[str, Making] = {}
        self.closed = False
        """Whether the plan takes no candidates any more."""

    @property
    def done(self) -> bool:
        """Whether nothing is left to do here."""
        return not any(
            name in self.wanted or making.busy or making.state.status in (*UNSETTLED, "cancelling")
            for name, making in self.makings.items()
        )

    def apply(self, record: Recorded) -> None:
        """Folds the plan's next event; those of its tasks are nothing to it."""
        if record.entity == PLAN:
            self.cause = record
            self._apply_to_plan(record.event)
        elif (making := self.makings.get(record.entity.removeprefix("_draft-"))) is not None:
            self.cause = record
            _apply_to_making(making, record)

    def _apply_to_plan(self, event: e.Event | None) -> None:
        match event:
            case e.PlanRequested(by_hand=False):
                for name in event.candidates:
                    self.wanted[name] = event
                    self.makings[name] = Making()
            case e.PlanDrafted() | e.PlanFailed():
                self.wanted.pop(event.candidate, None)
            case e.PlanFinalizing() | e.PlanCancelRequested() | e.PlanCancelled() | e.PlanCompleted():
                self.wanted.clear()
                self.closed = True

    def origin(self, name: str) -> e.DraftOrigin:
        """Of the candidate, as far as it is."""
        making = self.makings[name]
        agent = making.state.agent
        lasted = making.ended_at - making.began_at if making.ended_at and making.began_at else None
        return e.DraftOrigin(
            draft=draft(name),
            model=(agent.model or "") if agent else "",
            usage=making.state.usage,
            duration_s=lasted.total_seconds() if lasted else 0.0,
        )

    def next_step(self, name: str, now: datetime, *, looking: bool) -> Step | None:
        """What is to be done for a candidate now; None: to wait. `looking`: not because of an event."""
        making, request = self.makings[name], self.wanted.get(name)
        if making.busy or (making.rests_until is not None and now < making.rests_until):
            return None
        state = making.state
        if request is None:
            if state.status not in UNSETTLED:
                return None
            reason = "the plan takes no candidates any more" if self.closed else "it is not asked for any more"
            return c.CancelTask(phase="cancelling", reason=reason)
        if making.fault:
            return self._failed(name, f"the record of its making can't be read ({making.fault}): ask for another one")
        match state.status:
            case "absent":
                return self._begin(name, request) if self._has_turn(name) else None
            case "pending":
                return _dispatch(self.plan, request, state, now) if looking or not making.handed_back else None
            case "retry_wait":
                due = state.retry_at is not None and now >= state.retry_at
                return _dispatch(self.plan, request, state, now) if due else None
            case "awaiting_approval":
                asked = state.approval
                late = asked is not None and now >= asked.expires_at
                return c.Deny(approval=asked.approval, now=now) if asked is not None and late else None
            case "completed":
                return "read the answer"
            case "needs_attention" | "cancelled" | "abandoned":
                return self._failed(name, _why_it_ended(state), state.faults)
            case _:
                return None

    def _has_turn(self, name: str) -> bool:
        """Whether it is one of the first that are asked for and not there: the log alone says so, to every planner."""
        return name in islice(self.wanted, MAKINGS_MAX)

    def _begin(self, name: str, request: e.PlanRequested) -> c.PlanTask | c.FailDraft:
        if request.planner is None or not request.planner.is_auto:
            return self._failed(name, NOBODY_MAKES_IT)
        spec = TaskSpec(
            code=draft(name),
            name=f"Make candidate {name} of the plan",
            assignee="planner",
            timeout_minutes=request.timeout_s / 60 or None,
            allow_no_change=True,
            budget_usd=request.budget_usd or _DEFAULTS.budget_usd,
        )
        return c.PlanTask(digest="", index=0, spec=spec, agent=request.planner)

    def _failed(self, name: str, message: str, faults: tuple[e.PlanFault, ...] = ()) -> c.FailDraft:
        return c.FailDraft(candidate=name, message=message, faults=faults, origin=self.origin(name))


def _apply_to_making(making: Making, record: Recorded) -> None:
    making.seq = record.seq
    making.rests_until = None
    if record.event is None:
        making.fault = making.fault or f"event {record.seq}: {record.fault}"
        return
    try:
        making.state = task.evolve(making.state, record.event)
    except TypeError as error:
        making.fault = making.fault or f"event {record.seq}: {error}"
        return
    making.handed_back = isinstance(record.event, e.TaskReleased)
    if isinstance(record.event, e.TaskDispatched) and making.began_at is None:
        making.began_at = record.time
    making.ended_at = record.time


def _dispatch(plan: str, request: e.PlanRequested, state: task.TaskState, now: datetime) -> c.Dispatch:
    return c.Dispatch(
        now=now,
        revision=state.revision,
        prompt=planning_prompt(request, plan),
        agent=state.agent,
        project=request.project,
        repo_url=request.repo_url,
        base_commit=request.base_commit,
        heads=(),
        abandoned=(),
        plan_name="",
        setup=(),
        env_allow=(),
        rules=WorkRules(answer="plan", plan_schema=schema_text(team_of(request)), verify_rounds=CHECK_ROUNDS),
    )


def _why_it_ended(state: task.TaskState) -> str:
    if state.status == "abandoned":
        return f"given up by a person{': ' + state.message if state.message else ''}; ask for another candidate"
    if state.kind == "cancelled" or state.status == "cancelled":
        words = (
            "" if state.message in ("", "cancelled by a person") else f": {state.message.removeprefix('cancelled: ')}"
        )
        return f"cancelled{words}; ask for another candidate if you still want one"
    return state.message or "its making ended without a plan and without a word; ask for another candidate"
