"""A plan of many events, as the log would have it: what replaying is measured with."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from shared import events as e
from shared.board import in_order
from shared.spec import DELIVER, AgentSpec, PlanSpec, TaskSpec
from shared.store import Meta, Recorded
from shared.subjects import PLAN, event_subject

PLAN_ID = "preplayreplay"
LAYER_TASKS = 100
PREDECESSORS = 3
EVENTS_PER_ATTEMPT = 3
COMMIT = "c0ffee" * 6 + "cafe"
BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
AGENT = AgentSpec(sdk_type="claude", model="claude-sonnet-5-5")


def long_plan(tasks: int, takings: int) -> Iterator[tuple[str, e.Event]]:
    """Entities and events of a plan of so many tasks, each of them taken so many times before it is completed.

    `tasks * (3 * takings + 1)` events and five more.
    """
    specs = tuple(_task(number) for number in range(tasks))
    spec = PlanSpec(name="A long plan", tasks=specs, agents={"agent": AGENT})
    ordered = in_order(spec)
    yield PLAN, e.PlanDrafted(candidate="1", spec=spec, repo_url="https://git.example.com/a/b.git", base_commit=COMMIT)
    yield PLAN, e.PlanFinalizing(candidate="1", digest="d" * 64, count=len(ordered))
    for index, task in enumerate(ordered):
        agent = None if task.code == DELIVER else AGENT
        yield task.code, e.TaskPlanned(digest="d" * 64, index=index, spec=task, agent=agent)
    yield PLAN, e.PlanFinalized(digest="d" * 64)
    for task in ordered[:-1]:
        for number in range(1, takings + 1):
            yield task.code, _dispatched(task, number)
            yield task.code, e.TaskStarted(lease=number, runner="runner-1", execution="e" * 24, seal_to="s" * 43)
            if number < takings:
                usage = e.Usage(1200, 300, 20_000, 0, 0.01)
                yield task.code, e.TaskReleased(lease=number, reason="the runner is being restarted", usage=usage)
        yield task.code, _completed(task, takings)
    yield PLAN, e.PlanPaused(reason="enough")


def records(tasks: int, takings: int) -> Iterator[Recorded]:
    """The same, as they are read from a log that holds nothing else."""
    for seq, (entity, event) in enumerate(long_plan(tasks, takings), start=1):
        yield Recorded(
            seq=seq, time=BEGAN + timedelta(milliseconds=seq), plan=PLAN_ID, entity=entity,
            type=event.name.partition(".")[2], event=event, meta=meta(seq), body=e.encode(event),
        )  # fmt: skip


def meta(seq: int) -> Meta:
    """What most events' headers say."""
    return Meta(
        actor="dispatcher", command="Dispatch", command_id="a" * 24, causation=seq, correlation="b" * 24, seen=seq
    )


def subject_of(record: Recorded) -> str:
    """Where the log has it. Raises `ValueError` for one that can't be read."""
    if record.event is None:
        raise ValueError(f"event {record.seq} can't be read: {record.fault}")
    return event_subject(record.plan, record.entity, record.event)


def headers(record: Recorded) -> dict[str, str]:
    """As the log has them."""
    said = {"Treadle-Version": str(record.version)}
    for field in ("actor", "command", "command_id", "causation", "correlation", "seen"):
        said[f"Treadle-{field.title().replace('_', '-')}"] = str(getattr(record.meta, field))
    return said


def _task(number: int) -> TaskSpec:
    layer, place = divmod(number, LAYER_TASKS)
    before = ((layer - 1) * LAYER_TASKS + (place + step) % LAYER_TASKS for step in range(PREDECESSORS))
    return TaskSpec(
        code=f"T{number}", name=f"Task {number}", assignee="agent", description="What is to be done, and why. " * 8,
        depends_on=tuple(f"T{one}" for one in before) if layer else (),
    )  # fmt: skip


def _dispatched(task: TaskSpec, number: int) -> e.TaskDispatched:
    return e.TaskDispatched(
        dispatch=number, attempt=1, prompt="What is to be done, and why. " * 12, agent=AGENT, project="a1" * 12,
        repo_url="https://git.example.com/a/b.git", base_commit=COMMIT, plan_name="A long plan", task_name=task.name,
        heads=tuple(e.Head(code, COMMIT) for code in task.depends_on), timeout_s=1800.0, budget_usd=5.0,
    )  # fmt: skip


def _completed(task: TaskSpec, lease: int) -> e.TaskCompleted:
    result = e.Result(task_code=task.code, summary="It is done, and tested. " * 6, artifacts=("src/a.py", "tests/a.py"))
    return e.TaskCompleted(
        lease=lease, base_commit=COMMIT, commit=COMMIT, result=result, usage=e.Usage(1200, 300, 20_000, 0, 0.01)
    )
