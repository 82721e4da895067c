"""Who does the tasks: the plan's `agents`, and which of them an assignee means."""

from typing import Literal, get_args

from services.planner.faults import found, label, listed, shown
from services.planner.fields import Fields
from shared.spec import (
    AGENT_NAME_MAX_CHARS,
    AGENTS_MAX,
    COMMAND_MAX_BYTES,
    COMMANDS_MAX,
    DEFAULT_MODEL,
    MODEL_NAME,
    AgentSpec,
    SdkType,
)

_SDK_TYPES: tuple[SdkType, ...] = get_args(SdkType)
_CLAUDE: Literal["claude"] = "claude"


class Roster:
    """The agents that a plan declares, and `claude`, which needs no declaration."""

    def __init__(self, plan: Fields) -> None:
        self._agents: dict[str, AgentSpec] = {}
        self._declared: list[str] = []
        """Also those with faults: a task that names one of them is not at fault itself."""
        self._folded: dict[str, str] = {}
        declared = plan.mapping("agents")
        if declared is None:
            return
        if len(declared) > AGENTS_MAX:
            plan.add(f"{len(declared):,} agents are too many: at most {AGENTS_MAX}", "agents")
        names = Fields(declared, plan.faults, place="agents.")
        names.check_names()
        for name, entry in list(declared.items())[:AGENTS_MAX]:
            if isinstance(name, str):
                self._declare(str(name), entry, names)

    def spec(self) -> dict[str, AgentSpec]:
        """Every declared agent, and `claude` if a task uses it undeclared."""
        return dict(self._agents)

    def resolve(self, task: Fields) -> str:
        """The agent that the task's `assignee` means; notes a fault and answers `""` where that isn't one agent."""
        if not task.given("assignee"):
            return self._only_one(task)
        wanted = task.id_text("assignee")
        if wanted is None:
            return ""
        if wanted in self._declared:
            return wanted
        folded = wanted.strip().casefold()
        if folded in self._folded:
            return self._folded[folded]
        of_type = [name for name, agent in self._agents.items() if agent.sdk_type == folded]
        if len(of_type) == 1:
            return of_type[0]
        if of_type:
            task.add(f"{len(of_type)} agents are of the type {shown(wanted)}; name one: {listed(of_type)}", "assignee")
            return ""
        if folded == _CLAUDE:
            return self._implicit_claude()
        self._unknown(wanted, task)
        return ""

    def is_claude(self, name: str) -> bool:
        agent = self._agents.get(name)
        return agent is not None and agent.sdk_type == _CLAUDE

    def _only_one(self, task: Fields) -> str:
        if not self._declared:
            return self._implicit_claude()
        if len(self._declared) == 1:
            return self._declared[0]
        task.missing("assignee", f": the plan has {len(self._declared)} agents; name one: {listed(self._declared)}")
        return ""

    def _implicit_claude(self) -> str:
        self._agents.setdefault(_CLAUDE, AgentSpec(sdk_type=_CLAUDE, model=DEFAULT_MODEL))
        return _CLAUDE

    def _unknown(self, wanted: str, task: Fields) -> None:
        if self._declared:
            nearest = task.faults.did_you_mean(wanted, self._declared)
            hint = nearest or f"; it has {listed(self._declared)}"
        else:
            hint = '; it declares none, and only "claude" needs no declaration under "agents"'
        task.add(f"{shown(wanted)} is not an agent of this plan{hint}", "assignee")

    def _declare(self, name: str, entry: object, names: Fields) -> None:
        line = names.line_of(name)
        before = self._folded.setdefault(name.casefold(), name)
        if before != name:
            names.faults.add(
                f"the names {shown(before)} and {shown(name)} differ only in case", field="agents", line=line
            )
        self._declared.append(name)
        if not name.strip() or len(name) > AGENT_NAME_MAX_CHARS or not name.isprintable():
            names.faults.add(
                f"{shown(name)} is no name for an agent: 1 to {AGENT_NAME_MAX_CHARS} printable characters",
                field="agents",
                line=line,
            )
        place = f"agents.{label(name)}"
        if not isinstance(entry, dict):
            example = '{sdk_type: claude} or {sdk_type: command, command: ["sh", "-c", "…"]}'
            names.faults.add(f"expected a mapping such as {example}, found {found(entry)}", field=place, line=line)
            return
        agent = _agent(Fields(entry, names.faults, place=f"{place}."))
        if agent is not None:
            self._agents[name] = agent


def _agent(fields: Fields) -> AgentSpec | None:
    fields.check_names(AgentSpec.__struct_fields__)
    sdk_type = _sdk_type(fields)
    command = fields.texts("command", "arguments", max_items=COMMANDS_MAX, max_bytes=COMMAND_MAX_BYTES)
    model = fields.line_text("model", max_chars=128)
    if model is not None and not MODEL_NAME.fullmatch(model):
        fields.add(f"{shown(model)} is no name of a model", "model")
    if sdk_type is None:
        return None
    if sdk_type == "command":
        if fields.given("model"):
            fields.add("an agent of the type command has no model", "model")
        if not command:
            fields.missing("command", ': the program and its arguments, such as ["sh", "-c", "…"]')
        return AgentSpec(sdk_type=sdk_type, command=command)
    if fields.given("command"):
        fields.add(f"an agent of the type {sdk_type} has no command", "command")
    return AgentSpec(sdk_type=sdk_type, model=model or DEFAULT_MODEL)


def _sdk_type(fields: Fields) -> SdkType | None:
    if not fields.given("sdk_type"):
        fields.missing("sdk_type", f": one of {listed(_SDK_TYPES)}")
        return None
    written = fields.line_text("sdk_type", max_chars=1000)
    for known in _SDK_TYPES:
        if written == known:
            return known
    if written is not None:
        nearest = fields.faults.did_you_mean(written, _SDK_TYPES)
        fields.add(f"{shown(written)} is no type of agent: one of {listed(_SDK_TYPES)}{nearest}", "sdk_type")
    return None
