"""The task's decider, given anything."""

import contextlib
from datetime import timedelta
from typing import NamedTuple

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared import commands as c
from shared import events as e
from shared.spec import DELIVER, AgentSpec, Retry, TaskSpec
from shared.task import FINAL, INITIAL, LEASED, TaskState, evolve, may_cost_usd
from shared.task_decisions import NOT_RETRIED, TRANSIENT_ATTEMPTS, UNSPENT_WAIT_MIN_S, decide
from tests.shared.strategies import (
    NOW,
    PERSON,
    SH,
    dispatches,
    fails,
    fitted,
    openings,
    task_events,
    task_specs,
    task_wishes,
)

STEPS = 25


class Step(NamedTuple):
    before: TaskState
    command: c.TaskCommand
    event: e.Event | None
    after: TaskState


@st.composite
def lives(draw: st.DrawFn) -> list[Step]:
    """A task's life: any commands in any order, and what was decided. Refused ones are left out."""
    state = INITIAL
    steps: list[Step] = []
    for wish in draw(openings) + draw(st.lists(task_wishes, min_size=1, max_size=STEPS)):
        command = fitted(wish, state)
        try:
            event = decide(state, command)
        except c.Refused:
            continue
        after = evolve(state, event) if event is not None else state
        steps.append(Step(state, command, event, after))
        state = after
    return steps


def events_of(life: list[Step]) -> list[tuple[TaskState, c.TaskCommand, e.Event, TaskState]]:
    return [(s.before, s.command, s.event, s.after) for s in life if s.event is not None]


@given(lives())
def test_the_same_command_again_changes_nothing(life: list[Step]) -> None:
    """None, or a refusal where the first one ended what the command speaks of."""
    for _, command, _, after in events_of(life):
        may_be_refused: tuple[type[c.Refused], ...] = ()
        if isinstance(command, c.Start) and after.status not in LEASED:
            may_be_refused = (c.Obsolete,)  # the start was answered by handing the dispatch back, or by its end
        if isinstance(command, c.Release) and after.status in LEASED:
            pytest.fail("a release left a lease")
        with contextlib.suppress(*may_be_refused):
            assert decide(after, command) is None


@given(lives())
def test_deciding_is_deterministic_and_leaves_the_state_alone(life: list[Step]) -> None:
    for before, command, event, _ in events_of(life):
        body = msgspec.json.encode(before)
        assert decide(before, command) == event
        assert msgspec.json.encode(before) == body


@given(lives())
def test_what_is_decided_survives_the_log(life: list[Step]) -> None:
    for before, _, event, after in events_of(life):
        stored = e.decode(event.name, event.version, e.encode(event))
        assert evolve(before, stored) == after


@given(st.lists(task_events, max_size=12))
def test_any_events_in_any_order_can_be_folded(events: list[e.Event]) -> None:
    state = INITIAL
    for event in events:
        state = evolve(state, event)


@given(st.lists(task_events, max_size=12), st.data())
def test_after_any_history_deciding_gives_an_event_nothing_or_a_refusal(
    events: list[e.Event], data: st.DataObject
) -> None:
    state = evolve(INITIAL, e.TaskPlanned(digest="d", index=0, spec=data.draw(task_specs()), agent=None))
    for event in events:
        state = evolve(state, event)
    try:
        decided = decide(state, fitted(data.draw(task_wishes), state))
    except c.Refused:
        return
    if decided is not None:
        evolve(state, decided)


@given(lives())
def test_what_is_completed_or_cancelled_stays_so(life: list[Step]) -> None:
    for before, command, event, after in events_of(life):
        if before.status in FINAL:
            assert isinstance(event, e.TaskSkipped), f"{command} led to {event}"
            assert after.status == before.status


@given(lives())
def test_only_the_live_lease_can_report(life: list[Step]) -> None:
    for before, command, event, _ in events_of(life):
        if isinstance(command, c.Complete | c.Fail) or (isinstance(command, c.Release) and command.lease is not None):
            assert before.status in LEASED and command.lease == before.lease, f"{command} led to {event}"


