"""One mapping of a plan, read field by field: each reader answers with a usable value and notes what is wrong."""

import re
from collections.abc import Callable, Collection

from services.planner.faults import FaultList, found, label, listed, shown, shown_number
from services.planner.tree import Plain, Row, Table
from shared.spec import UNPRINTABLE_LINE, UNPRINTABLE_TEXT

WORD_MAX_CHARS = 10_000

_WHOLE = re.compile(r"[-+]?[0-9]{1,19}")
_DECIMAL = re.compile(r"[-+]?(\.[0-9]{1,40}|[0-9]{1,40}(\.[0-9]{0,40})?)([eE][-+]?[0-9]{1,3})?")
_BOOLEANS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}


class Fields:
    """Reads one mapping. A field that is absent or null counts as not given."""

    def __init__(
        self, source: dict[str, object], faults: FaultList, *, task: str | None = None, place: str = ""
    ) -> None:
        self._source = source
        self._table = source if isinstance(source, Table) else None
        self._place = place
        self.faults = faults
        self.task = task
        self.line = self._table.line or None if self._table else None

    def add(self, message: str, name: str | None = None, *, line: int | None = None) -> None:
        """A fault of the field `name`, or of the mapping as a whole."""
        field = None
        if name is not None:
            field = self._place + (self._table.written.get(name, name) if self._table else name)
        elif self._place:
            field = self._place.rstrip(".")
        self.faults.add(message, task=self.task, field=field, line=line or self.line_of(name))

    def line_of(self, name: str | None) -> int | None:
        if self._table is None or name is None:
            return self.line
        return self._table.lines.get(name, self.line)

    def given(self, name: str) -> bool:
        return self._source.get(name) is not None

    def raw(self, name: str) -> object:
        return self._source.get(name)

    def missing(self, name: str, why: str = "") -> None:
        self.add(f"is missing{why}", name)

    def check_names(self, known: Collection[str] | None = None, treadles: Collection[str] = ()) -> None:
        """Faults for names that are no text or there twice and, where `known` limits them, for unknown ones.

        `treadles` are those of fields that exist and that nobody may write.
        """
        for name in self._source:
            if not isinstance(name, str):
                self.add(f"a field's name must be a text, found {found(name)}")
            elif name in treadles:
                self.add("only Treadle itself sets it: leave it out", name)
            elif known is not None and name not in known:
                hint = self.faults.did_you_mean(name, known) or f"; known are {listed(known, 20)}"
                self.add(f"unknown field{hint}", label(name), line=self.line_of(name))
        for name, line in self._table.repeated.items() if self._table else ():
            first = self._table.lines.get(name) if self._table else None
            self.add(f"is there twice{f', first in line {first}' if first else ''}", label(name), line=line)

    def refuse(self, name: str, why: str) -> None:
        """A field that the design knows and this version does not."""
        if self.given(name):
            self.add(why, name)

    def line_text(self, name: str, *, max_chars: int) -> str | None:
        """A text of one line, not blank."""
        text = self._text(name, self.raw(name))
        return text if text is not None and self._check_line(name, text, max_chars) else None

    def id_text(self, name: str) -> str | None:
        """Like `line_text`; a whole number is taken for its digits, as people write codes and ids so."""
        text = id_of(self.raw(name))
        if text is None:
            return self.line_text(name, max_chars=WORD_MAX_CHARS)
        return text if self._check_line(name, text, WORD_MAX_CHARS) else None

    def long_text(self, name: str, *, max_bytes: int) -> str:
        """A text of any number of lines; empty when not given."""
        text = self._text(name, self.raw(name))
        return text if text is not None and self._check_text(name, text, max_bytes) else ""

    def number(self, name: str, *, low: float, high: float, unit: str, default: float) -> float:
        return float(self._number(name, low, high, unit, default, _number_of, "a number"))

    def number_or_none(self, name: str, *, low: float, high: float, unit: str) -> float | None:
        """None when not given."""
        return self.number(name, low=low, high=high, unit=unit, default=low) if self.given(name) else None

    def whole(self, name: str, *, low: int, high: int, unit: str, default: int) -> int:
        return int(self._number(name, low, high, unit, default, _whole_of, "a whole number"))

    def whole_or_none(self, name: str, *, low: int, high: int, unit: str) -> int | None:
        """None when not given."""
        return self.whole(name, low=low, high=high, unit=unit, default=low) if self.given(name) else None

    def boolean(self, name: str) -> bool:
        value = self.raw(name)
        if isinstance(value, Plain):
            value = _BOOLEANS.get(value, value)
        if value is not None and not isinstance(value, bool):
            self.add(f"expected true or false, found {found(value)}", name)
        return value is True

    def items(self, name: str, what: str, max_items: int) -> list[tuple[object, int | None]]:
        """A list's items with their lines; empty when not given."""
        value = self.raw(name)
        if value is None:
            return []
        if not isinstance(value, list | tuple):
            hint = f"; write it as [{shown(value)}]" if isinstance(value, str) else ""
            self.add(f"expected a list of {what}, found {found(value)}{hint}", name)
            return []
        if len(value) > max_items:
            self.add(f"{len(value):,} are too many: at most {max_items:,} {what}", name)
            return []
        lines = value.lines if isinstance(value, Row) else [self.line_of(name)] * len(value)
        return list(zip(value, lines, strict=True))

    def texts(self, name: str, what: str, *, max_items: int, max_bytes: int) -> tuple[str, ...]:
        """A list of texts, none of them blank."""
        result = []
        for item, line in self.items(name, what, max_items):
            if item is None:
                self.add("an item is empty", name, line=line)
                continue
            text = self._text(name, item, line)
            if text is not None and self._check_text(name, text, max_bytes, line):
                if text.strip():
                    result.append(text)
                else:
                    self.add("an item is blank", name, line=line)
        return tuple(result)

    def mapping(self, name: str) -> dict[str, object] | None:
        value = self.raw(name)
        if value is None or isinstance(value, dict):
            return value
        self.add(f"expected a mapping, found {found(value)}", name)
        return None

    def _text(self, name: str, value: object, line: int | None = None) -> str | None:
        if value is None:
            return None
        if isinstance(value, str):
            return str(value)
        self.add(f"expected a text, found {found(value)}", name, line=line)
        return None

    def _check_line(self, name: str, text: str, max_chars: int) -> bool:
        if not text.strip():
            self.add("is blank", name)
        elif len(text) > max_chars:
            self.add(f"has {len(text):,} characters; at most {max_chars:,}", name)
        elif odd := UNPRINTABLE_LINE.search(text):
            self.add(f"holds the control character U+{ord(odd.group()):04X}: {shown(text)}", name)
        else:
            return True
        return False

    def _check_text(self, name: str, text: str, max_bytes: int, line: int | None = None) -> bool:
        if odd := UNPRINTABLE_TEXT.search(text):
            self.add(f"holds the control character U+{ord(odd.group()):04X}", name, line=line)
        elif (size := len(text.encode())) > max_bytes:
            self.add(f"has {size:,} bytes; at most {max_bytes:,}", name, line=line)
        else:
            return True
        return False

    def _number(
        self,
        name: str,
        low: float,
        high: float,
        unit: str,
        default: float,
        read: Callable[[object], float | None],
        what: str,
    ) -> float:
        raw = self.raw(name)
        if raw is None:
            return default
        value = read(raw)
        if value is None:
            self.add(f"expected {what}, {low:g} to {high:g} {unit}, found {found(raw)}", name)
        elif not low <= value <= high:  # also refuses NaN
            self.add(f"{shown_number(value)} is out of range: {low:g} to {high:g} {unit}", name)
        else:
            return value
        return default


def id_of(value: object) -> str | None:
    """The digits of a whole number that stands where a code or an id is expected."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() <= 64:
        return str(value)
    return None


def _whole_of(value: object) -> float | None:
    if isinstance(value, Plain):
        return int(value) if _WHOLE.fullmatch(value) else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _number_of(value: object) -> float | None:
    if isinstance(value, Plain):
        return float(value) if _DECIMAL.fullmatch(value) else None
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None
