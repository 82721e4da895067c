"""What is wrong with a plan, in words that its author can act on."""

import difflib
import re
from collections.abc import Collection, Iterable, Sequence

import msgspec

FAULTS_MAX = 1000
"""Of one plan. Whoever has so many isn't helped by more, and a hostile plan could have 10⁶: the search ends there."""
FAULTS_PRINTED_MAX = 40
SHOWN_MAX_CHARS = 60
NEAREST_MAX_CHARS = 100
NEAREST_MAX_COMPARISONS = 50_000
"""Comparisons spent on "did you mean" per plan. One costs some 10 µs, and a hostile plan could ask for 10⁸."""

_INVISIBLE = re.compile("[\u200b-\u200f\u061c\u202a-\u202e\u2060-\u2069\ufeff]")


class Fault(msgspec.Struct, frozen=True):
    """One thing that is wrong."""

    message: str
    task: str | None = None
    """The task's code as its author wrote it, or `#3` for the third task, which has none."""
    field: str | None = None
    """The field as its author wrote it (`predecessors`, not `depends_on`, in a plan of HALF's)."""
    line: int | None = None
    """Counted from 1; None where the plan came as data, not as text."""

    def __str__(self) -> str:
        place = ", ".join(part for part in (f"task {self.task}" if self.task else "", self.field) if part)
        suffix = f" (line {self.line})" if self.line else ""
        return f"{place}: {self.message}{suffix}" if place else f"{self.message}{suffix}"


class PlanFaults(Exception):
    """The plan can't be accepted. `faults` holds every reason (the first `FAULTS_MAX`), in the order of the text."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        self.faults = tuple(faults)
        super().__init__(*self.faults)

    def __str__(self) -> str:
        lines = [str(fault) for fault in self.faults[:FAULTS_PRINTED_MAX]]
        if rest := len(self.faults) - len(lines):
            lines.append(f"… and {rest} more" + (", at least" if len(self.faults) == FAULTS_MAX else ""))
        return "\n".join(lines)


def refusal(message: str, line: int | None = None) -> PlanFaults:
    """A fault after which there is nothing left to look at."""
    return PlanFaults((Fault(message, line=line),))


class FaultList:
    """Collects the faults of one plan, within bounds."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []
        self._comparisons_left = NEAREST_MAX_COMPARISONS

    def add(self, message: str, *, task: str | None = None, field: str | None = None, line: int | None = None) -> None:
        """Raises `PlanFaults` when there are `FAULTS_MAX`."""
        self._faults.append(Fault(message, task, field, line))
        if len(self._faults) == FAULTS_MAX:
            self.raise_if_any()

    def raise_if_any(self) -> None:
        """Raises `PlanFaults` in the order of the text; what has no line keeps its place among its like, in front."""
        if self._faults:
            raise PlanFaults(sorted(self._faults, key=lambda fault: fault.line or 0))

    def did_you_mean(self, word: str, known: Collection[str], *, but: str = "") -> str:
        """`; did you mean "T8"?` for the nearest known word except `but`, or nothing where none is near."""
        if len(word) > NEAREST_MAX_CHARS:
            return ""
        self._comparisons_left -= len(known)
        if self._comparisons_left < 0:
            return ""
        folded = word.casefold()
        candidates = [candidate for candidate in known if candidate != but]
        near = [candidate for candidate in candidates if candidate.casefold() == folded]
        near = near or difflib.get_close_matches(word, candidates, n=1, cutoff=0.5)
        return f"; did you mean {shown(near[0])}?" if near else ""


def shown(value: object) -> str:
    """A value as messages quote it: one line, short, without control codes that a terminal would obey."""
    text = str(value)
    cut = len(text) > SHOWN_MAX_CHARS
    kept = "".join(map(_visible, text[:SHOWN_MAX_CHARS]))
    return f'"{kept}…"' if cut else f'"{kept}"'


def label(text: str) -> str:
    """A task's code or an agent's name for a fault's place: like `shown`, without the quotes."""
    return shown(text)[1:-1]


def listed(words: Iterable[str], limit: int = 10) -> str:
    """The first words, quoted, and how many more there are."""
    words = list(words)
    more = f" and {len(words) - limit} more" if len(words) > limit else ""
    return ", ".join(shown(word) for word in words[:limit]) + more


def found(value: object) -> str:
    """What stands where something else was expected."""
    match value:
        case None:
            return "nothing"
        case bool():
            return "true" if value else "false"
        case int() | float():
            return f"the number {shown_number(value)}"
        case str():
            return f"the text {shown(value)}"
        case list() | tuple():
            return "a list"
        case dict():
            return "a mapping"
        case _:
            return f"a value of the type {type(value).__name__}"


def shown_number(value: float) -> str:
    """A number as messages show it; an endless one is shortened."""
    if isinstance(value, int) and value.bit_length() > 64:
        return "of more than 19 digits"
    return repr(value)


def _visible(char: str) -> str:
    if char == "\n":
        return "\\n"
    if not char.isprintable() or _INVISIBLE.match(char):
        return f"\\u{{{ord(char):x}}}"
    return char
