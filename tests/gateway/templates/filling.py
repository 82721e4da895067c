"""A small template, and what it is filled with."""

from __future__ import annotations

from typing import Any

from tests.gateway.plans.made import name

TEXT = """
name: "{{goal}}"
max_parallel: "{{width}}"
tasks:
- {code: T1, name: First, description: "{{goal}}", assignee: agent-1}
- {code: T2, name: Second, description: "{{goal}}", assignee: agent-2, depends_on: [T1]}
"""


def template(**fields: Any) -> dict[str, Any]:
    """The body of a POST."""
    return {
        "name": name("Template"),
        "description": "d",
        "text": TEXT,
        "roles": [{"slot": "agent-1", "description": "does it"}, {"slot": "agent-2"}],
        "inputs": [{"name": "goal"}, {"name": "width", "type": "number", "default": 2}],
        **fields,
    }


def filled(first: str, second: str) -> dict[str, Any]:
    """Slots and inputs, with a text that tries to be more than one."""
    return {
        "roles": {"agent-1": first, "agent-2": second},
        "inputs": {"goal": 'First: {{width}} # " - x', "width": 3},
    }
