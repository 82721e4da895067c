"""What a command does to a task: the deciding half of `shared.task`; every way to the one function `decide`.

Two numbers guard against the past: `dispatch` tells an obsolete message, `lease` an obsolete runner.
"""

from datetime import timedelta
from typing import Any, assert_never

import msgspec

from shared import commands as c
from shared import events as e
from shared.spec import DELIVER, TIMEOUT_MINUTES, Retry, TaskSpec, WorkRules
from shared.subjects import is_draft
from shared.task import FINAL, LEASED, TaskState, TaskStatus, may_cost_usd, timer

WAITING: frozenset[TaskStatus] = frozenset(
    {"pending", "readied", "queued", "awaiting_approval", "retry_wait", "needs_attention"}
)
"""Neither ended nor in a runner's hands: a person or the plan's end may settle these at once."""
EDITABLE: frozenset[TaskStatus] = frozenset({"pending", "readied", "retry_wait", "needs_attention", "abandoned"})
TRANSIENT: frozenset[e.FailureKind] = frozenset({"unavailable"})
"""Nobody's fault, and likely to pass: tried again even where the task does not ask for it."""
NOT_RETRIED: frozenset[e.FailureKind] = frozenset(
    {"authentication_refused", "cancelled", "merge_conflict", "budget_spent", "runner_lost"}
)
"""Trying again can't help or costs money that was not granted. For `runner_lost` the lost leases were the tries."""

TRANSIENT_ATTEMPTS = 3
BACKOFF_MAX_S = 600.0
RETRY_AFTER_MAX_S = 31 * 24 * 3600.0
"""What a server says of when to come again is believed up to here."""
UNSPENT_WAIT_MIN_S = 5.0
"""An attempt that was not spent may come again for ever, so never at once."""


def decide(state: TaskState, command: c.TaskCommand) -> e.Event | None:
    """The event that `command` leads to, or None where it changes nothing (it was carried out before).

    Raises `Refused` where the state does not allow it; `StaleLease`, `Obsolete` and `Held` tell runners apart what to
    do then.
    """
    if state.status == "absent" and not isinstance(command, c.PlanTask | c.Inherit | c.Skip):
        raise c.Refused("the plan has no such task")
    match command:
        case c.PlanTask():
            if state.status != "absent":
                return None
            return e.TaskPlanned(digest=command.digest, index=command.index, spec=command.spec, agent=command.agent)
        case c.Inherit():
            if state.status != "absent":
                return None
            return e.TaskInherited(
                digest=command.digest, index=command.index, spec=command.spec, agent=command.agent, kept=command.kept
            )
        case c.Ready():
            return _ready(state, command)
        case c.HandOut():
            return _hand_out(state, command)
        case c.Dispatch():
            return _dispatch(state, command)
        case c.Start():
            return _start(state, command)
        case c.Release():
            return _release(state, command)
        case c.Complete():
            return _complete(state, command)
        case c.RequestApproval():
            return _request_approval(state, command)
        case c.Approve() | c.Deny():
            return _answer(state, command)
        case c.UseApproval():
            return _use_approval(state, command)
        case c.Fail():
            return _fail(state, command)
        case c.FailWatch():
            if state.lease != command.lease or not (state.is_by_hand or state.may_come_late) or state.watch_fault_since:
                return None
            return e.TaskWatchFailed(lease=command.lease, reason=command.reason, since=command.since)
        case c.RestoreWatch():
            return _restore_watch(state, command)
        case c.Decide():
            return _weigh(state, command)
        case c.CancelTask():
            return _cancel(state, command)
        case c.MarkComplete():
            return _mark_complete(state, command)
        case c.Abandon():
            return _abandon(state, command)
        case c.Edit():
            return _edit(state, command)
        case c.Redispatch():
            return _redispatch(state, command)
        case c.Skip():
            if not command.is_new(state.skipped):
                return None
            return e.TaskSkipped(seq=command.seq, reason=command.reason)
        case _:
            assert_never(command)


