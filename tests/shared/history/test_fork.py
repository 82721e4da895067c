"""A fork of any plan at any moment: a valid plan, and what it keeps is what it would have come to by itself."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import UTC, datetime, timedelta
from random import Random

import msgspec
import pytest

from shared import commands as c
from shared import events as e
from shared import plan as plans
from shared.board import Board, in_order
from shared.history.fork import CantFork, ForkPlan, NotThere, fork_plan, origin_at, seq_at, sort_out
from shared.spec import DELIVER, AgentSpec, PlanSpec, TaskSpec
from shared.store import Meta, Recorded
from shared.subjects import PLAN, is_draft
from tests.simulation.virtual_time import run_in_virtual_time
from tests.simulation.world import World

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
ORIGIN = "paaaaaaaaaaaa"
SH = AgentSpec(sdk_type="command", command=("true",))


class Log:
    """One plan's events, written by hand."""

    def __init__(self, *tasks: TaskSpec, plan: str = ORIGIN, fork: e.ForkOf | None = None) -> None:
        self.plan = plan
        self.records: list[Recorded] = []
        spec = PlanSpec(name="a plan", tasks=tasks, agents={"sh": SH})
        drafted = e.PlanDrafted(candidate="1", spec=spec, repo_url="u", base_commit="0" * 40, fork=fork)
        self.add(PLAN, drafted)
        self.add(PLAN, e.PlanFinalizing(candidate="1", digest="d", count=len(tasks) + 1))
        kept = {one.task: one for one in fork.kept} if fork else {}
        for index, task in enumerate(in_order(spec)):
            agent = None if task.code == DELIVER or task.is_decision else SH
            if one := kept.get(task.code):
                self.add(task.code, e.TaskInherited(digest="d", index=index, spec=task, agent=agent, kept=one))
            else:
                self.add(task.code, e.TaskPlanned(digest="d", index=index, spec=task, agent=agent))
        self.add(PLAN, e.PlanFinalized(digest="d"))

    def add(self, entity: str, event: e.Event) -> int:
        seq = len(self.records) + 1
        type_ = event.name.partition(".")[2]
        at = BEGAN + timedelta(seconds=seq)
        self.records.append(
            Recorded(seq=seq, time=at, plan=self.plan, entity=entity, type=type_, event=event, meta=Meta(actor="x"))
        )
        return seq

    def complete(self, code: str, cost_usd: float = 0.0, review: e.Review | None = None) -> int:
        result = e.Result(task_code=code, summary=f"did {code}", review=review)
        usage = e.Usage(cost_usd=cost_usd)
        return self.add(
            code, e.TaskCompleted(lease=1, base_commit="base", commit=f"{code}-commit", result=result, usage=usage)
        )

    def forked(
        self, at: str = "end", changed: dict[str, str] | None = None, only: Sequence[str] | None = None
    ) -> ForkPlan:
        return forked(self.records, seq_at(self.records, at), changed or {}, only)


def forked(
    records: Sequence[Recorded], seq: int, changed: dict[str, str], only: Sequence[str] | None = None
) -> ForkPlan:
    """As the planner does it, but that nothing of what is kept or runs is edited."""
    origin = origin_at(records, seq)
    needs = {code: task.depends_on for code, task in origin.tasks.items()}
    fates = sort_out(origin, needs, changed, only)
    there = {*fates.kept, *(fate.code for fate in fates.runs)}
    tasks = tuple(
        msgspec.structs.replace(task, resolves="", round=1) for code, task in origin.tasks.items() if code in there
    )
    return fork_plan(origin, msgspec.structs.replace(origin.candidate.spec, tasks=tasks), fates)


def task(code: str, *after: str, **more: object) -> TaskSpec:
    return msgspec.convert(
        {"code": code, "name": code, "assignee": "sh", "depends_on": after, **more}, TaskSpec, from_attributes=True
    )


def codes(of: Collection[object]) -> list[str]:
    return [str(getattr(one, "code", None) or getattr(one, "task", "")) for one in of]


def diamond() -> Log:
    return Log(task("A"), task("B", "A"), task("C", "A"), task("D", "B", "C"))


def test_what_was_completed_by_then_is_kept_with_its_cost_and_the_rest_runs() -> None:
    log = diamond()
    log.complete("A", 1.0)
    by_then = log.complete("B", 2.0)
    log.complete("C")
    made = log.forked(str(by_then))
    assert codes(made.kept) == ["A", "B"] and codes(made.runs) == ["C", "D"] and not made.left_out
    kept = made.kept[1]
    assert (kept.plan, kept.seq, kept.commit, kept.base_commit) == (ORIGIN, by_then, "B-commit", "base")
    assert kept.usage.cost_usd == 2.0 and kept.result is not None and kept.result.summary == "did B"
    assert made.runs[0].why == "it had not begun"
    assert made.fork.seq == by_then


def test_before_anything_was_completed_everything_runs() -> None:
    log = diamond()
    log.complete("A")
    for at in ("1", "2", str(len(log.records) - 1)):
        made = log.forked(at)
        assert not made.kept and codes(made.runs) == ["A", "B", "C", "D"]


