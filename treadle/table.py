"""The live table: a plan's tasks as they stand. Pure functions from views to what rich draws."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from treadle.asking import answer_with, asks_for
from treadle.lines import duration, kind_words, money, standing_line, tokens
from treadle.plain_text import one_line
from treadle.reviewing import verdict

Task = Mapping[str, Any]

COLUMNS = ("task", "state", "agent", "try", "time", "tokens", "cost")
CELL_MAX = 24
ASKED_SHOWN_MAX = 3
"""Tasks that wait for an answer, with the command that gives it."""

_STYLES = {
    "pending": "dim",
    "readied": "bold cyan",
    "queued": "cyan",
    "running": "bold yellow",
    "awaiting_approval": "bold cyan",
    "retry_wait": "yellow",
    "needs_attention": "bold red",
    "cancelling": "magenta",
    "completed": "green",
    "cancelled": "magenta",
    "abandoned": "dim magenta",
}
_URGENT = ("needs_attention", "awaiting_approval", "readied", "running", "cancelling", "retry_wait", "queued")
"""What a person wants to see first where not all rows fit."""


def render(
    plan: Mapping[str, Any], tasks: Mapping[str, Task], actions: Mapping[str, str], now: datetime, rows: int
) -> RenderableType:
    """The table with at most `rows` tasks, and a line about the plan."""
    shown = choose_rows(tasks.values(), rows)
    cells = [row(task, actions.get(task["code"], ""), now) for task in shown]
    table = Table(box=None, pad_edge=False)
    for place, column in enumerate(COLUMNS):
        # Rich takes from every column when one is too long: these keep their width, and the action gives way.
        widest = max([len(column), *(cell[place].cell_len for cell in cells)])
        table.add_column(column, no_wrap=True, min_width=min(widest, CELL_MAX), max_width=CELL_MAX, overflow="ellipsis")
    table.add_column("last action", no_wrap=True, overflow="ellipsis")
    for cell in cells:
        table.add_row(*cell)
    hidden = len(tasks) - len(shown)
    footer = [Text(f"… and {hidden} more tasks", style="dim")] if hidden else []
    waiting = [task for task in tasks.values() if task["status"] == "awaiting_approval"]
    asked = [Text(_ask_line(plan, task), style="bold cyan") for task in waiting[:ASKED_SHOWN_MAX]]
    return Group(table, *footer, *asked, Text(standing_line(plan)))


def _ask_line(plan: Mapping[str, Any], task: Task) -> str:
    return f"{task['code']} waits for your answer: {answer_with(plan['plan'], task['code'])}"


def choose_rows(tasks: Iterable[Task], rows: int) -> list[Task]:
    """All tasks in their order, or, where they don't fit, the urgent ones and then the latest."""
    everything = list(tasks)
    if len(everything) <= rows:
        return everything
    places = sorted(range(len(everything)), key=lambda i: (_urgency(everything[i]), -_recency(everything[i]), i))
    return [everything[i] for i in sorted(places[:rows])]


def row(task: Task, action: str, now: datetime) -> list[Text]:
    """One task's cells."""
    usage = task["usage"]
    cost = usage.get("cost_usd", 0)
    state = task["status"].replace("_", " ")
    return [
        Text(task["code"]),
        Text(state, style=_STYLES.get(task["status"], "")),
        Text(one_line(task["agent"], 16)),
        Text(str(task["attempt"] or "")),
        Text(duration(spent_s(task, now)) if task["started_at"] else ""),
        Text(tokens(usage) if any(usage.values()) else ""),
        Text(money(cost) if cost else ""),
        Text(last_action(task, action)),
    ]


def last_action(task: Task, action: str) -> str:
    """What is worth knowing about a task now."""
    match task["status"]:
        case "needs_attention" | "retry_wait":
            kind = f"{kind_words(task['failure'])}: " if task.get("failure") else ""
            return one_line(kind + task["message"])
        case "awaiting_approval" if task.get("approval"):
            return asks_for(task["approval"])
        case "completed" if task.get("review"):
            return verdict(task["review"])
        case "completed" if origin := task.get("inherited"):
            return one_line(f"done by plan {origin['plan']}: {task['summary']}")
        case "completed":
            return one_line(task["summary"])
        case "readied":
            return f"its person takes it: treadle task prompt {task['code']}, then dispatch"
        case "queued" | "running" if task.get("dispatch_mode") == "manual":
            return waits_for_person(task)
        case "pending" if task["waiting_for"]:
            return f"waits for {', '.join(task['waiting_for'][:5])}"
        case "abandoned" | "pending" | "cancelling":
            return one_line(task["message"])
    return one_line(action)


def waits_for_person(task: Task) -> str:
    """How long a task that was handed out waits for its result, or why nobody can say whether there is one."""
    if fault := task.get("watch_fault"):
        return f"its result can't be looked for: {one_line(fault)}"
    if not task.get("deadline"):
        return "is with its person"
    return f"is with its person until {datetime.fromisoformat(task['deadline']).astimezone():%Y-%m-%d %H:%M}"


def spent_s(task: Task, now: datetime) -> float:
    """How long the newest attempt has run, in seconds."""
    if not task["started_at"]:
        return 0.0
    end = datetime.fromisoformat(task["ended_at"]) if task["ended_at"] else now.astimezone(UTC)
    return (end - datetime.fromisoformat(task["started_at"])).total_seconds()


def _urgency(task: Task) -> int:
    return _URGENT.index(task["status"]) if task["status"] in _URGENT else len(_URGENT)


def _recency(task: Task) -> float:
    moment = task["ended_at"] or task["started_at"]
    return datetime.fromisoformat(moment).timestamp() if moment else 0.0