def _may_begin(state: TaskState, command: c.Dispatch | c.Ready) -> bool:
    if state.is_decision:
        raise c.Refused("nobody does a decision: reviews complete it")
    due = state.status == "retry_wait" and state.retry_at is not None and command.now >= state.retry_at
    if not (state.status == "pending" or due or state.reopening):
        return False
    if command.revision != state.revision:
        raise c.Changed("the task was edited meanwhile: its prompt has to be written anew")
    return True


def _next_attempt(state: TaskState) -> int:
    return state.attempt if state.attempt_open else state.attempt + 1


def _ready(state: TaskState, command: c.Ready) -> e.Event | None:
    if not _may_begin(state, command):
        return None
    return e.TaskReadied(
        dispatch=state.dispatch + 1,
        attempt=_next_attempt(state),
        prompt=command.prompt,
        agent=command.agent,
        base_commit=command.base_commit,
        heads=command.heads,
        abandoned=command.abandoned,
        place=command.place,
    )


def _hand_out(state: TaskState, command: c.HandOut) -> e.Event | None:
    readied = command.readied
    if state.status == "queued" and state.dispatch == readied.dispatch:
        return None
    if state.status != "readied":
        raise c.Refused(f"the task is {state.status}: only a manual task that is readied can be dispatched by hand")
    if command.phase != "open":
        raise c.Refused(f"the plan is {command.phase}: nothing new is dispatched")
    if state.dispatch != readied.dispatch:
        raise c.Changed("the task was readied anew meanwhile: read its prompt again")
    return _opened(
        state,
        number=state.dispatch,
        attempt=state.attempt,
        prompt=readied.prompt,
        agent=readied.agent,
        project=command.project,
        repo_url=command.repo_url,
        base_commit=readied.base_commit,
        heads=readied.heads,
        abandoned=readied.abandoned,
        plan_name=command.plan_name,
        rules=_rules(state, WorkRules()),
        place=command.place,
        note=command.note,
    )


def _dispatch(state: TaskState, command: c.Dispatch) -> e.Event | None:
    if not _may_begin(state, command):
        return None
    return _opened(
        state,
        number=state.dispatch + 1,
        attempt=_next_attempt(state),
        prompt=command.prompt,
        agent=command.agent,
        project=command.project,
        repo_url=command.repo_url,
        base_commit=command.base_commit,
        heads=command.heads,
        abandoned=command.abandoned,
        plan_name=command.plan_name,
        setup=command.setup,
        env_allow=command.env_allow,
        rules=_rules(state, command.rules),
        delivery=command.delivery,
    )


def _rules(state: TaskState, plans: WorkRules) -> WorkRules:
    """What the plan says, with what the task says itself."""
    spec = _spec(state)
    return msgspec.structs.replace(
        plans,
        verify_rounds=plans.verify_rounds if spec.verify_rounds is None else spec.verify_rounds,
        requires_approval=spec.requires_approval,
        allow_no_change=spec.allow_no_change,
        expected_output=spec.expected_output,
        resolves=spec.resolves,
        answer="review" if spec.reviews else plans.answer,
        reviews=spec.reviews,
        round=spec.round,
    )


def _opened(state: TaskState, *, number: int, **rest: Any) -> e.TaskDispatched:
    """A dispatch with what the task itself says."""
    spec = _spec(state)
    return e.TaskDispatched(
        dispatch=number,
        task_name=spec.name,
        verify=spec.verify,
        timeout_s=(spec.timeout_minutes or TIMEOUT_MINUTES) * 60,
        budget_usd=spec.budget_usd,
        **rest,
    )


