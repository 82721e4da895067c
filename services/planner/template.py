"""Templates: plans with slots for agents and with inputs.

A template is filled in as a tree, not as a text, and once: an input becomes (a part of) one value and can neither add
anything to the plan nor hold a placeholder of its own.
"""

import re
from collections.abc import Callable, Mapping, Sequence

import msgspec

from services.planner.agents import Team
from services.planner.edit import plan_faults
from services.planner.faults import Fault, FaultList, PlanFaults, found, label, refusal, shown
from services.planner.half import TASK_NAMES
from services.planner.parse import parse_text
from services.planner.plantext import plan_text
from services.planner.template_values import Definition, Given, is_needed, there_are, written
from services.planner.tree import Plain, Row, Table
from services.planner.validate import validate
from shared.requests import RenderReply, RenderRequest, TemplateText
from shared.spec import PLAN_MAX_BYTES, AgentSpec, ProjectAgent

KEY_MAX_CHARS = 200
SAID_MAX_CHARS = 1_000
"""Of an input, in the plan's goal."""
_PLACEHOLDER = re.compile(r"\{\{([A-Za-z0-9][A-Za-z0-9_-]{0,62})\}\}")
_SPACED = re.compile(r"\{\{[ \t]*+([A-Za-z0-9][A-Za-z0-9_-]{0,62})[ \t]*+\}\}")
_UNQUOTED = re.compile(r"[:-] +\{\{")
_SLOT_FIELDS = ("assignee", "fixer")
_FIXED_FIELDS = ("code", "depends_on", "reviews")
_COMMAND_FIELDS = ("verify", "setup", "command")
_Field = Callable[[str, object, int | None], object]


def render(template: TemplateText, roles: Mapping[str, str], inputs: Mapping[str, Given]) -> str:
    """The plan file with these agents (slot → slug) and inputs, for the planner to read like any other.

    Raises `PlanFaults` with everything that is missing, unknown or of the wrong kind.
    """
    faults = FaultList()
    known = Definition(template, faults)
    tree = _filled(known, template.text, roles, inputs)
    faults.raise_if_any()
    _tell(tree, known, roles, inputs)
    return plan_text(tree)


def check(template: TemplateText) -> tuple[Fault, ...]:
    """What keeps it from being a template: with made-up agents and inputs a valid plan has to come out.

    That is asked twice, with all inputs and with only those that are needed.
    """
    made_up = {role.slot: f"made-up-agent-{place}" for place, role in enumerate(template.roles, start=1)}
    spec = AgentSpec(sdk_type="command", command=("true",))
    agents = [ProjectAgent(slug=slug, name=slug, type_name="made-up", spec=spec) for slug in made_up.values()]
    for only_needed in (False, True):
        faults = FaultList()
        try:
            known = Definition(template, faults)
            names = [one.name for one in template.inputs if is_needed(one) or not only_needed]
            tree = _filled(known, template.text, made_up, known.made_up(names))
        except PlanFaults as stopped:
            return stopped.faults
        if told := _both(faults, tree, Team(agents=tuple(agents))):
            return told
    return ()


def answer(request: RenderRequest) -> RenderReply:
    """The planner's answer to a `RenderRequest`."""
    if request.check_only:
        return RenderReply(faults=plan_faults(check(request.template)))
    try:
        return RenderReply(text=render(request.template, request.roles, request.inputs))
    except PlanFaults as stopped:
        return RenderReply(faults=plan_faults(stopped.faults))


def _filled(known: Definition, text: str, roles: Mapping[str, str], inputs: Mapping[str, Given]) -> dict[str, object]:
    """The plan's tree; what is wrong is noted, or raised where nothing else can be looked at."""
    return _Filling(known, known.agents(roles), known.values(inputs)).plan(_parsed(text))


def _tell(tree: dict[str, object], known: Definition, roles: Mapping[str, str], inputs: Mapping[str, Given]) -> None:
    """Adds to the plan's goal, which every prompt has, who has which part and what was said: a prompt stands alone."""
    goal = tree.get("goal") or ""
    if not isinstance(goal, str):
        return
    parts = [f"- {roles[slot]}: {told}" for slot, told in known.slots.items() if told]
    said = [f"- {name}: {_in_short(value)}" for name, value in known.values(inputs).items() if value not in (None, "")]
    sections = [goal.rstrip()] if goal.strip() else []
    sections += ["Who has which part:\n" + "\n".join(parts)] if parts else []
    sections += ["What was said for this plan:\n" + "\n".join(said)] if said else []
    if sections[1:] or not goal:
        tree["goal"] = "\n\n".join(sections) or None


