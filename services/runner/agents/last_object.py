"""Finds what a program answers in what it printed."""

from __future__ import annotations

import re

_BEGINS = re.compile(r"^[ \t]*(?=\{)", re.MULTILINE)
_FENCE = re.compile(r"^[ \t]*```[ \t]*$", re.MULTILINE)
_TOKEN = re.compile(
    r"""([ \t\n\r]*+)
    (?: [{}\[\],:]
      | "(?: [^"\\\x00-\x1f]++ | \\(?: ["\\/bfnrt] | u[0-9a-fA-F]{4} ) )*+"
      | -?(?: 0 | [1-9][0-9]*+ )(?: \.[0-9]++ )?+(?: [eE][-+]?[0-9]++ )?+
      | true | false | null | NaN | -?Infinity
    )""",
    re.VERBOSE,
)
_SIGNS = '{}[],:"'
_KEY, _KEY_OR_END = '"', '"}'
_VALUE = '{["0'
"""0 stands for numbers and words."""


def last_object(output: str) -> str:
    """The last JSON object that begins a line, in a Markdown fence or not, exactly as it stands there.

    Where something begins like one and none can be read, it is that beginning and what follows, so that whoever reads
    it can say where the fault is. Empty: nothing looks like an object.
    """
    found, at, first = "", 0, -1
    while (begin := _BEGINS.search(output, at)) is not None:
        first = begin.end() if first < 0 else first
        span, at = _read(output, begin.end())
        found = output[slice(*span)] if span else found
    if found or first < 0:
        return found
    fence = _FENCE.search(output, first)
    return output[first : fence.start() if fence else len(output)].rstrip()


def _read(output: str, start: int) -> tuple[tuple[int, int] | None, int]:
    """Of the object there, or of what is whole within it, the one that ends last; and where the reading ended.

    Not by `json`, which would have to begin again at each line within one that is broken and counts the lines from the
    text's beginning for each fault. Where a fault is, all that is open is broken: nothing is read twice.
    """
    ended: tuple[int, int] | None = None
    opened: list[tuple[str, int]] = []
    """Each bracket, and where it is if it is an object that begins a line; else -1."""
    at, may = start, "{"
    while token := _TOKEN.match(output, at):
        sign = output[token.end(1)]
        kind = sign if sign in _SIGNS else "0"
        if kind not in may:
            break
        at = token.end()
        if kind in "{[":
            begins_line = kind == "{" and (not opened or "\n" in token[1])
            opened.append((kind, token.end(1) if begins_line else -1))
            may = _KEY_OR_END if kind == "{" else _VALUE + "]"
            continue
        if kind in "}]":
            _, begin = opened.pop()
            ended = (begin, at) if begin >= 0 else ended
            if not opened:
                break
        is_in_object = opened[-1][0] == "{"
        if kind == ":":
            may = _VALUE
        elif kind == ",":
            may = _KEY if is_in_object else _VALUE
        elif kind == '"' and may in (_KEY, _KEY_OR_END):
            may = ":"
        else:
            may = ",}" if is_in_object else ",]"
    return ended, at