def _start(state: TaskState, command: c.Start) -> e.Event | None:
    if state.execution == command.execution and state.status in LEASED:
        return None  # our own event: its acknowledgement was lost
    if state.dispatch != command.dispatch or state.status not in {"queued", *LEASED}:
        raise c.Obsolete(f"dispatch {command.dispatch} was overtaken: the task is {state.status}")
    supersedes, charged = None, e.Usage()
    if state.status in LEASED:
        if command.supersede_lease != state.lease:
            raise c.Held(state.runner, state.lease)
        supersedes, charged = state.lease, _lost_usage(state, command.lost_usage)
        if state.status == "cancelling":
            if command.phase == "cancelling":
                return e.TaskCancelled(lease=state.lease, usage=charged)
            words = "cancelled; its runner was gone"
            return e.TaskFailed(lease=state.lease, kind="cancelled", message=words, usage=charged)
        if failed := _lost_too_often(state, charged):
            return failed
    if command.phase == "cancelling":
        return e.TaskCancelled(lease=supersedes, usage=charged)
    if command.phase == "paused" and not state.is_manual:  # what a person has begun is theirs
        return e.TaskReleased(lease=supersedes, reason="the plan is paused", usage=charged)
    if command.reopened:
        reason = f"{', '.join(command.reopened)} is to run again first"
        return e.TaskReleased(lease=supersedes, reason=reason, usage=charged)
    return e.TaskStarted(
        lease=state.lease + 1,
        runner=command.runner,
        execution=command.execution,
        supersedes=supersedes,
        resumes=state.left_by,
        charged=charged,
        seal_to=command.seal_to,
        deadline=command.deadline,
    )


def _release(state: TaskState, command: c.Release) -> e.Event | None:
    if command.lease is None:
        return e.TaskReleased(reason=command.reason) if state.status in ("readied", "queued") else None
    if state.lease != command.lease:
        # Not None: whoever believes that it has handed back acknowledges, and its successor's death goes unnoticed.
        raise _stale(state, command.lease)
    if state.status not in LEASED:
        return None
    charged = _lost_usage(state, command.usage)
    if command.lost and state.status == "running" and (failed := _lost_too_often(state, charged)):
        return failed
    return e.TaskReleased(lease=command.lease, reason=command.reason, lost=command.lost, usage=charged)


def _lost_usage(state: TaskState, reported: e.Usage | None) -> e.Usage:
    """What a lease is charged that did not say itself what it consumed: its last report, or all that it might have."""
    return e.Usage(cost_usd=may_cost_usd(state)) if reported is None else reported


def _lost_too_often(state: TaskState, charged: e.Usage) -> e.TaskFailed | None:
    """The end of an attempt whose live lease is the last one that it may lose."""
    if state.lost + 1 < _attempts_max(state, "runner_lost"):
        return None
    return e.TaskFailed(
        lease=state.lease,
        kind="runner_lost",
        message=f"{state.lost + 1} runners were lost while they ran it, the last one was {state.runner}: "
        "look at their logs (out of memory?), then redispatch it",
        usage=charged,
    )


def _complete(state: TaskState, command: c.Complete) -> e.Event | None:
    # By the commit too: a task that a person marked complete has the number of a lease that brought nothing.
    if state.status == "completed" and (state.lease, state.commit) == (command.lease, command.commit):
        return None
    if not (state.may_come_late and state.lease == command.lease):
        _check_lease(state, command.lease)
    # Also while cancelling: the work is done and stored, to throw it away would help nobody.
    return e.TaskCompleted(
        lease=command.lease,
        base_commit=command.base_commit,
        commit=command.commit,
        result=command.result,
        answer=command.answer,
        usage=command.usage,
    )


def _restore_watch(state: TaskState, command: c.RestoreWatch) -> e.Event | None:
    since = state.watch_fault_since
    if state.lease != command.lease or since is None or not (state.is_by_hand or state.may_come_late):
        return None
    lost = max(command.now - since, timedelta())
    return e.TaskWatchRestored(lease=command.lease, deadline=state.deadline and state.deadline + lost)


def _weigh(state: TaskState, command: c.Decide) -> e.Event | None:
    if not state.is_decision:
        raise c.Refused("the task is no decision: somebody does it")
    if state.status != "pending" and not state.reopening:
        return None
    return e.TaskDecided(approved=command.approved, round=command.round, reason=command.reason)


def _request_approval(state: TaskState, command: c.RequestApproval) -> e.Event | None:
    asked = state.approval
    if asked is not None and (asked.lease, asked.approval) == (command.lease, command.approval):
        return None
    if state.lease == command.lease and state.status in ("needs_attention", "cancelled"):
        return None  # it was answered with the end of the attempt, as a cancel came first
    _check_lease(state, command.lease)
    if state.status == "cancelling" or command.phase == "cancelling":
        if state.status == "cancelling" and command.phase == "cancelling":
            return e.TaskCancelled(lease=command.lease, usage=command.usage)
        words = "cancelled while it asked for an approval"
        return e.TaskFailed(lease=command.lease, kind="cancelled", message=words, usage=command.usage)
    return e.TaskApprovalRequested(
        lease=command.lease,
        approval=command.approval,
        kind=command.kind,
        tool=command.tool,
        input=command.input,
        why=command.why,
        expires_at=command.expires_at,
        commit=command.commit,
        base_commit=command.base_commit,
        usage=command.usage,
    )


