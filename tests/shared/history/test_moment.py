"""What a moment tells of a plan, and what tells two of them apart."""

from datetime import timedelta
from pathlib import Path

import msgspec
import pytest

from shared import events as e
from shared.history.compare import Difference, compare
from shared.history.history import History
from shared.history.moment import ForkLink, Moment
from shared.spec import AgentSpec, TaskSpec
from shared.subjects import PLAN
from tests.shared.history.worlds import BEGAN, SH, SPEC, Story, simulated, written


class Told:
    """A plan in which A runs and is done, while B waits for it."""

    def __init__(self, directory: Path) -> None:
        self.story = Story()
        self.story.finalize()
        self.finalized = self.story.records[-1].seq
        self.dispatched = self.story.dispatch("A")
        self.started = self.story.start("A")
        self.completed = self.story.complete("A", cost_usd=0.25)
        self._directory, self._files = directory, 0

    def at(self, seq: int) -> Moment:
        self._files += 1
        return History(written(self.story.records, self._directory / str(self._files))).moment(seq)


@pytest.fixture
def told(tmp_path: Path) -> Told:
    return Told(tmp_path)


def test_half_a_plan_is_not_shown(told: Told) -> None:
    half = told.at(told.finalized - 10)
    assert (half.status, half.tasks, half.counts) == ("finalizing", (), {})
    assert half.name == "Woven"
    whole = told.at(told.finalized)
    assert [task.code for task in whole.tasks] == ["A", "B", "_deliver"]
    assert whole.counts == {"pending": 3}


def test_a_moment_names_its_event_and_the_plans_branch(told: Told) -> None:
    found = told.at(told.started)
    assert (found.plan, found.seq, found.entity, found.type) == (told.story.plan, told.started, "A", "started")
    assert found.time == BEGAN + timedelta(seconds=told.started)
    assert found.branch == f"treadle/{told.story.plan}"
    assert (found.status, found.standing) == ("active", "running")


def test_what_waits_to_be_taken_is_told_by_pool(told: Told) -> None:
    assert told.at(told.finalized).queue == {}
    assert told.at(told.dispatched).queue == {"command": 1}
    assert told.at(told.started).queue == {}


def test_who_runs_it_is_told_only_while_they_do(told: Told) -> None:
    assert told.at(told.dispatched).running == ()
    (lease,) = told.at(told.started).running
    assert (lease.task, lease.lease, lease.runner) == ("A", 1, "r1")
    assert lease.since == BEGAN + timedelta(seconds=told.started)
    assert told.at(told.completed).running == ()


def test_a_task_tells_what_it_waits_for_and_what_came_of_it(told: Told) -> None:
    first, second, deliver = told.at(told.started).tasks
    assert (first.status, first.waits_for, first.commit) == ("running", (), "")
    assert first.since == BEGAN + timedelta(seconds=told.started)
    assert (second.status, second.waits_for, second.depends_on) == ("pending", ("A",), ("A",))
    assert second.since == BEGAN + timedelta(seconds=40)  # when it was planned
    assert (deliver.depends_on, deliver.waits_for, deliver.agent) == ((), ("B",), "")
    first, second, _ = told.at(told.completed).tasks
    assert (first.status, first.commit, first.base_commit) == ("completed", "c-A", "b")
    assert (first.cost_usd, first.usage.input_tokens) == (0.25, 7)
    assert (first.seq, first.attempt, first.lease) == (told.completed, 1, 1)
    assert (second.status, second.waits_for) == ("pending", ())


def test_money_is_told_as_it_was_spent_by_then(told: Told) -> None:
    before, after = told.at(told.started), told.at(told.completed)
    assert (before.cost_usd, before.usage) == (0.0, e.Usage())
    assert (after.cost_usd, after.committed_usd, after.usage.input_tokens) == (0.25, 0.25, 7)


def test_a_lost_leases_cost_counts_and_a_candidates_making_stands_for_itself(told: Told) -> None:
    told.story.dispatch("B")
    told.story.start("B")
    lost = told.story.tell(
        "B", e.TaskStarted(lease=2, runner="r2", execution="y", supersedes=1, charged=e.Usage(cost_usd=0.5))
    )
    making = told.story.tell("_draft-1", e.TaskStarted(lease=1, runner="r9", execution="z"))
    made = told.story.tell(
        "_draft-1",
        e.TaskCompleted(
            lease=1, base_commit="b", commit="b", result=e.Result(task_code="x", summary="x"), usage=e.Usage(cost_usd=2)
        ),
    )
    assert told.at(lost).cost_usd == 0.75
    assert [lease.task for lease in told.at(making).running] == ["_draft-1", "B"]
    assert (told.at(made).cost_usd, told.at(made).planning_usage.cost_usd) == (0.75, 2.0)


