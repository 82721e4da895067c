"""“What would have been dispatched when”, on recorded histories."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from msgspec.structs import replace

from services.planner.parse import parse_text
from shared import events as e
from shared.history.archive import Archive
from shared.history.event_file import EventFile
from shared.history.policy import BadPolicy, Policy, TaskPolicy, policy_of
from shared.history.schedule import Rehearsed, TaskSchedule, rehearse
from shared.spec import DELIVER
from shared.store import Recorded
from shared.subjects import PLAN
from tests.shared.history.worlds import Story, changed, written

RECORDED = Path(__file__).parents[2] / "histories"
With = Callable[[str, Policy], Rehearsed]


@pytest.fixture
def with_policy(tmp_path: Path) -> Iterator[With]:
    """Runs a recorded history under a policy."""
    with ExitStack() as opened:
        files: dict[str, EventFile] = {}

        def run(name: str, policy: Policy) -> Rehearsed:
            if name not in files:
                archive = opened.enter_context(Archive.open(RECORDED / f"{name}.treadle"))
                files[name] = opened.enter_context(archive.event_file(tmp_path))
            return rehearse(files[name], policy)

        yield run


def of(result: Rehearsed, code: str) -> TaskSchedule:
    return next(task for task in result.tasks if task.code == code)


def one_by_one(story: Story) -> list[Recorded]:
    """Its events, each of which follows from the one before."""
    causes = [0, *(record.seq for record in story.records)]
    return [changed(r, meta=replace(r.meta, causation=c)) for r, c in zip(story.records, causes, strict=False)]


def every(**wish: float) -> Policy:
    return Policy(every_task=TaskPolicy(**wish))  # type: ignore[arg-type]  # attempts are whole numbers


def test_with_fewer_tasks_at_once_the_second_branch_waits_for_the_first(with_policy: With) -> None:
    result = with_policy("diamond", Policy(max_parallel=1))
    t3 = of(result, "T3")
    assert t3.difference_s == pytest.approx(10, abs=0.2)
    assert "for one of 1 tasks at once to end" in t3.reason
    assert (result.recorded.dispatched_most, result.policy.dispatched_most) == (2, 1)
    assert result.policy.length_s == pytest.approx(result.recorded.length_s + 10, abs=0.2)
    assert result.differs and of(result, "T2").reason == ""
    assert of(result, "T4").reason == "T3 ended 10.0 s later"


def test_a_bound_that_is_never_reached_changes_nothing(with_policy: With) -> None:
    assert not with_policy("diamond", Policy(max_parallel=2, budget_usd=100)).differs


def test_a_thousand_tasks_keep_to_a_smaller_bound(with_policy: With) -> None:
    result = with_policy("thousand", Policy(max_parallel=10))
    assert (result.recorded.dispatched_most, result.policy.dispatched_most) == (64, 10)
    assert result.policy.standing == "completed"
    assert result.policy.length_s > 3 * result.recorded.length_s


def test_a_shorter_timeout_ends_an_attempt_and_what_waits_for_it_never_starts(with_policy: With) -> None:
    result = with_policy("diamond", every(timeout_minutes=0.1))
    t1, t2 = of(result, "T1"), of(result, "T2")
    assert (t1.policy_status, t1.policy_end_s) == ("needs_attention", None)
    assert "needs attention (timeout)" in t1.reason
    assert t1.policy_cost_usd == pytest.approx(0.25 * 6 / 10, abs=0.001)
    assert (t2.policy_s, t2.reason) == (None, "it is not dispatched: it waits for T1, which needs attention (timeout)")
    assert result.policy.standing == "needs_attention"


def test_a_retry_of_what_timed_out_is_dispatched_again(with_policy: With) -> None:
    policy = Policy(tasks={"T1": TaskPolicy(timeout_minutes=0.1, max_attempts=3, backoff_s=2)})
    t1 = of(with_policy("diamond", policy), "T1")
    assert (t1.policy_attempts, t1.policy_status) == (3, "needs_attention")


def test_a_smaller_budget_of_a_task_ends_its_attempt_where_it_is_spent(with_policy: With) -> None:
    t1 = of(with_policy("diamond", Policy(tasks={"T1": TaskPolicy(budget_usd=0.1)})), "T1")
    assert t1.policy_cost_usd == pytest.approx(0.1) and "budget spent" in t1.reason


def test_a_smaller_budget_of_the_plan_pauses_it(with_policy: With) -> None:
    result = with_policy("diamond", Policy(budget_usd=1.3))
    assert of(result, "T2").reason == ""
    assert "the plan is paused (the plan's budget is 1.3 USD" in of(result, "T3").reason
    assert result.policy.standing == "paused"


def test_a_third_attempt_makes_a_persons_help_needless(with_policy: With) -> None:
    assert of(with_policy("retry", Policy()), "T2").policy_attempts == 3
    policy = Policy(tasks={"T2": TaskPolicy(max_attempts=3, backoff_s=1)})
    result = with_policy("retry", policy)
    t2 = of(result, "T2")
    assert (t2.policy_status, t2.policy_attempts) == ("completed", 3)
    assert result.policy.length_s < result.recorded.length_s - 25  # a person took thirty seconds


def test_a_single_attempt_where_a_further_one_had_helped_ends_the_plan_early(with_policy: With) -> None:
    result = with_policy("retry", Policy(tasks={"T1": TaskPolicy(max_attempts=1)}))
    assert of(result, "T1").policy_status == "needs_attention"
    assert "needs attention (unavailable)" in of(result, "T1").reason


def test_fewer_leases_may_be_lost_where_fewer_attempts_are_allowed(with_policy: With) -> None:
    result = with_policy("lease_lost", Policy(tasks={"T1": TaskPolicy(max_attempts=1)}))
    assert "needs attention (runner lost)" in of(result, "T1").reason


def test_a_longer_time_for_a_person_lets_their_result_come_in_time(with_policy: With) -> None:
    result = with_policy("manual_late", Policy(tasks={"M1": TaskPolicy(timeout_minutes=10)}))
    assert of(result, "M1").policy_status == "completed"
    assert result.policy.length_s == pytest.approx(result.recorded.length_s, abs=0.2)


@pytest.mark.parametrize("ends", ["cancelled", "completed"])
def test_a_cancelled_plan_ends_as_it_did_with_its_own_settings(tmp_path: Path, ends: str) -> None:
    story = Story()
    story.finalize()
    story.dispatch("A")
    story.start("A")
    story.tell(PLAN, e.PlanCancelRequested(reason="wrong goal"))
    story.tell("A", e.TaskCancelRequested())
    story.tell("B", e.TaskCancelled())
    story.tell(DELIVER, e.TaskCancelled())
    if ends == "cancelled":
        story.tell("A", e.TaskCancelled(lease=1, usage=e.Usage(input_tokens=3, cost_usd=0.5)))
    else:
        story.complete("A", cost_usd=0.5)
    story.tell(PLAN, e.PlanCancelled())
    with written(one_by_one(story), tmp_path / "log") as file:
        result = rehearse(file, Policy())
    assert result.policy == result.recorded
    assert of(result, "A").policy_status == ends
    assert not result.differs


def test_an_end_that_no_task_explains_is_told(tmp_path: Path) -> None:
    story = Story()
    story.finalize()
    story.dispatch("A")
    story.start("A")
    story.tell(PLAN, e.PlanForked(plan="pchildchildch", seq=50))
    with written(one_by_one(story), tmp_path / "log") as file:
        result = rehearse(file, Policy())
    assert result.differs and "but the plan's end does" in result.reason


def test_what_is_taken_for_granted_is_said(with_policy: With) -> None:
    assumed = with_policy("thousand", Policy()).assumed
    assert any("as it was recorded" in line for line in assumed)
    assert assumed[-1].endswith("50 claude")


def test_a_policy_that_names_no_task_of_the_plan_is_refused_by_name(with_policy: With) -> None:
    with pytest.raises(BadPolicy, match="tasks, 'T9': the plan has no such task"):
        with_policy("diamond", Policy(tasks={"T9": TaskPolicy(budget_usd=1)}))


def test_a_policy_is_read_from_yaml_with_all_that_it_may_say() -> None:
    text = """
    max_parallel: 4
    budget_usd: 20
    every_task: {retry: {max_attempts: 3, backoff_s: 0.5}, timeout_minutes: 10}
    tasks:
      T3: {timeout_minutes: 30, budget_usd: 2}
    """
    assert policy_of(parse_text(text)) == Policy(
        max_parallel=4,
        budget_usd=20,
        every_task=TaskPolicy(max_attempts=3, backoff_s=0.5, timeout_minutes=10),
        tasks={"T3": TaskPolicy(timeout_minutes=30, budget_usd=2)},
    )


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        ("max_paralel: 4", ["there is no setting 'max_paralel'; did you mean max_parallel?"]),
        ("- 1", ["a mapping is wanted here"]),
        ("max_parallel: 0", ["max_parallel has to be a whole number from 1 to 1000"]),
        ("max_parallel: 1.5", ["max_parallel has to be a whole number from 1 to 1000"]),
        ('{"max_parallel": true}', ["max_parallel has to be a whole number from 1 to 1000"]),
        ("budget_usd: .nan", ["budget_usd has to be a number from 0.01 to 1e+06 (US dollars)"]),
        (
            "tasks: {T1: {retry: {max_attempts: 99, backoff: 1}, timeout_minutes: x}}",
            [
                "tasks, 'T1', retry: there is no setting 'backoff'; did you mean backoff_s?",
                "tasks, 'T1', retry: max_attempts has to be a whole number from 1 to 20",
                "tasks, 'T1': timeout_minutes has to be a number from 0.01 to 1440 (minutes)",
            ],
        ),
        ("budget_usd: 3\nbudget_usd: 4", ["'budget_usd' stands there twice"]),
    ],
)
def test_every_fault_of_a_policy_is_named_with_its_place(text: str, faults: list[str]) -> None:
    with pytest.raises(BadPolicy) as raised:
        policy_of(parse_text(text))
    assert str(raised.value).splitlines() == faults
