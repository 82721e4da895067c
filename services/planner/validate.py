"""Plain data → plan, or every fault at once."""

from collections.abc import Mapping

import msgspec

from services.planner import half
from services.planner.agents import NO_TEAM, Roster, Team
from services.planner.faults import FaultList, found, label, refusal, shown
from services.planner.fields import WORD_MAX_CHARS, Fields, id_of
from services.planner.graph import cycles
from services.planner.review_loops import mended_for_money, note_loop_faults
from services.planner.tasks import note_twice, read_task
from shared.host_pattern import BadHostPattern, parse_host_pattern
from shared.spec import (
    BUDGET_MIN_USD,
    COMMAND_MAX_BYTES,
    COMMANDS_MAX,
    DESCRIPTION_MAX_BYTES,
    ENV_NAME,
    ENV_RESERVED,
    HOSTS_MAX,
    MAX_PARALLEL_MAX,
    NAME_MAX_CHARS,
    PLAN_BUDGET_MAX_USD,
    PLAN_MAX_BYTES,
    TASK_CODE,
    TASKS_MAX,
    PlanSpec,
    TaskSpec,
    encode_spec,
)

CYCLE_SHOWN_MAX = 20
"""Tasks of a cycle that a message spells out."""

_PLAN_FIELDS = PlanSpec.__struct_fields__


def validate(data: object, team: Team = NO_TEAM, done: Mapping[str, TaskSpec] | None = None) -> PlanSpec:
    """The plan in `data`: mappings, lists, texts, numbers, as a reader or a JSON decoder left them.

    HALF's names are accepted; defaults are filled in, but for those that are the project's to give; every assignee
    becomes a key of `agents`. The tasks that are `done` already are taken as they are there, whoever did them; only
    what they depend on is looked at. Raises `PlanFaults` with every fault (the first `FAULTS_MAX`), in the order of the
    text.
    """
    if not isinstance(data, dict):
        raise refusal(f'a plan is a mapping with "name" and "tasks", found {found(data)}')
    faults = FaultList()
    plan, twice = half.plan_in_our_names(data)
    fields = Fields(plan, faults)
    note_twice(fields, twice)
    fields.check_names(_PLAN_FIELDS)
    if not fields.given("name"):
        fields.missing("name")
    name = fields.line_text("name", max_chars=NAME_MAX_CHARS)
    roster = Roster(team)
    roster.read_own(fields)
    done = done or {}
    tasks = _Tasks(fields, roster, done).read()
    spec = PlanSpec(
        name=name or "",
        goal=fields.long_text("goal", max_bytes=DESCRIPTION_MAX_BYTES),
        max_parallel=fields.whole_or_none("max_parallel", low=1, high=MAX_PARALLEL_MAX, unit="tasks"),
        budget_usd=fields.number_or_none(
            "budget_usd", low=BUDGET_MIN_USD, high=PLAN_BUDGET_MAX_USD, unit="US dollars for the whole plan"
        ),
        setup=fields.texts("setup", "commands", max_items=COMMANDS_MAX, max_bytes=COMMAND_MAX_BYTES),
        env_allow=_env_allow(fields),
        network_allow=_network_allow(fields),
        tasks=tasks,
        agents=roster.spec(),
    )
    faults.raise_if_any()
    _note_budgets(fields, spec, done)
    faults.raise_if_any()
    size = len(encode_spec(spec))
    if size > PLAN_MAX_BYTES:
        raise refusal(f"the plan has {size:,} bytes; at most {PLAN_MAX_BYTES:,}: shorten the descriptions")
    return spec


