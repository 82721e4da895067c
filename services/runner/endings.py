"""How a lease's work ended, in the log's words."""

from __future__ import annotations

import random
from datetime import datetime, timedelta

import msgspec

from services.runner.agents import Finished
from services.runner.lease import Completion, Lease, Parked
from shared import commands as c
from shared.approval import approval_hash

Ending = Completion | Parked | Finished

_INPUT = msgspec.json.Encoder(order="deterministic")


def command_of(lease: Lease, ending: Ending | None, *, runner: str, phase: c.PlanPhase, now: datetime) -> c.TaskCommand:
    """What to tell the log. None stands for work that was interrupted."""
    number = lease.key.lease
    match ending:
        case Completion():
            return c.Complete(
                lease=number,
                base_commit=ending.base_commit,
                commit=ending.commit,
                result=ending.result,
                answer=ending.answer,
                usage=ending.usage,
            )
        case Parked():
            return _request_approval(lease, ending, phase, now)
        case None if not lease.cancelling:
            return c.Release(lease=number, reason=f"runner {runner} was stopped", usage=lease.usage)
    finished = ending or Finished(kind="cancelled", message="cancelled while it ran", usage=lease.usage)
    if finished.kind == "completed":
        raise TypeError("an executor reports success by a Completion")
    return c.Fail(
        now=now,
        phase=phase,
        lease=number,
        kind="cancelled" if lease.cancelling else finished.kind,
        message=finished.message,
        usage=finished.usage,
        retry_after_s=finished.retry_after_s,
        jitter=random.random(),  # noqa: S311 - spreads retries, hides nothing
        conflict=finished.conflict,
        faults=finished.faults,
    )


def _request_approval(lease: Lease, parked: Parked, phase: c.PlanPhase, now: datetime) -> c.RequestApproval:
    key, dispatch = lease.key, lease.dispatch
    return c.RequestApproval(
        now=now,
        phase=phase,
        lease=key.lease,
        approval=approval_hash(key.plan, key.task, dispatch.attempt, key.lease, parked.tool, parked.input),
        kind=parked.kind,
        tool=parked.tool,
        input=_INPUT.encode(parked.input).decode(),
        why=parked.why,
        expires_at=now + timedelta(seconds=dispatch.rules.approval_timeout_s),
        commit=parked.commit,
        base_commit=parked.base_commit,
        usage=parked.usage,
    )