@given(lives())
def test_leases_dispatches_and_attempts_only_count_upwards_and_one_lease_is_live(life: list[Step]) -> None:
    for before, _, event, after in events_of(life):
        match event:
            case e.TaskStarted():
                assert (after.lease, after.attempt, after.dispatch) == (
                    before.lease + 1,
                    before.attempt,
                    before.dispatch,
                )
                assert event.supersedes == (before.lease if before.status in LEASED else None)
            case e.TaskDispatched() if before.status == "readied":  # what a person begins was numbered when readied
                same = (before.lease, before.dispatch, before.attempt)
                assert (after.lease, after.dispatch, after.attempt) == same
            case e.TaskDispatched() | e.TaskReadied():
                assert after.dispatch == before.dispatch + 1
                assert after.attempt == before.attempt + (not before.attempt_open)
                assert (after.lease, before.status in LEASED) == (before.lease, False)
            case _:
                same = (before.lease, before.dispatch, before.attempt)
                assert (after.lease, after.dispatch, after.attempt) == same


@given(lives())
def test_each_attempt_has_at_most_one_result(life: list[Step]) -> None:
    results = [
        before.attempt for before, _, event, _ in events_of(life) if isinstance(event, e.TaskCompleted | e.TaskFailed)
    ]
    assert len(results) == len(set(results))


@given(lives())
def test_retries_stay_within_what_the_task_allows(life: list[Step]) -> None:
    for before, command, event, after in events_of(life):
        if not isinstance(event, e.TaskFailed) or event.retry_at is None:
            continue
        assert isinstance(command, c.Fail) and before.spec is not None
        assert event.kind not in NOT_RETRIED
        assert event.retry_at >= command.now
        if not event.spent:
            assert event.kind == "usage_limit" and command.retry_after_s is not None
            assert event.retry_at >= command.now + timedelta(seconds=UNSPENT_WAIT_MIN_S)
            continue
        allowed = before.spec.retry.max_attempts if before.spec.retry else TRANSIENT_ATTEMPTS
        assert after.tries < allowed
        if before.spec.retry is None:
            assert event.kind == "unavailable"


@given(lives())
def test_lost_runners_stay_within_what_the_task_allows(life: list[Step]) -> None:
    for _, _, _, after in events_of(life):
        if after.status == "absent":  # what nobody could read was left out, before there was anything else
            continue
        assert after.spec is not None
        allowed = after.spec.retry.max_attempts if after.spec.retry else TRANSIENT_ATTEMPTS
        assert after.lost < max(allowed, 1)


@given(lives())
def test_a_cancelled_plan_ends_every_task(life: list[Step]) -> None:
    """Asked by the dispatcher, and reported by whoever runs it, each task ends in at most two steps."""
    state = life[-1].after if life else INITIAL
    if state.status == "absent":
        return
    for command in (
        c.CancelTask(phase="cancelling"),
        c.Fail(now=NOW, phase="cancelling", lease=state.lease, kind="cancelled", message="m", usage=e.Usage()),
    ):
        if state.status not in (*FINAL, "abandoned") and (event := decide(state, command)):
            state = evolve(state, event)
    assert state.status in (*FINAL, "abandoned")


@given(lives(), st.data())
def test_a_cancelled_plan_starts_nothing(life: list[Step], data: st.DataObject) -> None:
    state = life[-1].after if life else INITIAL
    start = c.Start(
        phase="cancelling",
        dispatch=state.dispatch,
        runner="r9",
        execution="x9",
        supersede_lease=data.draw(st.sampled_from([None, state.lease])),
    )
    try:
        event = decide(state, start)
    except c.Refused:
        return
    assert not isinstance(event, e.TaskStarted)


# Examples, each of something that once was or could be wrong ----------------------------------------------------------


