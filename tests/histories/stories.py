"""The stories that the recorded histories tell, by name."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta

import msgspec

from shared import commands as c
from shared.approval import approval_hash
from shared.events import (
    Conflict,
    FailureKind,
    Finding,
    ForkOf,
    Kept,
    Result,
    Review,
    TaskApprovalRequested,
    TaskCompleted,
    Usage,
)
from shared.spec import PlanSpec, Retry, TaskSpec
from shared.subjects import PLAN
from shared.transact import to_plan
from tests.histories.stage import (
    AGENTS,
    ANN,
    BASE,
    CLAUDE,
    ORIGIN_ID,
    PLAN_ID,
    SILENCE_S,
    WATCH,
    Stage,
    Taken,
    Work,
    commit,
    completes,
)

Story = Callable[[], Awaitable[Stage]]


def task(code: str, *depends_on: str, assignee: str = "claude", **more: object) -> TaskSpec:
    return TaskSpec(
        code=code, name=f"Write {code}", assignee=assignee, description=f"Write {code}.", depends_on=depends_on,
        budget_usd=1.0, **more,  # type: ignore[arg-type]  # fields of a task, each given by its name
    )  # fmt: skip


def plan(*tasks: TaskSpec, **more: object) -> PlanSpec:
    return PlanSpec(name="A recorded plan", tasks=tasks, agents=AGENTS, **more)  # type: ignore[arg-type]  # likewise


DIAMOND = (task("T1"), task("T2", "T1"), task("T3", "T1"), task("T4", "T2", "T3"))


def fails(kind: FailureKind, after_s: float = 5.0, **more: object) -> Work:
    async def work(stage: Stage, taken: Taken) -> None:
        lease = await stage.start(taken)
        await asyncio.sleep(after_s)
        usage = Usage(input_tokens=300, cost_usd=0.1)
        command = c.Fail(
            now=stage.clock(), phase="open", lease=lease, kind=kind, message=f"it failed: {kind}", usage=usage,
            jitter=0.5, **more,  # type: ignore[arg-type]  # fields of the command
        )  # fmt: skip
        await stage.report(taken, command)

    return work


async def dies(stage: Stage, taken: Taken) -> None:
    """Its runner is gone without a word, and another one takes over."""
    lease = await stage.start(taken, "runner-1")
    await asyncio.sleep(SILENCE_S)
    lease = await stage.start(taken, "runner-2", lost=lease)
    await asyncio.sleep(10)
    await stage.complete(taken, lease, "runner-2")


def judges(approve: bool) -> Work:
    """A review, of what its dispatch names."""

    async def work(stage: Stage, taken: Taken) -> None:
        lease = await stage.start(taken)
        await asyncio.sleep(5)
        rules, looked_at = taken.event.rules, taken.event.heads[0].commit
        wrong = Finding(message="the name is wrong", severity="major", file="src/a.py", line=3)
        review = Review(approve=approve, findings=() if approve else (wrong,), round=rules.round, commit=looked_at)
        command = c.Complete(
            lease=lease, base_commit=looked_at, commit=looked_at, answer='{"findings":[]}',
            result=Result(task_code=taken.code, summary=f"judged {rules.reviews}", review=review),
            usage=Usage(input_tokens=400, cost_usd=0.05),
        )  # fmt: skip
        await stage.report(taken, command)

    return work


def asks(wait_s: float) -> Work:
    async def work(stage: Stage, taken: Taken) -> None:
        lease = await stage.start(taken)
        await asyncio.sleep(3)
        command = c.RequestApproval(
            now=stage.clock(),
            phase="open",
            lease=lease,
            approval=approval_hash(taken.plan, taken.code, taken.event.attempt, lease, "Bash", '{"command":"make"}'),
            kind="tool",
            tool="Bash",
            input='{"command":"make"}',
            why="nobody allowed it beforehand",
            expires_at=stage.clock() + timedelta(seconds=wait_s),
            usage=Usage(input_tokens=50, cost_usd=0.05),
        )
        await stage.report(taken, command)

    return work


async def goes_on(stage: Stage, taken: Taken) -> None:
    """What was allowed is used, then the work is done."""
    lease = await stage.start(taken)
    approval = asked(stage, taken.plan, taken.code)
    await stage.report(taken, c.UseApproval(lease=lease, approval=approval))
    await asyncio.sleep(7)
    await stage.complete(taken, lease)


def asked(stage: Stage, of_plan: str, code: str) -> str:
    """What the task asked for last."""
    events = (r.event for r in reversed(stage.records(of_plan)) if r.entity == code)
    return next(event.approval for event in events if isinstance(event, TaskApprovalRequested))


async def diamond() -> Stage:
    async with Stage().open() as stage:
        await stage.submit(plan(*DIAMOND))
        await stage.until(PLAN, "completed")
    return stage


async def retry() -> Stage:
    """An overloaded model, which is tried again by itself; a wrong test, which a person has tried again."""
    works = {"T1": [fails("unavailable"), fails("unavailable", retry_after_s=40.0)], "T2": [fails("agent_error")] * 2}
    async with Stage(works).open() as stage:
        await stage.submit(plan(task("T1"), task("T2", "T1", retry=Retry(max_attempts=2, backoff_s=4))))
        await stage.until("T2", "needs_attention")
        await asyncio.sleep(30)
        await stage.say("T2", c.Redispatch(note="the network was down"))
        await stage.until(PLAN, "completed")
    return stage


async def lease_lost() -> Stage:
    async with Stage({"T1": [dies]}).open() as stage:
        await stage.submit(plan(task("T1"), task("T2", "T1")))
        await stage.until(PLAN, "completed")
    return stage


async def conflict() -> Stage:
    """T3 starts from work that can't be merged; an agent merges it first."""
    found = Conflict(files=("src/a.py",), tasks=("T1", "T2"))
    async with Stage({"T3": [fails("merge_conflict", 1.0, conflict=found)]}).open() as stage:
        await stage.submit(plan(task("T1"), task("T2"), task("T3", "T1", "T2")), on_conflict="agent")
        await stage.until(PLAN, "completed")
    return stage


