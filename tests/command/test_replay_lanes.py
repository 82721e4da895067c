"""The lanes of a replay: what is drawn is read back, and must be the plan's edges."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.text import Text

from shared.history.archive import Archive
from shared.history.history import History
from shared.history.moment import Moment, TaskMoment
from shared.task import TaskStatus
from tests.command.replay_story import HOSTILE, archive, story
from treadle.replay.dag import Dag, dag_of
from treadle.replay.lanes import Lanes
from treadle.replay.letters import in_letters
from treadle.replay.screen import moment_screen
from treadle.replay.timeline import Timeline

Edges = set[tuple[int, int]]

# Reading a drawing -----------------------------------------------------------------------------------------------

TASK = "●*"
GOES_UP, GOES_DOWN = "│├┤┼╰┴┊|+':" + TASK, "│├┤┼╮┬┊|+.:" + TASK
TAKES_PART = {"left": "├┼╰┴+'", "right": "┤┼╮┬+."}


def read(lines: Sequence[str], *, is_whole: bool = True) -> Edges:
    """The edges that somebody sees who follows the lanes downwards; rows by their number.

    `is_whole`: no lane ends or begins where nothing is.
    """
    edges: Edges = set()
    carried: dict[int, set[int]] = {}  # by place: the tasks that come down there
    for row, line in enumerate(lines):
        coming = {at: carried.get(at, set()) if ch in GOES_UP else set() for at, ch in enumerate(line)}
        (task,) = [at for at, ch in enumerate(line) if ch in TASK] or [-1]
        if is_whole:
            for at, ch in enumerate(line):
                assert coming[at] or ch not in GOES_UP or at == task, f"nothing leads to {at} of row {row}"
            for at, of in carried.items():
                is_taken = at < len(line) and line[at] in GOES_UP
                assert is_taken or not of or lines[row - 1][at] in TASK, f"a lane to {at} of row {row} is torn"
        going = {at: set(coming[at]) if ch in GOES_DOWN else set() for at, ch in enumerate(line)}
        if task >= 0:
            into = set(coming[task])
            for at in _reached(line, task, -1, TAKES_PART["left"]):
                into |= coming[at]
            for at in _reached(line, task, 1, TAKES_PART["right"]):
                going[at] |= {row}
            going[task] = {row}
            edges |= {(one, row) for one in into}
        carried = going
    return edges


def _reached(line: str, task: int, step: int, takes_part: str) -> Iterator[int]:
    at = task
    while 0 <= at + step < len(line) and line[at + step] in "─-":
        at += 2 * step
        if line[at] in takes_part:
            yield at


def closure(before: Sequence[Collection[int]]) -> list[set[int]]:
    """By row: all that stand before it, at any distance."""
    above: list[set[int]] = []
    for rows in before:
        above.append(set(rows).union(*(above[row] for row in rows)))
    return above


def needed(before: Sequence[Collection[int]]) -> Edges:
    """The edges that do not follow from others."""
    above = closure(before)
    return {(u, v) for v, rows in enumerate(before) for u in rows if not any(u in above[other] for other in rows)}


def rows_of(lanes: Lanes, count: int) -> list[str]:
    return [lanes.drawn(row)[0] for row in range(count)]


@st.composite
def graphs(draw: st.DrawFn) -> list[set[int]]:
    """Rows with predecessors above them: dense ones and sparse ones, with runs of tasks alike."""
    before: list[set[int]] = []
    for row in range(draw(st.integers(0, 16))):
        nearest = st.integers(max(0, row - draw(st.integers(1, 16))), row - 1)
        as_before = row > 1 and draw(st.booleans())
        before.append(set(before[-1]) if as_before else draw(st.sets(nearest, max_size=5)) if row else set())
    return before


@given(before=graphs())
def test_drawing_with_room_shows_exactly_the_edges_that_do_not_follow_from_others(before: list[set[int]]) -> None:
    lanes = Lanes(before, columns_max=2 * len(before) + 4)
    assert read(rows_of(lanes, len(before))) == needed(before)
    assert not any(lanes.undrawn)


@given(before=graphs(), columns_max=st.integers(1, 9))
def test_what_has_no_room_is_named_and_nothing_else_is_drawn(before: list[set[int]], columns_max: int) -> None:
    lanes = Lanes(before, columns_max)
    named = {(one, row) for row, rows in enumerate(lanes.undrawn) for one in rows}
    drawn = read(rows_of(lanes, len(before)))
    assert not drawn & named and drawn | named == needed(before)
    assert lanes.columns <= max(4, columns_max)


@given(before=graphs(), columns_max=st.integers(1, 30))
def test_drawing_in_ascii_reads_the_same(before: list[set[int]], columns_max: int) -> None:
    lines = rows_of(Lanes(before, columns_max), len(before))
    letters = [in_letters(Text(line), "ascii").plain for line in lines]
    assert all(line.isascii() for line in letters) and read(letters) == read(lines)


@given(before=graphs(), columns_max=st.integers(1, 30), data=st.data())
def test_drawing_with_gaps_shows_no_edge_that_is_not_there(
    before: list[set[int]], columns_max: int, data: st.DataObject
) -> None:
    count = len(before)
    shown = [data.draw(st.booleans()) for _ in range(count)]
    lanes = Lanes(before, columns_max)
    lines: list[str] = []
    rows: list[int] = []
    for row in range(count):
        if shown[row]:
            lines.append(lanes.drawn(row)[0])
            rows.append(row)
        elif row == 0 or shown[row - 1]:
            last = next((other for other in range(row, count) if shown[other]), count) - 1
            lines.append(lanes.passing(row, last))
            rows.append(-1)
    found = {(rows[u], rows[v]) for u, v in read(lines, is_whole=False)}
    all_drawn = read(rows_of(lanes, count))
    assert found <= all_drawn
    beside = {(u, v) for u, v in all_drawn if all(shown[u : v + 1])}
    assert beside <= found


# Drawings ---------------------------------------------------------------------------------------------------------


def task(code: str, *depends_on: str, status: TaskStatus = "pending") -> TaskMoment:
    plain = {"name": code, "agent": "sh", "runner": "", "commit": "", "base_commit": "", "message": "", "inherited": ""}
    numbers = {"seq": 1, "attempt": 0, "lease": 0, "cost_usd": 0.0}
    made = {"code": code, "depends_on": depends_on, "status": status, "since": datetime.now(UTC), **plain, **numbers}
    return msgspec.convert({**made, "usage": {}, "waits_for": ()}, TaskMoment)


def graph(text: str) -> list[TaskMoment]:
    """Of words such as `D:B,C`."""
    return [task(code, *filter(None, after.split(","))) for code, _, after in (w.partition(":") for w in text.split())]


def drawn(tasks: Sequence[TaskMoment], columns_max: int = 20) -> str:
    dag = Dag([(one.code, one.depends_on) for one in tasks], columns_max)
    lines = [f"{dag.lanes.drawn(row)[0]} {one.code}{dag.behind(row)}" for row, one in enumerate(tasks)]
    return "\n" + "\n".join(lines) + "\n"


def test_diamond() -> None:
    assert drawn(graph("A B:A C:A D:B,C _deliver")) == """
