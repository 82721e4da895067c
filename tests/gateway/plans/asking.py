"""Tasks that ask for something, driven through the deciders as a dispatcher and a runner do it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from shared import commands as c
from shared.approval import approval_hash
from shared.events import ApprovalKind, Usage
from shared.jetstream import JetStreamStore
from shared.store import EventStore
from shared.transact import load_task, to_task
from tests.gateway.projection.histories import ANN, SH

LATER = datetime(2100, 1, 1, tzinfo=UTC)
WHY = "no rule of the project allows Bash beforehand"


async def started(store: EventStore, plan: str, code: str) -> int:
    """Dispatches and starts the task; its lease."""
    loaded = (await load_task(store, plan, code)).state
    now = datetime.now(UTC)
    dispatch = c.Dispatch(
        now=now,
        revision=loaded.revision,
        prompt="Do it.",
        agent=loaded.agent or SH,
        project="",
        repo_url="https://example.org/r.git",
        base_commit="base",
        heads=(),
        abandoned=(),
        plan_name="woven",
        setup=(),
        env_allow=(),
    )
    dispatched = (await to_task(store, plan, code, dispatch, ANN)).state
    start = c.Start(
        phase="open", dispatch=dispatched.dispatch, runner="r1", execution=f"{plan}-{code}-{dispatched.dispatch}"
    )
    return (await to_task(store, plan, code, start, ANN)).state.lease


async def asks(
    store: EventStore | JetStreamStore,
    plan: str,
    code: str,
    tool: str = "Bash",
    input_: str = '{"command":"pip install x"}',
    kind: ApprovalKind = "tool",
) -> str:
    """The task runs, and asks for this; the approval's hash."""
    lease = await started(store, plan, code)
    attempt = (await load_task(store, plan, code)).state.attempt
    approval = approval_hash(plan, code, attempt, lease, tool, input_)
    request = c.RequestApproval(
        now=datetime.now(UTC),
        phase="open",
        lease=lease,
        approval=approval,
        kind=kind,
        tool=tool,
        input=input_,
        why=WHY,
        expires_at=LATER,
        commit="c" * 40 if kind == "result" else "",
        base_commit="b" * 40 if kind == "result" else "",
        usage=Usage(output_tokens=7, cost_usd=0.25),
    )
    await to_task(store, plan, code, request, ANN)
    return approval


async def expires(store: EventStore, plan: str, code: str, approval: str) -> None:
    """Nobody answered in time."""
    await to_task(store, plan, code, c.Deny(approval=approval, now=LATER + timedelta(seconds=1)), ANN)
