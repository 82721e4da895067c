"""Plain data → plan, or every fault at once."""

import re

from services.planner import half
from services.planner.agents import Roster
from services.planner.faults import FaultList, found, label, refusal, shown
from services.planner.fields import WORD_MAX_CHARS, Fields, id_of
from services.planner.graph import cycles
from shared.spec import (
    ATTEMPTS_MAX,
    BACKOFF_MAX_S,
    BUDGET_MAX_USD,
    BUDGET_MIN_USD,
    COMMAND_MAX_BYTES,
    COMMANDS_MAX,
    DESCRIPTION_MAX_BYTES,
    MAX_PARALLEL_MAX,
    NAME_MAX_CHARS,
    OUTPUT_PATH_MAX_CHARS,
    PLAN_MAX_BYTES,
    TASK_CODE,
    TASKS_MAX,
    TIMEOUT_MAX_MINUTES,
    TIMEOUT_MIN_MINUTES,
    PlanSpec,
    Retry,
    TaskSpec,
    encode_spec,
)

CYCLE_SHOWN_MAX = 20
"""Tasks of a cycle that a message spells out."""

_PLAN_FIELDS = (*PlanSpec.__struct_fields__, "budget_usd")
_TASK_FIELDS = (*TaskSpec.__struct_fields__, "requires_approval")
_PLAN_DEFAULTS = PlanSpec(name="", tasks=(), agents={})
_TASK_DEFAULTS = TaskSpec(code="", name="", assignee="")
_RETRY_DEFAULTS = Retry()
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_ENV_RESERVED = ("ANTHROPIC_", "CLAUDE_", "TREADLE_")
"""The runner sets these itself: with the real key or another address in them an agent could go round its proxy."""


def validate(data: object) -> PlanSpec:
    """The plan in `data`: mappings, lists, texts, numbers, as a reader or a JSON decoder left them.

    HALF's names are accepted; defaults are filled in; every assignee becomes a key of `agents`. Raises `PlanFaults`
    with every fault (the first `FAULTS_MAX`), in the order of the text.
    """
    if not isinstance(data, dict):
        raise refusal(f'a plan is a mapping with "name" and "tasks", found {found(data)}')
    faults = FaultList()
    plan, twice = half.plan_in_our_names(data)
    fields = Fields(plan, faults)
    _note_twice(fields, twice)
    fields.check_names(_PLAN_FIELDS)
    fields.refuse("budget_usd", "a budget of the whole plan is not supported yet: it would be ignored; set it per task")
    if not fields.given("name"):
        fields.missing("name")
    name = fields.line_text("name", max_chars=NAME_MAX_CHARS)
    roster = Roster(fields)
    tasks = _Tasks(fields, roster).read()
    spec = PlanSpec(
        name=name or "",
        goal=fields.long_text("goal", max_bytes=DESCRIPTION_MAX_BYTES),
        max_parallel=fields.whole(
            "max_parallel", low=1, high=MAX_PARALLEL_MAX, unit="tasks", default=_PLAN_DEFAULTS.max_parallel
        ),
        setup=fields.texts("setup", "commands", max_items=COMMANDS_MAX, max_bytes=COMMAND_MAX_BYTES),
        env_allow=_env_allow(fields),
        tasks=tasks,
        agents=roster.spec(),
    )
    faults.raise_if_any()
    size = len(encode_spec(spec))
    if size > PLAN_MAX_BYTES:
        raise refusal(f"the plan has {size:,} bytes; at most {PLAN_MAX_BYTES:,}: shorten the descriptions")
    return spec


