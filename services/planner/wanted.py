"""What a request for a candidate asks of the plan that comes back: valid for its project, and no doors opened."""

import msgspec

from services.planner.agents import Team
from services.planner.faults import Fault, PlanFaults
from services.planner.parse import read_plan
from services.planner.plan_schema import GRANTS
from shared.events import PlanRequested
from shared.spec import DEFAULT_MODEL, AgentSpec, PlanSpec

NO_GRANTS = "an agent may not write it, as it lets the plan's tasks do more than the project allows: leave it out"
IMPLICIT = {"claude": AgentSpec(sdk_type="claude", model=DEFAULT_MODEL)}
"""Whom a project without agents has."""


def team_of(request: PlanRequested) -> Team:
    """Who may be given tasks."""
    return Team(mode=request.mode, agents=request.agents)


def read_wanted(request: PlanRequested, text: str) -> PlanSpec:
    """The plan of an answer to `request`, with its goal where the answer names none. Raises `PlanFaults`.

    An agent's answer rests on what stands in the repository, so anybody may have had a hand in it: what opens doors is
    refused there, and let pass where a person answers.
    """
    spec = read_plan(text, team_of(request))
    if not request.by_hand and (opened := _granted(spec, request)):
        raise PlanFaults([Fault(NO_GRANTS, field=name) for name in opened])
    return spec if spec.goal else msgspec.structs.replace(spec, goal=request.goal)


def _granted(spec: PlanSpec, request: PlanRequested) -> list[str]:
    known = {agent.slug for agent in request.agents}
    own = {name: agent for name, agent in spec.agents.items() if name not in known}
    given = {
        "agents": bool(own) and (bool(known) or own != IMPLICIT),
        "env_allow": bool(spec.env_allow),
        "network_allow": bool(spec.network_allow),
    }
    return [name for name in GRANTS if given[name]]
