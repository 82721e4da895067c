"""What an attempt's answer has to look like where the answer is what it is for, and the words that ask for it."""

from __future__ import annotations

from typing import Any, get_args

import msgspec

from shared.events import FINDINGS_MAX, Severity
from shared.spec import WorkRules

_REVIEW_SCHEMA: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "required": ["approve", "findings"],
    "properties": {
        "approve": {"type": "boolean", "description": "Whether the work may stay as it is."},
        "findings": {
            "type": "array",
            "maxItems": FINDINGS_MAX,
            "items": {
                "type": "object",
                "additionalProperties": False,
                "required": ["severity", "message"],
                "properties": {
                    "file": {
                        "type": "string",
                        "description": "Path from the repository's root; left out: no one file.",
                    },
                    "line": {"type": "integer", "minimum": 1},
                    "severity": {"enum": list(get_args(Severity))},
                    "message": {"type": "string", "minLength": 1, "description": "What is wrong, and what to do."},
                },
            },
        },
    },
}

_ANSWER_OF_REVIEW = f"""Your answer is the review: `approve`, and `findings`, each with its `severity`, its `message`, \
and where there is one its `file` (from the repository's root) and `line`; at most {FINDINGS_MAX} of them. Do not \
approve as long as something has to change, and say then what. You may run commands, such as the tests; nothing that \
they or you change is kept."""
_ANSWER_OF_PLAN = """Your answer is the plan. Look at the files as far as you need. Nothing can be changed or run \
here, and nobody asked."""
_BY_TOOL = "Give it whole, in one call of StructuredOutput: nothing else that you write is read."
_BY_OUTPUT = "Print it as one JSON object, as the last thing on standard output. Its JSON schema:"


def answer_schema(rules: WorkRules) -> bytes:
    """The answer's JSON schema, as JSON; `rules.answer` says of which kind it is."""
    return rules.plan_schema.encode() if rules.answer == "plan" else msgspec.json.encode(_REVIEW_SCHEMA)


def how_to_answer(rules: WorkRules, *, by_tool: bool) -> str:
    """For the end of the prompt; empty where no answer is wanted. Not `by_tool`: a program prints it."""
    if not rules.answer:
        return ""
    what = _ANSWER_OF_PLAN if rules.answer == "plan" else _ANSWER_OF_REVIEW
    how = _BY_TOOL if by_tool else f"{_BY_OUTPUT}\n\n```json\n{answer_schema(rules).decode()}\n```"
    return f"## How to answer\n\n{what} {how}"
