"""Text → plan: the front door. YAML, JSON, and either of them in a Markdown fence."""

import re

from services.planner.agents import NO_TEAM, Team
from services.planner.faults import refusal
from services.planner.jsontext import read_json
from services.planner.validate import validate
from services.planner.yamltext import read_yaml
from shared.spec import PlanSpec

TEXT_MAX_BYTES = 32 * 1024 * 1024
FENCES_MAX = 1000

_UNREADABLE = re.compile("[^\t\n\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What YAML forbids in any text: control codes, NUL among them, and half surrogate pairs."""
_FENCE = re.compile(r"^(`{3,}|~{3,})[ \t]*+([^\n`]*+)$", re.MULTILINE)
_JSON_START = re.compile(r'\s*+\{\s*+["}]')
_PLAN_LANGUAGES = frozenset({"json", "jsonc", "json5", "yaml", "yml"})


def read_plan(text: bytes | str, team: Team = NO_TEAM) -> PlanSpec:
    """The plan that a text describes, valid, in a project whose agents are `team`.

    Raises `PlanFaults`, and nothing else: for a text that can't be read, the first fault, with line and column; for
    one that can, every fault at once.
    """
    return validate(parse_text(text), team)


def parse_text(text: bytes | str) -> object:
    """The plain data of a text: mappings and lists know the lines they come from (`tree.Table`, `tree.Row`).

    A text that begins with `{` and a quote is JSON, all else is YAML. Time and memory are bounded by the text's size;
    neither nesting nor aliases multiply them. Raises `PlanFaults` with one fault.
    """
    content = _decoded(text)
    plan, first_line = _without_fence(content)
    if _JSON_START.match(plan):
        return read_json(plan, first_line)
    return read_yaml(plan, first_line)


def _decoded(text: bytes | str) -> str:
    if len(text) > TEXT_MAX_BYTES:
        raise refusal(f"the plan's text is larger than {TEXT_MAX_BYTES // 2**20} MiB")
    if isinstance(text, bytes):
        text = _decoded_utf8(text)
    text = text.removeprefix("\ufeff")
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if odd := _UNREADABLE.search(text):
        column = odd.start() - text.rfind("\n", 0, odd.start())
        raise refusal(
            f"the control character U+{ord(odd.group()):04X} in column {column} can't be part of a plan",
            text.count("\n", 0, odd.start()) + 1,
        )
    return text


def _decoded_utf8(octets: bytes) -> str:
    try:
        return octets.decode("utf-8")
    except UnicodeDecodeError as error:
        line = octets.count(b"\n", 0, error.start) + 1
        byte = f"byte {error.start + 1} is {octets[error.start]:#04x}"
        raise refusal(f"the plan is not UTF-8 text: {byte}; save it as UTF-8", line) from None


def _without_fence(text: str) -> tuple[str, int]:
    """The plan's own text and the number of its first line.

    A fence in the first column can't be YAML or JSON, so a text that has one is Markdown: a model's answer, say. Fenced
    blocks of other languages are passed over.
    """
    if _JSON_START.match(text) or ("```" not in text and "~~~" not in text):
        return text, 1
    tagged: list[tuple[int, int]] = []
    untagged: list[tuple[int, int]] = []
    opening: re.Match[str] | None = None
    for count, fence in enumerate(_FENCE.finditer(text)):
        if count == FENCES_MAX:
            raise refusal(f"the text has more than {FENCES_MAX} Markdown fences")
        if opening is None:
            opening = fence
        elif _closes(fence, opening):
            _keep(opening, fence.start(), tagged, untagged)
            opening = None
    if opening is not None:
        _keep(opening, len(text), tagged, untagged)
    blocks = tagged or untagged
    if not blocks:
        return text, 1
    if len(blocks) > 1:
        line = text.count("\n", 0, blocks[1][0]) + 1
        raise refusal(f"the text has {len(blocks)} fenced blocks that may be the plan; leave only one", line)
    start, end = blocks[0]
    return text[start:end], text.count("\n", 0, start) + 1


def _closes(fence: re.Match[str], opening: re.Match[str]) -> bool:
    marks = fence.group(1)
    return not fence.group(2).strip() and marks[0] == opening.group(1)[0] and len(marks) >= len(opening.group(1))


def _keep(opening: re.Match[str], end: int, tagged: list[tuple[int, int]], untagged: list[tuple[int, int]]) -> None:
    words = opening.group(2).split(maxsplit=1)
    if not words:
        untagged.append((opening.end() + 1, end))
    elif words[0].lower() in _PLAN_LANGUAGES:
        tagged.append((opening.end() + 1, end))