async def approval() -> Stage:
    """One that a person grants, and one that nobody answers in time."""
    works = {"T1": [asks(3600.0), goes_on], "T2": [asks(50.0)]}
    async with Stage(works).open() as stage:
        await stage.submit(plan(task("T1"), task("T2")))
        await stage.until("T1", "awaiting_approval")
        await asyncio.sleep(20)
        await stage.say("T1", c.Approve(now=stage.clock(), approval=asked(stage, PLAN_ID, "T1"), note="go on"))
        await stage.until(PLAN, "completed")
    return stage


async def manual_late() -> Stage:
    """A person hands in nothing valid at first, nobody can look for a while, and the result comes after its time."""
    async with Stage().open() as stage:
        await stage.submit(plan(task("M1", assignee="bob", timeout_minutes=2.0), task("T2", "M1")))
        await stage.until("M1", "readied")
        await asyncio.sleep(15)
        await stage.hand_out("M1")
        lease = await stage.lease("M1")
        await asyncio.sleep(30)
        await stage.say("M1", c.FailWatch(lease=lease, reason="the host is away", since=stage.clock()), meta=WATCH)
        await asyncio.sleep(20)
        await stage.say("M1", c.RestoreWatch(now=stage.clock(), lease=lease), meta=WATCH)
        await stage.until("M1", "needs_attention")
        await asyncio.sleep(40)
        done = c.Complete(
            lease=lease, base_commit=BASE, commit=commit(PLAN_ID, "M1", lease),
            result=Result(task_code="M1", summary="done at last"), usage=Usage(),
        )  # fmt: skip
        await stage.say("M1", done, meta=WATCH)
        await stage.until(PLAN, "completed")
    return stage


async def cancel() -> Stage:
    """While one task runs, another is queued behind the plan's bound, and the rest waits."""

    async def stops(stage: Stage, taken: Taken) -> None:
        lease = await stage.start(taken)
        await stage.until("T1", "cancelling")
        stop = c.Fail(
            now=stage.clock(), phase="cancelling", lease=lease, kind="cancelled", message="stopped",
            usage=Usage(input_tokens=70, cost_usd=0.07),
        )  # fmt: skip
        await stage.report(taken, stop)

    async with Stage({"T1": [stops]}).open() as stage:
        await stage.submit(plan(task("T1"), task("T2", "T1"), task("T3"), max_parallel=1))
        await stage.until("T1", "running")
        await asyncio.sleep(8)
        await _to_plan(stage, c.Pause(reason="let me look"))
        await asyncio.sleep(5)
        await _to_plan(stage, c.Resume())
        await asyncio.sleep(5)
        await _to_plan(stage, c.CancelPlan(reason="wrong goal"))
        await stage.until(PLAN, "cancelled")
    return stage


async def fork() -> Stage:
    """Goes on from another plan's moment, whose T1 and T2 it keeps; that plan is not in the file."""
    async with Stage().open() as stage:
        await stage.submit(plan(*DIAMOND), plan=ORIGIN_ID)
        await stage.until(PLAN, "completed", ORIGIN_ID)
        done = {r.entity: (r, r.event) for r in stage.records(ORIGIN_ID) if isinstance(r.event, TaskCompleted)}
        kept = tuple(
            Kept(
                task=code,
                plan=ORIGIN_ID,
                seq=record.seq,
                base_commit=event.base_commit,
                commit=event.commit,
                result=event.result,
                usage=event.usage,
            )
            for code, (record, event) in done.items()
            if code in ("T1", "T2")
        )
        spec = plan(*DIAMOND[:3], task("T4", "T2", "T3", allow_no_change=True))
        await stage.submit(spec, fork=ForkOf(plan=ORIGIN_ID, seq=stage.records(ORIGIN_ID)[-1].seq, kept=kept))
        await stage.until(PLAN, "completed")
    return stage


