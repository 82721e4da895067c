"""What no Treadle has written costs its reader little, and is said to be what it is."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from shared import commands as c
from shared import events as e
from shared import plan, task
from shared.board import Board, NoOrder
from shared.history.event_file import HistoryDamaged
from shared.history.history import History
from shared.history.why import why
from shared.skipped import take
from shared.store import Recorded
from shared.subjects import PLAN
from shared.task_decisions import decide as decide_task
from tests.shared.history import hostile
from tests.shared.history.worlds import Folded, written


def _board_of(records: list[Recorded]) -> Board:
    return Folded(records).board


@pytest.mark.parametrize(
    ("records", "why_not"),
    [
        (hostile.circle_that_grows(), "its tasks wait for each other: T1 → T2 → T1"),
        (hostile.finalized(hostile.task("T1", "T1")), "its tasks wait for each other: T1 → T1"),
        (hostile.finalized(hostile.task("T1", "NONE")), "T1 waits for NONE, which is none of its tasks"),
        (
            hostile.finalized(*(hostile.task(f"T{n}", f"T{(n + 1) % 9}") for n in range(9))),
            "T0 → T1 → T2 → T3 → T4 → T5 → … → T0",
        ),
    ],
)
def test_a_plan_whose_tasks_have_no_order_is_a_fault_and_is_never_shown(records: list[Recorded], why_not: str) -> None:
    board = _board_of(records)
    assert why_not in board.fault
    assert why_not in board.no_order
    assert not board.visible
    assert board.take_ready() == []


def test_an_extension_that_closes_a_circle_leaves_the_plan_as_it_was_laid_out_before() -> None:
    new = hostile.task("N1", "T2")
    told = [(PLAN, e.PlanExtended(tasks=(new,), before="T1", reason="r")), hostile.planned(new, 3)]
    board = _board_of(hostile.finalized(hostile.task("T1"), hostile.task("T2", "T1"), then=told))
    assert "T1 → N1 → T2 → T1" in board.fault
    assert board.codes == ["T1", "T2", "_deliver"]


@pytest.mark.parametrize(
    "told",
    [
        (PLAN, e.PlanExtended(tasks=(hostile.task("T1"),), before="T2", reason="r")),
        ("T1", e.TaskEdited(spec=hostile.task("T1", "T2"), agent=hostile.AGENT, note="")),
        hostile.planned(hostile.task("T1", "T2"), 0),
    ],
)
def test_nothing_that_comes_later_turns_the_edges_of_a_plan(told: hostile.Told) -> None:
    board = _board_of(hostile.finalized(hostile.task("T1"), hostile.task("T2", "T1")))
    entity, event = told
    with pytest.raises(NoOrder):
        board.apply(entity, event, 99)
    assert board.depends_on("T1") == ()
    assert board.depends_on("T2") == ("T1",)


def test_a_history_without_order_is_none_for_whoever_brings_it_as_a_file(tmp_path: Path) -> None:
    with written(hostile.circle_that_grows(), tmp_path / "f") as file:
        history = History(file)
        assert "wait for each other" in history.moment(history.last_seq).fault
        assert "wait for each other" in why(history, None, history.last_seq).sentences[0].text
        with pytest.raises(HistoryDamaged, match="T1 → T2 → T1"):
            history.check_order()


def test_twice_as_much_left_out_takes_twice_the_memory(tmp_path: Path) -> None:
    peaks: list[int] = []
    asked: list[Callable[[History], object]] = [
        lambda history: history.moment(history.last_seq),
        lambda history: why(history, "T1", history.last_seq),
    ]
    for ask in asked:
        peaks.clear()
        for words in (1000, 4000):
            with written(hostile.much_left_out(words), tmp_path / f"{words}-{len(peaks)}-{id(ask)}") as file:
                tracemalloc.start()
                ask(History(file))
                peaks.append(tracemalloc.get_traced_memory()[1])
                tracemalloc.stop()
        assert peaks[1] < 6 * peaks[0] + 500_000


def test_an_entity_remembers_no_more_than_it_may_have_left_out_and_takes_no_more() -> None:
    a_task, a_plan = task.INITIAL, plan.INITIAL
    for seq in range(1, e.SKIPPED_MAX + 1):
        assert decide_task(a_task, c.Skip(seq=seq, reason="r")) == e.TaskSkipped(seq=seq, reason="r")
        a_task = task.evolve(a_task, e.TaskSkipped(seq=seq, reason="r"))
        a_plan = plan.evolve(a_plan, e.PlanSkipped(seq=seq, reason="r"))
    more = c.Skip(seq=e.SKIPPED_MAX + 1, reason="r")
    with pytest.raises(c.Refused, match="100 events of it are left out already"):
        decide_task(a_task, more)
    with pytest.raises(c.Refused, match="100 events of it are left out already"):
        plan.decide(a_plan, more)
    assert plan.decide(a_plan, c.Skip(seq=1, reason="again")) is None
    assert len(task.evolve(a_task, e.TaskSkipped(seq=500, reason="r")).skipped) == e.SKIPPED_MAX


def test_the_tasks_that_all_wait_for_are_found_at_once_as_one_by_one() -> None:
    row = [hostile.task(f"C{n}", f"C{n - 1}" if n else "T1", "T2") for n in range(30)]
    behind = [hostile.task(f"P{n}", "C29", f"C{n}") for n in range(30)]
    records = hostile.finalized(
        hostile.task("T1"), hostile.task("T2"), *row, *behind, then=[(one.code, e.TaskAbandoned()) for one in row[1:]]
    )
    board = _board_of(records)
    for at_most in (1, 2, 10):
        found = board.first_missing(at_most)
        for code in board.codes:
            assert list(found.get(code, ())) == board.missing(code, at_most)
    assert set(board.first_missing(10)["P3"]) == {"C0", "T2"}


def test_a_fault_is_told_for_a_record_that_turns_an_edge() -> None:
    board = _board_of(hostile.finalized(hostile.task("T1"), hostile.task("T2", "T1")))
    records = hostile.finalized(
        hostile.task("T1"),
        hostile.task("T2", "T1"),
        then=[("T1", e.TaskEdited(spec=hostile.task("T1", "T2"), agent=hostile.AGENT, note=""))],
    )
    assert not take(board, records[-1])
    assert "T1 waits for other tasks than it was planned to" in board.fault