def test_behind_a_changed_task_what_was_completed_runs_again() -> None:
    log = diamond()
    for code in "ABCD":
        log.complete(code)
    made = log.forked(changed={"B": "changed: description"})
    assert codes(made.kept) == ["A", "C"]
    assert {fate.code: fate.why for fate in made.runs} == {
        "B": "changed: description",
        "D": "it was completed, but rests on B, which is not kept",
    }


def test_only_runs_what_it_names_and_what_that_rests_on() -> None:
    log = diamond()
    log.complete("A")
    log.complete("C")
    assert codes(log.forked(only=["D"]).runs) == ["B", "D"]
    made = log.forked(only=["B"])
    assert (codes(made.kept), codes(made.runs), codes(made.left_out)) == (["A", "C"], ["B"], ["D"])
    again = log.forked(only=["C"])
    assert (codes(again.kept), codes(again.runs), codes(again.left_out)) == (["A"], ["C"], ["B", "D"])
    assert codes(log.forked(only=["A.."]).runs) == ["A", "B", "C", "D"]
    with pytest.raises(NotThere, match="no task E"):
        log.forked(only=["E"])


def test_a_persons_word_is_kept_and_what_was_given_up_runs() -> None:
    log = Log(task("A"), task("B"), task("C", "B"))
    log.add("A", e.TaskMarkedComplete(note="did it myself"))
    log.add("B", e.TaskAbandoned(note="no"))
    log.complete("C")
    made = log.forked()
    assert codes(made.kept) == ["A"]
    assert made.kept[0].commit == "" and made.kept[0].result == e.Result(task_code="A", summary="did it myself")
    assert {fate.code: fate.why for fate in made.runs} == {
        "B": "it was given up",
        "C": "it was completed, but rests on B, which is not kept",
    }


def test_a_fork_of_a_fork_knows_who_really_did_the_work() -> None:
    log = diamond()
    log.complete("A", 1.0)
    first = log.forked()
    second = Log(*first.spec.tasks, plan="pbbbbbbbbbbbb", fork=first.fork)
    second.complete("B")
    made = second.forked()
    assert {one.task: one.plan for one in made.kept} == {"A": ORIGIN, "B": "pbbbbbbbbbbbb"}
    assert made.fork.plan == "pbbbbbbbbbbbb"
    assert codes(second.forked("1").kept) == ["A"]  # it had that from its beginning


def test_a_completed_merge_comes_along_before_the_task_that_it_was_for() -> None:
    log = diamond()
    for code in "ABC":
        log.complete(code)
    merge = task("merge-D", "B", "C", resolves="D")
    log.add(PLAN, e.PlanExtended(tasks=(merge,), before="D", reason="conflict"))
    log.add("merge-D", e.TaskPlanned(digest="d", index=5, spec=merge, agent=SH))
    log.complete("merge-D")
    made = log.forked()
    specs = {one.code: one for one in made.spec.tasks}
    assert codes(made.kept) == ["A", "B", "C", "merge-D"] and codes(made.runs) == ["D"]
    assert specs["D"].depends_on == ("B", "C", "merge-D") and specs["merge-D"].resolves == "D"
    # And again from there; but where what it merges runs again it is of no use.
    again = Log(*made.spec.tasks, plan="pbbbbbbbbbbbb", fork=made.fork).forked()
    assert again.spec == made.spec
    assert "merge-D" not in codes(log.forked(changed={"B": "changed"}).spec.tasks)


def reviewed() -> Log:
    log = Log(task("W"), task("R", "W", reviews="W"), task("D", "R", assignee="", max_review_rounds=3), task("Z", "D"))
    log.complete("W")
    log.complete("R", review=e.Review(approve=False, commit="W-commit"))
    more = (task("fix-2", "R", round=2), task("R-2", "fix-2", reviews="fix-2", round=2))
    log.add(PLAN, e.PlanExtended(tasks=more, before="D", reason="round 2"))
    for index, one in enumerate(more, 5):
        log.add(one.code, e.TaskPlanned(digest="d", index=index, spec=one, agent=SH))
    log.complete("fix-2")
    log.complete("R-2", review=e.Review(approve=True, round=2, commit="fix-2-commit"))
    return log


def test_rounds_of_reviews_come_along_once_the_decision_was_made_and_else_begin_anew() -> None:
    log = reviewed()
    undecided = log.forked()
    assert (codes(undecided.kept), codes(undecided.runs)) == (["W", "R"], ["D", "Z"])
    assert codes(undecided.left_out) == ["fix-2", "R-2"]
    log.add("D", e.TaskDecided(approved=True, round=2, reason="approved"))
    made = log.forked()
    specs = {one.code: one for one in made.spec.tasks}
    assert codes(made.runs) == ["Z"]
    assert set(specs["D"].depends_on) == {"R", "fix-2", "R-2"} and specs["fix-2"].round == 2
    board = board_of(made)
    assert [head.commit for head in board.heads("Z")] == ["R-2-commit"]
    again = Log(*made.spec.tasks, plan="pbbbbbbbbbbbb", fork=made.fork).forked(changed={"Z": "changed"})
    assert again.spec == made.spec