def _answer(state: TaskState, command: c.Approve | c.Deny) -> e.Event | None:
    asked = state.approval
    if asked is None or asked.approval != command.approval:
        raise c.Refused("the task does not ask for that (any more): look at what it asks for now")
    wanted = "granted" if isinstance(command, c.Approve) else "denied"
    if state.status != "awaiting_approval":
        if asked.answer == wanted:
            return None
        raise c.Refused(
            f"it was {asked.answer} already" if asked.answer else f"the task is {state.status}: it waits for no answer"
        )
    if isinstance(command, c.Approve):
        if command.now >= asked.expires_at:  # whether or not the dispatcher has said so yet
            raise c.Refused("the time for an answer is over, which is a no: redispatch the task to have it ask again")
        if asked.kind == "question" and not command.note.strip():
            raise c.Refused("the agent asks a question: its answer belongs into the note")
        return e.TaskApprovalGranted(approval=asked.approval, note=command.note)
    if command.now is None:
        return e.TaskApprovalDenied(approval=asked.approval, note=command.note)
    if command.now < asked.expires_at:
        return None
    return e.TaskApprovalDenied(approval=asked.approval, note="nobody answered in time", expired=True)


def _use_approval(state: TaskState, command: c.UseApproval) -> e.Event | None:
    _check_lease(state, command.lease)
    if state.status == "cancelling":
        raise c.Refused("the task is being cancelled: nothing new is begun")
    asked = state.approval
    if asked is None or asked.approval != command.approval or asked.answer != "granted":
        raise c.Refused("nobody allowed that")
    if asked.used_by == command.lease:
        return None
    if asked.used_by:
        raise c.Refused(f"lease {asked.used_by} ran it, or was about to: it was allowed once")
    return e.TaskApprovalUsed(approval=asked.approval, lease=command.lease)


def _fail(state: TaskState, command: c.Fail) -> e.Event | None:
    another = command.kind == "invalid_result" and command.blob != state.blob and state.may_come_late
    if state.lease == command.lease and state.status in ("retry_wait", "needs_attention", "cancelled") and not another:
        return None
    if not (another and state.lease == command.lease):
        _check_lease(state, command.lease)
    if state.is_manual and command.kind == "timeout":
        late = timer(state)
        if late is None or command.now < late:
            return None  # nobody could look for a while, so there is more time
    if state.status == "cancelling" and command.phase == "cancelling":
        return e.TaskCancelled(lease=command.lease, usage=command.usage)
    limit_resets = command.kind == "usage_limit" and command.retry_after_s is not None
    retry_at = None
    if state.status == "running" and command.phase != "cancelling" and not state.is_manual:
        if limit_resets:
            retry_at = command.now + timedelta(seconds=max(UNSPENT_WAIT_MIN_S, _retry_after_s(command)))
        elif command.kind not in NOT_RETRIED and state.tries + 1 < _attempts_max(state, command.kind):
            retry_at = command.now + timedelta(seconds=_backoff_s(state, command))
    return e.TaskFailed(
        lease=command.lease,
        kind=command.kind,
        message=command.message,
        retry_at=retry_at,
        spent=not (limit_resets and retry_at is not None),
        conflict=command.conflict,
        faults=command.faults,
        blob=command.blob,
        usage=command.usage,
    )


def _cancel(state: TaskState, command: c.CancelTask) -> e.Event | None:
    if state.status == "running" and not state.is_manual:
        return e.TaskCancelRequested(reason=command.reason)
    if command.phase == "cancelling":
        return e.TaskCancelled() if _is_settled_at_once(state) else None
    if state.status in ("needs_attention", "cancelling"):
        return None
    if _is_settled_at_once(state):
        return e.TaskCancelRequested(reason=command.reason)
    raise c.Refused(f"the task is {state.status}: there is nothing to cancel")


