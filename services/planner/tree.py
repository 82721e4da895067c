"""Plain data that remembers where it was written, and the builder that keeps it within bounds.

Both readers (`yamltext`, `jsontext`) feed the same builder, one event at a time and without recursion, so one place
bounds depth and size, and no text, however nested, can overflow the stack.
"""

from services.planner.faults import refusal

DEPTH_MAX = 64
"""Levels of nesting."""
VALUES_MAX = 1_000_000
"""Weight of all values; the largest plan that fits an event stays well below."""
MAPPING_WEIGHT = 8
"""A mapping takes about as much memory as this many scalars."""
CHARS_MAX = 32 * 1024 * 1024
"""Characters of all scalars, after aliases are followed."""


class Plain(str):
    """An unquoted YAML scalar. Its field decides what it is: `1e3` may be a number or a name."""

    __slots__ = ()


class Table(dict[str, object]):
    """A mapping with the lines of its keys."""

    __slots__ = ("line", "lines", "repeated", "written")

    def __init__(self, line: int) -> None:
        super().__init__()
        self.line = line
        self.lines: dict[str, int] = {}
        self.repeated: dict[str, int] = {}
        """Keys that came again, with the line of the first repetition. The first value counts."""
        self.written: dict[str, str] = {}
        """Fields that the author called otherwise: our name → theirs."""


class Row(list[object]):
    """A list with the lines of its items."""

    __slots__ = ("line", "lines")

    def __init__(self, line: int) -> None:
        super().__init__()
        self.line = line
        self.lines: list[int] = []


class Builder:
    """Builds a tree from a stream of openings, scalars and closings."""

    def __init__(self) -> None:
        self.root: object = None
        self.weight = 0
        self.chars = 0
        self._open: list[Table | Row] = []
        self._keys: list[str | None] = []
        """Of each open mapping, the key that still waits for its value; of each open list, an empty text."""

    @property
    def wants_key(self) -> bool:
        return bool(self._keys) and self._keys[-1] is None

    @property
    def depth(self) -> int:
        return len(self._open)

    def key(self, text: str, line: int) -> None:
        """The next value's key, in the mapping that was opened last."""
        self._count(1, len(text), line)
        self._keys[-1] = text
        table = self._open[-1]
        assert isinstance(table, Table)  # noqa: S101 - `wants_key` said so; this tells the type checker
        if text in table:
            table.repeated.setdefault(text, line)
        else:
            table.lines[text] = line

    def value(self, value: object, line: int, *, weight: int = 1, chars: int = 0) -> None:
        """A finished value: a scalar, or a subtree that stands here a second time."""
        self._count(weight, chars, line)
        self._place(value, line)

    def open(self, node: Table | Row, line: int) -> None:
        """Begins a mapping or list; what comes until `close` belongs to it."""
        self._count(MAPPING_WEIGHT if isinstance(node, Table) else 1, 0, line)
        self.refuse_depth(len(self._open) + 1, line)
        self._place(node, line)
        self._open.append(node)
        self._keys.append(None if isinstance(node, Table) else "")

    def refuse_depth(self, depth: int, line: int) -> None:
        if depth > DEPTH_MAX:
            raise refusal(f"the plan is nested deeper than {DEPTH_MAX} levels", line)

    def close(self) -> Table | Row:
        self._keys.pop()
        return self._open.pop()

    def _place(self, value: object, line: int) -> None:
        if not self._open:
            self.root = value
            return
        parent = self._open[-1]
        if isinstance(parent, Row):
            parent.append(value)
            parent.lines.append(line)
        else:
            key = self._keys[-1]
            assert key is not None  # noqa: S101 - readers ask `wants_key`; this tells the type checker
            parent.setdefault(key, value)
            self._keys[-1] = None

    def _count(self, weight: int, chars: int, line: int) -> None:
        self.weight += weight
        self.chars += chars
        if self.weight > VALUES_MAX:
            raise refusal(
                f"the plan holds more than {VALUES_MAX:,} values (aliases count as what they stand for)", line
            )
        if self.chars > CHARS_MAX:
            raise refusal(
                f"the plan's texts are larger than {CHARS_MAX // 2**20} MiB (aliases count as what they stand for)",
                line,
            )
