"""How a recorded lease ends under other limits, and the command that says so."""

from datetime import datetime, timedelta

import msgspec

from shared import commands as c
from shared import events as e
from shared.history.recorded_work import LeaseRun, Run
from shared.task import TaskState

_SAME = 1e-9


def cut_short(lease: LeaseRun, run: Run, dispatch: e.TaskDispatched, state: TaskState) -> LeaseRun:
    """The lease as it was, or as a limit ends it that is another one now.

    A limit that stayed does nothing: what was over it then is over it by as much as it was.
    """
    if lease.lasted_s is None:
        return lease
    cut = lease
    if abs(dispatch.budget_usd - run.budget_usd) > _SAME:
        cut = _within_budget(cut, run, dispatch.budget_usd, state.spent_usd)
    if abs(dispatch.timeout_s - run.timeout_s) > _SAME:
        cut = _within_time(cut, run, dispatch.timeout_s)
    return cut


def _within_budget(lease: LeaseRun, run: Run, budget_usd: float, spent_usd: float) -> LeaseRun:
    cost_usd, left_usd = lease.usage.cost_usd, max(0.0, budget_usd - spent_usd)
    if _ended_as(lease, "budget_spent"):
        return _scaled(lease, budget_usd / run.budget_usd if run.budget_usd else 1.0)
    if cost_usd <= left_usd + _SAME:
        return lease
    return _failed(_scaled(lease, left_usd / cost_usd), "budget_spent")


def _within_time(lease: LeaseRun, run: Run, timeout_s: float) -> LeaseRun:
    lasted_s = lease.lasted_s or 0.0
    if _ended_as(lease, "timeout"):
        return _scaled(lease, timeout_s / run.timeout_s if run.timeout_s else 1.0)
    if lasted_s <= timeout_s:
        return lease
    return _failed(_scaled(lease, timeout_s / lasted_s), "timeout")


def _ended_as(lease: LeaseRun, kind: e.FailureKind) -> bool:
    return isinstance(lease.end, e.TaskFailed) and lease.end.kind == kind


def _scaled(lease: LeaseRun, part: float) -> LeaseRun:
    """As if it had gone on for that part of its time, and spent evenly."""
    used = lease.usage
    usage = e.Usage(
        round(used.input_tokens * part),
        round(used.output_tokens * part),
        round(used.cache_read_tokens * part),
        round(used.cache_write_tokens * part),
        used.cost_usd * part,
    )
    return msgspec.structs.replace(lease, lasted_s=(lease.lasted_s or 0.0) * part, usage=usage)


def spent(lease: LeaseRun, after_s: float) -> e.Usage:
    """What it had used up after so long, if evenly."""
    if not lease.lasted_s or after_s >= lease.lasted_s:
        return lease.usage
    return _scaled(lease, after_s / lease.lasted_s).usage


def _failed(lease: LeaseRun, kind: e.FailureKind) -> LeaseRun:
    failed = e.TaskFailed(lease=0, kind=kind, message=f"the policy's limit ends it ({kind})")
    return msgspec.structs.replace(lease, end=failed, retry_after_s=None)


def ending(lease: LeaseRun, state: TaskState, now: datetime, phase: c.PlanPhase) -> c.TaskCommand:
    """What the holder of the task's lease reports."""
    match lease.end:
        case e.TaskCompleted() as done:
            return c.Complete(
                lease=state.lease,
                base_commit=done.base_commit,
                commit=done.commit,
                result=done.result,
                answer=done.answer,
                usage=lease.usage,
            )
        case e.TaskFailed() as failed:
            return c.Fail(
                now=now,
                phase=phase,
                lease=state.lease,
                kind=failed.kind,
                message=failed.message,
                usage=lease.usage,
                retry_after_s=lease.retry_after_s,
                jitter=lease.jitter,
                conflict=failed.conflict,
                faults=failed.faults,
                blob=failed.blob,
            )
        case e.TaskApprovalRequested() as asked:
            ended = lease.started + timedelta(seconds=lease.lasted_s or 0.0)
            return c.RequestApproval(
                now=now,
                phase=phase,
                lease=state.lease,
                approval=asked.approval,
                kind=asked.kind,
                tool=asked.tool,
                input=asked.input,
                why=asked.why,
                expires_at=now + (asked.expires_at - ended),
                commit=asked.commit,
                base_commit=asked.base_commit,
                usage=lease.usage,
            )
        case e.TaskReleased() as released:
            return c.Release(lease=state.lease, reason=released.reason, lost=released.lost, usage=lease.usage)
        case _:
            return c.Release(lease=state.lease, reason="its end is not known", usage=lease.usage)