def test_forks_are_told_both_ways(told: Told) -> None:
    forked = told.story.tell(PLAN, e.PlanForked(plan="pforkforkforkf", seq=told.started))
    assert told.at(told.completed).forks == ()
    assert told.at(forked).forks == (ForkLink("pforkforkforkf", told.started),)
    fork = Story("pforkforkforkf")
    kept = e.Kept(task="A", plan=told.story.plan, seq=told.completed, base_commit="b", commit="c-A")
    origin = e.ForkOf(plan=told.story.plan, seq=told.completed, kept=(kept,))
    fork.tell(PLAN, e.PlanDrafted(candidate="1", spec=SPEC, repo_url="u", base_commit="b", fork=origin))
    fork.tell("A", e.TaskInherited(digest="d", index=0, spec=SPEC.tasks[0], agent=SH, kept=kept))
    fork.finalize()
    told.story = fork
    drafted = told.at(10)
    assert drafted.forked_from == ForkLink("pstorystoryst", told.completed)
    assert told.at(told.completed).forks == ()


def test_an_inherited_task_is_shown_as_the_origins_and_costs_the_fork_nothing(tmp_path: Path) -> None:
    fork = Story()
    kept = e.Kept(task="A", plan="porigin", seq=7, base_commit="b", commit="c-A", usage=e.Usage(cost_usd=9))
    fork.tell(PLAN, e.PlanDrafted(candidate="1", spec=SPEC, repo_url="u", base_commit="b"))
    fork.tell(PLAN, e.PlanFinalizing(candidate="1", digest="d", count=3))
    fork.tell("A", e.TaskInherited(digest="d", index=0, spec=SPEC.tasks[0], agent=SH, kept=kept))
    fork.tell("B", e.TaskPlanned(digest="d", index=1, spec=SPEC.tasks[1], agent=SH))
    fork.tell("_deliver", e.TaskPlanned(digest="d", index=2, spec=TaskSpec(code="_deliver", name="", assignee="")))
    last = fork.tell(PLAN, e.PlanFinalized(digest="d"))
    found = History(written(fork.records, tmp_path / "f")).moment(last)
    first = found.tasks[0]
    assert (first.status, first.inherited, first.commit, first.base_commit) == ("completed", "porigin", "c-A", "b")
    assert found.cost_usd == 0.0
    assert found.tasks[1].waits_for == ()


@pytest.mark.parametrize("seed", range(4))
def test_every_moment_goes_through_json_and_back(seed: int, tmp_path: Path) -> None:
    for plan, records in simulated(seed).items():
        history = History(written(records, tmp_path / plan))
        for record in records:
            found = history.moment(record.seq)
            assert msgspec.json.decode(msgspec.json.encode(found), type=Moment) == found


# Two of them --------------------------------------------------------------------------------------------------------


def test_what_is_the_same_is_not_told(told: Told) -> None:
    found = compare(told.at(told.started), told.at(told.started))
    assert (found.plan, found.tasks, found.added, found.removed) == ((), (), (), ())


def test_each_difference_is_told_with_both_values(told: Told) -> None:
    found = compare(told.at(told.started), told.at(told.completed))
    assert (found.before_seq, found.after_seq) == (told.started, told.completed)
    fields = {one.field: (one.before, one.after) for one in found.plan}
    assert fields["cost_usd"] == (0.0, 0.25)
    assert fields["counts"] == ({"pending": 2, "running": 1}, {"pending": 2, "completed": 1})
    assert "seq" not in fields and "time" not in fields
    tasks = {task.code: {one.field: (one.before, one.after) for one in task.fields} for task in found.tasks}
    assert tasks["A"]["status"] == ("running", "completed")
    assert tasks["A"]["commit"] == ("", "c-A")
    assert tasks["B"] == {"waits_for": (("A",), ())}
    assert "_deliver" not in tasks


def test_backwards_everything_is_turned_round(told: Told) -> None:
    forth, back = told.at(told.started), told.at(told.completed)
    there, again = compare(forth, back), compare(back, forth)
    assert [Difference(one.field, one.after, one.before) for one in there.plan] == list(again.plan)
    assert [task.code for task in there.tasks] == [task.code for task in again.tasks]


def test_tasks_that_were_added_are_told_and_those_that_are_not_there_yet(told: Told) -> None:
    before = told.story.records[-1].seq
    new = TaskSpec(code="C", name="Third", assignee="sh")
    told.story.tell(PLAN, e.PlanExtended(tasks=(new,), before="B", reason="more"))
    after = told.story.tell("C", e.TaskPlanned(digest="d", index=3, spec=new, agent=AgentSpec(sdk_type="command")))
    found = compare(told.at(before), told.at(after))
    assert [task.code for task in found.added] == ["C"]
    assert found.removed == ()
    waits = {one.field: one.after for one in next(task for task in found.tasks if task.code == "B").fields}
    assert waits["depends_on"] == ("A", "C")
    assert waits["waits_for"] == ("C",)
    assert [task.code for task in compare(told.at(after), told.at(before)).removed] == ["C"]


def test_a_plan_that_is_not_finalized_yet_has_all_its_tasks_added_when_it_is(told: Told) -> None:
    found = compare(told.at(told.finalized - 10), told.at(told.finalized))
    assert [task.code for task in found.added] == ["A", "B", "_deliver"]


def test_a_comparison_goes_to_json(told: Told) -> None:
    found = msgspec.json.decode(msgspec.json.encode(compare(told.at(told.finalized), told.at(told.completed))))
    assert {task["code"] for task in found["tasks"]} == {"A", "B"}