●   A
├─● B
●─┤ C
  ● D
  ● _deliver
"""  # fmt: skip


def test_chain_and_tasks_beside_each_other_look_different() -> None:
    assert drawn(graph("A B:A C:B _deliver")) == "\n● A\n● B\n● C\n● _deliver\n"
    assert (
        drawn(graph("A B C D _deliver"))
        == """
●───╮ A
  ●─┤ B
●───┤ C
  ●─┤ D
    ● _deliver
"""
    )


def test_forks_and_joins_whose_lanes_cross() -> None:
    assert (
        drawn(graph("A B C:A D:B E:A,B F:C,D G:E H:F,G"))
        == """
●         A
│ ●       B
├─│─●───╮ C
│ ├───●─┤ D
╰─●     │ E
  │     ● F
  ●─────┤ G
        ● H
"""
    )


def test_layers_that_wait_for_the_whole_layer_before() -> None:
    assert (
        drawn(graph("A B C D:A,B,C E:A,B,C F:A,B,C G:D,E,F H:D,E,F _deliver"))
        == """
●               A
│ ●             B
│ │ ●           C
├─┼─┼─●───┬─╮   D
├─┼─┼───●─┼─┤   E
╰─┴─●─────┼─┤   F
          ●─│─╮ G
            ●─┤ H
              ● _deliver
"""
    )


def test_delivery_is_drawn_from_the_tasks_that_nobody_else_waits_for() -> None:
    assert (
        drawn(graph("A B:A C:A X Y:X _deliver"))
        == """
●     A
├─●─╮ B
●───┤ C
  ● │ X
  ●─┤ Y
    ● _deliver
