"""Every NATS subject that Treadle uses: the only place that builds or parses one.

treadle.evt.<shard>.<plan>.<entity>.<type>[.<route>]   the event log
treadle.log.<shard>.<plan>.<task>.<lease>              transcripts
treadle.timer.set.<plan>.<task>                        a timer, replaced when set again
treadle.timer.due.<plan>.<task>                        the same timer when its time has come
treadle.rpc.planner.import                             request: a plan file becomes a candidate
treadle.rpc.runner.<runner>.holds                      request: is this lease alive with you?
"""

import re
from hashlib import sha256

import msgspec

from shared.events import Event, TaskDispatched
from shared.spec import DELIVER, TASK_CODE

PLAN = "_plan"
"""The entity of what concerns the plan itself."""

DELIVER_POOL = "deliver"
MANY_EVENTS = "treadle.evt.>"
MANY_TRANSCRIPTS = "treadle.log.>"
MANY_TIMERS = "treadle.timer.>"
TIMERS_DUE = "treadle.timer.due.>"
CANCEL_REQUESTS = "treadle.evt.*.*.*.cancel_requested"
PLANNER_IMPORT = "treadle.rpc.planner.import"

PLAN_ID = re.compile(r"p[a-z2-7]{12}")


class Address(msgspec.Struct, frozen=True):
    """What an event's subject says."""

    plan: str
    entity: str
    type: str

    @property
    def event_name(self) -> str:
        """The stored name, as `shared.events.REGISTRY` has it."""
        return f"{'plan' if self.entity == PLAN else 'task'}.{self.type}"


def shard(plan: str) -> str:
    """Two hex digits, stable for ever: lets consumers be split later without moving data."""
    return sha256(plan.encode()).hexdigest()[:2]


def plan_filter(plan: str) -> str:
    """Every event of one plan."""
    return f"treadle.evt.{shard(_plan(plan))}.{plan}.>"


def entity_filter(plan: str, entity: str) -> str:
    """Every event of one entity: what an append's condition speaks of."""
    return f"treadle.evt.{shard(_plan(plan))}.{plan}.{_entity(entity)}.>"


def event_subject(plan: str, entity: str, event: Event) -> str:
    """Where an event is stored. Raises `ValueError` for one that belongs to another kind of entity."""
    kind, _, type_ = event.name.partition(".")
    if (kind == "plan") != (entity == PLAN):
        raise ValueError(f"{event.name} is not an event of {entity}")
    route = f".{pool(event)}" if isinstance(event, TaskDispatched) else ""
    return f"treadle.evt.{shard(_plan(plan))}.{plan}.{_entity(entity)}.{type_}{route}"


def parse_event_subject(subject: str) -> Address:
    """The way back. Raises `ValueError` for a subject that is not an event's."""
    tokens = subject.split(".")
    if len(tokens) not in (6, 7) or tokens[:2] != ["treadle", "evt"]:
        raise ValueError(f"{subject} is not the subject of an event")
    return Address(plan=tokens[3], entity=tokens[4], type=tokens[5])


def pool(event: TaskDispatched) -> str:
    """The runner pool that takes a dispatch."""
    return event.agent.sdk_type if event.agent else DELIVER_POOL


def pool_filter(pool: str) -> str:
    """Every dispatch to one pool."""
    return f"treadle.evt.*.*.*.dispatched.{pool}"


def transcript(plan: str, task: str, lease: int) -> str:
    """Where the holder of a lease tells what its agent does."""
    return f"treadle.log.{shard(_plan(plan))}.{plan}.{_entity(task)}.{lease}"


def transcript_filter(plan: str, task: str | None = None) -> str:
    """Every transcript of a plan, or of one task."""
    return f"treadle.log.{shard(_plan(plan))}.{plan}.{_entity(task) if task else '*'}.*"


def parse_transcript_subject(subject: str) -> tuple[str, str, int]:
    """(plan, task, lease) of a transcript's subject."""
    _, _, _, plan, task, lease = subject.split(".")
    return plan, task, int(lease)


def timer(plan: str, task: str) -> str:
    """Where a task's timer is set."""
    return f"treadle.timer.set.{_plan(plan)}.{_entity(task)}"


def timer_due(plan: str, task: str) -> str:
    """Where it fires."""
    return f"treadle.timer.due.{_plan(plan)}.{_entity(task)}"


def parse_timer_due(subject: str) -> tuple[str, str]:
    """(plan, task) of a timer that fired."""
    _, _, _, plan, task = subject.split(".")
    return plan, task


def runner_holds(runner: str) -> str:
    """Where a runner answers whether a lease is alive with it."""
    if not TASK_CODE.fullmatch(runner):
        raise ValueError(f"{runner!r} is not a runner's name")
    return f"treadle.rpc.runner.{runner}.holds"


def _plan(plan: str) -> str:
    if not PLAN_ID.fullmatch(plan):
        raise ValueError(f"{plan!r} is not a plan's id")
    return plan


def _entity(entity: str) -> str:
    if entity not in (PLAN, DELIVER) and not TASK_CODE.fullmatch(entity):
        raise ValueError(f"{entity!r} is not a task code")
    return entity
