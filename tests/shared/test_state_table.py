"""ARCHITECTURE.md's table state × event, derived from the decider: every state that commands can reach is visited.

`python -m tests.shared.test_state_table` prints the table.
"""

from collections import defaultdict
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import get_args

from shared import commands as c
from shared import events as e
from shared.spec import TaskSpec
from shared.task import INITIAL, TaskState, TaskStatus, evolve
from shared.task_decisions import decide
from tests.shared.strategies import NOW, PERSON, SH

DECISION = TaskSpec(code="T1", name="T1", assignee="", max_review_rounds=1)

ARCHITECTURE = Path(__file__).parents[2] / "ARCHITECTURE.md"
BEGIN, END = "<!-- state table -->", "<!-- /state table -->"

EVENTS = tuple(name.removeprefix("task.") for name in e.REGISTRY if name.startswith("task.") and name != "task.skipped")
"""But for the one that may come at any time and changes nothing."""
Table = dict[tuple[TaskStatus, str], set[TaskStatus]]


def commands(state: TaskState) -> Iterator[c.TaskCommand]:
    """One of each kind that makes a difference, from whoever is entitled to it."""
    yield c.PlanTask(digest="d", index=0, spec=TaskSpec(code="T1", name="T1", assignee="sh"), agent=SH)
    yield c.PlanTask(digest="d", index=0, spec=TaskSpec(code="T1", name="T1", assignee="ann"), agent=PERSON)
    yield c.PlanTask(digest="d", index=0, spec=DECISION, agent=None)
    for approved in (True, False):
        yield c.Decide(approved=approved, round=1, reason="r")
    yield c.FailWatch(lease=state.lease, reason="r", since=NOW)
    yield c.RestoreWatch(now=NOW, lease=state.lease)
    yield c.Dispatch(
        now=state.retry_at or NOW,
        prompt="p",
        revision=state.revision,
        agent=SH,
        project="",
        repo_url="u",
        base_commit="b",
        heads=(),
        abandoned=(),
        plan_name="n",
        setup=(),
        env_allow=(),
    )
    yield c.Ready(
        now=state.retry_at or NOW,
        revision=state.revision,
        prompt="p",
        agent=PERSON,
        base_commit="b",
        heads=(),
        abandoned=(),
    )
    readied = e.TaskReadied(
        dispatch=state.dispatch, attempt=state.attempt, prompt="p", agent=PERSON, base_commit="b", heads=()
    )
    yield c.HandOut(phase="open", readied=readied, project="", repo_url="u", plan_name="n")
    kept = e.Kept(task="T1", plan="p", seq=7, commit="a")
    yield c.Inherit(digest="d", index=0, spec=TaskSpec(code="T1", name="kept", assignee="sh"), agent=SH, kept=kept)
    if state.revision < 1:
        yield c.Edit(spec=TaskSpec(code="T1", name="another", assignee="sh"), agent=SH)
    for phase in get_args(c.PlanPhase):
        for reopened in ((), ("T0",)):
            yield c.Start(
                phase=phase,
                dispatch=state.dispatch,
                runner="r",
                execution=f"x{state.lease + 1}",
                reopened=reopened,
                supersede_lease=state.lease,
                deadline=NOW if state.is_manual else None,
            )
        for kind in get_args(e.FailureKind):
            yield c.Fail(now=NOW, phase=phase, lease=state.lease, kind=kind, message="m", usage=e.Usage())
        yield c.RequestApproval(
            now=NOW,
            phase=phase,
            lease=state.lease,
            approval="h",
            kind="tool",
            why="w",
            expires_at=NOW + timedelta(hours=1),
            usage=e.Usage(),
        )
        yield c.CancelTask(phase=phase)
    yield c.Approve(now=NOW, approval="h")
    yield c.Deny(approval="h")
    yield c.UseApproval(lease=state.lease, approval="h")
    for lost in (False, True):
        yield c.Release(lease=state.lease, reason="r", lost=lost)
    yield c.Release(lease=None, reason="r")
    result = e.Result(task_code="T1", summary="s")
    yield c.Complete(lease=state.lease, base_commit="b", commit="a", result=result, usage=e.Usage())
    yield c.MarkComplete()
    yield c.Abandon()
    yield c.Redispatch()


def derive() -> Table:
    """(status, event) → the statuses that the event leads to."""
    table: Table = defaultdict(set)
    seen: set[tuple[object, ...]] = set()
    open_ = [INITIAL]
    while open_:
        state = open_.pop()
        asked = state.approval and (state.approval.answer, state.approval.used_by == state.lease)
        whose = (state.is_manual, state.is_decision, bool(state.watch_fault), state.may_come_late)
        look = (
            *(state.status, state.reopening, state.attempt_open, min(state.lost, 3), min(state.tries, 3), asked),
            *whose,
        )
        if look in seen:
            continue
        seen.add(look)
        for command in commands(state):
            try:
                event = decide(state, command)
            except c.Refused:
                continue
            if event is not None:
                after = evolve(state, event)
                table[state.status, event.name.removeprefix("task.")].add(after.status)
                open_.append(after)
    return table


def render(table: Table) -> str:
    """The table in Markdown: a row for each status, a column for each event."""
    statuses: tuple[TaskStatus, ...] = get_args(TaskStatus)
    lines = [f"| | {' | '.join(f'`{name}`' for name in EVENTS)} |", f"|---|{'---|' * len(EVENTS)}"]
    for status in statuses:
        cells = (", ".join(s for s in statuses if s in table.get((status, name), ())) for name in EVENTS)
        lines.append(f"| **{status}** | {' | '.join(cells)} |")
    return "\n".join(lines)


def test_every_event_of_a_task_can_happen_and_every_state_be_reached() -> None:
    table = derive()
    assert {name for _, name in table} == set(EVENTS)
    assert {status for statuses in table.values() for status in statuses} == set(get_args(TaskStatus)) - {"absent"}


def test_the_table_in_the_architecture_is_the_deciders_own() -> None:
    text = ARCHITECTURE.read_text()
    assert text.count(BEGIN) == 1 and text.count(END) == 1, f"ARCHITECTURE.md lacks {BEGIN} … {END}"
    written = text.split(BEGIN)[1].split(END)[0].strip()
    assert written == render(derive()), (
        "put the output of `python -m tests.shared.test_state_table` between the markers"
    )


if __name__ == "__main__":
    print(render(derive()))  # noqa: T201 - this is what it is run for