"""
    )
    assert "behind" not in drawn(graph("A B:A _deliver"))


def test_edge_that_follows_from_others_is_left_out() -> None:
    assert drawn(graph("A B:A C:A,B D:A,C")) == "\n● A\n● B\n● C\n● D\n"


def test_one_then_five_hundred_then_one_takes_four_columns() -> None:
    names = [f"T{i}" for i in range(500)]
    lines = drawn(graph(f"S {' '.join(f'{name}:S' for name in names)} E:{','.join(names)}"), 4).splitlines()[1:]
    assert lines[:4] == ["●       S", "├─●───╮ T0", "├───●─┤ T1", "├─●───┤ T2"]
    assert lines[-3:] == ["├─●───┤ T498", "●─────┤ T499", "      ● E"]


def test_what_has_no_column_is_said_in_words() -> None:
    names = [f"T{i}" for i in range(500)]
    spec = f"S {' '.join(f'{name}:S' for name in names)} E:{','.join(names)} _deliver"
    lines = drawn(graph(spec), 4).splitlines()[1:]
    assert lines[:3] == ["●     S", "├─●   T0", "├───● T1"]
    assert lines[-3:] == ["●     T499", "●     E ←T0,T1,T2 +496", "●     _deliver"]


def test_history_with_holes_names_the_tasks_that_it_lacks() -> None:
    assert drawn(graph("A:gone B:A,C C:A")) == "\n●   A ←gone\n├─● B ←C\n●   C\n"


def test_thousand_tasks_with_ten_thousand_edges_are_laid_out_at_once_and_once() -> None:
    tasks = [task(f"T{i}", *(f"T{(i * 7 + j * 13) % i}" for j in range(min(i, 10)))) for i in range(1_000)]
    took_s = []
    for columns_max in (10, 20, 32):
        began_s = time.process_time()  # whatever else the machine does
        Dag([(one.code, one.depends_on) for one in tasks], columns_max)
        took_s.append(time.process_time() - began_s)
    assert min(took_s) < 0.1, f"it should take some 0.02 s, and took {took_s}"
    later = [msgspec.structs.replace(one, status="completed") for one in tasks]
    assert dag_of(later, 120) is dag_of(tasks, 120)
    assert dag_of([*later, task("T1000", "T3")], 120) is not dag_of(tasks, 120)


# On the screen ----------------------------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path: Path) -> Iterator[History]:
    one = Archive.open(archive(story().records, tmp_path))
    yield History(one.event_file(tmp_path))
    one.close()


def screen(small: History, moment: Moment, width: int, height: int = 40, encoding: str = "utf-8") -> list[Text]:
    timeline = Timeline(small.file.read())
    return moment_screen(
        moment, timeline, width=width, height=height, until=moment.time, told=["✓ told"], encoding=encoding
    )


def test_task_changes_its_sign_and_never_its_place(small: History) -> None:
    seen: dict[str, list[str]] = {"T1": [], "T2": [], "T3": []}
    for seq in (70, 90, 140, 190):
        for line in screen(small, small.moment(seq), 100):
            code = line.plain[4:6]
            if code in seen:
                seen[code].append(line.plain[:3])
    assert seen == {
        "T1": ["·  ", "▶  ", "✓  ", "✓  "],
        "T2": ["├─·", "├─·", "├─▶", "├─✓"],
        "T3": ["·─┤", "·─┤", "▶─┤", "!─┤"],
    }


@pytest.mark.parametrize("width", [20, 33, 60, 110, 200])
def test_hostile_codes_neither_steer_nor_shift_the_columns(small: History, width: int) -> None:
    codes = [HOSTILE, "任务" * 30, "x" * 5_000, "e\u0301" * 9, "\ud800", "a\nb\tc"]
    tasks = [task(code, *codes[:place], f"{HOSTILE}gone") for place, code in enumerate(codes)]
    moment = msgspec.structs.replace(small.moment(190), tasks=(*tasks, *small.moment(190).tasks))
    lines = screen(small, moment, width)
    assert all(line.cell_len <= width for line in lines)
    assert not any(ch in line.plain for line in lines for ch in "\x1b\x07\x9b\u202e\r\n\t\ud800")
    if width >= 110:
        states = [line for line in lines if " pending " in line.plain]
        places = {Text(line.plain.partition(" pending ")[0]).cell_len for line in states}
        assert len(states) == 7 and len(places) == 1


def test_terminal_without_such_characters_gets_ascii(small: History) -> None:
    lines = [line.plain for line in screen(small, small.moment(190), 100, encoding="ascii")]
    assert all(line.isascii() for line in lines)
    assert [line.split()[0:2] for line in lines[-4:-1]] == [["v", "T1"], ["+-v", "T2"], ["!-+", "T3"]]
    assert "v told" in lines
    latin = screen(small, small.moment(190), 100, encoding="latin-1")
    assert all(line.plain.encode("latin-1") for line in latin if line.plain)
    assert "├─✓ T2" in "\n".join(line.plain for line in screen(small, small.moment(190), 100))