class _Tasks:
    """The tasks of one plan, while they are read."""

    def __init__(self, plan: Fields, roster: Roster, done: Mapping[str, TaskSpec]) -> None:
        self._plan = plan
        self._done = done
        self._faults = plan.faults
        self._roster = roster
        self._needs: dict[str, list[str]] = {}
        """Every code that a task has, safe or not, and what it depends on."""
        self._fields: dict[str, Fields] = {}
        self._unresolved: list[tuple[Fields, str, str, int | None]] = []

    def read(self) -> tuple[TaskSpec, ...]:
        items = self._plan.items("tasks", "tasks", TASKS_MAX)
        tasks = self._plan.raw("tasks")
        if tasks is None or tasks in ([], ()):
            self._plan.add("a plan needs at least one task", "tasks")
        entries = []
        for place, (item, line) in enumerate(items, start=1):
            if isinstance(item, dict):
                entries.append(self._entry(item, place))
            else:
                message = f"a task is a mapping, found {found(item)}"
                self._faults.add(message, task=f"#{place}", line=line)
        specs = tuple([self._task(fields, code) for fields, code in entries])
        self._note_unknown_dependencies()
        self._note_cycles()
        note_loop_faults(specs, [fields for fields, _ in entries])
        return specs

    def _task(self, fields: Fields, code: str) -> TaskSpec:
        depends_on = self._depends_on(fields, code)
        if (done := self._done.get(code)) is not None:
            return msgspec.structs.replace(done, depends_on=depends_on)
        return read_task(fields, code, self._roster, depends_on=depends_on)

    def _entry(self, item: dict[str, object], place: int) -> tuple[Fields, str]:
        """First pass: codes, so that the second can tell whether what a task depends on is there."""
        task, twice = half.task_in_our_names(item)
        fields = Fields(task, self._faults, task=f"#{place}")
        written = id_of(task.get("code")) or task.get("code")
        if isinstance(written, str) and written.strip():
            fields.task = label(written)
        note_twice(fields, twice)
        return fields, self._code(fields)

    def _code(self, fields: Fields) -> str:
        if not fields.given("code"):
            fields.missing("code")
        code = fields.id_text("code")
        if code is None:
            return ""
        if code.startswith("_"):
            fields.add('codes that begin with "_" are reserved', "code")
        elif not TASK_CODE.fullmatch(code):
            what = f"has {len(code):,} characters" if len(code) > 63 else f"{shown(code)} is not safe"
            rule = 'letters, digits, "-" and "_", at most 63, beginning with a letter or digit'
            fields.add(f"{what}: a code is {rule}", "code")
        folded = code.casefold()
        if earlier := self._fields.get(folded):
            line = earlier.line_of("code")
            fields.add(
                f"is used twice: {earlier.task}{f' in line {line}' if line else ''} and {shown(code)}; "
                "codes must differ in more than case",
                "code",
            )
        else:
            self._fields[folded] = fields
        self._needs.setdefault(code, [])
        return code

    def _depends_on(self, fields: Fields, code: str) -> tuple[str, ...]:
        needed: dict[str, None] = {}
        if fields.given("reviews") and not fields.given("depends_on"):
            return self._reviewed(fields, code)
        for item, line in fields.items("depends_on", "task codes", TASKS_MAX):
            other = id_of(item) or item
            if not isinstance(other, str):
                fields.add(f"expected a task's code, found {found(item)}", "depends_on", line=line)
                continue
            other = str(other)
            if other in needed:
                fields.add(f"{shown(other)} is there twice", "depends_on", line=line)
            elif other == code:
                fields.add("the task depends on itself", "depends_on", line=line)
            elif other not in self._needs:
                self._unresolved.append((fields, other, code, line))
            needed[other] = None
        edges = [other for other in needed if other in self._needs and other != code]
        self._needs[code] = edges
        return tuple(needed)

    def _reviewed(self, fields: Fields, code: str) -> tuple[str, ...]:
        """What a review waits for that doesn't say so: the work that it judges."""
        work = id_of(fields.raw("reviews")) or fields.raw("reviews")
        if not isinstance(work, str) or not work.strip():
            return ()
        work = str(work)
        self._needs[code] = [work] if work in self._needs and work != code else []
        return (work,)

    def _note_unknown_dependencies(self) -> None:
        known = [code for code in self._needs if code]
        for fields, other, code, line in self._unresolved:
            nearest = self._faults.did_you_mean(other, known, but=code)
            fields.add(f"{shown(other)} is not a task of this plan{nearest}", "depends_on", line=line)

    def _note_cycles(self) -> None:
        for cycle in cycles(self._needs):
            names = [label(code) for code in cycle]
            if len(names) > CYCLE_SHOWN_MAX:
                hidden = len(names) - CYCLE_SHOWN_MAX
                names[CYCLE_SHOWN_MAX - 1 : -1] = [f"({hidden} more)"]
            message = f"the tasks wait for one another: {' → '.join([*names, names[0]])}"
            self._fields[cycle[0].casefold()].add(message, "depends_on")


def _note_budgets(fields: Fields, spec: PlanSpec, done: Mapping[str, TaskSpec]) -> None:
    """A task that may cost more than the whole plan never starts; nor does the mending of what a program did."""
    limit = spec.budget_usd
    if limit is None:
        return
    paid = mended_for_money(spec)
    over = [
        t
        for t in spec.tasks
        if t.budget_usd > limit and ((_costs(t.assignee, spec) and t.code not in done) or t.code in paid)
    ]
    if over:
        dearest = max(over, key=lambda task: task.budget_usd)
        others = f" ({len(over)} tasks are so)" if len(over) > 1 else ""
        what = "alone may cost" if _costs(dearest.assignee, spec) else "may cost in its next round of reviews"
        fields.add(
            f"the plan's budget_usd is {limit:g}, and task {label(dearest.code)} {what} "
            f"{dearest.budget_usd:g}{others}: lower a task's budget_usd, or raise the plan's",
            "budget_usd",
        )


def _costs(assignee: str, spec: PlanSpec) -> bool:
    """Whether an attempt claims its budget: a person and a program cost nothing."""
    agent = spec.agents.get(assignee)
    return agent is not None and agent.sdk_type == "claude"


def _env_allow(fields: Fields) -> tuple[str, ...]:
    names = fields.texts("env_allow", "names of variables", max_items=COMMANDS_MAX, max_bytes=WORD_MAX_CHARS)
    for name in names:
        if not ENV_NAME.fullmatch(name):
            fields.add(f"{shown(name)} is no name of an environment variable", "env_allow")
        elif name.upper().startswith(ENV_RESERVED):
            fields.add(f"{shown(name)} can't be passed on: the runner sets such variables itself", "env_allow")
    return names


def _network_allow(fields: Fields) -> tuple[str, ...]:
    """The hosts, each in the one spelling that whoever compares them expects."""
    hosts: dict[str, None] = {}
    for text in fields.texts("network_allow", "hosts", max_items=HOSTS_MAX, max_bytes=WORD_MAX_CHARS):
        try:
            hosts[str(parse_host_pattern(text))] = None
        except BadHostPattern as error:
            fields.add(f"{shown(text)} is no host to reach: {error}", "network_allow")
    return tuple(hosts)
