"""Every NATS subject that Treadle uses: the only place that builds or parses one.

treadle.evt.<shard>.<plan>.<entity>.<type>[.<route>]   the event log
treadle.log.<shard>.<plan>.<task>.<lease>              transcripts
treadle.session.<plan>.<task>.checkpoint               where an attempt stands: what its next lease goes on with
treadle.session.<plan>.<task>.<lease>                  a lease's conversation
treadle.timer.set.<plan>.<task>                        a timer, replaced when set again
treadle.timer.due.<plan>.<task>                        the same timer when its time has come
treadle.rpc.planner.import                             request: a plan file becomes a candidate
treadle.rpc.planner.edit                               request: are these changes of a task valid?
treadle.rpc.planner.check                              request: is this a valid plan for what was asked for?
treadle.rpc.planner.offer                              request: a file for a plan that was asked for by hand
treadle.rpc.planner.prompt                             request: the words with which a person has a plan made
treadle.rpc.planner.compare                            request: what tells two candidates from one another?
treadle.rpc.planner.render                             request: a template becomes a plan file
treadle.rpc.dispatcher.reset                           request: let a pool's consumer begin at another place
treadle.rpc.gateway.credentials                        request: a live lease's credentials, sealed to its runner
treadle.rpc.gateway.watch_credentials                  request: a watched project's git credentials, sealed
treadle.rpc.watch.look                                 request: fetch a collaboration repository now
treadle.rpc.runner.introduce                           request to any runner: who are you, what is sealed to you?
treadle.rpc.runner.<runner>.holds                      request: is this lease alive with you?
treadle.rpc.runner.<runner>.test                       request: do these credentials work from where you are?
treadle.rpc.runner.<runner>.diff                       request: what changed between two commits?
treadle.rpc.runner.<runner>.bundle                     request: make a git bundle of these commits
treadle.rpc.runner.<runner>.bundle_part                request: a part of the bundle that was made
treadle.rpc.runner.<runner>.head                       request: which commit is a repository's branch at?
treadle.gateway.account.<user>                         told to all gateways: look at that account again
treadle.project.<project>.deleted                      what runners remove
"""

import re
from hashlib import sha256

import msgspec

from shared.events import Event, TaskDispatched
from shared.spec import DELIVER, TASK_CODE

PLAN = "_plan"
"""The entity of what concerns the plan itself."""

DRAFTS_MAX = 99
DRAFT = re.compile(r"_draft-[1-9][0-9]?")
"""The entity of making a candidate from a goal: an execution like a task's, but none of the plan's tasks."""
DELIVER_POOL = "deliver"
MANY_EVENTS = "treadle.evt.>"
MANY_TRANSCRIPTS = "treadle.log.>"
MANY_SESSIONS = "treadle.session.>"
MANY_TIMERS = "treadle.timer.>"
TIMERS_DUE = "treadle.timer.due.>"
MANY_PLAN_EVENTS = "treadle.evt.*.*._plan.>"
"""What concerns plans themselves."""
CANCEL_REQUESTS = "treadle.evt.*.*.*.cancel_requested"
MANY_PROJECT_EVENTS = "treadle.project.>"
PLANNER_IMPORT = "treadle.rpc.planner.import"
PLANNER_EDIT = "treadle.rpc.planner.edit"
PLANNER_CHECK = "treadle.rpc.planner.check"
PLANNER_OFFER = "treadle.rpc.planner.offer"
PLANNER_PROMPT = "treadle.rpc.planner.prompt"
PLANNER_COMPARE = "treadle.rpc.planner.compare"
PLANNER_RENDER = "treadle.rpc.planner.render"
PLANNER_FORK = "treadle.rpc.planner.fork"
DISPATCHER_RESET = "treadle.rpc.dispatcher.reset"
CREDENTIALS = "treadle.rpc.gateway.credentials"
WATCH_CREDENTIALS = "treadle.rpc.gateway.watch_credentials"
WATCH_LOOK = "treadle.rpc.watch.look"
RUNNER_INTRODUCE = "treadle.rpc.runner.introduce"
MANY_RUNNER_REQUESTS = "treadle.rpc.runner.>"
EVERY_RUNNER_HOLDS = "treadle.rpc.runner.*.holds"
EVERY_RUNNER_TEST = "treadle.rpc.runner.*.test"
EVERY_RUNNER_DIFF = "treadle.rpc.runner.*.diff"
EVERY_RUNNER_BUNDLE = "treadle.rpc.runner.*.bundle"
EVERY_RUNNER_BUNDLE_PART = "treadle.rpc.runner.*.bundle_part"
EVERY_RUNNER_HEAD = "treadle.rpc.runner.*.head"
ACCOUNT_CHANGES = "treadle.gateway.account.*"
MANUAL_POOL = "manual"

