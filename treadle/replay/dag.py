"""The DAG on a screen: the lanes of a plan's tasks, and in words what no lane shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

from rich.text import Text

from shared.history.moment import TaskMoment
from shared.spec import DELIVER
from treadle.plain_text import one_line
from treadle.replay.lanes import NODE, Lanes
from treadle.replay.signs import SIGNS, STYLES

COLUMNS_MAX = 32
"""An eye follows no more lanes, however wide the terminal is."""
CODE_SHOWN = 20
BEHIND_SHOWN = 3
"""Predecessors without a lane that a task names."""

# A dash would look like a lane, and nothing at all like a hole in one.
_NODES: Mapping[str, str] = {**SIGNS, "absent": NODE, "abandoned": "∅"}


class Dag:
    """A plan's edges, drawn. They change only where tasks are added; how the tasks stand is not part of it."""

    def __init__(self, tasks: Sequence[tuple[str, tuple[str, ...]]], columns_max: int) -> None:
        """Of codes in topological order, and what each depends on."""
        rows = {code: row for row, (code, _) in enumerate(tasks)}
        codes = list(rows)
        awaited = {code for _, depends_on in tasks for code in depends_on}
        before: list[list[int]] = []
        unknown: list[list[str]] = []  # of a history that cannot be read as a whole
        for row, (code, depends_on) in enumerate(tasks):
            # It waits for all others, which is to say for those that nobody else waits for.
            waits_for = [one for one in codes[:row] if one not in awaited] if code == DELIVER else depends_on
            before.append([rows[one] for one in waits_for if rows.get(one, row) < row])
            unknown.append([one for one in waits_for if rows.get(one, row) >= row])
        self.lanes = Lanes(before, columns_max)
        self._behind = [
            [codes[one] for one in undrawn] + unknown[row] for row, undrawn in enumerate(self.lanes.undrawn)
        ]

    @property
    def width(self) -> int:
        """In cells."""
        return max(0, 2 * self.lanes.columns - 1)

    def task(self, row: int, status: str) -> Text:
        """The lanes of the task's row, with its sign where it stands."""
        lanes, at = self.lanes.drawn(row)
        drawn = Text().append(lanes[:at], "dim").append(_NODES.get(status, NODE), STYLES.get(status))
        return drawn.append(lanes[at + 1 :], "dim")

    def gap(self, first: int, last: int) -> Text:
        """The lanes that go past these tasks, which are not shown."""
        return Text(self.lanes.passing(first, last), "dim")

    def behind(self, row: int) -> str:
        """The predecessors that no lane leads to, in words; empty where the lanes say it all."""
        codes = self._behind[row]
        named = ",".join(one_line(code, CODE_SHOWN) for code in codes[:BEHIND_SHOWN])
        more = f" +{len(codes) - BEHIND_SHOWN}" if len(codes) > BEHIND_SHOWN else ""
        return f" ←{named}{more}" if codes else ""


def dag_of(tasks: Sequence[TaskMoment], width: int) -> Dag:
    """The tasks' edges, drawn on a third of so many cells; the same object as long as the edges are the same."""
    return _drawn(tuple((task.code, task.depends_on) for task in tasks), min(COLUMNS_MAX, (width // 3 + 1) // 2))


@lru_cache(maxsize=2)
def _drawn(tasks: tuple[tuple[str, tuple[str, ...]], ...], columns_max: int) -> Dag:
    return Dag(tasks, columns_max)
