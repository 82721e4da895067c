"""The plan: one decider. State, `INITIAL`, `evolve`, `decide`, read from top to bottom.

requested ⇄ failed
    └───┬─────┘
        ↓
     drafted → finalizing → active ⇄ paused
        └──────────┴──────────┴────────┴→ cancelling → cancelled
                              └────────┴→ completed
"""

from typing import Literal, assert_never

import msgspec

from shared import commands as c
from shared import events as e
from shared.spec import PlanSettings, PlanSpec, TaskSpec, digest, settled
from shared.subjects import DRAFTS_MAX, is_draft

PlanStatus = Literal[
    "absent",
    "requested",
    "failed",
    "drafted",
    "finalizing",
    "active",
    "paused",
    "cancelling",
    "cancelled",
    "completed",
]
"""`requested`: a candidate is being made, and none is there yet; `failed`: none came about."""

CANDIDATES_MAX = 20
MAKINGS_MAX = 5
"""Candidates of one plan that agents make at once."""

ENDED: frozenset[PlanStatus] = frozenset({"cancelled", "completed"})
EARLY: frozenset[PlanStatus] = frozenset({"absent", "requested", "failed", "drafted"})
"""Nothing is chosen yet: candidates may come and change."""


class Candidate(msgspec.Struct, frozen=True):
    """A valid plan that may be chosen."""

    spec: PlanSpec
    repo_url: str
    base_commit: str
    project: str = ""
    origin: e.DraftOrigin = e.DraftOrigin()
    fork: e.ForkOf | None = None


class DraftRequest(msgspec.Struct, frozen=True):
    """A candidate that was asked for and is not there yet."""

    request: e.PlanRequested
    failed: e.PlanFailed | None = None
    """Why it did not come about, or not yet: what is asked for by hand is still waited for."""

    @property
    def open(self) -> bool:
        """Whether it may still come."""
        return self.failed is None or self.request.by_hand


class PlanState(msgspec.Struct, frozen=True):
    """The fold of a plan's own events."""

    status: PlanStatus = "absent"
    requests: dict[str, DraftRequest] = {}
    """By the name that the candidate will have."""
    requested_in: str = ""
    """The project of what was asked for: it stays known when the plan is cancelled before any candidate is there."""
    candidates: dict[str, Candidate] = {}
    chosen: Candidate | None = None
    chosen_name: str = ""
    digest: str = ""
    count: int = 0
    reason: str = ""
    """Why it was paused or cancelled."""
    head_commit: str = ""
    settings: PlanSettings = PlanSettings()
    """Of its project, as they were when it was finalized."""
    added: tuple[TaskSpec, ...] = ()
    """Tasks that came after it was finalized, in the order in which they came."""
    also_before: dict[str, tuple[str, ...]] = {}
    """By task, what it waits for besides what its spec says."""
    forks: tuple[e.PlanForked, ...] = ()
    """Plans that go on from a moment of this one, in the order in which they were made."""
    skipped: tuple[int, ...] = ()
    """Its events that nobody can read and that are left out by an operator's word."""

    @property
    def project(self) -> str:
        """The gateway's id of the project that it belongs to; empty where there is none."""
        if first := self.chosen or next(iter(self.candidates.values()), None):
            return first.project
        return self.requested_in

    @property
    def phase(self) -> c.PlanPhase:
        """What the plan allows its tasks now."""
        if self.status == "active":
            return "open"
        # Before it is finalized a plan starts nothing, but what is cancelled then is held, not ended for good.
        return "cancelling" if self.status in ("cancelling", *ENDED) else "paused"

    def phase_for(self, entity: str) -> c.PlanPhase:
        """What it allows that entity now: a candidate is made before the plan allows any task to begin."""
        if not is_draft(entity):
            return self.phase
        asked = self.requests.get(entity.rpartition("-")[2])
        return "open" if asked is not None and asked.open else "cancelling"


INITIAL = PlanState()