def fold(*commands: c.TaskCommand, spec: TaskSpec | None = None) -> TaskState:
    spec = spec or TaskSpec(code="T1", name="T1", assignee="sh")
    return fold_on(INITIAL, c.PlanTask(digest="d", index=0, spec=spec, agent=SH), *commands)


def fold_on(state: TaskState, *commands: c.TaskCommand) -> TaskState:
    for command in commands:
        event = decide(state, command)
        assert event is not None, command
        state = evolve(state, event)
    return state


DISPATCH = c.Dispatch(
    now=NOW,
    prompt="p",
    revision=0,
    agent=SH,
    project="",
    repo_url="u",
    base_commit="b",
    heads=(),
    abandoned=(),
    plan_name="n",
    setup=(),
    env_allow=(),
)


def start(dispatch: int = 1, execution: str = "x1", supersede: int | None = None) -> c.Start:
    return c.Start(phase="open", dispatch=dispatch, runner="r1", execution=execution, supersede_lease=supersede)


def fail(lease: int = 1, kind: e.FailureKind = "agent_error", retry_after_s: float | None = None) -> c.Fail:
    return c.Fail(
        now=NOW, phase="open", lease=lease, kind=kind, message="m", usage=e.Usage(), retry_after_s=retry_after_s
    )


def complete(lease: int = 1, commit: str = "abc") -> c.Complete:
    result = e.Result(task_code="T1", summary="s")
    return c.Complete(lease=lease, base_commit="b", commit=commit, result=result, usage=e.Usage())


def test_a_runner_that_was_given_up_is_not_told_that_its_commit_counts() -> None:
    """Else it would move the head ref of a task that a person marked complete."""
    once = TaskSpec(code="T1", name="T1", assignee="sh", retry=Retry(max_attempts=1))
    lost = fold(DISPATCH, start(), start(execution="x2", supersede=1), spec=once)
    assert (lost.status, lost.kind, lost.lease) == ("needs_attention", "runner_lost", 1)
    event = decide(lost, c.MarkComplete())
    assert event is not None
    with pytest.raises(c.StaleLease):
        decide(evolve(lost, event), complete())


def test_a_repeated_completion_is_known_by_its_commit() -> None:
    done = fold(DISPATCH, start(), complete())
    assert decide(done, complete()) is None
    with pytest.raises(c.StaleLease):
        decide(done, complete(commit="another"))


def test_a_task_that_kills_its_runner_is_given_up_even_where_the_runner_comes_back_under_its_name() -> None:
    state = fold(DISPATCH, start())
    for life in range(2, 9):
        event = decide(state, c.Release(lease=state.lease, reason="was killed and came back", lost=True))
        assert event is not None
        state = evolve(state, event)
        if state.status == "needs_attention":
            break
        for command in (DISPATCH, start(dispatch=life, execution=f"x{life}")):
            following = decide(state, command)
            assert following is not None
            state = evolve(state, following)
    assert (state.status, state.kind, state.lease) == ("needs_attention", "runner_lost", TRANSIENT_ATTEMPTS)


def test_a_usage_limit_that_says_to_come_back_at_once_does_not_spin() -> None:
    eager = TaskSpec(code="T1", name="T1", assignee="sh", retry=Retry(backoff_s=0))
    state = fold(DISPATCH, start(), fail(kind="usage_limit", retry_after_s=0.0), spec=eager)
    assert state.retry_at is not None and state.retry_at >= NOW + timedelta(seconds=UNSPENT_WAIT_MIN_S)
    assert state.tries == 0


def test_a_usage_limit_is_waited_for_as_long_as_it_says() -> None:
    state = fold(DISPATCH, start(), fail(kind="usage_limit", retry_after_s=7200.0))
    assert state.retry_at == NOW + timedelta(hours=2)


