"""A moment on a terminal: what it is, and each task with its lanes and bars, in as many rows and columns as it has."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from datetime import datetime
from itertools import pairwise
from typing import NamedTuple

from rich.console import Console
from rich.text import Text

from shared.history.moment import Moment, TaskMoment
from treadle.plain_text import one_line
from treadle.replay.dag import CODE_SHOWN, Dag, dag_of
from treadle.replay.letters import in_letters
from treadle.replay.signs import STYLES, counted, rank, words
from treadle.replay.timeline import Timeline
from treadle.replay.words import head_lines, note

WIDTH_MIN, HEIGHT_MIN = 20, 8
MOMENT_PLACE = 1
"""Which of the heads says the moment."""
LABEL_SHARE = 0.25
LABEL_MIN = 6
NOTE_FROM_WIDTH = 90
"""A narrower terminal shows the bars and leaves the notes out."""
NOTE_SHARE = 0.35
NOTE_MIN = 12
BAR_WANTED, BAR_MIN = 16, 4
"""Notes, then the words for the status (it has its sign too), are left out for the first; the other is what remains."""
STATE_WIDTH = 17
"""The longest status."""


class _Widths(NamedTuple):
    """In cells; 0: it is left out."""

    label: int
    state: int
    bar: int
    note: int


def moment_screen(
    moment: Moment,
    timeline: Timeline,
    *,
    width: int,
    height: int | None,
    until: datetime,
    told: Sequence[str] = (),
    encoding: str = "utf-8",
) -> list[Text]:
    """At most `height` lines of at most `width` cells, in what the terminal's encoding has.

    For a `height` of None there are as many as it takes to show every task and nothing cut of what is above them.
    `until` is where the timeline ends, not before the moment; `told` are the event itself and what it changed.
    """
    width = max(width, WIDTH_MIN)
    heads = [Text(line, "bold" if place == 0 else "") for place, line in enumerate(head_lines(moment))]
    said = [Text(line, "dim" if place else "cyan") for place, line in enumerate(told)]
    if height is None:
        top = [*_wrapped(heads, width, None), *said]
        rows = len(moment.tasks) + 1
    else:
        height = max(height, HEIGHT_MIN)
        top = [*_wrapped(heads, width, height // 2 - len(heads) - len(said)), *said][: height // 2]
        rows = height - len(top)
    lines = [*top, *_task_lines(moment, timeline, width, rows, until)]
    for line in lines:
        line.truncate(width, overflow="ellipsis")
    return [in_letters(line, encoding) for line in lines]


def _wrapped(heads: Sequence[Text], width: int, spare: int | None) -> list[Text]:
    """The heads on more lines where one is too long, `spare` more at most; what finds no room is cut later.

    None: there is room for all. The moment comes first and always has it: without it a picture says nothing.
    """
    wrapping = Console(width=width)
    lines = [[head] for head in heads]
    for place in sorted(range(len(heads)), key=lambda place: place != MOMENT_PLACE):
        wrapped = [*heads[place].wrap(wrapping, width)]
        more = len(wrapped) - 1
        if spare is None or place == MOMENT_PLACE or more <= spare:
            lines[place] = wrapped
            spare = None if spare is None else spare - more
    return [line for wrapped in lines for line in wrapped]


def _task_lines(moment: Moment, timeline: Timeline, width: int, rows: int, until: datetime) -> list[Text]:
    """The timeline's axis, and below it a line for each task that is shown and for each gap between them."""
    if not moment.tasks or rows < 2:
        return []
    dag = dag_of(moment.tasks, width)
    shown = rows_that_matter(moment, rows - 1)
    labels = {row: _label(moment.tasks[row], dag.behind(row), moment.entity) for row in shown}
    widths = _widths(width - dag.width - 1, width, max((label.cell_len for label in labels.values()), default=0))
    before = dag.width + widths.label + widths.state + (3 if widths.state else 2)
    lines = [Text(" " * before + timeline.axis(until, widths.bar), "dim")]
    next_row = 0
    for row in [*shown, len(moment.tasks)]:
        if row > next_row:
            lines.append(_gap_line(moment.tasks, dag, next_row, row - 1))
        if row < len(moment.tasks):
            bar = timeline.drawn(moment.tasks[row].code, moment.seq, moment.time, until, widths.bar)
            lines.append(
                _task_line(moment.tasks[row], dag.task(row, moment.tasks[row].status), labels[row], bar, widths)
            )
        next_row = row + 1
    return lines


def _task_line(task: TaskMoment, lanes: Text, label: Text, bar: str, widths: _Widths) -> Text:
    label.truncate(widths.label, overflow="ellipsis", pad=True)
    line = lanes.append(" ").append_text(label)
    if widths.state:
        line.append(f" {words(task.status):<{widths.state}}", STYLES.get(task.status))
    line.append(f" {bar}")
    if widths.note and (more := note(task)):
        line.append(f" {one_line(more, widths.note)}", "dim")
    return line


def _gap_line(tasks: Sequence[TaskMoment], dag: Dag, first: int, last: int) -> Text:
    stand = counted(task.status for task in tasks[first : last + 1])
    count = last - first + 1
    return dag.gap(first, last).append(f" … and {count} more {'task' if count == 1 else 'tasks'}: {stand}")


def _label(task: TaskMoment, behind: str, changed: str) -> Text:
    label = Text().append(one_line(task.code, CODE_SHOWN), "reverse" if task.code == changed else "")
    return label.append(behind, "dim")


def _widths(room: int, width: int, label_wanted: int) -> _Widths:
    """How the cells right of the lanes are shared out."""
    label = min(label_wanted, max(LABEL_MIN, int(width * LABEL_SHARE)))
    room -= label + 1
    state = STATE_WIDTH if room - STATE_WIDTH - 1 >= BAR_WANTED else 0
    room -= state + 1 if state else 0
    noted = min(int(width * NOTE_SHARE), room - BAR_WANTED - 1) if width >= NOTE_FROM_WIDTH else 0
    noted = noted if noted >= NOTE_MIN else 0
    return _Widths(label, state, max(BAR_MIN, room - noted - 1 if noted else room), noted)


def rows_that_matter(moment: Moment, rows: int) -> list[int]:
    """The tasks that are shown, by their place in the plan's order, where each gap between them takes a line too.

    First what the event concerns, then the urgent ones, then the latest.
    """
    tasks = moment.tasks
    if len(tasks) <= rows:
        return [*range(len(tasks))]
    order = sorted(
        range(len(tasks)),
        key=lambda i: (tasks[i].code != moment.entity, rank(tasks[i].status), _lateness(tasks[i]), i),
    )
    # One more task never takes fewer lines: it fills a gap of one, or is beside one, or parts one.
    count = bisect_left(range(1, rows + 1), True, key=lambda count: _lines(order[:count], len(tasks)) > rows)
    return _without_small_gaps(sorted(order[:count]), len(tasks))


def _lines(shown: Sequence[int], count: int) -> int:
    places = [-1, *sorted(shown), count]
    return len(shown) + sum(after - before > 1 for before, after in pairwise(places))


def _without_small_gaps(shown: Sequence[int], count: int) -> list[int]:
    """A gap's line has room for the one task that it would leave out."""
    taken = {*shown}
    beside = {-1, *shown, count}
    return sorted(taken | {row for row in range(count) if row - 1 in beside and row + 1 in beside})


def _lateness(task: TaskMoment) -> int:
    """The newest event first; of what waits, the plan's order says what comes next."""
    return 0 if task.status == "pending" else -task.seq