def evolve(state: PlanState, event: e.Event) -> PlanState:
    """The state after `event`. Pure and total: an event in the log did happen, whatever the state was."""
    match event:
        case e.PlanRequested():
            asked = dict.fromkeys(event.candidates, DraftRequest(event))
            return _early(
                msgspec.structs.replace(state, requests={**state.requests, **asked}, requested_in=event.project)
            )
        case e.PlanFailed():
            requests = dict(state.requests)
            if event.candidate in requests:
                requests[event.candidate] = msgspec.structs.replace(requests[event.candidate], failed=event)
            return _early(msgspec.structs.replace(state, requests=requests))
        case e.PlanDrafted():
            candidate = Candidate(
                event.spec, event.repo_url, event.base_commit, event.project, event.origin, event.fork
            )
            return _early(
                msgspec.structs.replace(
                    state,
                    candidates={**state.candidates, event.candidate: candidate},
                    requests={name: asked for name, asked in state.requests.items() if name != event.candidate},
                )
            )
        case e.PlanFinalizing():
            # The other candidates go: from here on nobody may choose them, and a plan can be megabytes.
            chosen = state.candidates.get(event.candidate)
            if chosen is not None:
                chosen = msgspec.structs.replace(chosen, spec=settled(chosen.spec, event.settings))
            return msgspec.structs.replace(
                state,
                status="finalizing",
                chosen=chosen,
                settings=event.settings,
                chosen_name=event.candidate,
                candidates={},
                requests={},
                digest=event.digest,
                count=event.count,
            )
        case e.PlanFinalized():
            return msgspec.structs.replace(state, status="active")
        case e.PlanExtended():
            also_before = state.also_before
            if event.before:
                codes = tuple(task.code for task in event.tasks)
                also_before = {**also_before, event.before: (*also_before.get(event.before, ()), *codes)}
            return msgspec.structs.replace(
                state,
                added=(*state.added, *event.tasks),
                also_before=also_before,
                count=state.count + len(event.tasks),
            )
        case e.PlanPaused():
            return msgspec.structs.replace(state, status="paused", reason=event.reason)
        case e.PlanResumed():
            resumed = msgspec.structs.replace(state, status="active", reason="")
            if event.budget_usd is None or state.chosen is None:
                return resumed
            spec = msgspec.structs.replace(state.chosen.spec, budget_usd=event.budget_usd)
            return msgspec.structs.replace(resumed, chosen=msgspec.structs.replace(state.chosen, spec=spec))
        case e.PlanCancelRequested():
            return msgspec.structs.replace(state, status="cancelling", reason=event.reason, requests={})
        case e.PlanCancelled():
            return msgspec.structs.replace(state, status="cancelled")
        case e.PlanCompleted():
            return msgspec.structs.replace(state, status="completed", head_commit=event.head_commit)
        case e.PlanForked():
            return msgspec.structs.replace(state, forks=(*state.forks, event))
        case e.PlanSkipped():
            return msgspec.structs.replace(state, skipped=e.skipped_with(state.skipped, event.seq))
        case _:
            raise TypeError(f"{type(event).__name__} is not an event of a plan")


def _early(state: PlanState) -> PlanState:
    """With the status that requests and candidates make, as long as none is chosen."""
    if state.status not in EARLY:
        return state
    if state.candidates:
        return msgspec.structs.replace(state, status="drafted")
    waits = any(asked.failed is None for asked in state.requests.values())
    return msgspec.structs.replace(state, status="requested" if waits else "failed")


def decide(state: PlanState, command: c.PlanCommand) -> e.Event | None:
    """The event that `command` leads to, or None where it changes nothing (it was carried out before).

    Raises `Refused` where the state does not allow it.
    """
    match command:
        case c.Request():
            return _request(state, command)
        case c.FailDraft():
            return _fail_draft(state, command)
        case c.Draft():
            return _draft(state, command)
        case c.Finalize():
            return _finalize(state, command)
        case c.ConfirmFinalized():
            if state.status == "finalizing" and command.digest == state.digest:
                return e.PlanFinalized(digest=state.digest)
            return None
        case c.Extend():
            return _extend(state, command)
        case c.Pause():
            if state.status == "active":
                return e.PlanPaused(reason=command.reason)
            return _nothing_or_refused(state, "paused", may_be={"paused"})
        case c.Resume():
            if state.status == "paused":
                return e.PlanResumed(budget_usd=command.budget_usd)
            return _nothing_or_refused(state, "resumed", may_be={"active"})
        case c.CancelPlan():
            if state.status in ("requested", "failed", "drafted", "finalizing", "active", "paused"):
                return e.PlanCancelRequested(reason=command.reason)
            return _nothing_or_refused(state, "cancelled", may_be={"cancelling", "cancelled"})
        case c.ConfirmCancelled():
            return e.PlanCancelled() if state.status == "cancelling" else None
        case c.CompletePlan():
            # A cancel that came too late: the branch is there, so the plan is complete, not cancelled.
            if state.status in ("active", "paused", "cancelling"):
                return e.PlanCompleted(head_commit=command.head_commit)
            return None
        case c.RecordFork():
            return _record_fork(state, command)
        case c.Skip():
            if not command.is_new(state.skipped):
                return None
            return e.PlanSkipped(seq=command.seq, reason=command.reason)
        case _:
            assert_never(command)


def _check_early(state: PlanState, project: str) -> None:
    if state.status not in EARLY:
        raise c.Refused(f"the plan is {state.status}: it takes no further candidates")
    if state.status != "absent" and project != state.project:
        raise c.Refused("the plan belongs to another project")


