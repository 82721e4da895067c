"""A fork as a person wants it: the origin's plan with their changes, valid by the rules of any plan, and stored.

origin's events → `Origin` → its plan file, changed → what is kept → checked → `drafted(fork=…)`
"""

import asyncio
import contextlib
from collections.abc import Iterator, Mapping, Sequence

import msgspec

from services.planner import half
from services.planner.agents import Roster, Team, own_agents
from services.planner.edit import plan_faults
from services.planner.estimate import estimate
from services.planner.faults import Fault, FaultList, PlanFaults, found, label, shown
from services.planner.fields import Fields, id_of
from services.planner.parse import parse_text
from services.planner.tasks import OWN_WORDS, read_task
from services.planner.tree import Row, Table
from services.planner.validate import validate
from shared.commands import Draft, Refused
from shared.events import Kept, PlanFault
from shared.history.fork import (
    CantFork,
    Fate,
    Fates,
    ForkPlan,
    NotThere,
    Origin,
    fork_plan,
    origin_at,
    seq_at,
    sort_out,
)
from shared.requests import ForkedTask, ForkReply, ForkRequest
from shared.skipped import without_skipped
from shared.spec import AgentSpec, PlanSpec, TaskSpec
from shared.store import EventStore, EventTooLarge, Meta, Recorded, StoreUnavailable
from shared.transact import Contended, to_plan

PATIENCE_S = 20.0
TOO_LARGE = "the fork is too large for one message of the log: keep less of the plan (only), or shorten descriptions"
_REMOVE = "remove"
_OF_PLAN = tuple(name for name in PlanSpec.__struct_fields__ if name not in ("tasks", "agents"))


async def fork(store: EventStore, request: ForkRequest) -> ForkReply:
    """Stores the fork as a candidate of the new plan; for a dry run only says what would be."""
    try:
        records = without_skipped(await store.read(request.origin))
        made = await asyncio.to_thread(forked, records, request)
        reply = await asyncio.to_thread(_told, made)
    except PlanFaults as faults:
        return ForkReply(faults=plan_faults(faults.faults))
    except NotThere as error:
        return ForkReply(faults=(PlanFault(message=str(error), field=error.field),))
    except (CantFork, StoreUnavailable) as error:
        return ForkReply(refused=str(error))
    if request.dry_run:
        return reply
    origin = origin_at(records, made.fork.seq).candidate
    command = Draft(
        candidate=request.candidate,
        spec=made.spec,
        repo_url=origin.repo_url,
        base_commit=origin.base_commit,
        project=origin.project,
        fork=made.fork,
    )
    meta = Meta(actor=request.actor, correlation=request.correlation)
    try:
        decided = await to_plan(store, request.plan, command, meta, patience_s=PATIENCE_S)
    except EventTooLarge:
        return ForkReply(refused=TOO_LARGE)
    except (Refused, StoreUnavailable, Contended) as error:
        return ForkReply(refused=str(error))
    return msgspec.structs.replace(reply, seq=decided.seq)


def forked(records: Sequence[Recorded], request: ForkRequest) -> ForkPlan:
    """The fork that is asked for, of the plan with these events. Raises `CantFork`, `PlanFaults`."""
    origin = origin_at(records, seq_at(records, request.at))
    if origin.candidate.project != request.project:
        raise CantFork("the plan belongs to another project")
    team = Team(mode=request.mode, agents=request.agents)
    changes = _Changes(origin, request.edit, team)
    if request.name:
        changes.plan["name"] = request.name
    fates = sort_out(origin, changes.needs(), changes.why(), request.only)
    done = {code: changes.task(code) for code in fates.kept}
    with changes.faults_besides():
        spec = _with_everybody(origin, validate(changes.tree(fates), team, done), done, team)
    _note_gone_menders(spec, done)
    return msgspec.structs.replace(fork_plan(origin, spec, fates), names=changes.names())