def _in_short(value: Given | None) -> str:
    """On lines of its own where it has several, and cut: the tasks that need it whole have it whole."""
    text = written(value) if value is not None else ""
    cut = text if len(text) <= SAID_MAX_CHARS else f"{text[:SAID_MAX_CHARS]} …"
    return cut.replace("\n", "\n  ")


def _both(faults: FaultList, tree: object, team: Team) -> tuple[Fault, ...]:
    """The template's own faults, and those that the plan has elsewhere."""
    own: tuple[Fault, ...] = ()
    try:
        faults.raise_if_any()
    except PlanFaults as stopped:
        own = stopped.faults
    try:
        validate(tree, team)
    except PlanFaults as stopped:
        places = {(fault.task, fault.field) for fault in own}
        return (*own, *(fault for fault in stopped.faults if (fault.task, fault.field) not in places))
    return own


class _Filling:
    """One walk through a template's tree."""

    def __init__(self, known: Definition, agents: dict[str, str], values: dict[str, Given | None]) -> None:
        self._known = known
        self._faults = known.faults
        self._agents = agents
        self._values = values
        self._sizes = {name: 0 if value is None else len(written(value).encode()) for name, value in values.items()}
        self._size = 0
        self._used_slots: set[str] = set()
        self._used_inputs: set[str] = set()
        self._own: list[str] = []
        self._task: str | None = None

    def plan(self, tree: object) -> dict[str, object]:
        """A new tree; notes what of the template is wrong or is used nowhere."""
        if not isinstance(tree, dict):
            raise refusal(f'a plan is a mapping with "name" and "tasks", found {found(tree)}')
        declared = tree.get("agents")
        self._own = [str(name) for name in declared] if isinstance(declared, dict) else []
        for name in self._own:
            if name in self._known.slots:
                self._faults.add("is both a slot and an agent of the plan's own", field=f"roles.{label(name)}")
        filled = self._table(tree, self._plan_field)
        for slot in self._known.slots:
            if slot not in self._used_slots:
                self._faults.add("no task is given to this slot: use it or remove it", field=f"roles.{slot}")
        for name in self._known.inputs:
            if name not in self._used_inputs:
                self._faults.add(f"{{{{{name}}}}} stands nowhere: use it or remove it", field=f"inputs.{name}")
        return filled

    def _plan_field(self, name: str, value: object, line: int | None) -> object:
        if name == "tasks" and isinstance(value, list):
            tasks = Row(getattr(value, "line", 0))
            for place, (item, at) in enumerate(zip(value, _lines(value), strict=True), start=1):
                self._task = _code_of(item, place)
                filled = self._table(item, self._task_field) if isinstance(item, dict) else item
                if isinstance(filled, dict) and isinstance(item, dict):
                    self._check_assignee(item)
                tasks.append(filled)
                tasks.lines.append(at)
            self._task = None
            return tasks
        return self._value(name, value, line)

    def _task_field(self, name: str, value: object, line: int | None) -> object:
        ours = TASK_NAMES.get(name, name)
        if ours in _SLOT_FIELDS and isinstance(value, str):
            return self._agent(name, value, line)
        if ours in (*_SLOT_FIELDS, *_FIXED_FIELDS) and (held := _placeholder_in(value)):
            message = (
                f"{held} can't stand here: an input must not change which tasks there are and how they hang together"
            )
            self._faults.add(message, task=self._task, field=label(name), line=line)
            return value
        return self._value(name, value, line)

    def _agent(self, name: str, value: str, line: int | None) -> object:
        slots = self._known.slots
        if value in slots:
            self._used_slots.add(value)
            return self._agents.get(value, value)
        folded = value.strip().casefold()
        if folded not in ("claude", *(own.casefold() for own in self._own)):
            hint = self._faults.did_you_mean(value, slots) or there_are("it has", slots)
            what = "a slot is named without braces" if "{{" in value else f"{shown(value)} is no slot of this template"
            self._faults.add(f"{what}{hint}", task=self._task, field=label(name), line=line)
        return value

    def _check_assignee(self, task: dict[str, object]) -> None:
        """With the agents of some project, a task that names nobody might be anybody's."""
        given = {TASK_NAMES.get(name, name) for name, value in task.items() if value is not None}
        if self._known.slots and not given & {"assignee", "max_review_rounds"}:
            self._faults.add(
                f"is missing: name a slot{there_are('it has', self._known.slots)}",
                task=self._task,
                field="assignee",
                line=getattr(task, "line", None),
            )

    def _table(self, table: dict[str, object], field: _Field) -> Table:
        filled = Table(getattr(table, "line", 0))
        lines: dict[str, int] = getattr(table, "lines", {})
        filled.repeated = getattr(table, "repeated", {})
        filled.lines = lines
        for name, value in table.items():
            line = lines.get(name)
            if len(name) > KEY_MAX_CHARS or _placeholder_in(name):
                why = "is too long" if len(name) > KEY_MAX_CHARS else "holds a placeholder; only values can"
                self._faults.add(f"the field's name {why}", task=self._task, field=label(name), line=line)
                continue
            new = field(name, value, line)
            if new is not None or value is None:
                filled[name] = new
        return filled

    def _value(self, name: str, value: object, line: int | None) -> object:
        """The same with its placeholders filled in; None for one whose optional input is not given."""
        if isinstance(value, dict):
            return self._table(value, self._value)
        if isinstance(value, list):
            row = Row(getattr(value, "line", 0))
            for item, at in zip(value, _lines(value), strict=True):
                new = self._value(name, item, at)
                if new is not None or item is None:
                    row.append(new)
                    row.lines.append(at)
            return row
        return self._text(name, value, line) if isinstance(value, str) else value

    def _text(self, name: str, text: str, line: int | None) -> object:
        self._note_unknown(name, text, line)
        used = [hit for hit in _PLACEHOLDER.findall(text) if hit in self._known.inputs]
        self._used_inputs.update(used)
        self._size += len(text.encode()) + sum(self._sizes[hit] for hit in used)
        if self._size > PLAN_MAX_BYTES:  # said before it is made: a short text may name a long input very often
            raise refusal(f"with these inputs the plan would have more than {PLAN_MAX_BYTES:,} bytes", line)
        if not used:
            return text
        if _PLACEHOLDER.fullmatch(text):
            value = self._values[used[0]]
            return value if value is None or isinstance(value, str) else Plain(written(value))
        if name in _COMMAND_FIELDS:
            self._note_code(name, [hit for hit in used if self._known.inputs[hit].type == "text"], line)
        return _PLACEHOLDER.sub(self._written_for, text)

    def _written_for(self, hit: re.Match[str]) -> str:
        value = self._values.get(hit.group(1), hit.group())
        return "" if value is None else written(value)

    def _note_unknown(self, name: str, text: str, line: int | None) -> None:
        for hit in _SPACED.finditer(text):
            exact, inner = _PLACEHOLDER.fullmatch(hit.group()), hit.group(1)
            if exact is None and inner in self._known.inputs:
                message = f"{shown(hit.group())} is no placeholder: write {{{{{inner}}}}}, without blanks"
            elif exact is not None and inner not in self._known.inputs:
                hint = self._faults.did_you_mean(inner, self._known.inputs) or there_are("it has", self._known.inputs)
                message = f"{hit.group()} is no input of this template{hint}"
            else:
                continue
            self._faults.add(message, task=self._task, field=label(name), line=line)

    def _note_code(self, name: str, texts: list[str], line: int | None) -> None:
        """A shell would take apart what it is given: a text may be a whole command, in the open, not a part of one."""
        for hit in dict.fromkeys(texts):
            message = (
                f"{{{{{hit}}}}} is a text, which may be a command but not a part of one: make it the whole, or a choice"
            )
            self._faults.add(message, task=self._task, field=label(name), line=line)


def _parsed(text: str) -> object:
    try:
        return parse_text(text)
    except PlanFaults as stopped:
        lines = text.splitlines()
        hint = "; a value that begins with {{ needs quotes around it"
        raise PlanFaults(
            [
                msgspec.structs.replace(fault, message=fault.message + hint)
                if fault.line and _UNQUOTED.search("".join(lines[fault.line - 1 : fault.line]))
                else fault
                for fault in stopped.faults
            ]
        ) from None


def _placeholder_in(value: object) -> str:
    """The first placeholder somewhere in it; empty: there is none."""
    if isinstance(value, list):
        return next(filter(None, map(_placeholder_in, value)), "")
    hit = _PLACEHOLDER.search(value) if isinstance(value, str) else None
    return hit.group() if hit else ""


def _code_of(task: object, place: int) -> str:
    code = (task.get("code") or task.get("task_code")) if isinstance(task, dict) else None
    return label(code) if isinstance(code, str) and code.strip() else f"#{place}"


def _lines(row: list[object]) -> Sequence[int]:
    return row.lines if isinstance(row, Row) else [0] * len(row)
