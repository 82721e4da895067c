"""Events and plans as plain lines: what a pipe gets, and what the table shows in its cells. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from treadle.asking import answer_with, asks_for
from treadle.plain_text import one_line

Event = Mapping[str, Any]


def event_line(event: Event) -> str | None:
    """One line for an event of the log; None for those that say nothing to a person."""
    said = _SAYINGS.get((event["task"] is None, event["type"]))
    if said is None:
        return None
    time = datetime.fromisoformat(event["time"]).astimezone().strftime("%H:%M:%S")
    what = "plan" if event["task"] is None else str(event["task"])
    return f"{time}  {what:<12}  {said(event)}"


def _failed(event: Event) -> str:
    then = "needs attention"
    if retry_at := event.get("retry_at"):
        then = f"is tried again at {datetime.fromisoformat(retry_at).astimezone():%H:%M:%S}"
    return f"failed ({kind_words(event['kind'])}), {then}: {one_line(event['message'], 300)}"


def _started(event: Event) -> str:
    again = f", lease {event['supersedes']} was lost" if event.get("supersedes") else ""
    return f"started on {event['runner']}{again}"


def _completed(event: Event) -> str:
    cost = (event.get("usage") or {}).get("cost_usd", 0)
    paid = f" ({money(cost)})" if cost else ""
    return f"completed{paid}: {one_line(event['result']['summary'])}"


def _approval_requested(event: Event) -> str:
    return f"{asks_for(event)}: {answer_with(event['plan'], event['task'])}"


def _approval_denied(event: Event) -> str:
    return "was refused: nobody answered in time" if event.get("expired") else _because("was refused", "note")(event)


def _extended(event: Event) -> str:
    added = ", ".join(one_line(task["code"], 63) for task in event["tasks"][:5])
    return f"has {len(event['tasks'])} more tasks ({added}): {one_line(event['reason'])}"


def _because(words: str, field: str) -> Any:
    return lambda event: f"{words}: {one_line(event[field])}" if event.get(field) else words


_SAYINGS: Mapping[tuple[bool, str], Any] = {
    (True, "drafted"): lambda e: f"“{one_line(e['spec']['name'])}” is valid: {len(e['spec']['tasks'])} tasks",
    (True, "finalized"): lambda e: "finalized: tasks start",
    (True, "extended"): _extended,
    (True, "paused"): _because("paused", "reason"),
    (True, "resumed"): lambda e: "resumed",
    (True, "cancel_requested"): _because("is being cancelled", "reason"),
    (True, "cancelled"): lambda e: "cancelled",
    (True, "completed"): lambda e: f"completed: branch treadle/{e['plan']} is at {e['head_commit'][:12]}",
    (False, "readied"): lambda e: f"is ready for its person, attempt {e['attempt']}",
    (False, "dispatched"): lambda e: f"dispatched, attempt {e['attempt']}",
    (False, "started"): _started,
    (False, "released"): _because("handed back", "reason"),
    (False, "approval_requested"): _approval_requested,
    (False, "approval_granted"): _because("was allowed", "note"),
    (False, "approval_denied"): _approval_denied,
    (False, "approval_used"): lambda e: "does what it was allowed to",
    (False, "completed"): _completed,
    (False, "failed"): _failed,
    (False, "cancel_requested"): _because("is being cancelled", "reason"),
    (False, "cancelled"): lambda e: "cancelled",
    (False, "marked_complete"): _because("marked complete by a person", "note"),
    (False, "abandoned"): _because("abandoned", "note"),
    (False, "edited"): lambda e: "was changed by a person",
    (False, "redispatch_requested"): _because("is to run again", "note"),
}


def kind_words(kind: str) -> str:
    """A failure's kind as words."""
    return kind.replace("_", " ")


def money(usd: float) -> str:
    """Dollars, with enough digits to see small sums."""
    return f"${usd:.2f}" if usd >= 0.1 or usd == 0 else f"${usd:.4f}"


def tokens(usage: Mapping[str, Any]) -> str:
    """All tokens of a usage, short."""
    count = sum(v for k, v in usage.items() if k.endswith("_tokens"))
    return f"{count / 1000:.1f}k" if count >= 1000 else str(count)


def duration(seconds: float) -> str:
    """A time span, short."""
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole}s"
    return f"{whole // 60}m{whole % 60:02d}s" if whole < 3600 else f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def standing_line(plan: Mapping[str, Any]) -> str:
    """How a plan stands, in one line."""
    counts = ", ".join(f"{count} {status.replace('_', ' ')}" for status, count in sorted(plan["counts"].items()))
    cost = plan["usage"].get("cost_usd", 0)
    spent = f", {money(cost)}" if cost else ""
    fault = f"; stands still: {one_line(plan['fault'])}" if plan.get("fault") else ""
    standing, name = plan["standing"].replace("_", " "), one_line(plan["name"], 60)
    if plan.get("status") == "paused" and plan["standing"] != "paused":
        standing = f"paused, {standing}"
    return f"{plan['plan']}  {standing}  {name}  ({counts or 'no task yet'}{spent}){fault}"
