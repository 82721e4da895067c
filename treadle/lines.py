"""Events and plans as plain lines: what a pipe gets, and what the table shows in its cells. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from shared.skipped import what_to_do
from treadle.asking import answer_with, asks_for
from treadle.plain_text import one_line
from treadle.reviewing import verdict

Event = Mapping[str, Any]

GOAL_SHOWN_CHARS = 120
FAULT_SHOWN_CHARS = 500


def event_line(event: Event) -> str | None:
    """One line for an event of the log; None for those that say nothing to a person."""
    said = saying(event)
    if not said:
        return None
    time = datetime.fromisoformat(event["time"]).astimezone().strftime("%H:%M:%S")
    what = "plan" if event["task"] is None else str(event["task"])
    return f"{time}  {what:<12}  {said}"


def saying(event: Event) -> str:
    """What an event says, in words; empty for those that say nothing to a person."""
    if unreadable := event.get("unreadable"):
        fault = f"event {event['seq']} ({one_line(event['type'], 40)}) can't be read"
        return f"{fault}: {one_line(unreadable['fault'], 300)}; {what_to_do(event['plan'], fault)}"
    said = _SAYINGS.get((event["task"] is None, event["type"]))
    return str(said(event)) if said is not None else ""


def _requested(event: Event) -> str:
    count = len(event["candidates"])
    made = "a person makes the plan" if event.get("by_hand") else f"{count} plan{'s' if count > 1 else ''} to be made"
    return f"{made} for: {one_line(event['goal'], GOAL_SHOWN_CHARS)}"


def _drafted(event: Event) -> str:
    return f"candidate {event['candidate']}, “{one_line(event['spec']['name'])}”, is valid: {drafted_words(event)}"


def drafted_words(event: Event) -> str:
    """How large a candidate is, and what the making of it took."""
    words = tasks_words(len(event["spec"]["tasks"]))
    if fork := event.get("fork"):
        words += f", a fork of plan {one_line(fork['plan'], 40)} at event {fork['seq']}"
        words += f" that keeps {tasks_words(len(fork.get('kept') or ()))}"
    origin = event.get("origin") or {}
    if model := origin.get("model"):
        words += f", by {one_line(model, 60)}"
    if seconds := origin.get("duration_s"):
        words += f" in {duration(seconds)}"
    if cost := (origin.get("usage") or {}).get("cost_usd", 0):
        words += f" for {money(cost)}"
    return words


def _plan_failed(event: Event) -> str:
    faults = event.get("faults") or ()
    more = f" ({len(faults)} fault{'s' if len(faults) > 1 else ''})" if faults else ""
    return f"candidate {event['candidate']} did not come about{more}: {one_line(event['message'], 300)}"


def fault_lines(event: Event) -> list[str]:
    """Everything that was wrong with a plan that did not come about, each fault with its place."""
    return [one_line(fault["message"], FAULT_SHOWN_CHARS) for fault in event.get("faults") or ()]


def _failed(event: Event) -> str:
    then = "needs attention"
    if retry_at := event.get("retry_at"):
        then = f"is tried again at {datetime.fromisoformat(retry_at).astimezone():%H:%M:%S}"
    return f"failed ({kind_words(event['kind'])}), {then}: {one_line(event['message'], 300)}"


def _started(event: Event) -> str:
    again = f", lease {event['supersedes']} was lost" if event.get("supersedes") else ""
    return f"started on {one_line(event['runner'])}{again}"


def _completed(event: Event) -> str:
    cost = (event.get("usage") or {}).get("cost_usd", 0)
    paid = f" ({money(cost)})" if cost else ""
    result = event["result"]
    if review := result.get("review"):
        return f"completed{paid}: {verdict(review)}"
    return f"completed{paid}: {one_line(result['summary'])}"


def _decided(event: Event) -> str:
    what = "approved" if event["approved"] else "not approved, needs attention"
    return f"{what} after round {event['round']}: {one_line(event['reason'], 300)}"


def _watch_failed(event: Event) -> str:
    since = datetime.fromisoformat(event["since"]).astimezone()
    return f"can't be looked for since {since:%H:%M:%S}, so its time stands still: {one_line(event['reason'], 300)}"


def _watch_restored(event: Event) -> str:
    if not (deadline := event.get("deadline")):
        return "is looked for again; its time was over before"
    return f"is looked for again, until {datetime.fromisoformat(deadline).astimezone():%Y-%m-%d %H:%M}"


def _readied(event: Event) -> str:
    command = f"treadle task prompt {event['task']} --plan {event['plan']}"
    return f"is ready for its person, attempt {event['attempt']}: {command}"


def _approval_requested(event: Event) -> str:
    return f"{asks_for(event)}: {answer_with(event['plan'], event['task'])}"


def _approval_denied(event: Event) -> str:
    return "was refused: nobody answered in time" if event.get("expired") else _because("was refused", "note")(event)


def _extended(event: Event) -> str:
    tasks = event["tasks"]
    added = ", ".join(one_line(task["code"], 63) for task in tasks[:5])
    number = max((task.get("round", 1) for task in tasks), default=1)
    round_ = f", round {number}" if number > 1 else ""
    return f"has {len(tasks)} more tasks ({added}{round_}): {one_line(event['reason'])}"


def _skipped(event: Event) -> str:
    return f"event {event['skipped_seq']} is left out: {one_line(event['reason'], 300)}"


def _because(words: str, field: str) -> Any:
    return lambda event: f"{words}: {one_line(event[field])}" if event.get(field) else words


_SAYINGS: Mapping[tuple[bool, str], Any] = {
    (True, "requested"): _requested,
    (True, "failed"): _plan_failed,
    (True, "drafted"): _drafted,
    (True, "finalized"): lambda e: "finalized: tasks start",
    (True, "extended"): _extended,
    (True, "paused"): _because("paused", "reason"),
    (True, "resumed"): lambda e: "resumed",
    (True, "cancel_requested"): _because("is being cancelled", "reason"),
    (True, "cancelled"): lambda e: "cancelled",
    (True, "completed"): lambda e: f"completed: branch treadle/{e['plan']} is at {e['head_commit'][:12]}",
    (True, "forked"): lambda e: f"went on as plan {one_line(e['forked_plan'], 40)}, from event {e['forked_seq']}",
    (True, "skipped"): _skipped,
    (False, "skipped"): _skipped,
    (False, "inherited"): lambda e: f"is completed already: plan {one_line(e['kept']['plan'], 40)} did it",
    (False, "readied"): _readied,
    (False, "dispatched"): lambda e: _because(f"dispatched, attempt {e['attempt']}", "note")(e),
    (False, "started"): _started,
    (False, "released"): _because("handed back", "reason"),
    (False, "approval_requested"): _approval_requested,
    (False, "approval_granted"): _because("was allowed", "note"),
    (False, "approval_denied"): _approval_denied,
    (False, "approval_used"): lambda e: "does what it was allowed to",
    (False, "completed"): _completed,
    (False, "failed"): _failed,
    (False, "watch_failed"): _watch_failed,
    (False, "watch_restored"): _watch_restored,
    (False, "decided"): _decided,
    (False, "cancel_requested"): _because("is being cancelled", "reason"),
    (False, "cancelled"): lambda e: "cancelled",
    (False, "marked_complete"): _because("marked complete by a person", "note"),
    (False, "abandoned"): _because("abandoned", "note"),
    (False, "edited"): _because("was changed by a person", "note"),
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


def tasks_words(count: int) -> str:
    """So many tasks."""
    return f"{count} task{'s' if count != 1 else ''}"


def duration(seconds: float) -> str:
    """A time span, short."""
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole}s"
    return f"{whole // 60}m{whole % 60:02d}s" if whole < 3600 else f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def lineage_lines(plan: Mapping[str, Any]) -> list[str]:
    """Where a plan comes from that is a fork, and which forks were made of it."""
    lines = []
    if origin := plan.get("forked_from"):
        cost = origin["usage"].get("cost_usd", 0)
        there = f", which cost {money(cost)} there" if cost else ""
        kept = f"keeps {tasks_words(origin['kept'])} of it{there}"
        lines.append(f"a fork of plan {origin['plan']} at event {origin['seq']}: {kept}")
    lines += [f"forked at event {fork['seq']}: plan {fork['plan']}" for fork in plan.get("forks") or ()]
    return lines


def imported_line(plan: Mapping[str, Any]) -> str:
    """An imported plan, in one line."""
    origin = plan["imported"]
    standing, name = plan["standing"].replace("_", " "), one_line(plan["name"], 60)
    whence = f"imported from {one_line(origin['plan'])} by {one_line(origin['by'], 40)}"
    return f"{plan['plan']}  {standing}  {name}  ({whence})"


def fault_words(plan: Mapping[str, Any]) -> str:
    """Why a plan stands still, and what a person does about that; an imported plan stays as it is."""
    fault = one_line(plan["fault"], FAULT_SHOWN_CHARS)
    return fault if plan.get("imported") else f"{fault}; {what_to_do(plan['plan'], plan['fault'])}"


def standing_line(plan: Mapping[str, Any]) -> str:
    """How a plan stands, in one line."""
    counts = ", ".join(f"{count} {status.replace('_', ' ')}" for status, count in sorted(plan["counts"].items()))
    cost = plan["usage"].get("cost_usd", 0)
    planning = (plan.get("planning_usage") or {}).get("cost_usd", 0)
    spent = (f", {money(cost)}" if cost else "") + (f", its planning {money(planning)}" if planning else "")
    fault = f"; stands still: {fault_words(plan)}" if plan.get("fault") else ""
    standing, name = plan["standing"].replace("_", " "), one_line(plan["name"], 60)
    if plan.get("status") == "paused" and plan["standing"] != "paused":
        standing = f"paused, {standing}"
    if not counts and (candidates := len(plan.get("candidates") or ())):
        counts = f"{candidates} candidate{'s' if candidates != 1 else ''}"
    forked = f", a fork of {plan['forked_from']['plan']}" if plan.get("forked_from") else ""
    return f"{plan['plan']}  {standing}  {name}  ({counts or 'no task yet'}{spent}{forked}){fault}"