def _request(state: PlanState, command: c.Request) -> e.Event | None:
    _check_early(state, command.project)
    fields = {name: getattr(command, name) for name in command.__struct_fields__ if name != "count"}
    if command.by_hand:
        for name, asked in state.requests.items():
            if asked.request.by_hand:
                again = e.PlanRequested(candidates=(name,), **fields)
                return None if asked == DraftRequest(again) else again
    count = 1 if command.by_hand else command.count
    asked_for = sum(asked.open for asked in state.requests.values())
    if len(state.candidates) + asked_for + count > CANDIDATES_MAX:
        raise c.Refused(
            f"the plan has {len(state.candidates)} candidates and {asked_for} are being made; at most {CANDIDATES_MAX}"
        )
    last = max((int(name) for name in (*state.candidates, *state.requests) if name.isdecimal()), default=0)
    if last + count > DRAFTS_MAX:
        raise c.Refused("too many candidates were asked for: choose one of those that are there, or start a new plan")
    names = tuple(str(number) for number in range(last + 1, last + 1 + count))
    return e.PlanRequested(candidates=names, **fields)


def _fail_draft(state: PlanState, command: c.FailDraft) -> e.Event | None:
    asked = state.requests.get(command.candidate)
    if asked is None:
        return None  # it is there, or is not wanted any more
    failed = e.PlanFailed(
        candidate=command.candidate, message=command.message, faults=command.faults, origin=command.origin
    )
    if asked.failed is not None and (not asked.request.by_hand or asked.failed.origin.blob == command.origin.blob):
        return None
    return failed


def _draft(state: PlanState, command: c.Draft) -> e.Event | None:
    _check_early(state, command.project)
    known = state.candidates.get(command.candidate)
    if known is not None and msgspec.structs.replace(known, origin=command.origin) == Candidate(
        command.spec, command.repo_url, command.base_commit, command.project, command.origin, command.fork
    ):
        return None
    asked = state.requests.get(command.candidate)
    if asked is not None and not asked.request.by_hand and not command.origin.draft:
        raise c.Refused(f"candidate {command.candidate} is asked for from an agent: give yours another name")
    if asked is None and command.origin.draft:
        raise c.Refused(f"candidate {command.candidate} is not wanted any more")
    if known is None and command.replaces:
        raise c.Refused(
            f"the plan has no candidate {command.candidate}; it has {', '.join(state.candidates) or 'none'}"
        )
    if known is not None and not command.replaces:
        raise c.Refused(f"candidate {command.candidate} exists already and is another plan")
    if known is not None and command.replaces != digest(known.spec):
        raise c.Changed(f"candidate {command.candidate} was changed meanwhile")
    if known is None and len(state.candidates) >= CANDIDATES_MAX:
        raise c.Refused(f"the plan has {len(state.candidates)} candidates, which is the most: replace one of them")
    return e.PlanDrafted(
        candidate=command.candidate,
        spec=command.spec,
        repo_url=command.repo_url,
        base_commit=command.base_commit,
        project=command.project,
        origin=command.origin,
        fork=command.fork,
    )


def _record_fork(state: PlanState, command: c.RecordFork) -> e.Event | None:
    if state.status in EARLY:
        raise c.Refused("there is nothing to fork: the plan is not finalized")
    if any(fork.plan == command.plan for fork in state.forks):
        return None
    return e.PlanForked(plan=command.plan, seq=command.seq)


def _finalize(state: PlanState, command: c.Finalize) -> e.Event | None:
    if state.status == "absent":
        raise c.Refused("there is no such plan")
    if state.status in ("requested", "failed"):
        raise c.Refused("the plan has no candidate yet: there is nothing to choose")
    if state.status != "drafted":
        if command.candidate == state.chosen_name:
            if command.digest and state.digest and command.digest != state.digest:
                raise c.Changed(f"candidate {command.candidate} was finalized as another text than you saw")
            return None
        raise c.Refused(
            f"the plan is {state.status}, with candidate {state.chosen_name or 'none'}: the choice is final"
        )
    candidate = state.candidates.get(command.candidate)
    if candidate is None:
        raise c.Refused(f"the plan has no candidate {command.candidate}; it has {', '.join(state.candidates)}")
    now = digest(candidate.spec)
    if command.digest and command.digest != now:
        raise c.Changed(f"candidate {command.candidate} was changed meanwhile: look at it again before you choose it")
    return e.PlanFinalizing(
        candidate=command.candidate,
        digest=now,
        count=len(candidate.spec.tasks) + 1,
        settings=command.settings,
    )


def _extend(state: PlanState, command: c.Extend) -> e.Event | None:
    if state.status not in ("active", "paused"):
        raise c.Refused(f"the plan is {state.status}: no task can be added")
    known = {task.code.lower() for task in state.added}
    if state.chosen is not None:
        known |= {task.code.lower() for task in state.chosen.spec.tasks}
    new = {task.code.lower() for task in command.tasks}
    if new <= {task.code.lower() for task in state.added}:
        return None
    if new & known or len(new) < len(command.tasks):
        raise c.Refused("the plan has a task of that name already")
    return e.PlanExtended(tasks=command.tasks, before=command.before, reason=command.reason)


def _nothing_or_refused(state: PlanState, wish: str, may_be: set[PlanStatus]) -> e.Event | None:
    if state.status in may_be:
        return None
    if state.status == "absent":
        raise c.Refused("there is no such plan")
    raise c.Refused(f"the plan is {state.status}: it can't be {wish}")
