"""The DAG on a screen: a row for each layer, and in it the tasks that matter where not all of them fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rich.text import Text

from shared.history.moment import TaskMoment
from shared.spec import DELIVER
from treadle.plain_text import one_line
from treadle.replay.signs import SIGNS, STYLES, counted, rank

CODE_SHOWN = 24
CELL_MIN = 5
"""A sign, a short code, and the gap to the next one."""
BEHIND_SHOWN = 4
"""Predecessors that a task's cell names."""
INDENT = 4
GAP = "  "


class _Cell(NamedTuple):
    """One task; each character of it takes one column."""

    text: str
    style: str
    tail: str


def layers(tasks: Sequence[TaskMoment]) -> list[list[TaskMoment]]:
    """The tasks by how many others stand before them at least, each layer in the plan's order.

    `tasks` are in topological order.
    """
    depths: dict[str, int] = {}
    found: list[list[TaskMoment]] = []
    for task in tasks:
        waits_for = depths if task.code == DELIVER else task.depends_on  # it waits for all others
        depth = 1 + max((depths.get(code, -1) for code in waits_for), default=-1)
        depths[task.code] = depth
        while len(found) <= depth:
            found.append([])
        found[depth].append(task)
    return found


def dag_lines(tasks: Sequence[TaskMoment], width: int, rows: int, changed: str = "") -> list[Text]:
    """At most `rows` lines of `width` cells. The task `changed` stands out, and is shown whatever else is not."""
    layered = layers(tasks)
    if not layered or rows < 1:
        return []
    heights = _heights(layered, width, rows, changed)
    lines: list[Text] = []
    left_out: list[TaskMoment] = []
    for number, (layer, height) in enumerate(zip(layered, heights, strict=True), start=1):
        if height == 0:
            left_out += layer
        else:
            lines += _layer(number, layer, width, height, changed)
    if left_out:
        hidden = sum(height == 0 for height in heights)
        lines.append(_cut(Text(f"    … and {hidden} more layers: {counted(t.status for t in left_out)}", "dim"), width))
    return lines


def _heights(layered: Sequence[Sequence[TaskMoment]], width: int, rows: int, changed: str) -> list[int]:
    """How many lines each layer gets: those that matter most one first, then what is left in the same order."""
    wanted = [_lines_wanted(layer, width, rows, changed) for layer in layered]
    if sum(wanted) <= rows:
        return wanted
    by_need = sorted(range(len(layered)), key=lambda i: (_urgency(layered[i], changed), i))
    heights = [0] * len(layered)
    left = rows if len(layered) <= rows else rows - 1  # the last line says what is left out
    for i in by_need[: max(0, left)]:
        heights[i] = 1
    left -= sum(heights)
    for i in by_need:
        more = min(left, wanted[i] - 1)
        if heights[i] and more > 0:
            heights[i] += more
            left -= more
    return heights


def _lines_wanted(layer: Sequence[TaskMoment], width: int, rows: int, changed: str) -> int:
    """How many lines show all of it; some number over `rows` where that is more."""
    room = max(1, width - INDENT)
    return len(_flow([_cell(task, changed) for task in layer[: _most(room, rows) + 1]], room))


def _urgency(layer: Sequence[TaskMoment], changed: str) -> int:
    return min(-1 if task.code == changed else rank(task.status) for task in layer)


def _layer(number: int, layer: Sequence[TaskMoment], width: int, height: int, changed: str) -> list[Text]:
    """One layer on at most `height` lines."""
    room = max(1, width - INDENT)
    lines = _flow([_cell(task, changed) for task in layer[: _most(room, height) + 1]], room)
    if len(lines) > height or len(layer) > _most(room, height) + 1:
        lines = _those_that_matter(layer, room, height, changed)
    return [
        _cut(_text(f"{number:>3} " if place == 0 else " " * INDENT, line), width) for place, line in enumerate(lines)
    ]


def _those_that_matter(layer: Sequence[TaskMoment], room: int, height: int, changed: str) -> list[list[_Cell]]:
    """The cells that matter most, in their order, and how the others stand."""
    order = sorted(range(len(layer)), key=lambda i: (layer[i].code != changed, rank(layer[i].status), i))
    cells = {i: _cell(layer[i], changed) for i in order[: _most(room, height)]}
    lines: list[list[_Cell]] = []
    few, many = 0, len(cells)
    while few < many:  # the most that fit; what they take only grows with their number
        count = (few + many + 1) // 2
        rest = [layer[i].status for i in order[count:]]
        more = [_Cell(f"… and {len(rest)} more: {counted(rest)}", "dim", "")] if rest else []
        tried = _flow([*(cells[i] for i in sorted(order[:count])), *more], room)
        if len(tried) <= height:
            few, lines = count, tried
        else:
            many = count - 1
    if lines:
        return lines
    # Not even one fits with what is said of the others, which is then cut off.
    return [[cells[order[0]], _Cell(f"… and {len(layer) - 1} more", "dim", "")]]


def _most(room: int, height: int) -> int:
    """More cells than that do not fit, however short they are."""
    return height * (room // CELL_MIN + 1)


def _flow(cells: Sequence[_Cell], room: int) -> list[list[_Cell]]:
    lines: list[list[_Cell]] = []
    left = 0
    for cell in cells:
        size = len(cell.text) + len(cell.tail)
        if lines and size + len(GAP) <= left:
            lines[-1].append(cell)
            left -= size + len(GAP)
        else:
            lines.append([cell])
            left = room - size
    return lines


def _cell(task: TaskMoment, changed: str) -> _Cell:
    style = STYLES.get(task.status, "")
    text = f"{SIGNS.get(task.status, ' ')} {one_line(task.code, CODE_SHOWN)}"
    if task.code == changed:
        style = f"{style} reverse"
    if not task.depends_on or task.status in ("completed", "cancelled"):
        return _Cell(text, style, "")
    named = ",".join(one_line(code, CODE_SHOWN) for code in task.depends_on[:BEHIND_SHOWN])
    more = f"+{len(task.depends_on) - BEHIND_SHOWN}" if len(task.depends_on) > BEHIND_SHOWN else ""
    return _Cell(text, style, f"←{named}{more}")


def _text(head: str, cells: Sequence[_Cell]) -> Text:
    text = Text(head, "dim")
    for place, cell in enumerate(cells):
        text.append(GAP if place else "")
        text.append(cell.text, cell.style).append(cell.tail, "dim")
    return text


def _cut(line: Text, width: int) -> Text:
    line.truncate(width, overflow="ellipsis")
    return line