class _Changes:
    """The origin's plan file with a person's changes in it."""

    def __init__(self, origin: Origin, edit: str, team: Team) -> None:
        self._origin = origin
        self._faults = FaultList()
        written = _read(edit)
        self._fields = Fields(written, self._faults)
        self._edits: dict[str, dict[str, object]] = {}
        self._others: list[object] = []
        """What is no change of a task that is there: new ones, and what is none."""
        self._places: dict[int, int] = {}
        """By index in these, the place among the tasks as the person wrote them, from 1."""
        self._written_as: dict[str, str] = {}
        """How faults of the changed plan name a task without a code, and how those of the changes do."""
        self._removed: set[str] = set()
        self._read_tasks()
        self._read_removed()
        self.plan = self._plan(written, team)
        self._tasks = {code: self._merged(code) for code in origin.tasks if code not in self._removed}
        self._why = self._compared(team)

    def _read_tasks(self) -> None:
        for place, (item, line) in enumerate(self._fields.items("tasks", "tasks", 2**31), start=1):
            if not isinstance(item, dict):
                self._take_other(item, place)
                continue
            task, twice = half.task_in_our_names(item)
            code = _code_of(task)
            if code in self._origin.own:
                message = "the plan added it by itself: change the tasks of its author's"
                self._faults.add(message, task=label(code), line=line)
            elif twice or code not in self._origin.tasks or code in self._edits:
                self._take_other(item, place)  # said of it is what would be said of it in any plan
            else:
                self._edits[code] = task

    def _take_other(self, item: object, place: int) -> None:
        self._places[len(self._others)] = place
        self._others.append(item)

    def _read_removed(self) -> None:
        for item, line in self._fields.items(_REMOVE, "task codes", 2**31):
            code = id_of(item) or item
            if isinstance(code, str) and code in self._origin.tasks and code not in self._origin.own:
                self._removed.add(str(code))
            else:
                near = self._faults.did_you_mean(str(code), self._origin.tasks)
                self._faults.add(f"{shown(code)} is not a task of this plan{near}", field=_REMOVE, line=line)
        for code in self._removed & self._edits.keys():
            self._others.append(self._edits.pop(code))  # a new one in its place

    def _plan(self, written: dict[str, object], team: Team) -> dict[str, object]:
        spec = self._origin.candidate.spec
        before: dict[str, object] = {name: msgspec.to_builtins(getattr(spec, name)) for name in _OF_PLAN}
        own = own_agents(spec.agents, [agent.slug for agent in team.agents])
        plan = _over(before, written)
        plan.pop(_REMOVE, None)
        declared = plan.get("agents")
        if isinstance(declared, dict | None):  # else that is a fault
            plan["agents"] = _over(_plain(own) if team.mode == "auto" else {}, declared)
        return plan

    def _merged(self, code: str) -> dict[str, object]:
        """The task as it is wanted, as a plan file has it."""
        task = self._origin.tasks[code]
        before: dict[str, object] = {"depends_on": [], **_plain(task)}
        for name in OWN_WORDS:
            before.pop(name, None)
        if task.is_decision:
            before.pop("assignee", None)
        edit = self._edits.get(code, {})
        if "depends_on" not in edit:
            before["depends_on"] = self._without_removed(task)
        if "reviews" in edit and "depends_on" not in edit:
            before.pop("depends_on")
        return _over(before, edit)

    def _without_removed(self, task: TaskSpec) -> list[str]:
        """Whatever waited for a removed task waits for what that one waited for; a decision has its other reviews."""
        needs: dict[str, None] = {}
        open_ = list(reversed(task.depends_on))
        seen: set[str] = set()
        while open_:
            code = open_.pop()
            if code not in self._removed:
                needs[code] = None
            elif code not in seen and not task.is_decision:
                seen.add(code)
                open_ += reversed(self._origin.tasks[code].depends_on)
        return list(needs)

    def _compared(self, team: Team) -> dict[str, str]:
        """Why each task is another one than it was; nothing of those that stay."""
        why = {code: "it is new" for code in map(_code_of, self._entries(self._others)) if code}
        roster = Roster(team)
        roster.read_own(Fields(self.plan, FaultList()))
        renewed = self._renewed(roster)
        for code, tree in self._tasks.items():
            before = now = self._origin.tasks[code]
            if edit := self._edits.get(code):
                needs = tuple(_needs_of(tree))
                now = read_task(Fields(tree, FaultList(), task=code), code, roster, depends_on=needs)
                if names := [str(name) for name in edit if _differs(before, now, str(name))]:
                    why[code] = f"changed: {', '.join(map(label, names))}"
            if code not in why and (names := sorted({now.assignee, now.fixer} & renewed)):
                why[code] = f"its agent {label(names[0])} is changed"
            if code not in why and (lost := self._work_lost(before)):
                why[code] = f"it waited for {lost}, which is removed"
        return why

    def _renewed(self, roster: Roster) -> set[str]:
        """The plan's own agents that are declared otherwise now."""
        declared = self._fields.raw("agents")
        names = [str(name) for name in declared] if isinstance(declared, dict) else []
        before = self._origin.candidate.spec.agents
        return {name for name in names if roster.agent(name) != before.get(name)}

    def _work_lost(self, before: TaskSpec) -> str:
        """A removed task whose work may be in what was done; of one that was given up there is none."""
        states = self._origin.states
        for code in before.depends_on:
            given_up = code in states and states[code].status == "abandoned" and not states[code].reopening
            if code in self._removed and not given_up:
                return code
        return ""

    @staticmethod
    def _entries(items: Sequence[object]) -> Iterator[dict[str, object]]:
        return (half.task_in_our_names(item)[0] for item in items if isinstance(item, dict))

    def needs(self) -> dict[str, tuple[str, ...]]:
        """By task, what it depends on in the changed plan."""
        needs = {code: tuple(_needs_of(tree)) for code, tree in self._tasks.items()}
        for task in self._entries(self._others):
            if code := _code_of(task):
                needs.setdefault(code, tuple(_needs_of(task)))
        return needs

    @contextlib.contextmanager
    def faults_besides(self) -> Iterator[None]:
        """Faults of the changed plan are told together with those of the changes themselves. Raises `PlanFaults`."""
        try:
            yield
        except PlanFaults as faults:
            for fault in faults.faults:
                named = self._written_as.get(fault.task, fault.task) if fault.task else fault.task
                self._faults.add(fault.message, task=named, field=fault.field, line=fault.line)
        self._faults.raise_if_any()

    def names(self) -> dict[str, str]:
        """By task, also of those that are removed."""
        names = {code: task.name for code, task in self._origin.tasks.items()}
        for tree in (*self._entries(self._others), *self._tasks.values()):
            if (code := _code_of(tree)) and isinstance(name := tree.get("name"), str):
                names[code] = name
        return names

    def why(self) -> Mapping[str, str]:
        """Of each task that is new or otherwise than before, how that is."""
        return self._why

    def task(self, code: str) -> TaskSpec:
        """A task that is left as it was, but for what was removed before it."""
        before = self._origin.tasks[code]
        plain = msgspec.structs.replace(before, resolves="", round=1)
        return msgspec.structs.replace(plain, depends_on=tuple(_needs_of(self._tasks[code])))

    def tree(self, fates: Fates) -> dict[str, object]:
        """The plan file, without what is left out."""
        there = {*fates.kept, *(fate.code for fate in fates.runs)}
        left_out = {fate.code for fate in fates.left_out}
        tasks = Row(0)
        for code, tree in self._tasks.items():
            if code in there:
                _add(tasks, tree)
        for index, item in enumerate(self._others):
            code = _code_of(half.task_in_our_names(item)[0]) if isinstance(item, dict) else ""
            if code not in left_out:
                _add(tasks, item)
                if place := self._places.get(index):
                    self._written_as[f"#{len(tasks)}"] = f"#{place}"
        self.plan["tasks"] = tasks
        return self.plan


