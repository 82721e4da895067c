"""The JSON schema of a plan, for a model that has to answer with one.

It is narrower than a plan file: a model names agents by their slugs, and what opens doors (`wanted.GRANTS`) is for
people to write. Only keywords that every model's interface takes: bounds are in words, `wanted.py` has them in numbers.
"""

import json
from typing import Any

from services.planner.agents import Team
from services.planner.wanted import WANTED_ATTEMPTS_MAX, WANTED_PARALLEL_MAX, WANTED_TASK_BUDGET_MAX_USD
from shared.spec import REVIEW_ROUNDS_MAX, VERIFY_ROUNDS_MAX

_TEXT = {"type": "string"}
_FLAG = {"type": "boolean"}


def usable_slugs(team: Team) -> tuple[str, ...]:
    """The agents that a task of the project can be given to now; in auto mode `claude` where there are none at all."""
    if not team.agents and team.mode == "auto":
        return ("claude",)
    return tuple(a.slug for a in team.agents if not a.unusable and a.spec.is_auto == (team.mode == "auto"))


def plan_schema(team: Team) -> dict[str, Any]:
    """Of a plan in a project with these agents."""
    slugs = list(usable_slugs(team))
    task = {
        "code": _text("Unique, also ignoring case: letters, digits, - and _, at most 63, such as T1 or login-form."),
        "name": _text("One line."),
        "description": _text("Everything that whoever does the task has to know: they see nothing but this."),
        "assignee": {**_choice(slugs), "description": "Who does it. Leave it out in a decision only."},
        "depends_on": _list("Codes of the tasks that have to be done before."),
        "expected_output": _text("Repository-relative path of a file that has to be there in the end."),
        "timeout_minutes": _number("Of one attempt."),
        "verify": _list("Shell commands that must succeed in the worktree afterwards."),
        "verify_rounds": _whole(f"How often what verify finds goes back to the agent, 0 to {VERIFY_ROUNDS_MAX}."),
        "retry": _object(
            {
                "max_attempts": _whole(f"1 to {WANTED_ATTEMPTS_MAX}."),
                "backoff_s": _number("Seconds before the second attempt; it doubles."),
            }
        ),
        "requires_approval": {**_FLAG, "description": "A person accepts the result before the task counts as done."},
        "allow_no_change": {**_FLAG, "description": "The task may end without having changed a file."},
        "budget_usd": _number(
            f"The most that one attempt may cost, in US dollars; up to {WANTED_TASK_BUDGET_MAX_USD:g}."
        ),
        "reviews": _text("Makes the task a review: the code of the task whose work it judges, and all it waits for."),
        "max_review_rounds": _whole(
            f"Makes the task a decision, which nobody does: it waits for the reviews of one task. 1 to "
            f"{REVIEW_ROUNDS_MAX} rounds."
        ),
        "fixer": {**_choice(slugs), "description": "Of a decision: who mends. Left out: whoever did the work."},
    }
    return _object(
        {
            "name": _text("One line."),
            "goal": _text("What is there once the plan is done."),
            "max_parallel": _whole(f"How many tasks may run at once, 1 to {WANTED_PARALLEL_MAX}."),
            "budget_usd": _number("The most that the whole plan may cost, in US dollars."),
            "tasks": {"type": "array", "items": _object(task, required=("code", "name"))},
        },
        required=("name", "tasks"),
    )


def schema_text(team: Team) -> str:
    """The same as JSON, as a dispatch carries it."""
    return json.dumps(plan_schema(team), ensure_ascii=False, separators=(",", ":"))


def _object(properties: dict[str, Any], required: tuple[str, ...] = ()) -> dict[str, Any]:
    made: dict[str, Any] = {"type": "object", "properties": properties, "additionalProperties": False}
    return {**made, "required": list(required)} if required else made


def _text(description: str) -> dict[str, Any]:
    return {**_TEXT, "description": description}


def _choice(words: list[str]) -> dict[str, Any]:
    return {**_TEXT, "enum": words} if words else dict(_TEXT)


def _list(description: str) -> dict[str, Any]:
    return {"type": "array", "items": _TEXT, "description": description}


def _number(description: str) -> dict[str, Any]:
    return {"type": "number", "description": description}


def _whole(description: str) -> dict[str, Any]:
    return {"type": "integer", "description": description}
