"""Routes of templates. Everybody sees and uses all of them; its owner and admins change one."""

from typing import Annotated, Any

import msgspec
from litestar import Request, Response, Router, delete, get, patch, post
from litestar.datastructures import State
from litestar.di import NamedDependency, Provide
from litestar.params import FromPath, HeaderParameter, JSONBody, QueryParameter
from sqlalchemy import select

from services.gateway.accounts import audit
from services.gateway.accounts.access import Caller
from services.gateway.agents.lookup import flush_named
from services.gateway.agents.visibility import taken
from services.gateway.conditions import ETAG, changed, check_if_match, etag
from services.gateway.database.tables import Template
from services.gateway.idempotency import ids_of
from services.gateway.paging import Asked, Flag, Order, Page, asked_page
from services.gateway.patch import given
from services.gateway.plans.planner_client import PLAN_TOO_LARGE, invalid, render
from services.gateway.problems import documented
from services.gateway.templates.bodies import (
    Filled,
    NewTemplate,
    Preview,
    TemplateChanges,
    TemplateItem,
    TemplateView,
    checked,
    template_text,
)
from services.gateway.templates.from_template import plan_from_template
from services.gateway.templates.lookup import check_may_change, find_template, locked_template, text_of
from shared.clock import utc_now
from shared.requests import RenderRequest, TemplateInput, TemplateRole

TEMPLATES = Order({"name": Template.name, "created_at": Template.created_at}, id_=Template.id, default="name")
FIELDS = ("name", "description", "text", "roles", "inputs")

IfMatch = Annotated[str | None, HeaderParameter(name="If-Match", description="The ETag that was read; optional.")]
NameFilter = Annotated[str | None, QueryParameter(max_length=200, pattern=r"^[^\x00]*\Z")]

_WHAT = "a template called"
_TAKEN = taken(_WHAT, "Our way").problem


@get("/templates", dependencies={"asked": Provide(asked_page)}, responses=documented(400, 401))
async def list_templates(
    state: State, asked: NamedDependency[Asked], name: NameFilter = None, is_shipped: Flag = None
) -> Page[TemplateItem]:
    """All templates, without their texts. `is_shipped` tells those that come with Treadle from the others."""
    query = select(Template)
    if name is not None:
        query = query.where(Template.name == name)
    if is_shipped is not None:
        query = query.where(Template.owner_id.is_(None) == (is_shipped == "true"))
    async with state.db.read() as session:
        rows, next_ = await TEMPLATES.fetch(session, query, asked)
    return Page([TemplateItem(**_shown(row)) for row in rows], next_)


@post(
    "/templates", status_code=201, response_headers=[ETAG], responses=documented(400, 401, _TAKEN, PLAN_TOO_LARGE, 422)
)
async def create_template(
    data: JSONBody[NewTemplate], state: State, request: Request[Caller, Any, Any]
) -> Response[TemplateView]:
    """Makes a template: with made-up agents and inputs it must be a valid plan. Answers 422 with every fault."""
    caller, now, template_id = request.user, utc_now(), ids_of(request).new_id()
    columns = checked({field: getattr(data, field) for field in FIELDS})
    await _check_template(state, columns)
    row = Template(id=template_id, owner_id=caller.id, created_at=now, version=1, **columns)
    async with state.db.write() as session:
        made_before = await session.get(Template, template_id)
        if made_before is None:
            session.add(row)
            await flush_named(session, _WHAT, row.name)
            await audit.record(session, caller.actor, "template.created", row.id, {"name": row.name}, now)
        return _answer(made_before or row, 201)


@get("/templates/{template:str}", response_headers=[ETAG], responses=documented(401, 404))
async def read_template(template: FromPath[str], state: State) -> Response[TemplateView]:
    """One template."""
    async with state.db.read() as session:
        return _answer(await find_template(session, template), 200)


@patch(
    "/templates/{template:str}",
    response_headers=[ETAG],
    responses=documented(400, 401, 403, 404, _TAKEN, 412, PLAN_TOO_LARGE, 422),
)
async def change_template(
    template: FromPath[str],
    data: JSONBody[TemplateChanges],
    state: State,
    request: Request[Caller, Any, Any],
    if_match: IfMatch = None,
) -> Response[TemplateView]:
    """Changes what is given. Plans that were made from it stay as they are."""
    caller, now, changes = request.user, utc_now(), checked(given(data))
    async with state.db.read() as session:
        seen = await find_template(session, template)
    check_may_change(caller, seen)
    check_if_match(if_match, seen.version)
    if changes.keys() - {"name", "description"}:
        await _check_template(state, {field: getattr(seen, field) for field in FIELDS} | changes)
    async with state.db.write() as session:
        row = await locked_template(session, caller, template)
        check_if_match(if_match, row.version)
        if row.version != seen.version:  # what was found valid is not what would be stored
            raise changed("somebody else has changed it at the same time: read it again, then decide again")
        fields = [field for field, value in changes.items() if value != getattr(row, field)]
        if fields:
            for field in fields:
                setattr(row, field, changes[field])
            row.version += 1
            await flush_named(session, _WHAT, row.name)
            await audit.record(session, caller.actor, "template.changed", row.id, {"fields": sorted(fields)}, now)
        return _answer(row, 200)


@delete("/templates/{template:str}", status_code=204, responses=documented(400, 401, 403, 404, 412))
async def delete_template(
    template: FromPath[str], state: State, request: Request[Caller, Any, Any], if_match: IfMatch = None
) -> None:
    """Removes a template. Plans that were made from it stay."""
    caller, now = request.user, utc_now()
    async with state.db.write() as session:
        row = await locked_template(session, caller, template)
        check_if_match(if_match, row.version)
        await session.delete(row)
        await audit.record(session, caller.actor, "template.deleted", row.id, {"name": row.name}, now)


@post("/templates/{template:str}/preview", status_code=200, responses=documented(400, 401, 404, PLAN_TOO_LARGE, 422))
async def preview_template(template: FromPath[str], data: JSONBody[Filled], state: State) -> Preview:
    """The plan file that these agents and inputs make. Answers 422 with everything that is missing or wrong."""
    async with state.db.read() as session:
        row = await find_template(session, template)
    filling = RenderRequest(template=text_of(row), roles=data.roles, inputs=data.inputs)
    reply = await render(state.nc, filling)
    if reply.faults:
        raise invalid(reply.faults, "The template can't be filled in so")
    return Preview(reply.text)


async def _check_template(state: State, columns: dict[str, Any]) -> None:
    reply = await render(state.nc, RenderRequest(template=template_text(columns), check_only=True))
    if reply.faults:
        raise invalid(reply.faults, "Not a valid template")


def _shown(row: Template) -> dict[str, Any]:
    return {
        "id": row.id,
        "owner_id": row.owner_id,
        "name": row.name,
        "description": row.description,
        "roles": msgspec.convert(row.roles, list[TemplateRole]),
        "inputs": msgspec.convert(row.inputs, list[TemplateInput]),
        "created_at": row.created_at,
        "version": row.version,
    }


def _answer(row: Template, status: int) -> Response[TemplateView]:
    view = TemplateView(text=row.text, **_shown(row))
    return Response(view, status_code=status, headers={"ETag": etag(row.version)})


templates_router = Router(
    path="/",
    tags=["templates"],
    route_handlers=[
        list_templates, create_template, read_template, change_template, delete_template, preview_template,
        plan_from_template,
    ],
)  # fmt: skip
