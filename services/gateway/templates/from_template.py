"""Route: a plan made from a template, for a project and its agents."""

from collections.abc import Mapping
from typing import Any

from litestar import Request, post
from litestar.datastructures import State
from litestar.params import FromPath, JSONBody

from services.gateway.accounts.access import Caller
from services.gateway.agents.connection_test import NO_RUNNER
from services.gateway.agents.roster import roster
from services.gateway.idempotency import ids_of
from services.gateway.plans.candidates import (
    BAD_COMMIT,
    FIRST,
    Imported,
    checked_commit,
    import_candidate,
    made_before,
)
from services.gateway.plans.commands import REFUSED
from services.gateway.plans.draft_limit import TOO_MANY_DRAFTS, room_for_draft
from services.gateway.plans.head import NO_HEAD, head_of
from services.gateway.plans.lookup import promptly
from services.gateway.plans.planner_client import PLAN_TOO_LARGE, invalid, render
from services.gateway.problems import documented
from services.gateway.projects.lookup import BEING_DELETED, find_open_project
from services.gateway.templates.bodies import Filled, FromTemplate
from services.gateway.templates.lookup import find_template, text_of
from shared.clock import utc_now
from shared.events import PlanFault
from shared.requests import RenderRequest, TemplateText
from shared.spec import ProjectAgent
from shared.subjects import PLAN

AGENTS_TOLD_MAX = 20


@post(
    "/projects/{project:str}/plans/from-template",
    status_code=201,
    responses=documented(
        400, 401, 404, REFUSED, BEING_DELETED, TOO_MANY_DRAFTS, NO_HEAD, PLAN_TOO_LARGE, 422, BAD_COMMIT, NO_RUNNER
    ),
)
async def plan_from_template(
    project: FromPath[str], data: JSONBody[FromTemplate], state: State, request: Request[Caller, Any, Any]
) -> Imported:
    """Makes a plan of a template, with this as its first candidate. Answers 422 with every fault at once."""
    caller, ids = request.user, ids_of(request)
    plan, correlation = ids.new_plan_id(), ids.new_id()
    base_commit = checked_commit(data.base_commit) if data.base_commit is not None else ""
    async with state.db.read() as session:
        row = await find_open_project(session, caller, project)
        agents = await roster(session, row, utc_now())
    if before := made_before(await promptly(state.store.read(plan, PLAN)), correlation):
        return before  # also where the template is gone by now
    async with state.db.read() as session:
        template = await find_template(session, data.template_id)
    text = await _rendered(state, text_of(template), data, agents)
    base_commit = base_commit or await head_of(state, row.id, row.code_repo_url)
    async with room_for_draft(state, caller, row.owner_id):
        seq = await import_candidate(
            state, caller, project, plan, FIRST, text, base_commit, correlation, template=template.id
        )
    return Imported(plan, FIRST, seq)


async def _rendered(state: State, template: TemplateText, data: Filled, agents: tuple[ProjectAgent, ...]) -> str:
    """Raises `ProblemError` 422 with what the planner finds wrong, and with agents that are not the project's."""
    slugs = {agent.spec.agent_id: agent.slug for agent in agents} | {agent.slug: agent.slug for agent in agents}
    roles = {slot: slugs.get(named, named) for slot, named in data.roles.items()}
    reply = await render(state.nc, RenderRequest(template=template, roles=roles, inputs=data.inputs))
    if faults := (*_not_there(template, roles, agents), *reply.faults):
        raise invalid(faults, "The template can't be filled in so")
    return reply.text


def _not_there(template: TemplateText, roles: Mapping[str, str], agents: tuple[ProjectAgent, ...]) -> list[PlanFault]:
    has = [agent.slug for agent in agents]
    known = ", ".join(has[:AGENTS_TOLD_MAX]) + (" and more" if len(has) > AGENTS_TOLD_MAX else "")
    hint = f"it has {known}" if has else "it has none: give it the agents that it needs"
    return [
        PlanFault(
            message=f"roles.{role.slot}: {roles[role.slot][:80]!r} is not an agent of this project; {hint}",
            field=f"roles.{role.slot}",
        )
        for role in template.roles
        if role.slot in roles and roles[role.slot] not in has
    ]