async def thousand() -> Stage:
    """Ten layers of a hundred tasks; each waits for three of the layer before."""
    tasks = [
        task(
            f"T{layer}-{number:02}",
            *(f"T{layer - 1}-{(number + step) % 100:02}" for step in (0, 7, 31) if layer),
        )
        for layer in range(10)
        for number in range(100)
    ]
    works = {spec.code: [completes(20 + number * 7.31 % 20)] for number, spec in enumerate(tasks)}
    async with Stage(works, slots=50).open() as stage:
        await stage.submit(plan(*tasks))
        await stage.until(PLAN, "completed")
    return stage


async def lost_often() -> Stage:
    """A task that survives two lost runners, and one that does not survive three."""

    def loses(times: int) -> Work:
        async def work(stage: Stage, taken: Taken) -> None:
            lease = await stage.start(taken, "runner-1")
            for number in range(times):
                await asyncio.sleep(SILENCE_S)
                lease = await stage.start(taken, f"runner-{number + 2}", lost=lease)
            await asyncio.sleep(10)
            await stage.complete(taken, lease, f"runner-{times + 1}")

        return work

    async with Stage({"T1": [loses(2)], "T2": [loses(3)]}).open() as stage:
        await stage.submit(plan(task("T1"), task("T2")))
        await stage.until("T2", "needs_attention")
        await asyncio.sleep(20)
        await stage.say("T2", c.MarkComplete(note="done by hand"))
        await stage.until(PLAN, "completed")
    return stage


async def limits() -> Stage:
    """A usage limit that spends no attempt; a task that asks before all it does."""
    works = {"T1": [fails("usage_limit", retry_after_s=300.0), fails("usage_limit", retry_after_s=1.0)]}
    async with Stage(works).open() as stage:
        await stage.submit(plan(task("T1"), task("T2", requires_approval=True)))
        await stage.until(PLAN, "completed")
    return stage


async def paused_start() -> Stage:
    """The only runner takes a task while the plan is paused, and hands it back."""
    async with Stage(slots=1).open() as stage:
        await stage.submit(plan(task("T1"), task("T2")))
        await stage.until("T1", "running")
        await asyncio.sleep(4)
        await _to_plan(stage, c.Pause(reason="let me look"))
        await stage.until("T1", "completed")
        await stage.until("T2", "pending")
        await asyncio.sleep(5)
        await _to_plan(stage, c.Resume())
        await stage.until(PLAN, "completed")
    return stage


async def reopened() -> Stage:
    """T2 rests on T1's abandoning; a person wants T1 after all, and a runner is faster than the dispatcher's recall."""

    async def comes_late(stage: Stage, taken: Taken) -> None:
        await stage.until("T1", "abandoned")
        await asyncio.sleep(10)
        await stage.say("T1", c.Redispatch(note="after all"))
        await stage.start(taken, reopened=("T1",))

    async with Stage({"T1": [fails("agent_error")], "T2": [comes_late]}).open() as stage:
        stage.log.slow_s["Release"] = 2.0
        await stage.submit(plan(task("T1"), task("T2", "T1")))
        await stage.until("T1", "needs_attention")
        await asyncio.sleep(10)
        await stage.say("T1", c.Abandon(note="not worth it"))
        await stage.until(PLAN, "completed")
    return stage


async def failed_cancel() -> Stage:
    """A task fails by itself while it is being cancelled, which is no reason to try again."""

    async def stops(stage: Stage, taken: Taken) -> None:
        lease = await stage.start(taken)
        await stage.until("T1", "cancelling")
        await asyncio.sleep(1)
        command = c.Fail(
            now=stage.clock(), phase="open", lease=lease, kind="unavailable", message="overloaded", usage=Usage()
        )
        await stage.report(taken, command)

    async with Stage({"T1": [stops]}).open() as stage:
        await stage.submit(plan(task("T1", retry=Retry(max_attempts=3, backoff_s=4))))
        await stage.until("T1", "running")
        await asyncio.sleep(8)
        await stage.say("T1", c.CancelTask(phase="open", reason="wrong words"))
        await stage.until("T1", "needs_attention")
        await asyncio.sleep(10)
        await stage.say("T1", c.Redispatch(note="once more"))
        await stage.until(PLAN, "completed")
    return stage


async def bounded() -> Stage:
    """Seven tasks, of which two may run at once."""
    works = {f"T{number}": [completes(10.0 + number)] for number in range(1, 8)}
    async with Stage(works).open() as stage:
        await stage.submit(plan(*(task(f"T{number}") for number in range(1, 8)), max_parallel=2))
        await stage.until(PLAN, "completed")
    return stage


