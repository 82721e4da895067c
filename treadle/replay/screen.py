"""A moment on a terminal: what it is, the DAG, and the timeline, in as many rows and columns as there are."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from rich.text import Text

from shared.history.moment import Moment, TaskMoment
from treadle.plain_text import one_line
from treadle.replay.dag import dag_lines
from treadle.replay.signs import SIGNS, STYLES, counted, rank, words
from treadle.replay.timeline import Timeline
from treadle.replay.words import head_lines, note

WIDTH_MIN, HEIGHT_MIN = 20, 8
CODE_SHOWN = 20
NOTE_FROM_WIDTH = 90
"""A narrower terminal shows the bars and leaves the notes out."""
NOTE_SHARE = 0.35
DAG_SHARE = 0.4
STATE_WIDTH = 19
"""The longest status, with its sign."""


def moment_screen(
    moment: Moment, timeline: Timeline, *, width: int, height: int, until: datetime, told: Sequence[str] = ()
) -> list[Text]:
    """At most `height` lines of at most `width` cells.

    `until` is where the timeline ends, not before the moment; `told` are the event itself and what it changed.
    """
    width, height = max(width, WIDTH_MIN), max(height, HEIGHT_MIN)
    heads = [Text(line, "bold" if place == 0 else "") for place, line in enumerate(head_lines(moment))]
    said = [Text(line, "dim" if place else "cyan") for place, line in enumerate(told)]
    top = [*heads, *said][: height // 2]
    left = height - len(top)
    dag_rows = max(int(left * DAG_SHARE), left - len(moment.tasks) - 1)
    dag = dag_lines(moment.tasks, width, dag_rows, moment.entity)
    bars = _timeline_lines(moment, timeline, width, left - len(dag), until)
    lines = [*top, *dag, *bars]
    for line in lines:
        line.truncate(width, overflow="ellipsis")
    return lines


def _timeline_lines(moment: Moment, timeline: Timeline, width: int, rows: int, until: datetime) -> list[Text]:
    if not moment.tasks or rows < 2:
        return []
    fits = len(moment.tasks) + 1 <= rows
    shown = moment.tasks if fits else tasks_that_matter(moment, rows - 2)
    code_width = max((min(len(task.code), CODE_SHOWN) for task in shown), default=4)
    note_width = int(width * NOTE_SHARE) if width >= NOTE_FROM_WIDTH else 0
    bar_width = max(4, width - code_width - STATE_WIDTH - note_width - 3)
    lines = [Text(" " * (code_width + STATE_WIDTH + 2) + timeline.axis(until, bar_width), "dim")]
    for task in shown:
        line = Text(
            f"{one_line(task.code, code_width):<{code_width}} ", "reverse" if task.code == moment.entity else ""
        )
        line.append(f"{SIGNS.get(task.status, ' ')} {words(task.status):<{STATE_WIDTH - 2}}", STYLES.get(task.status))
        line.append(" " + timeline.drawn(task.code, moment.seq, moment.time, until, bar_width))
        if note_width and (more := note(task)):
            line.append(" " + one_line(more, note_width), "dim")
        lines.append(line)
    if not fits:
        shown_codes = {task.code for task in shown}
        rest = [task.status for task in moment.tasks if task.code not in shown_codes]
        lines.append(Text(f"… and {len(rest)} more tasks: {counted(rest)}", "dim"))
    return lines


def tasks_that_matter(moment: Moment, rows: int) -> list[TaskMoment]:
    """At most `rows` tasks: what the event concerns, then the urgent ones, then the latest; in the plan's order."""
    tasks = moment.tasks
    order = sorted(
        range(len(tasks)),
        key=lambda i: (tasks[i].code != moment.entity, rank(tasks[i].status), _lateness(tasks[i]), i),
    )
    return [tasks[i] for i in sorted(order[: max(0, rows)])]


def _lateness(task: TaskMoment) -> int:
    """The newest event first; of what waits, the plan's order says what comes next."""
    return 0 if task.status == "pending" else -task.seq
