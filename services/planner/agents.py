"""Who does the tasks: the project's agents, the plan's own, and which of them an assignee means."""

from collections.abc import Iterable, Mapping
from typing import Literal, get_args

import msgspec

from services.planner.faults import FaultList, found, label, listed, shown
from services.planner.fields import Fields
from shared.spec import (
    AGENT_NAME_MAX_CHARS,
    AGENTS_MAX,
    COMMAND_MAX_BYTES,
    COMMANDS_MAX,
    DEFAULT_MODEL,
    MODEL_NAME,
    AgentSpec,
    ProjectAgent,
    SdkType,
)

_SDK_TYPES: tuple[SdkType, ...] = get_args(SdkType)
_CLAUDE: Literal["claude"] = "claude"
_WRITABLE = tuple(name for name in AgentSpec.__struct_fields__ if name not in ("agent_id", "agent_type_id"))
"""Ids are the gateway's to give: with them a plan could work with credentials that are not its project's."""


class Team(msgspec.Struct, frozen=True, kw_only=True):
    """What a plan's project says about who may do its tasks."""

    mode: Literal["auto", "manual"] = "auto"
    agents: tuple[ProjectAgent, ...] = ()


NO_TEAM = Team()
"""A plan that is looked at by itself, as `treadle validate` does."""


