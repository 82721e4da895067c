"""What Hypothesis draws plans, tasks, commands and events from: mostly sensible, now and then hostile."""

from datetime import UTC, datetime, timedelta
from typing import get_args

from hypothesis import strategies as st
from msgspec.structs import replace

from shared import commands as c
from shared import events as e
from shared.spec import DELIVER, AgentSpec, PlanSpec, Retry, TaskSpec, digest
from shared.task import TaskState

NOW = datetime(2025, 1, 1, tzinfo=UTC)
SH = AgentSpec(sdk_type="command", command=("true",))
PERSON = AgentSpec(sdk_type=None)

times = st.integers(0, 100_000).map(lambda s: NOW + timedelta(seconds=s))
words = st.sampled_from(["", "a", "some words", "ünï – \x1b[2J\n\u202e"])
phases = st.sampled_from(get_args(c.PlanPhase))
kinds = st.sampled_from(get_args(e.FailureKind))
money = st.floats(0, 100)
usages = st.builds(e.Usage, st.integers(0, 99), st.integers(0, 99), st.integers(0, 9), st.integers(0, 9), money)
retries = st.none() | st.builds(Retry, max_attempts=st.integers(1, 20), backoff_s=st.floats(0, 600))
agents = st.sampled_from([SH, SH, PERSON]) | st.builds(AgentSpec, sdk_type=st.just("claude"), model=st.just("m"))
heads = st.lists(st.builds(e.Head, st.sampled_from(["A", "B"]), words), max_size=2).map(tuple)
codes = st.lists(st.sampled_from(["A", "B"]), max_size=2, unique=True).map(tuple)
results = st.builds(e.Result, task_code=st.just("T1"), summary=words, artifacts=st.just(()))
kepts = st.builds(
    e.Kept,
    task=st.just("T1"),
    plan=words,
    seq=st.integers(1, 9),
    commit=st.sampled_from(["", "aaa"]),
    result=st.none() | results,
    usage=usages,
)


def task_specs(code: str = "T1", depends_on: tuple[str, ...] = ()) -> st.SearchStrategy[TaskSpec]:
    return st.builds(
        TaskSpec,
        code=st.just(code),
        name=words,
        assignee=st.just("sh"),
        depends_on=st.just(depends_on),
        timeout_minutes=st.floats(0.01, 1440),
        verify=st.lists(words, max_size=2).map(tuple),
        retry=retries,
        budget_usd=money,
    )


@st.composite
def plan_specs(draw: st.DrawFn, tasks_max: int = 8) -> PlanSpec:
    """A valid plan: any DAG, its tasks in any order."""
    names = [f"T{i}" for i in range(draw(st.integers(1, tasks_max)))]
    tasks = []
    for place, code in enumerate(names):
        needed = draw(st.lists(st.sampled_from(names[:place]), unique=True)) if place else []
        retry = draw(st.sampled_from([None, None, Retry(max_attempts=2)]))
        assignee = draw(st.sampled_from(["sh", "sh", "ann"]))
        tasks.append(TaskSpec(code=code, name=code, assignee=assignee, depends_on=tuple(needed), retry=retry))
    return PlanSpec(
        name=draw(words),
        tasks=tuple(draw(st.permutations(tasks))),
        agents={"sh": SH, "ann": PERSON},
        max_parallel=draw(st.integers(1, 4)),
    )


# Commands to a plan ---------------------------------------------------------------------------------------------------

SPECS = (
    PlanSpec(name="one", tasks=(TaskSpec(code="T1", name="T1", assignee="sh"),), agents={"sh": SH}),
    PlanSpec(name="other", tasks=(TaskSpec(code="T2", name="T2", assignee="sh"),), agents={"sh": SH}),
)
ADDED = TaskSpec(code="A1", name="A1", assignee="sh", resolves="T1")
candidates = st.sampled_from(["c1", "c2", "", "1", "2"])

origins = st.sampled_from([e.DraftOrigin(), e.DraftOrigin(), e.DraftOrigin(draft="_draft-1"), e.DraftOrigin(blob="b")])

