"""A DAG's edges as lanes: a row for each task, its predecessors above it, as `git log --graph` has them below.

On a row everything flows from left to right: what lies left of the task goes into it, and it goes to what lies right.

    ●         A    The lane below a task carries it to those that wait for it: they branch off (├ ╰, amid others ┼ ┴),
    │ ●       B    and the last one may stand at its end (E below B).
    ├─│─●───╮ C    The lane above a task collects those that it waits for: they merge (╮ ┤, amid others ┬ ┼),
    │ ├───●─┤ D    and the first one may stand at its beginning.
    ╰─●     │ E    A lane that is only crossed stays whole: C does not wait for B.
            ● F

Of the two lanes an edge goes by that which more edges share. Tasks right below each other in a column are connected;
others never stand so. As no task stands left of one that it waits for, there is a column for each task and lane if
there are enough. A lane for which there is none is not drawn: its edges are then in `undrawn`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Sequence

NODE = "●"
COLUMNS_MIN = 4
SPARE = 2
"""Columns without lanes: a task always finds room in one of the two, as the one above it takes one at most."""


def reduced(before: Sequence[Collection[int]]) -> list[list[int]]:
    """Each row's predecessors without those that stand before another of them anyway.

    `before` are rows above the row itself.
    """
    above: list[int] = []  # as bits: all that stand before the row, at any distance
    kept: list[list[int]] = []
    for rows in before:
        follows, own = 0, []
        for row in sorted(set(rows), reverse=True):
            if not follows >> row & 1:
                own.append(row)
                follows |= above[row] | 1 << row
        above.append(follows)
        kept.append(own[::-1])
    return kept


class Lanes:
    """Where each task stands, and which lanes pass it. A row is a task's place in topological order."""

    def __init__(self, before: Sequence[Collection[int]], columns_max: int) -> None:
        """Lays out the edges, without those that follow from others, on so many columns at most.

        Each row's predecessors are rows above it. There are `COLUMNS_MIN` columns at least.
        """
        self.undrawn: list[list[int]] = []
        """By row: the predecessors whose edge has no lane."""
        self._edges = reduced(before)
        self._columns_max = max(COLUMNS_MIN, columns_max)
        count = len(before)
        self._columns = [0] * count
        self._tops, self._bottoms = [*range(count)], [*range(count)]  # of the lane above a task, and of that below it
        self._taps: list[list[int]] = [[] for _ in range(count)]
        self._joins: list[list[int]] = [[] for _ in range(count)]
        self._stacks: list[list[int]] = [[] for _ in range(self._columns_max)]  # the rows of each column's tasks
        self._ends: list[int] = [-1] * self._columns_max
        self._branching = self._branches()
        for row in range(count):
            self._place(row)
        self.columns = max(self._columns, default=-1) + 1
        """How many are in use."""
        self._stack_ends = [[self._bottoms[row] for row in stack] for stack in self._stacks]

    def _branches(self) -> list[int]:
        """By row: the last one that branches off the lane below it; the row itself where none does."""
        count = len(self._edges)
        out = [0] * count
        for rows in self._edges:
            for row in rows:
                out[row] += 1
        last = [*range(count)]
        for row, rows in enumerate(self._edges):
            for one in rows:
                if out[one] >= len(rows):
                    last[one] = row
        return last

    def _place(self, row: int) -> None:
        edges = self._edges[row]
        branched = [one for one in edges if self._bottoms[one] >= row]  # its lane comes by
        others = [one for one in edges if self._bottoms[one] < row]
        column, merged = self._best(row, branched, others)
        self._columns[row], self._tops[row] = column, min(merged, default=row)
        self._stacks[column].append(row)
        self._ends[column] = self._bottoms[row]
        self._taps[row] = [self._columns[one] for one in branched if self._columns[one] != column]
        for one in merged:
            if self._columns[one] != column:
                self._joins[one].append(column)
        self.undrawn.append(sorted({*others}.difference(merged)))

    def _best(self, row: int, branched: Collection[int], others: Sequence[int]) -> tuple[int, list[int]]:
        """The column where the most of the others merge into a lane above the row, and which do."""
        least = max((self._columns[one] for one in branched), default=0)
        is_last = row == len(self._edges) - 1
        # The last row is the delivery, as a rule: its lane is right of everything, and nobody takes it away.
        best, merged = -1, list[int]()
        for column in range(least, self._columns_max if is_last else self._columns_max - SPARE - 1):
            if self._ends[column] > row:
                continue  # as most are where many lanes are
            found = self._merging(column, row, branched, others)
            if found is not None and (best < 0 or len(found) > len(merged)):
                best, merged = column, found
                if len(found) == len(others):
                    break
        if best >= 0:
            self._bottoms[row] = self._branching[row]
            return best, merged
        bare = range(least, self._columns_max)
        return next(column for column in bare if self._merging(column, row, branched, []) is not None), []

    def _merging(self, column: int, row: int, branched: Collection[int], others: Sequence[int]) -> list[int] | None:
        """Which of the others can merge into a lane there above the row; None where the row can't stand there."""
        end = self._ends[column]
        if end >= row:
            return [] if end == row and self._stacks[column][-1] in branched else None  # straight below that one
        is_task = end >= 0 and self._columns[end] == column
        begin = end if is_task else end + 1
        merging = [one for one in others[bisect_left(others, begin) :] if self._columns[one] <= column]
        if not merging and is_task and end == row - 1:
            return None  # it would look connected
        return merging

    # Drawing ------------------------------------------------------------------------------------------------------

    def drawn(self, row: int) -> tuple[str, int]:
        """The row's lanes, each column but the last with its gap, and where in that text the task (`NODE`) is."""
        own, taps, joins = self._columns[row], self._taps[row], self._joins[row]
        first, last = min(taps, default=own), max(joins, default=own)
        cells: list[str] = []
        for column in range(self.columns):
            goes_up, goes_down = self._is_lane(column, row), self._is_lane(column, row + 1)
            if column == own:
                cell = NODE
            elif column in taps:
                cell = ("├" if goes_down else "╰") if column == first else ("┼" if goes_down else "┴")
            elif column in joins:
                cell = ("┤" if goes_up else "╮") if column == last else ("┼" if goes_up else "┬")
            elif goes_up:
                cell = "│"
            else:
                cell = "─" if first < column < last else " "
            cells.append(cell + ("─" if first <= column < last else " "))
        return "".join(cells)[:-1], 2 * own

    def passing(self, first: int, last: int) -> str:
        """A line in place of these rows: the lanes that go past all of them."""
        cells = []
        for column in range(self.columns):
            task = self._lane(column, first)
            goes_past = task is not None and self._bottoms[task] > last and not first <= task <= last
            cells.append("┊" if goes_past else " ")
        return " ".join(cells)

    def _is_lane(self, column: int, row: int) -> bool:
        """Whether there is one between the row above and this one."""
        return self._lane(column, row) is not None

    def _lane(self, column: int, row: int) -> int | None:
        """Whose lane is there between the row above and this one."""
        stack = self._stacks[column]
        place = bisect_left(self._stack_ends[column], row)
        return stack[place] if place < len(stack) and self._tops[stack[place]] < row else None
