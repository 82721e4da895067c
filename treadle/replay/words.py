"""Moments, steps and comparisons as plain lines. Pure functions; what comes from events is stripped of codes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

import msgspec

from shared.history.compare import MomentsCompared
from shared.history.moment import LeaseMoment, Moment, TaskMoment
from shared.skipped import what_to_do
from shared.spec import DELIVER
from shared.store import Recorded
from shared.subjects import PLAN
from treadle.lines import event_line, money, tokens
from treadle.plain_text import one_line, plain
from treadle.replay.signs import SIGNS, counted, words
from treadle.replay.steps import Change, Step

NAME_CHARS = 60
VALUE_CHARS = 80
COMMIT_CHARS = 12
MESSAGE_CHARS = 200
POOLS_SHOWN = 6
_STANDS = ("seq", "time", "plan", "task", "type", "actor")
"""Where an event stands; a field of its own of that name (a fork's) has its type before it."""
BEHIND_SHOWN = 5


def event_words(record: Recorded) -> str:
    """An event on one line: its sequence, time, what it concerns, and what it says."""
    if record.event is None:
        said = f"{one_line(record.type, 40)}: can't be read: {one_line(record.fault, MESSAGE_CHARS)}"
        return f"{record.seq:>7}  {clock(record.time)}  {_concerned(record):<12}  {said}"
    # With what the stored form leaves out, since a file may hold any event.
    defaults = {name: msgspec.to_builtins(getattr(record.event, name)) for name in record.event.__struct_fields__}
    if line := event_line({**_own(record, defaults), **as_json(record)}):
        return f"{record.seq:>7}  {plain(line)}".replace("\n", " ")
    said = f"{words(record.type)} by {one_line(record.meta.actor, 40)}"
    return f"{record.seq:>7}  {clock(record.time)}  {_concerned(record):<12}  {said}"


def as_json(record: Recorded) -> dict[str, Any]:
    """An event as the gateway's API shows it."""
    fields = msgspec.to_builtins(record.event) if record.event is not None else {"unreadable": {"fault": record.fault}}
    return {
        "seq": record.seq,
        "time": record.time.isoformat(),
        "plan": record.plan,
        "task": None if record.entity == PLAN else record.entity,
        "type": record.type,
        "actor": record.meta.actor,
        **_own(record, fields),
    }


def _own(record: Recorded, fields: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{record.type}_{name}" if name in _STANDS else name: of for name, of in fields.items()}


def step_lines(step: Step) -> list[str]:
    """An event, and below it what it changed."""
    return [event_words(step.record), *change_lines(step.changes, indent=" " * 19)]


def change_lines(changes: Iterable[Change], indent: str) -> list[str]:
    """A line for each thing that changed."""
    return [f"{indent}{change_words(change)}" for change in changes]


def change_words(change: Change) -> str:
    """One change."""
    what = "plan" if change.task is None else one_line(change.task, NAME_CHARS)
    # The delivery starts from all heads together; what it names is what the plan's changes are shown against.
    is_plans = change.task == DELIVER and change.field == "base_commit"
    name = "plan's base commit" if is_plans else words(change.field)
    return f"{what}: {name} {value(change.field, change.before)} → {value(change.field, change.after)}"


def value(field: str, of: Any) -> str:
    """A field's value as a person reads it."""
    if of is None or of == "" or of == () or of == {}:
        return "–"
    match field:
        case "status" | "standing":
            return words(str(of))
        case "commit" | "base_commit" | "head_commit":
            return one_line(str(of), COMMIT_CHARS)
        case "counts" | "queue":
            return one_line(", ".join(f"{count} {words(name)}" for name, count in of.items()), VALUE_CHARS)
        case "usage" | "planning_usage":
            return f"{tokens(msgspec.to_builtins(of))} tokens, {money(of.cost_usd)}"
        case "running":
            return one_line(", ".join(f"{lease.task} on {_holder(lease)}" for lease in of), VALUE_CHARS)
        case "forks" | "forked_from" if not isinstance(of, int):
            links = of if isinstance(of, tuple) else (of,)
            return one_line(", ".join(f"{link.plan} at {link.seq}" for link in links), VALUE_CHARS)
    if isinstance(of, float) and field.endswith("_usd"):
        return money(of)
    if isinstance(of, tuple):
        return one_line(", ".join(str(one) for one in of), VALUE_CHARS)
    return one_line(str(of), VALUE_CHARS)


def clock(at: datetime) -> str:
    """A time of the day, here."""
    return at.astimezone().strftime("%H:%M:%S")


def _concerned(record: Recorded) -> str:
    return "plan" if record.entity == PLAN else one_line(record.entity, NAME_CHARS)


# A moment -------------------------------------------------------------------------------------------------------


def head_lines(moment: Moment) -> list[str]:
    """All about a moment but its tasks."""
    standing = words(moment.standing)
    if moment.status == "paused" and moment.standing != "paused":
        standing = f"paused, {standing}"
    why = f": {one_line(moment.reason, MESSAGE_CHARS)}" if moment.reason else ""
    lines = [
        f"plan {moment.plan}  {standing}{why}  {one_line(moment.name, NAME_CHARS)}",
        f"as of event {moment.seq} ({_last(moment)}), {moment.time.astimezone():%Y-%m-%d %H:%M:%S.%f}",
    ]
    if moment.tasks:
        lines.append(f"tasks: {counted(task.status for task in moment.tasks)}")
    lines += [f"queue: {queue_words(moment)}", money_words(moment), branch_words(moment)]
    if lineage := lineage_words(moment):
        lines.append(lineage)
    if moment.fault:
        lines.append(f"stands still: {one_line(moment.fault, MESSAGE_CHARS)}")
        lines.append(one_line(what_to_do(moment.plan, moment.fault), MESSAGE_CHARS))
    return lines


def moment_lines(moment: Moment) -> list[str]:
    """A moment with every task, for pipes."""
    lines = head_lines(moment)
    for lease in moment.running:
        task = one_line(lease.task, NAME_CHARS)
        lines.append(f"lease: {task} {lease.lease} with {_holder(lease)} since {clock(lease.since)}")
    return [*lines, "", *task_table(moment)] if moment.tasks else lines


def _holder(lease: LeaseMoment) -> str:
    return one_line(lease.runner, 40) or "its person"


def task_table(moment: Moment) -> list[str]:
    """The tasks as aligned columns."""
    heads = ["task", "state", "agent", "try", "since", "tokens", "cost", "commit", ""]
    rows = [heads, *([*_columns(task), note(task)] for task in moment.tasks)]
    widths = [max(len(row[place]) for row in rows) for place in range(len(heads) - 1)]
    padded = ([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]] for row in rows)
    return ["  ".join(row).rstrip() for row in padded]


def _columns(task: TaskMoment) -> list[str]:
    usage = msgspec.to_builtins(task.usage)
    return [
        f"{SIGNS.get(task.status, ' ')} {one_line(task.code, NAME_CHARS)}",
        words(task.status),
        one_line(task.agent, 24),
        str(task.attempt or ""),
        clock(task.since),
        tokens(usage) if any(usage.values()) else "",
        money(task.cost_usd) if task.cost_usd else "",
        task.commit[:COMMIT_CHARS],
    ]


def note(task: TaskMoment) -> str:
    """What else is worth knowing of a task at that moment."""
    match task.status:
        case "running" | "cancelling" if task.runner:
            return f"lease {task.lease} on {one_line(task.runner, 40)}"
        case "pending" if task.waits_for:
            return f"waits for {', '.join(one_line(code, NAME_CHARS) for code in task.waits_for[:BEHIND_SHOWN])}"
        case "completed" if task.inherited:
            return f"done by plan {one_line(task.inherited, NAME_CHARS)}"
    return one_line(task.message, MESSAGE_CHARS)


def queue_words(moment: Moment) -> str:
    """What waits for a runner in which pool, and what has one."""
    pools = [f"{one_line(pool, 20)} {count}" for pool, count in list(moment.queue.items())[:POOLS_SHOWN]]
    if len(moment.queue) > POOLS_SHOWN:
        pools.append(f"{len(moment.queue) - POOLS_SHOWN} more pools")
    limit = f", at most {moment.max_parallel} at once" if moment.max_parallel else ""
    return f"{', '.join(pools) or 'nothing waits'}; {len(moment.running)} leased{limit}"


def money_words(moment: Moment) -> str:
    """What was spent by then, what may still be, and of how much."""
    spent = f"spent: {money(moment.cost_usd)}"
    if moment.committed_usd > moment.cost_usd + 5e-7:
        spent += f", {money(moment.committed_usd)} with what is in flight"
    if moment.budget_usd is not None:
        spent += f", of {money(moment.budget_usd)}"
    if moment.planning_usage.cost_usd:
        spent += f", its planning {money(moment.planning_usage.cost_usd)}"
    return f"{spent}; {tokens(msgspec.to_builtins(moment.usage))} tokens"


def branch_words(moment: Moment) -> str:
    """Where the plan's branch is."""
    return f"branch: {moment.branch} {f'at {moment.head_commit}' if moment.head_commit else 'is not made yet'}"


def lineage_words(moment: Moment) -> str:
    """Which plan it goes on from, and which go on from it; empty where there is none."""
    parts = []
    if moment.forked_from is not None:
        parts.append(f"goes on from plan {one_line(moment.forked_from.plan, 40)} at {moment.forked_from.seq}")
    if moment.forks:
        parts.append(f"went on as {', '.join(f'{one_line(f.plan, 40)} (from {f.seq})' for f in moment.forks[:5])}")
    return f"forks: {'; '.join(parts)}" if parts else ""


def _last(moment: Moment) -> str:
    entity = "plan" if moment.entity == PLAN else one_line(moment.entity, NAME_CHARS)
    return f"{entity} {words(moment.type)}"


# Two moments ----------------------------------------------------------------------------------------------------


def compared_lines(found: MomentsCompared) -> list[str]:
    """What changed between two moments."""
    lines = [f"from event {found.before_seq} to event {found.after_seq} of plan {found.after_plan}"]
    lines += [f"  {change_words(Change(None, one.field, one.before, one.after))}" for one in found.plan]
    lines += [f"  {one_line(task.code, NAME_CHARS)}: is new, {words(task.status)}" for task in found.added]
    lines += [f"  {one_line(task.code, NAME_CHARS)}: is not there yet" for task in found.removed]
    for task in found.tasks:
        lines += [f"  {change_words(Change(task.code, one.field, one.before, one.after))}" for one in task.fields]
    return lines if len(lines) > 1 else [*lines, "  nothing is otherwise"]