def test_backoff_doubles_up_to_its_limit() -> None:
    patient = TaskSpec(code="T1", name="T1", assignee="sh", retry=Retry(max_attempts=20, backoff_s=100))
    state, waits = fold(spec=patient), []
    for number in range(1, 6):
        for command in (msgspec.structs.replace(DISPATCH, now=state.retry_at or NOW), start(number), fail(number)):
            event = decide(state, command)
            assert event is not None
            state = evolve(state, event)
        assert state.retry_at is not None
        waits.append((state.retry_at - NOW).total_seconds())
    assert waits == [100, 200, 400, 600, 600]


def test_a_retry_is_not_dispatched_before_its_time() -> None:
    state = fold(DISPATCH, start(), fail(kind="unavailable"))
    assert state.retry_at is not None
    assert decide(state, DISPATCH) is None
    assert decide(state, msgspec.structs.replace(DISPATCH, now=state.retry_at)) is not None


def test_a_handed_back_attempt_goes_on_under_its_number() -> None:
    state = fold(DISPATCH, start(), c.Release(lease=1, reason="stop"), DISPATCH)
    assert (state.dispatch, state.attempt, state.lost) == (2, 1, 0)


def test_the_message_of_an_older_dispatch_is_obsolete() -> None:
    state = fold(DISPATCH, start(), c.Release(lease=1, reason="stop"), DISPATCH)
    with pytest.raises(c.Obsolete):
        decide(state, start(dispatch=1, execution="x2"))


def test_a_live_lease_is_superseded_only_by_its_number() -> None:
    state = fold(DISPATCH, start())
    with pytest.raises(c.Held) as held:
        decide(state, start(execution="x2"))
    assert (held.value.runner, held.value.lease) == ("r1", 1)
    event = decide(state, start(execution="x2", supersede=1))
    assert event == e.TaskStarted(lease=2, runner="r1", execution="x2", supersedes=1, resumes=1)


def test_handing_back_a_superseded_lease_is_refused_so_that_nobody_acknowledges_its_successors_message() -> None:
    state = fold(DISPATCH, start(), start(execution="x2", supersede=1))
    with pytest.raises(c.StaleLease):
        decide(state, c.Release(lease=1, reason="stopped"))


def test_a_start_that_rests_on_a_reopened_task_hands_back() -> None:
    reopened = msgspec.structs.replace(start(), reopened=("T0",))
    event = decide(fold(DISPATCH), reopened)
    assert isinstance(event, e.TaskReleased) and "T0" in event.reason


def test_what_was_done_before_a_cancel_arrived_counts() -> None:
    state = fold(DISPATCH, start(), c.CancelTask(phase="open"), complete())
    assert (state.status, state.commit) == ("completed", "abc")


def test_delivering_can_be_neither_abandoned_nor_marked_complete() -> None:
    state = fold(spec=TaskSpec(code=DELIVER, name="d", assignee=""))
    for command in (c.Abandon(), c.MarkComplete()):
        with pytest.raises(c.Refused, match="redispatch it, or cancel the plan"):
            decide(state, command)


@given(dispatches, fails)
def test_nothing_can_be_done_to_a_task_that_was_never_planned(dispatch: c.Dispatch, failed: c.Fail) -> None:
    for command in (dispatch, failed):
        with pytest.raises(c.Refused, match="no such task"):
            decide(INITIAL, command)


# Approvals --------------------------------------------------------------------------------------------------------

CLAUDE = AgentSpec(sdk_type="claude", model="m")
HOUR = timedelta(hours=1)


def asks(
    lease: int = 1, kind: e.ApprovalKind = "tool", approval: str = "h1", cost_usd: float = 0.0
) -> c.RequestApproval:
    return c.RequestApproval(
        now=NOW,
        phase="open",
        lease=lease,
        approval=approval,
        kind=kind,
        tool="Bash",
        input="{}",
        why="not allowed beforehand",
        expires_at=NOW + HOUR,
        usage=e.Usage(cost_usd=cost_usd),
    )