def test_a_moment_is_a_sequence_a_time_or_the_end() -> None:
    log = diamond()
    last = log.records[-1].seq
    assert seq_at(log.records, "end") == seq_at(log.records, "999999") == last
    assert seq_at(log.records, "3") == 3
    assert seq_at(log.records, (BEGAN + timedelta(seconds=3.5)).isoformat()) == 3
    for wrong in ("0", "noon", "2020-01-01"):
        with pytest.raises(NotThere):
            seq_at(log.records, wrong)


def test_only_a_finalized_plan_can_be_forked() -> None:
    log = diamond()
    with pytest.raises(CantFork, match="not finalized"):
        forked(log.records[:-1], 3, {})


# Any plan, any moment --------------------------------------------------------------------------------------------


def board_of(made: ForkPlan, plan: str = "pffffffffffff") -> Board:
    """The fork, once it was finalized."""
    board = Board()
    for record in Log(*made.spec.tasks, plan=plan, fork=made.fork).records:
        assert record.event is not None
        board.apply(record.entity, record.event, record.seq)
    return board


def ancestors(spec: PlanSpec) -> dict[str, set[str]]:
    known: dict[str, set[str]] = {}
    for one in in_order(spec):
        known[one.code] = set(one.depends_on).union(*(known[code] for code in one.depends_on))
    return known


def lived(seed: int) -> tuple[World, list[Recorded]]:
    world = World(seed)
    run_in_virtual_time(world.live())
    return world, world.records()


@pytest.mark.parametrize("seed", range(40))
def test_a_fork_of_any_plan_at_any_moment_is_valid_and_rests_on_what_its_origin_would(seed: int) -> None:
    _, everything = lived(seed)
    rng = Random(seed)  # noqa: S311 - to be seen again
    for plan in sorted({record.plan for record in everything}):
        records = [record for record in everything if record.plan == plan]
        if not any(isinstance(record.event, e.PlanFinalized) for record in records):
            continue
        for seq in rng.sample([record.seq for record in records], min(12, len(records))):
            check(records, seq, rng)


def check(records: list[Recorded], seq: int, rng: Random) -> None:
    origin = origin_at(records, seq)
    people = [code for code in origin.tasks if code not in origin.own]
    changed = {code: "changed" for code in people if rng.random() < rng.choice((0.0, 0.0, 0.3))}
    only = rng.choice((None, None, [rng.choice(people)], [f"{rng.choice(people)}.."]))
    made = forked(records, seq, changed, only)
    kept, runs = set(codes(made.kept)), set(codes(made.runs))
    there = {one.code for one in made.spec.tasks}
    assert kept | runs == there and not kept & runs and not runs & origin.own
    assert not kept & changed.keys()
    assert all(set(one.depends_on) <= there for one in made.spec.tasks)
    assert len(in_order(made.spec)) == len(there) + 1, "there is a cycle"
    before = ancestors(made.spec)
    assert all(before[code] <= kept for code in kept)
    board = board_of(made)
    assert board.visible and board.plan.status == "active"
    was = Board()
    for record in records:
        if record.seq <= seq and record.event is not None:
            was.apply(record.entity, record.event, record.seq)
    for code in runs:
        if not was.visible or code in changed or not before[code] <= kept or was.tasks[code].is_decision:
            continue
        assert [(h.task, h.commit) for h in board.heads(code)] == [(h.task, h.commit) for h in was.heads(code)]
        assert all(head.plan for head in board.heads(code))
    assert board._committed_usd == 0.0


def test_the_worlds_have_forks_worth_the_name() -> None:
    """Else the property above would hold for want of cases."""
    kept = merges = 0
    for seed in range(40):
        _, everything = lived(seed)
        for plan in sorted({record.plan for record in everything}):
            records = [record for record in everything if record.plan == plan]
            if any(isinstance(record.event, e.PlanFinalized) for record in records):
                made = forked(records, records[-1].seq, {})
                kept += len(made.kept)
                merges += any(one.resolves for one in made.spec.tasks)
    assert kept > 40 and merges


def test_a_fork_is_recorded_once_and_only_of_a_plan_that_was_finalized() -> None:
    state = plans.INITIAL
    with pytest.raises(c.Refused):
        plans.decide(state, c.RecordFork(plan="pbbbbbbbbbbbb", seq=3))
    for record in diamond().records:
        if record.entity == PLAN and not is_draft(record.entity) and record.event is not None:
            state = plans.evolve(state, record.event)
    event = plans.decide(state, c.RecordFork(plan="pbbbbbbbbbbbb", seq=3))
    assert event == e.PlanForked(plan="pbbbbbbbbbbbb", seq=3)
    assert plans.decide(plans.evolve(state, event), c.RecordFork(plan="pbbbbbbbbbbbb", seq=3)) is None