class _Tasks:
    """The tasks of one plan, while they are read."""

    def __init__(self, plan: Fields, roster: Roster) -> None:
        self._plan = plan
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
        return specs

    def _entry(self, item: dict[str, object], place: int) -> tuple[Fields, str]:
        """First pass: codes, so that the second can tell whether what a task depends on is there."""
        task, twice = half.task_in_our_names(item)
        fields = Fields(task, self._faults, task=f"#{place}")
        written = id_of(task.get("code")) or task.get("code")
        if isinstance(written, str) and written.strip():
            fields.task = label(written)
        _note_twice(fields, twice)
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

    def _task(self, fields: Fields, code: str) -> TaskSpec:
        fields.check_names(_TASK_FIELDS)
        if fields.boolean("requires_approval"):
            fields.add("is not supported yet: it would be ignored", "requires_approval")
        name = fields.line_text("name", max_chars=NAME_MAX_CHARS)
        assignee = self._roster.resolve(fields)
        description = fields.long_text("description", max_bytes=DESCRIPTION_MAX_BYTES)
        if not fields.given("name") and not description.strip() and self._roster.is_claude(assignee):
            fields.missing("description", ", and so is a name: there is nothing to tell the agent")
        return TaskSpec(
            code=code,
            name=name or code,
            assignee=assignee,
            description=description,
            depends_on=self._depends_on(fields, code),
            expected_output=_expected_output(fields),
            timeout_minutes=fields.number(
                "timeout_minutes",
                low=TIMEOUT_MIN_MINUTES,
                high=TIMEOUT_MAX_MINUTES,
                unit="minutes",
                default=_TASK_DEFAULTS.timeout_minutes,
            ),
            verify=fields.texts("verify", "commands", max_items=COMMANDS_MAX, max_bytes=COMMAND_MAX_BYTES),
            retry=_retry(fields),
            budget_usd=fields.number(
                "budget_usd",
                low=BUDGET_MIN_USD,
                high=BUDGET_MAX_USD,
                unit="US dollars per attempt",
                default=_TASK_DEFAULTS.budget_usd,
            ),
        )

    def _depends_on(self, fields: Fields, code: str) -> tuple[str, ...]:
        needed: dict[str, None] = {}
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


def _note_twice(fields: Fields, twice: list[tuple[str, str]]) -> None:
    for first, second in twice:
        fields.add(f"{shown(first)} and {shown(second)} mean the same; keep one of them")


def _retry(fields: Fields) -> Retry | None:
    retry = fields.mapping("retry")
    if retry is None:
        return None
    inner = Fields(retry, fields.faults, task=fields.task, place="retry.")
    inner.check_names(Retry.__struct_fields__)
    return Retry(
        max_attempts=inner.whole(
            "max_attempts", low=1, high=ATTEMPTS_MAX, unit="attempts", default=_RETRY_DEFAULTS.max_attempts
        ),
        backoff_s=inner.number(
            "backoff_s", low=0, high=BACKOFF_MAX_S, unit="seconds", default=_RETRY_DEFAULTS.backoff_s
        ),
    )


def _expected_output(fields: Fields) -> str | None:
    path = fields.line_text("expected_output", max_chars=OUTPUT_PATH_MAX_CHARS)
    if path is None:
        return None
    why = None
    if path.startswith(("/", "~")) or re.match(r"[A-Za-z]:", path):
        why = "it is absolute"
    elif "\\" in path:
        why = 'it has a backslash; write "/"'
    elif ".." in path.split("/"):
        why = 'it has ".."'
    elif ".git" in (part.lower() for part in path.split("/")):
        why = "it lies in git's own folder"
    if why:
        fields.add(f"{shown(path)} is not a path inside the repository: {why}", "expected_output")
    return path


def _env_allow(fields: Fields) -> tuple[str, ...]:
    names = fields.texts("env_allow", "names of variables", max_items=COMMANDS_MAX, max_bytes=WORD_MAX_CHARS)
    for name in names:
        if not _ENV_NAME.fullmatch(name):
            fields.add(f"{shown(name)} is no name of an environment variable", "env_allow")
        elif name.upper().startswith(_ENV_RESERVED):
            fields.add(f"{shown(name)} can't be passed on: the runner sets such variables itself", "env_allow")
    return names