def _mark_complete(state: TaskState, command: c.MarkComplete) -> e.Event | None:
    _refuse_deliver(state, "marked complete")
    if state.status == "completed":
        return None
    if _is_settled_at_once(state):
        return e.TaskMarkedComplete(note=command.note)
    if state.status == "abandoned":
        raise c.Refused("the task is abandoned: its successors don't wait for it already")
    raise c.Refused(f"the task is {state.status}: {_WAY_OUT[state.status]}")


def _abandon(state: TaskState, command: c.Abandon) -> e.Event | None:
    _refuse_deliver(state, "abandoned")
    if state.status == "abandoned" and not state.reopening:
        return None
    if _is_settled_at_once(state) or state.reopening:
        return e.TaskAbandoned(note=command.note)
    raise c.Refused(f"the task is {state.status}: {_WAY_OUT[state.status]}")


def _edit(state: TaskState, command: c.Edit) -> e.Event | None:
    _refuse_deliver(state, "edited")
    if (state.spec, state.agent) == (command.spec, command.agent):
        return None
    if state.status not in EDITABLE:
        raise c.Refused(f"the task is {state.status}: it can be edited while it has not begun, or needs attention")
    return e.TaskEdited(spec=command.spec, agent=command.agent, note=command.note)


def _redispatch(state: TaskState, command: c.Redispatch) -> e.Event | None:
    if is_draft(_spec(state).code):
        raise c.Refused("it makes a candidate of the plan: ask for another candidate instead")
    if state.status in ("needs_attention", "retry_wait") or (state.status == "abandoned" and not state.reopening):
        return e.TaskRedispatchRequested(note=command.note)
    if state.status in FINAL:
        raise c.Refused(f"the task is {state.status}, which is final: start a new plan to do it again")
    return None


_WAY_OUT: dict[TaskStatus, str] = {
    "running": "cancel it first",
    "cancelling": "wait until it has stopped",
    "completed": "that is final",
    "cancelled": "that is final",
}


def _is_settled_at_once(state: TaskState) -> bool:
    """Whether nobody has to be asked to stop first: a runner would, a person is who says it."""
    return state.status in WAITING or state.is_by_hand


def _refuse_deliver(state: TaskState, wish: str) -> None:
    if is_draft(_spec(state).code):
        raise c.Refused(f"it makes a candidate of the plan and can't be {wish}: cancel it, or wait for its end")
    if _spec(state).code == DELIVER:
        raise c.Refused(f"{DELIVER} makes the plan's branch and can't be {wish}: redispatch it, or cancel the plan")


def _check_lease(state: TaskState, lease: int) -> None:
    if state.status not in LEASED or state.lease != lease:
        raise _stale(state, lease)


def _stale(state: TaskState, lease: int) -> c.StaleLease:
    return c.StaleLease(f"lease {lease} is over: the task is {state.status}, its newest lease is {state.lease}")


def _attempts_max(state: TaskState, kind: e.FailureKind) -> int:
    retry = _spec(state).retry
    if kind == "runner_lost":
        return retry.max_attempts if retry else TRANSIENT_ATTEMPTS
    if retry:
        return retry.max_attempts
    return TRANSIENT_ATTEMPTS if kind in TRANSIENT else 1


def _backoff_s(state: TaskState, command: c.Fail) -> float:
    backoff_s = (_spec(state).retry or Retry()).backoff_s * 2.0**state.tries
    spread_s = min(backoff_s, BACKOFF_MAX_S) * (1 + command.jitter / 4)
    return max(spread_s, _retry_after_s(command))


def _retry_after_s(command: c.Fail) -> float:
    """A server's word, so it may be anything: negative, endless, not a number."""
    asked_s = command.retry_after_s or 0.0
    return min(asked_s, RETRY_AFTER_MAX_S) if asked_s > 0 else 0.0


def _spec(state: TaskState) -> TaskSpec:
    assert state.spec is not None  # noqa: S101 - every state but `absent` has one, and decide() has refused that
    return state.spec
