"""Why there is nothing to compare of a task, and what a person does about that. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from treadle.plain_text import one_line

Task = Mapping[str, Any]

_IS_OVER = frozenset({"needs_attention", "completed", "cancelled", "abandoned"})


def without_commit(plan: str, task: Task, *, is_imported: bool = False) -> str:
    """Why a task has no commit, what to do about it, and where a failed attempt's files are. An imported plan's stays
    as it is."""
    code = task["code"]
    yet = "" if task["status"] in _IS_OVER else " yet"
    return f"task {code} has no commit{yet}: {_why(plan, task, is_imported)}{_unfinished_work(plan, task)}"


def _why(plan: str, task: Task, is_imported: bool) -> str:
    code = f"{task['code']} --plan {plan}"
    match task["status"]:
        case "needs_attention":
            to_do = f"; see `treadle logs {code}`, or `treadle task redispatch {code}`"
            return f"it needs attention{'' if is_imported else to_do}"
        case "completed":
            return _why_completed(task)
        case "pending" if task["waiting_for"]:
            return f"it waits for {', '.join(task['waiting_for'][:5])}"
        case "awaiting_approval":
            return f"it waits for an answer{'' if is_imported else f': `treadle task approve {code}`, or deny'}"
    words = {
        "pending": "it has not begun",
        "readied": "it is ready for its person",
        "queued": "it waits for a runner",
        "running": "it is running",
        "retry_wait": "it is about to be tried again",
        "cancelling": "it is being stopped",
        "cancelled": "it was cancelled",
        "abandoned": "it was given up",
    }
    return words.get(task["status"], f"it is {one_line(task['status'], 40)}")


def _why_completed(task: Task) -> str:
    if origin := task.get("inherited"):
        return f"plan {one_line(origin['plan'], 40)} completed it, without a commit"
    if task.get("review"):
        return "it is a review, which changes nothing"
    if task.get("is_decision"):
        return "it is a decision, which changes nothing"
    return "it was completed by hand, without a commit"


def _unfinished_work(plan: str, task: Task) -> str:
    """Where a failed attempt's files are, and how to look at them; empty where it says nothing of any."""
    ref = re.search(rf"refs/treadle/{re.escape(plan)}/{re.escape(task['code'])}/[0-9]+-wip", task["message"])
    if ref is None:
        return ""
    return (
        f". Its files so far are in the code repository as {ref[0]}: there, `git show --stat {ref[0]}` lists what it "
        f"changed last, and `git diff {task['base_commit'] or 'HEAD'} {ref[0]}` shows it all"
    )