plan_commands: st.SearchStrategy[c.PlanCommand] = st.one_of(
    st.builds(
        c.Request,
        count=st.integers(1, 3),
        by_hand=st.booleans(),
        goal=words,
        project=st.just(""),
        mode=st.just("auto"),
        planning_mode=st.just("speed"),
        agents=st.just(()),
        repo_url=st.just("u"),
        base_commit=words,
    ),
    st.builds(c.FailDraft, candidate=candidates, message=words, origin=origins),
    st.builds(
        c.Draft,
        candidate=candidates,
        origin=origins,
        spec=st.sampled_from(SPECS),
        repo_url=st.just("u"),
        base_commit=words,
        replaces=st.sampled_from(["", "", "an old one", *map(digest, SPECS)]),
    ),
    st.builds(c.Finalize, candidate=candidates, digest=st.sampled_from(["", "", "an old one", *map(digest, SPECS)])),
    st.builds(c.ConfirmFinalized, digest=words),
    st.builds(c.Pause, reason=words),
    st.builds(c.Resume, budget_usd=st.none() | money),
    st.builds(c.CancelPlan, reason=words),
    st.builds(
        c.Extend,
        tasks=st.lists(st.sampled_from([*SPECS[0].tasks, ADDED]), min_size=1, max_size=2).map(tuple),
        before=st.sampled_from(["", "T1"]),
        reason=words,
    ),
    st.builds(c.ConfirmCancelled),
    st.builds(c.CompletePlan, head_commit=words),
    st.builds(c.RecordFork, plan=words, seq=st.integers(1, 9)),
    st.builds(c.Skip, seq=st.integers(1, 9), reason=words),
)

# Commands to a task ---------------------------------------------------------------------------------------------------


_offsets = st.sampled_from([0, 0, 0, -1, -2, 1])
"""From the state's own number: mostly the right one, sometimes one of the past or one that never was."""