def _read(edit: str) -> dict[str, object]:
    if not edit.strip():
        return {}
    written = parse_text(edit)
    if written is None:
        return {}
    if not isinstance(written, dict):
        raise PlanFaults([Fault(f'changes are a mapping such as a plan file is, with "tasks", found {found(written)}')])
    return half.plan_in_our_names(written)[0]


def _code_of(task: Mapping[str, object]) -> str:
    code = id_of(task.get("code")) or task.get("code")
    return str(code) if isinstance(code, str) else ""


def _needs_of(task: Mapping[str, object]) -> Iterator[str]:
    needs = task.get("depends_on")
    if needs is None and task.get("reviews") is not None:
        needs = [task["reviews"]]
    for item in needs if isinstance(needs, list | tuple) else ():
        code = id_of(item) or item
        if isinstance(code, str):
            yield str(code)


def _plain(value: object) -> dict[str, object]:
    plain: dict[str, object] = msgspec.json.decode(msgspec.json.encode(value))
    return plain


def _over(before: dict[str, object], written: object) -> dict[str, object]:
    """The written fields in place of those that were there, with their lines."""
    result = Table(0)
    result.update(before)
    if isinstance(written, dict):
        result.update(written)
    if isinstance(written, Table):
        result.line, result.lines = written.line, written.lines
        result.written, result.repeated = written.written, written.repeated
    return result