ROW_ID = re.compile(r"[0-9a-f]{24}")
"""What `shared.clock.new_id` makes."""
PLAN_ID = re.compile(r"p[a-z2-7]{12}")
IMPORTED_ID = re.compile(r"i[a-z2-7]{12}")
"""Of a plan that a gateway has from a file: it is in no log, and no subject names it."""


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


def can_be(plan: str, entity: str) -> bool:
    """Whether there can be a plan and an entity of these names: somebody else may have put anything into the log."""
    return bool(PLAN_ID.fullmatch(plan)) and is_entity(entity)


def is_entity(entity: str) -> bool:
    """Whether it is the name of what events can be of: the plan itself, a task, the making of a candidate."""
    return entity in (PLAN, DELIVER) or is_draft(entity) or TASK_CODE.fullmatch(entity) is not None


def type_filter(type_: str) -> str:
    """Every event of a type, of any entity; not `dispatched`, which has a route."""
    return f"treadle.evt.*.*.*.{type_}"


def pool(event: TaskDispatched) -> str:
    """The runner pool that takes a dispatch."""
    if event.agent is None:
        return DELIVER_POOL
    return event.agent.sdk_type or MANUAL_POOL


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


def checkpoint(plan: str, task: str) -> str:
    """Where it is stored how far a task's newest attempt came."""
    return f"treadle.session.{_plan(plan)}.{_entity(task)}.checkpoint"


def conversation(plan: str, task: str, lease: int) -> str:
    """Where the holder of a lease stores its agent's conversation."""
    return f"treadle.session.{_plan(plan)}.{_entity(task)}.{lease}"


def session_filter(plan: str, task: str) -> str:
    """Both of these, of every lease of a task: what an append's condition speaks of."""
    return f"treadle.session.{_plan(plan)}.{_entity(task)}.*"


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


def runner_test(runner: str) -> str:
    """Where a runner tries credentials out."""
    return runner_holds(runner).removesuffix("holds") + "test"


def runner_diff(runner: str) -> str:
    """Where a runner tells what changed between two commits."""
    return runner_holds(runner).removesuffix("holds") + "diff"


def runner_bundle(runner: str) -> str:
    """Where a runner makes a git bundle."""
    return runner_holds(runner).removesuffix("holds") + "bundle"


def runner_bundle_part(runner: str) -> str:
    """Where a runner hands out what it made."""
    return runner_holds(runner).removesuffix("holds") + "bundle_part"


def runner_head(runner: str) -> str:
    """Where a runner tells which commit a repository's branch is at."""
    return runner_holds(runner).removesuffix("holds") + "head"


def account_changed(user: str) -> str:
    """Where gateways hear that an account is not what it was."""
    return f"treadle.gateway.account.{_row(user)}"


def project_deleted(project: str) -> str:
    """Where it is stored that a project is gone."""
    return f"treadle.project.{_row(project)}.deleted"


def _row(row_id: str) -> str:
    if not ROW_ID.fullmatch(row_id):
        raise ValueError(f"{row_id!r} is not an id of the gateway's")
    return row_id


def _plan(plan: str) -> str:
    if not PLAN_ID.fullmatch(plan):
        raise ValueError(f"{plan!r} is not a plan's id")
    return plan


def draft(candidate: str) -> str:
    """The entity of making that candidate. Raises `ValueError` for a name that no request gives."""
    return _entity(f"_draft-{candidate}")


def every_draft_filter() -> tuple[str, ...]:
    """What concerns the making of candidates, of any plan: one subject each, as a wildcard stands for a whole token."""
    return tuple(f"treadle.evt.*.*._draft-{number}.>" for number in range(1, DRAFTS_MAX + 1))


def is_draft(entity: str) -> bool:
    """Whether it is no task of the plan but the making of a candidate."""
    return entity.startswith("_draft") and DRAFT.fullmatch(entity) is not None  # asked of every event


def _entity(entity: str) -> str:
    if not is_entity(entity):
        raise ValueError(f"{entity!r} is not a task code")
    return entity