class Roster:
    """Everybody that a task of one plan can be given to.

    An assignee is an agent's slug, else its name, else its type. The names under a plan's own `agents` are slugs too.
    In auto mode `claude` needs no declaration where nobody else is called so.
    """

    def __init__(self, team: Team = NO_TEAM) -> None:
        self._team = team
        self._known = {agent.slug: agent for agent in team.agents}
        self._slugs = {agent.slug.casefold(): agent.slug for agent in team.agents}
        self._names: dict[str, list[str]] = {}
        """Names and, below them, types: folded → slugs."""
        self._types: dict[str, list[str]] = {}
        self._own: dict[str, AgentSpec] = {}
        self._own_names: list[str] = []
        """Also those with faults: a task that names one of them is not at fault itself."""
        self._used: dict[str, AgentSpec] = {}
        for agent in team.agents:
            self._names.setdefault(agent.name.casefold(), []).append(agent.slug)
            for kind in {agent.type_name.casefold(), agent.spec.sdk_type or ""} - {""}:
                self._types.setdefault(kind, []).append(agent.slug)

    def add_own(self, agents: Mapping[str, AgentSpec]) -> None:
        """Agents that a plan declared and that were found valid."""
        for name, agent in agents.items():
            self._slugs.setdefault(name.casefold(), name)
            self._own_names.append(name)
            self._keep_own(name, agent)

    def read_own(self, plan: Fields) -> None:
        """Adds what the plan declares under `agents`; notes what is wrong with it."""
        declared = plan.mapping("agents")
        if declared is None:
            return
        if self._team.mode == "manual" and declared:
            plan.add("a manual project's plan can't declare agents: give the project the agents it needs", "agents")
        if len(declared) > AGENTS_MAX:
            plan.add(f"{len(declared):,} agents are too many: at most {AGENTS_MAX}", "agents")
        names = Fields(declared, plan.faults, place="agents.")
        names.check_names()
        for name, entry in list(declared.items())[:AGENTS_MAX]:
            if isinstance(name, str):
                self._declare(str(name), entry, names)

    def spec(self) -> dict[str, AgentSpec]:
        """Every agent of the plan's own, and of the others those that its tasks were given to."""
        return {**self._own, **self._used}

    def resolve(self, task: Fields, field: str = "assignee") -> str:
        """The agent that the task's `field` means; notes a fault and answers `""` where that isn't one agent."""
        if not task.given(field):
            return self._only_one(task, field)
        wanted = task.id_text(field)
        if wanted is None:
            return ""
        folded = wanted.strip().casefold()
        if wanted in self._known or wanted in self._own_names:
            return self._taken(wanted, task, field)
        if folded in self._slugs:
            return self._taken(self._slugs[folded], task, field)
        for of_that, what in ((self._names.get(folded), "have the name"), (self._types.get(folded), "are of the type")):
            if of_that and len(of_that) > 1:
                task.add(f"{len(of_that)} agents {what} {shown(wanted)}; name one: {listed(of_that)}", field)
                return ""
            if of_that:
                return self._taken(of_that[0], task, field)
        if folded == _CLAUDE and self._team.mode == "auto":
            return self._implicit_claude()
        self._unknown(wanted, task, field)
        return ""

    def agent(self, slug: str) -> AgentSpec | None:
        """What `resolve` has found."""
        return self._own.get(slug) or self._used.get(slug)

    def needs_words(self, slug: str) -> bool:
        """Whether a task of that agent is nothing without a description."""
        agent = self.agent(slug)
        return agent is not None and agent.sdk_type != "command"

    def _everybody(self) -> list[str]:
        return [*self._own_names, *self._known]

    def _only_one(self, task: Fields, field: str) -> str:
        everybody = self._everybody()
        if len(everybody) == 1:
            return self._taken(everybody[0], task, field)
        if everybody:
            where = "the project has" if self._known else "the plan has"
            task.missing(field, f": {where} {len(everybody)} agents; name one: {listed(everybody)}")
            return ""
        if self._team.mode == "auto":
            return self._implicit_claude()
        task.missing(field, ": the project has no agents yet; add some to it")
        return ""

    def _taken(self, slug: str, task: Fields, field: str) -> str:
        """Notes where the agent can't be given anything in this project."""
        agent = self._known.get(slug)
        if agent is None:
            return slug
        if agent.unusable:
            task.add(f"{shown(slug)} can't be given a task now: it {agent.unusable}", field)
        elif agent.spec.is_auto != (self._team.mode == "auto"):
            mode, other = self._team.mode, "an automatic" if agent.spec.is_auto else "a manual"
            task.add(f"{shown(slug)} is {other} agent: this project is {mode} and takes only {mode} ones", field)
        spec = agent.spec
        if spec.sdk_type == _CLAUDE and spec.model is None:
            spec = msgspec.structs.replace(spec, model=DEFAULT_MODEL)
        self._used[slug] = spec
        return slug

    def _implicit_claude(self) -> str:
        self._used.setdefault(_CLAUDE, AgentSpec(sdk_type=_CLAUDE, model=DEFAULT_MODEL))
        return _CLAUDE

    def _unknown(self, wanted: str, task: Fields, field: str) -> None:
        everybody = self._everybody()
        whose = "of this project" if self._team != NO_TEAM else "of this plan"
        if everybody:
            names = [*everybody, *(agent.name for agent in self._team.agents)]
            nearest = task.faults.did_you_mean(wanted, dict.fromkeys(names))
            hint = nearest or f"; it has {listed(everybody)}"
        elif self._team.mode == "manual":
            hint = "; it has none yet"
        else:
            hint = '; it declares none, and only "claude" needs no declaration under "agents"'
        task.add(f"{shown(wanted)} is not an agent {whose}{hint}", field)

    def _declare(self, name: str, entry: object, names: Fields) -> None:
        line = names.line_of(name)
        before = self._slugs.setdefault(name.casefold(), name)
        if before in self._known:
            _note(names.faults, f"the project has an agent {shown(before)} already: call this one otherwise", line)
        elif before != name:
            _note(names.faults, f"the names {shown(before)} and {shown(name)} differ only in case", line)
        self._own_names.append(name)
        if not name.strip() or len(name) > AGENT_NAME_MAX_CHARS or not name.isprintable():
            rule = f"1 to {AGENT_NAME_MAX_CHARS} printable characters"
            _note(names.faults, f"{shown(name)} is no name for an agent: {rule}", line)
        place = f"agents.{label(name)}"
        if not isinstance(entry, dict):
            example = '{sdk_type: claude} or {sdk_type: command, command: ["sh", "-c", "…"]}'
            names.faults.add(f"expected a mapping such as {example}, found {found(entry)}", field=place, line=line)
            return
        agent = _agent(Fields(entry, names.faults, place=f"{place}."))
        if agent is not None:
            self._keep_own(name, agent)

    def _keep_own(self, name: str, agent: AgentSpec) -> None:
        self._own[name] = agent
        if agent.sdk_type:
            self._types.setdefault(agent.sdk_type, []).append(name)


def own_agents(declared: Mapping[str, AgentSpec], others: Iterable[str]) -> dict[str, AgentSpec]:
    """Of a valid plan's agents those that it declares itself; `others` are called so in its project now."""
    taken = {slug.casefold() for slug in others}
    return {name: a for name, a in declared.items() if not a.agent_id and name.casefold() not in taken}


def _note(faults: FaultList, message: str, line: int | None) -> None:
    faults.add(message, field="agents", line=line)


def _agent(fields: Fields) -> AgentSpec | None:
    fields.check_names(_WRITABLE)
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