def _add(row: Row, item: object) -> None:
    row.append(item)
    row.lines.append(item.line if isinstance(item, Table) else 0)


def _differs(before: TaskSpec, now: TaskSpec, name: str) -> bool:
    if name not in TaskSpec.__struct_fields__:
        return False  # unknown: that is found to be a fault
    one, other = getattr(before, name), getattr(now, name)
    return set(one) != set(other) if name == "depends_on" else bool(one != other)


def _note_gone_menders(spec: PlanSpec, done: Mapping[str, TaskSpec]) -> None:
    """A decision that is still to be made may need another round of what is kept. Raises `PlanFaults`."""
    tasks = {task.code: task for task in spec.tasks}
    faults = []
    for task in spec.tasks:
        if not task.is_decision or task.code in done:
            continue
        reviews = [tasks[code] for code in task.depends_on]
        work = tasks[reviews[0].reviews]
        for one in (*reviews, *(() if task.fixer else (work,))):
            if one.code in done and one.assignee not in spec.agents:
                remedy = "name a fixer" if one is work else f"give {label(one.code)} to somebody else"
                message = f"{label(one.assignee)}, who did {label(one.code)}, can't be given a task now: {remedy}"
                faults.append(Fault(message, task=task.code, field="fixer" if one is work else "depends_on"))
    if faults:
        raise PlanFaults(faults)


def _with_everybody(origin: Origin, spec: PlanSpec, done: Mapping[str, TaskSpec], team: Team) -> PlanSpec:
    """With the agents of what is kept, as far as they can still be given something: a merge may be theirs to make."""
    known = {a.slug: a.spec for a in team.agents if not a.unusable and a.spec.is_auto == (team.mode == "auto")}
    agents: dict[str, AgentSpec] = {}
    for task in done.values():
        declared = origin.candidate.spec.agents.get(task.assignee)
        if (known_one := known.get(task.assignee)) is not None:
            agents[task.assignee] = known_one
        elif declared is not None and not declared.agent_id and team.mode == "auto":
            agents[task.assignee] = declared
    return msgspec.structs.replace(spec, agents={**agents, **spec.agents})


def _told(made: ForkPlan) -> ForkReply:
    names = {**made.names, **{task.code: task.name for task in made.spec.tasks}}
    done = {kept.task for kept in made.kept}
    return ForkReply(
        at=made.fork.seq,
        name=made.spec.name,
        kept=tuple(_kept(kept, names) for kept in made.kept),
        runs=tuple(_fate(fate, names) for fate in made.runs),
        left_out=tuple(_fate(fate, names) for fate in made.left_out),
        most_usd=estimate(made.spec, done=done).most_usd,
    )


def _kept(kept: Kept, names: Mapping[str, str]) -> ForkedTask:
    return ForkedTask(
        code=kept.task,
        name=names.get(kept.task, kept.task),
        plan=kept.plan,
        commit=kept.commit,
        cost_usd=kept.usage.cost_usd,
    )


def _fate(fate: Fate, names: Mapping[str, str]) -> ForkedTask:
    return ForkedTask(code=fate.code, name=names.get(fate.code, fate.code), why=fate.why)