async def budget() -> Stage:
    """The plan's money is enough for two tasks at once at first, then for one, then for none until there is more."""
    works = {f"T{number}": [completes(10.0 + number)] for number in range(1, 7)}
    async with Stage(works).open() as stage:
        tasks = [task(f"T{number}") for number in range(1, 7)]
        await stage.submit(plan(*tasks, task("M1", assignee="bob"), budget_usd=2.1))
        await stage.until(PLAN, "paused")
        await asyncio.sleep(30)
        await _to_plan(stage, c.Resume(budget_usd=10.0))
        await stage.say("M1", c.MarkComplete(note="not needed"))
        await stage.until(PLAN, "completed")
    return stage


async def abandoned() -> Stage:
    """T2 is abandoned while T1 before it still runs: T3 behind it waits for T1, though others go on."""
    works = {"T1": [completes(100.0)]}
    async with Stage(works).open() as stage:
        chain = [task("Q1"), task("Q2", "Q1"), task("Q3", "Q2"), task("Q4", "Q3")]
        await stage.submit(plan(task("T1"), task("T2", "T1"), task("T3", "T2"), *chain))
        await stage.until("T1", "running")
        await asyncio.sleep(5)
        await stage.say("T2", c.Abandon(note="not worth it"))
        await stage.until(PLAN, "completed")
    return stage


async def rounds() -> Stage:
    """One of two reviewers is not content, twice: a person grants a third round, which both approve."""
    works = {
        "look-1": [judges(False)], "look-2": [judges(True)],
        "look-1-2": [judges(True)], "look-2-2": [judges(False)],
        "look-1-3": [judges(True)], "look-2-3": [judges(True)],
    }  # fmt: skip
    async with Stage(works).open() as stage:
        reviews = [task(f"look-{number}", "work", reviews="work") for number in (1, 2)]
        decision = TaskSpec(
            code="decide", name="Decide", assignee="", depends_on=("look-1", "look-2"), max_review_rounds=2,
            fixer="other", budget_usd=0.0,
        )  # fmt: skip
        work = task("work", verify=("make check",), retry=Retry(max_attempts=2))
        spec = plan(work, *reviews, decision, task("after", "decide"))
        await stage.submit(msgspec.structs.replace(spec, agents={**AGENTS, "other": CLAUDE}))
        await stage.until("decide", "needs_attention")
        await asyncio.sleep(30)
        await stage.say("decide", c.Redispatch(note="once more"))
        await stage.until(PLAN, "completed")
    return stage


async def merged_often() -> Stage:
    """T3 is merged three times and meets a conflict again, which is for a person then; meanwhile others go on."""
    found = Conflict(files=("src/a.py", "src/b.py"), tasks=("T1", "T2"))
    async with Stage({"T3": [fails("merge_conflict", 1.0, conflict=found)] * 4}).open() as stage:
        chain = [task("Q1"), *(task(f"Q{number}", f"Q{number - 1}") for number in range(2, 16))]
        await stage.submit(plan(task("T1"), task("T2"), task("T3", "T1", "T2"), *chain), on_conflict="agent")
        await stage.until("Q15", "completed")
        await stage.say("T3", c.MarkComplete(note="merged by hand"))
        await stage.until(PLAN, "completed")
    return stage


async def reported() -> Stage:
    """A conflict that is only reported, as the project has it; meanwhile others go on."""
    found = Conflict(files=("src/a.py",), tasks=("T1", "T2"))
    async with Stage({"T3": [fails("merge_conflict", 1.0, conflict=found)]}).open() as stage:
        chain = [task("Q1"), *(task(f"Q{number}", f"Q{number - 1}") for number in range(2, 8))]
        await stage.submit(plan(task("T1"), task("T2"), task("T3", "T1", "T2"), *chain))
        await stage.until("Q7", "completed")
        await stage.say("T3", c.Redispatch(note="T2 is mended"))
        await stage.until(PLAN, "completed")
    return stage


async def _to_plan(stage: Stage, command: c.PlanCommand) -> None:
    await to_plan(stage.log, PLAN_ID, command, ANN)


STORIES: dict[str, Story] = {
    "diamond": diamond,
    "retry": retry,
    "lease_lost": lease_lost,
    "conflict": conflict,
    "approval": approval,
    "manual_late": manual_late,
    "cancel": cancel,
    "fork": fork,
    "thousand": thousand,
    "lost_often": lost_often,
    "limits": limits,
    "paused_start": paused_start,
    "reopened": reopened,
    "failed_cancel": failed_cancel,
    "bounded": bounded,
    "budget": budget,
    "abandoned": abandoned,
    "rounds": rounds,
    "merged_often": merged_often,
    "reported": reported,
}
