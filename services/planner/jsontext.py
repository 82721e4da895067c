"""JSON → tree: strict, but for commas before a closing bracket, which people and models leave there.

The standard library reads the scalars; the structure is walked here without recursion, because `json.loads` recurses,
drops repeated keys and knows no lines.
"""

import json
import math
import re

from services.planner.faults import PlanFaults, label, refusal
from services.planner.tree import Builder, Row, Table

DIGITS_MAX = 19
"""Of a whole number; Python takes quadratic time for long ones, and no field has use for them."""

_SPACE = re.compile(r"[ \t\n\r]*+")
_CLOSER = {"{": "}", "[": "]"}


class _NumberRefused(ValueError):
    """The message is the fault's."""


def read_json(text: str, first_line: int) -> object:
    """The tree of a text; lines count from `first_line`. Raises `PlanFaults` for the first fault of syntax."""
    return _Reader(text, first_line).read()


class _Reader:
    def __init__(self, text: str, first_line: int) -> None:
        self._text = text
        self._position = 0
        self._line = first_line
        self._counted = 0
        self._closers: list[str] = []
        self._builder = Builder()
        self._decoder = json.JSONDecoder(parse_int=_whole, parse_float=_finite, parse_constant=_no_number)

    def read(self) -> object:
        self._take_value(self._next_char())
        while self._closers:
            if self._next_char() == self._closers[-1]:
                self._close()
            elif self._closers[-1] == "}":
                self._take_member()
            else:
                self._take_value(self._next_char())
        if self._next_char():
            raise self._fault("more text follows the end of the plan")
        return self._builder.root

    def _take_member(self) -> None:
        if self._next_char() != '"':
            raise self._fault("expected a key in double quotes")
        line = self._current_line()
        self._builder.key(str(self._scalar()), line)
        if self._next_char() != ":":
            raise self._fault('expected ":"')
        self._position += 1
        self._take_value(self._next_char())

    def _take_value(self, char: str) -> None:
        line = self._current_line()
        if closer := _CLOSER.get(char):
            self._builder.open(Table(line) if char == "{" else Row(line), line)
            self._closers.append(closer)
            self._position += 1
            return
        start = self._position
        value = self._scalar()
        self._builder.value(value, line, chars=self._position - start)
        self._take_comma()

    def _close(self) -> None:
        self._builder.close()
        self._closers.pop()
        self._position += 1
        self._take_comma()

    def _take_comma(self) -> None:
        """After a value: a comma, or the end of what holds it. A comma before that end is let pass."""
        if not self._closers:
            return
        char = self._next_char()
        if char == ",":
            self._position += 1
        elif char != self._closers[-1]:
            raise self._fault(f'expected "," or "{self._closers[-1]}"')

    def _scalar(self) -> object:
        try:
            value, self._position = self._decoder.raw_decode(self._text, self._position)
        except json.JSONDecodeError as error:
            self._position = error.pos
            raise self._fault(error.msg[0].lower() + error.msg[1:]) from None
        except _NumberRefused as error:
            raise self._fault(str(error)) from None
        return value

    def _next_char(self) -> str:
        space = _SPACE.match(self._text, self._position)
        if space:
            self._position = space.end()
        return self._text[self._position : self._position + 1]

    def _current_line(self) -> int:
        self._line += self._text.count("\n", self._counted, self._position)
        self._counted = max(self._counted, self._position)
        return self._line

    def _fault(self, what: str) -> PlanFaults:
        column = self._position - self._text.rfind("\n", 0, self._position)
        ending = "; the text ends here" if not self._text[self._position : self._position + 1] else ""
        return refusal(f"not valid JSON at column {column}: {what}{ending}", self._current_line())


def _whole(digits: str) -> int:
    if len(digits) > DIGITS_MAX + 1:
        raise _NumberRefused(f"a number of more than {DIGITS_MAX} digits")
    return int(digits)


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise _NumberRefused(f"the number {label(digits)} is too large")
    return value


def _no_number(word: str) -> float:
    raise _NumberRefused(f"{word} is not a number that a plan can hold")