def test_an_approval_ends_the_lease_and_its_answer_continues_the_same_attempt() -> None:
    parked = fold(DISPATCH, start(), asks())
    assert (parked.status, parked.runner) == ("awaiting_approval", "")
    with pytest.raises(c.StaleLease):
        decide(parked, complete())
    answered = fold(
        DISPATCH, start(), asks(), c.Approve(now=NOW, approval="h1", note="go on"), DISPATCH, start(2, execution="x2")
    )
    assert (answered.status, answered.attempt, answered.lease) == ("running", 1, 2)
    assert answered.approval is not None
    assert (answered.approval.answer, answered.approval.note, answered.approval.used_by) == ("granted", "go on", 0)
    event = decide(
        fold(DISPATCH, start(), asks(), c.Approve(now=NOW, approval="h1"), DISPATCH), start(2, execution="x2")
    )
    assert isinstance(event, e.TaskStarted) and event.resumes == 1


def test_an_answer_is_for_exactly_what_was_asked() -> None:
    parked = fold(DISPATCH, start(), asks())
    for answer in (c.Approve(now=NOW, approval="h2"), c.Deny(approval="h2")):
        with pytest.raises(c.Refused, match="does not ask for that"):
            decide(parked, answer)
    granted = fold(DISPATCH, start(), asks(), c.Approve(now=NOW, approval="h1"))
    assert decide(granted, c.Approve(now=NOW, approval="h1")) is None
    with pytest.raises(c.Refused, match="granted already"):
        decide(granted, c.Deny(approval="h1"))
    with pytest.raises(c.Refused, match="belongs into the note"):
        decide(fold(DISPATCH, start(), asks(kind="question")), c.Approve(now=NOW, approval="h1", note=" "))


def test_no_answer_in_time_is_a_denial_and_before_that_it_is_nothing() -> None:
    parked = fold(DISPATCH, start(), asks())
    assert decide(parked, c.Deny(approval="h1", now=NOW + HOUR - timedelta(seconds=1))) is None
    event = decide(parked, c.Deny(approval="h1", now=NOW + HOUR))
    assert isinstance(event, e.TaskApprovalDenied) and event.expired
    with pytest.raises(c.Refused, match="time for an answer is over"):
        decide(parked, c.Approve(now=NOW + HOUR, approval="h1"))


def test_what_was_allowed_runs_once_whoever_takes_over() -> None:
    used = fold(
        DISPATCH, start(), asks(), c.Approve(now=NOW, approval="h1"), DISPATCH, start(2, execution="x2"),
        c.UseApproval(lease=2, approval="h1"),
    )  # fmt: skip
    assert decide(used, c.UseApproval(lease=2, approval="h1")) is None
    taken_over = decide(used, start(2, execution="x3", supersede=2))
    assert taken_over is not None
    with pytest.raises(c.Refused, match="allowed once"):
        decide(evolve(used, taken_over), c.UseApproval(lease=3, approval="h1"))
    denied = fold(DISPATCH, start(), asks(), c.Deny(approval="h1"), DISPATCH, start(2, execution="x2"))
    with pytest.raises(c.Refused, match="nobody allowed"):
        decide(denied, c.UseApproval(lease=2, approval="h1"))


def test_a_new_attempt_knows_nothing_of_an_older_approval() -> None:
    granted = (
        DISPATCH,
        start(),
        asks(),
        c.Approve(now=NOW, approval="h1"),
        DISPATCH,
        start(2, execution="x2"),
        fail(2),
    )
    state = fold(*granted, c.Redispatch(), DISPATCH, start(3, execution="x3"))
    assert state.attempt == 2 and state.approval is None


# Money ------------------------------------------------------------------------------------------------------------


def spending(*commands: c.TaskCommand) -> TaskState:
    spec = TaskSpec(code="T1", name="T1", assignee="claude", budget_usd=5.0)
    return fold_on(INITIAL, c.PlanTask(digest="d", index=0, spec=spec, agent=CLAUDE), *commands)