dispatches: st.SearchStrategy[c.Dispatch] = st.builds(
    c.Dispatch,
    now=times,
    revision=st.sampled_from([0, 0, 0, 1]),
    prompt=words,
    agent=st.none() | agents,
    project=words,
    repo_url=words,
    base_commit=words,
    heads=heads,
    abandoned=codes,
    plan_name=words,
    setup=st.just(()),
    env_allow=st.just(()),
)
fails: st.SearchStrategy[c.Fail] = st.builds(
    c.Fail,
    now=times,
    phase=st.sampled_from(["open", "open", "open", "paused", "cancelling"]),
    lease=_offsets,
    kind=kinds | st.sampled_from(["unavailable", "usage_limit"]),
    message=words,
    usage=usages,
    blob=st.sampled_from(["", "b1", "b2"]),
    retry_after_s=st.none() | st.floats(),  # said by a server: infinite, negative and NaN included
    jitter=st.floats(0, 1),
)
_starts = st.builds(
    c.Start,
    phase=st.sampled_from(["open", "open", "open", "paused", "cancelling"]),
    dispatch=_offsets,
    runner=st.sampled_from(["r1", "r2"]),
    execution=st.integers(1, 9).map(str),
    reopened=st.sampled_from([(), (), (), ("A",)]),
    supersede_lease=st.none() | _offsets,
    lost_usage=st.none() | usages,
    deadline=st.none() | times,
)
_approvals = st.sampled_from(["h1", "h1", "h2"])
_asks: st.SearchStrategy[c.TaskCommand] = st.one_of(
    st.builds(
        c.RequestApproval,
        now=times,
        phase=st.sampled_from(["open", "open", "open", "paused", "cancelling"]),
        lease=_offsets,
        approval=_approvals,
        kind=st.sampled_from(get_args(e.ApprovalKind)),
        tool=words,
        input=words,
        why=words,
        expires_at=times,
        commit=words,
        usage=usages,
    ),
    st.builds(c.Approve, now=times, approval=_approvals, note=words),
    st.builds(c.Deny, approval=_approvals, note=words, now=st.none() | times),
    st.builds(c.UseApproval, lease=_offsets, approval=_approvals),
)
readied_events: st.SearchStrategy[e.TaskReadied] = st.builds(
    e.TaskReadied,
    dispatch=st.integers(0, 3),
    attempt=st.integers(1, 3),
    prompt=words,
    agent=st.just(PERSON),
    base_commit=words,
    heads=heads,
    abandoned=codes,
)
_by_hand: st.SearchStrategy[c.TaskCommand] = st.one_of(
    st.builds(
        c.Ready,
        now=times,
        revision=st.sampled_from([0, 0, 0, 1]),
        prompt=words,
        agent=st.just(PERSON),
        base_commit=words,
        heads=heads,
        abandoned=codes,
    ),
    st.builds(c.HandOut, phase=phases, readied=readied_events, project=words, repo_url=words, plan_name=words),
    st.builds(c.Edit, spec=task_specs(), agent=agents),
    st.builds(c.FailWatch, lease=_offsets, reason=words, since=times),
    st.builds(c.RestoreWatch, now=times, lease=_offsets),
    st.builds(c.Decide, approved=st.booleans(), round=st.integers(1, 3), reason=words),
)
task_wishes: st.SearchStrategy[c.TaskCommand] = st.one_of(
    st.builds(
        c.PlanTask,
        digest=words,
        index=st.integers(0, 9),
        spec=task_specs() | task_specs(DELIVER),
        agent=st.none() | agents,
    ),
    st.builds(c.Inherit, digest=words, index=st.integers(0, 9), spec=task_specs(), agent=agents, kept=kepts),
    dispatches,
    dispatches,
    _by_hand,
    _starts,
    _starts,
    st.builds(c.Release, lease=st.none() | _offsets, reason=words, lost=st.booleans(), usage=st.none() | usages),
    _asks,
    _asks,
    st.builds(
        c.Complete,
        lease=_offsets,
        base_commit=words,
        commit=st.sampled_from(["aaa", "bbb"]),
        result=results,
        usage=usages,
    ),
    fails,
    fails,
    st.builds(c.CancelTask, phase=phases, reason=words),
    st.builds(c.MarkComplete, note=words),
    st.builds(c.Abandon, note=words),
    st.builds(c.Redispatch, note=words),
    st.builds(c.Redispatch, note=words),
    st.builds(c.Skip, seq=st.integers(1, 9), reason=words),
)
"""Commands whose numbers still count from those of the state that they will meet; see `fitted`."""


openings: st.SearchStrategy[list[c.TaskCommand]] = st.builds(
    lambda commands, count: commands[:count],
    st.tuples(
        st.builds(c.PlanTask, digest=words, index=st.just(0), spec=task_specs(), agent=agents),
        dispatches,
        st.builds(c.Start, phase=st.just("open"), dispatch=st.just(0), runner=st.just("r1"), execution=st.just("0")),
    ).map(list),
    st.sampled_from([3, 3, 1, 0]),
)
"""How most lives begin; without it few would ever run."""


def fitted(wish: c.TaskCommand, state: TaskState) -> c.TaskCommand:
    """The command that a wish becomes once its state is known."""
    match wish:
        case c.Start():
            supersede = None if wish.supersede_lease is None else state.lease + wish.supersede_lease
            return replace(wish, dispatch=state.dispatch + wish.dispatch, supersede_lease=supersede)
        case c.HandOut():
            return replace(wish, readied=replace(wish.readied, dispatch=state.dispatch))
        case c.Complete() | c.Fail() | c.RequestApproval() | c.UseApproval() | c.FailWatch() | c.RestoreWatch():
            return replace(wish, lease=state.lease + wish.lease)
        case c.Release():
            return replace(wish, lease=None if wish.lease is None else state.lease + wish.lease)
    return wish


# Events ---------------------------------------------------------------------------------------------------------------

leases = st.integers(1, 5)

