"""Tree → YAML: a text that reads back as the very same tree (`parse.parse_text`), for people to look at.

Only what was unquoted in its source and is a number or a yes or no is written unquoted, and words that can't be taken
for either: everything else is quoted or a block, so that no text can be read as something else than text.
"""

import json
import re
from collections.abc import Iterator

from services.planner.tree import Plain

INDENT = "  "
LINE_MAX_CHARS = 100
"""Of a list that is written on one line."""

_NUMBER_OR_BOOLEAN = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|true|True|TRUE|false|False|FALSE")
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*")
_TAKEN = frozenset({"null", "Null", "NULL", "true", "True", "TRUE", "false", "False", "FALSE"})
_BLOCK = re.compile(
    "(?![ \t\n])[\t\n\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]+"
)
"""What a block can hold as it is: no line break but `\\n`, and no indentation of its own in its first line."""
_UNSAFE = re.compile("[\x7f-\xa0\u2028\u2029\ufeff\ufffe\uffff]")


def plan_text(tree: dict[str, object]) -> str:
    """The tree as YAML. Half surrogate pairs can't be written: whoever makes the tree refuses them."""
    return "".join(f"{line}\n" for line in _mapping(tree, ""))


def _mapping(table: dict[str, object], indent: str) -> Iterator[str]:
    for key, value in table.items():
        written = key if _WORD.fullmatch(key) else _quoted(key)
        yield from _entry(f"{indent}{written}:", value, indent)


def _list(row: list[object], indent: str) -> Iterator[str]:
    for item in row:
        if isinstance(item, dict | list) and item:
            inner = indent + INDENT
            lines = _mapping(item, inner) if isinstance(item, dict) else _list(item, inner)
            yield f"{indent}- {next(lines).removeprefix(inner)}"
            yield from lines
        else:
            yield from _entry(f"{indent}-", item, indent)


def _entry(head: str, value: object, indent: str) -> Iterator[str]:
    if isinstance(value, dict) and value:
        yield head
        yield from _mapping(value, indent + INDENT)
    elif isinstance(value, list) and value:
        yield from _list_entry(head, value, indent)
    elif isinstance(value, str) and "\n" in value and _BLOCK.fullmatch(value):
        body = value.rstrip("\n")
        ends = len(value) - len(body)
        yield f"{head} |{('-', '')[ends] if ends < 2 else '+'}"
        for line in (body + "\n" * max(ends - 1, 0)).split("\n"):
            yield f"{indent}{INDENT}{line}" if line else ""
    else:
        yield f"{head} {_scalar(value)}"


def _list_entry(head: str, row: list[object], indent: str) -> Iterator[str]:
    if not any(isinstance(item, dict | list) for item in row):
        line = f"{head} [{', '.join(map(_scalar, row))}]"
        if len(line) <= LINE_MAX_CHARS:
            yield line
            return
    yield head
    yield from _list(row, indent + INDENT)


def _scalar(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case dict():
            return "{}"
        case list():
            return "[]"
        case Plain() if _NUMBER_OR_BOOLEAN.fullmatch(value):
            return str(value)
        case str():
            return value if _WORD.fullmatch(value) and value not in _TAKEN else _quoted(value)
        case _:
            return repr(value)


def _quoted(text: str) -> str:
    """JSON's form of a text, in which nothing is left that YAML takes for a line break or refuses."""
    return _UNSAFE.sub(lambda odd: f"\\u{ord(odd.group()):04x}", json.dumps(text, ensure_ascii=False))