def test_all_leases_of_an_attempt_share_its_budget() -> None:
    state = spending(DISPATCH, start(), asks(cost_usd=2.0), c.Approve(now=NOW, approval="h1"), DISPATCH)
    assert may_cost_usd(state) == 3.0
    state = spending(DISPATCH, start(), c.Release(lease=1, reason="r", usage=e.Usage(cost_usd=6.0)), DISPATCH)
    assert (may_cost_usd(state), state.usage.cost_usd) == (0.0, 6.0)
    assert may_cost_usd(spending(DISPATCH, start(), fail())) == 5.0


def test_a_lost_lease_is_charged_its_last_report_or_else_all_that_it_had_reserved() -> None:
    reported = msgspec.structs.replace(start(execution="x2", supersede=1), lost_usage=e.Usage(cost_usd=1.5))
    assert spending(DISPATCH, start(), reported).usage.cost_usd == 1.5
    silent = spending(DISPATCH, start(), start(execution="x2", supersede=1))
    assert (silent.usage.cost_usd, may_cost_usd(silent)) == (5.0, 0.0)
    gone = spending(DISPATCH, start(), c.Release(lease=1, reason="r", lost=True, usage=None))
    assert gone.usage.cost_usd == 5.0


# Going on where a lease stopped -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("end", "resumes"),
    [
        ((c.Release(lease=1, reason="r"),), 1),
        ((fail(kind="usage_limit", retry_after_s=7200.0),), 1),
        ((fail(kind="unavailable"),), 0),
        ((fail(), c.Redispatch()), 0),
    ],
    ids=["handed back", "limit", "retry", "asked again"],
)
def test_a_lease_goes_on_with_what_an_unspent_one_left(end: tuple[c.TaskCommand, ...], resumes: int) -> None:
    state = fold(DISPATCH, start(), *end)
    state = fold_on(state, msgspec.structs.replace(DISPATCH, now=state.retry_at or NOW))
    event = decide(state, start(2, execution="x2"))
    assert isinstance(event, e.TaskStarted) and event.resumes == resumes


def ran(*commands: c.TaskCommand) -> TaskState:
    state = INITIAL
    for command in commands:
        event = decide(state, command)
        assert event is not None, command
        state = evolve(state, event)
    return state


def test_a_runner_whose_lost_task_is_now_a_persons_comes_too_late() -> None:
    spec = TaskSpec(code="T1", name="T1", assignee="sh", retry=Retry(max_attempts=1))
    dispatch = c.Dispatch(
        now=NOW, revision=0, prompt="p", agent=SH, project="", repo_url="u", base_commit="b", heads=(), abandoned=(),
        plan_name="n", setup=(), env_allow=(),
    )  # fmt: skip
    state = ran(
        c.PlanTask(digest="d", index=0, spec=spec, agent=SH),
        dispatch,
        c.Start(phase="open", dispatch=1, runner="r1", execution="x1"),
        c.Release(lease=1, reason="came back", lost=True),
        c.Edit(spec=spec, agent=PERSON),
    )
    assert state.is_manual and state.status == "needs_attention" and state.kind == "runner_lost"
    result = e.Result(task_code="T1", summary="s")
    with pytest.raises(c.StaleLease):
        decide(state, c.Complete(lease=1, base_commit="b", commit="a", result=result, usage=e.Usage()))


def test_a_round_is_granted_for_each_refusal_and_for_nothing_else() -> None:
    decision = TaskSpec(code="D", name="D", assignee="", max_review_rounds=1)
    planned = c.PlanTask(digest="d", index=0, spec=decision, agent=None)
    never_weighed = ran(planned, c.CancelTask(phase="open"), c.Redispatch(), c.CancelTask(phase="open"), c.Redispatch())
    assert never_weighed.rounds_granted == 0
    refused = c.Decide(approved=False, round=1, reason="no")
    assert ran(planned, refused, c.Redispatch()).rounds_granted == 1
    assert ran(planned, refused, c.Abandon(), c.Redispatch()).rounds_granted == 1
    assert ran(planned, refused, c.Redispatch(), refused, c.Redispatch()).rounds_granted == 2