plan_events: st.SearchStrategy[e.Event] = st.one_of(
    st.builds(
        e.PlanRequested,
        candidates=st.sampled_from([("1",), ("1", "2")]),
        by_hand=st.booleans(),
        goal=words,
        project=words,
        repo_url=words,
        base_commit=words,
    ),
    st.builds(e.PlanFailed, candidate=candidates, message=words, origin=origins),
    st.builds(e.PlanDrafted, candidate=candidates, spec=plan_specs(3), repo_url=words, base_commit=words),
    st.builds(e.PlanFinalizing, candidate=candidates, digest=words, count=st.integers(0, 99)),
    st.builds(e.PlanFinalized, digest=words),
    st.builds(e.PlanExtended, tasks=st.just((ADDED,)), before=st.sampled_from(["", "T1"]), reason=words),
    st.builds(e.PlanPaused, reason=words),
    st.builds(e.PlanResumed, budget_usd=st.none() | money),
    st.builds(e.PlanCancelRequested, reason=words),
    st.builds(e.PlanCancelled),
    st.builds(e.PlanCompleted, head_commit=words),
    st.builds(e.PlanForked, plan=words, seq=st.integers(1, 9)),
    st.builds(e.PlanSkipped, seq=st.integers(1, 9), reason=words),
)

task_events: st.SearchStrategy[e.Event] = st.one_of(
    st.builds(e.TaskPlanned, digest=words, index=st.integers(0, 9), spec=task_specs(), agent=st.none() | agents),
    st.builds(e.TaskInherited, digest=words, index=st.integers(0, 9), spec=task_specs(), agent=agents, kept=kepts),
    st.builds(
        e.TaskDispatched,
        dispatch=leases,
        attempt=leases,
        prompt=words,
        agent=st.none() | agents,
        repo_url=words,
        base_commit=words,
        heads=heads,
        abandoned=codes,
        plan_name=words,
        task_name=words,
        timeout_s=money,
        budget_usd=money,
    ),
    readied_events,
    st.builds(e.TaskEdited, spec=task_specs(), agent=agents),
    st.builds(
        e.TaskStarted,
        lease=leases,
        runner=words,
        execution=words,
        supersedes=st.none() | leases,
        resumes=leases,
        charged=usages,
    ),
    st.builds(e.TaskReleased, lease=st.none() | leases, reason=words, lost=st.booleans(), usage=usages),
    st.builds(
        e.TaskApprovalRequested,
        lease=leases,
        approval=_approvals,
        kind=st.sampled_from(get_args(e.ApprovalKind)),
        tool=words,
        input=words,
        why=words,
        expires_at=times,
        usage=usages,
    ),
    st.builds(e.TaskApprovalGranted, approval=_approvals, note=words),
    st.builds(e.TaskApprovalDenied, approval=_approvals, note=words, expired=st.booleans()),
    st.builds(e.TaskApprovalUsed, approval=_approvals, lease=leases),
    st.builds(e.TaskCompleted, lease=leases, base_commit=words, commit=words, result=results, usage=usages),
    st.builds(
        e.TaskFailed,
        lease=leases,
        kind=kinds,
        message=words,
        retry_at=st.none() | times,
        spent=st.booleans(),
        conflict=st.none() | st.builds(e.Conflict, files=codes, tasks=codes),
        usage=usages,
    ),
    st.builds(e.TaskWatchFailed, lease=leases, reason=words, since=times),
    st.builds(e.TaskWatchRestored, lease=leases, deadline=st.none() | times),
    st.builds(e.TaskDecided, approved=st.booleans(), round=leases, reason=words),
    st.builds(e.TaskCancelRequested, reason=words),
    st.builds(e.TaskCancelled, lease=st.none() | leases, usage=usages),
    st.builds(e.TaskMarkedComplete, note=words),
    st.builds(e.TaskAbandoned, note=words),
    st.builds(e.TaskRedispatchRequested, note=words),
    st.builds(e.TaskSkipped, seq=st.integers(1, 9), reason=words),
)
