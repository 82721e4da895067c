"""Routes of agent types."""

from typing import Annotated, Any

import msgspec
from litestar import Request, Response, delete, get, patch, post
from litestar.datastructures import State
from litestar.di import NamedDependency, Provide
from litestar.params import FromPath, HeaderParameter, JSONBody, QueryParameter
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from services.gateway.accounts import audit
from services.gateway.accounts.access import Caller
from services.gateway.agents.bodies import (
    AgentTypeChanges,
    AgentTypeView,
    NewAgentType,
    TestWish,
    checked_api_key,
    checked_base_url,
    checked_command,
    checked_model,
    checked_models,
    checked_name,
)
from services.gateway.agents.connection_test import NO_RUNNER, try_out
from services.gateway.agents.lookup import admins_among, find_type, flush_named, locked_type
from services.gateway.agents.roster import model_of
from services.gateway.agents.visibility import check_may_change, in_use, may_change, seen_by, taken
from services.gateway.conditions import ETAG, check_if_match, etag
from services.gateway.credentials import stored
from services.gateway.credentials.keyring import CredentialUnreadable
from services.gateway.credentials.origins import Origin, origin
from services.gateway.database.tables import Agent, AgentType
from services.gateway.idempotency import ids_of
from services.gateway.paging import Asked, Order, Page, asked_page
from services.gateway.patch import given
from services.gateway.problems import Problem, ProblemError, bad_request, documented
from shared.clock import utc_now
from shared.requests import TestReply
from shared.spec import SdkType

TYPES = Order({"name": AgentType.name, "created_at": AgentType.created_at}, id_=AgentType.id, default="name")
AGENTS_SHOWN_MAX = 5

IfMatch = Annotated[str | None, HeaderParameter(name="If-Match", description="The ETag that was read; optional.")]
TextFilter = Annotated[str | None, QueryParameter(max_length=128, pattern=r"^[^\x00]*\Z")]

_TAKEN = taken("an agent type called", "Claude").problem
_USED = in_use("agent type Claude", "agent coder", "delete or change that agent first").problem
_WOULD_CLEAR = Problem(
    status=409,
    code="would_clear_credentials",
    title="Its key would be removed",
    detail="an agent type for people has no key: send clear_credentials true with it to remove the one that is stored",
)
_WOULD_MOVE = "the key that is stored belongs to the present sdk_type and the present scheme, host and port of "
_WOULD_MOVE += "api_base_url: send the key with it (api_key), or clear_credentials true to remove it"
_NOTHING_TO_TEST = Problem(
    status=409,
    code="nothing_to_test",
    title="Nothing to test",
    detail="agent type People has no model that could be reached: only those of the sdk_type claude have",
)
_UNREADABLE = Problem(
    status=409,
    code="credential_unreadable",
    title="The key can't be decrypted",
    detail="the agent secret of 5f0c5e5e9f6b4d3e8a1b2c3d is encrypted with key 'k1', which the gateway's keyring does "
    "not hold: put that key back into its file, or set the secret anew",
)


@get("/agent-types", dependencies={"asked": Provide(asked_page)}, responses=documented(400, 401))
async def list_agent_types(
    state: State, request: Request[Caller, Any, Any], asked: NamedDependency[Asked], name: TextFilter = None
) -> Page[AgentTypeView]:
    """One's own agent types and the public ones; an admin's list has all of them."""
    query = select(AgentType).where(seen_by(request.user, AgentType))
    if name is not None:
        query = query.where(AgentType.name == name)
    async with state.db.read() as session:
        rows, next_ = await TYPES.fetch(session, query, asked)
        return Page(await _views(session, request.user, rows), next_)


@post("/agent-types", status_code=201, response_headers=[ETAG], responses=documented(400, 401, _TAKEN))
async def create_agent_type(
    data: JSONBody[NewAgentType], state: State, request: Request[Caller, Any, Any]
) -> Response[AgentTypeView]:
    """Makes an agent type. An admin's is public."""
    caller, now, type_id = request.user, utc_now(), ids_of(request).new_id()
    api_key = _fitting_key(data.api_key, data.sdk_type)
    row = AgentType(
        id=type_id,
        owner_id=caller.id,
        name=checked_name(data.name),
        sdk_type=data.sdk_type,
        command=checked_command(data.command, data.sdk_type),
        api_base_url=_fitting_url(data.api_base_url, state, caller),
        models=checked_models(data.models),
        created_at=now,
        version=1,
    )
    async with state.db.write() as session:
        made_before = await session.get(AgentType, type_id)
        if made_before is None:
            session.add(row)
            await flush_named(session, "an agent type called", row.name)
            details = {"name": row.name, "sdk_type": row.sdk_type}
            await audit.record(session, caller.actor, "agent_type.created", row.id, details, now)
            if api_key is not None:
                await stored.set_api_key(session, state.keyring, row.id, api_key, caller.actor, now)
        return await _answer(session, caller, made_before or row, 201)


@get("/agent-types/{agent_type:str}", response_headers=[ETAG], responses=documented(401, 404))
async def read_agent_type(
    agent_type: FromPath[str], state: State, request: Request[Caller, Any, Any]
) -> Response[AgentTypeView]:
    """One agent type."""
    async with state.db.read() as session:
        return await _answer(session, request.user, await find_type(session, request.user, agent_type), 200)


@patch(
    "/agent-types/{agent_type:str}",
    response_headers=[ETAG],
    responses=documented(400, 401, 403, 404, _TAKEN, _USED, _WOULD_CLEAR, 412),
)
async def change_agent_type(
    agent_type: FromPath[str],
    data: JSONBody[AgentTypeChanges],
    state: State,
    request: Request[Caller, Any, Any],
    if_match: IfMatch = None,
) -> Response[AgentTypeView]:
    """Changes what is given. `sdk_type: null` gives the type to people, who need no key: see `clear_credentials`.

    A key stays where it is sent to: with another `sdk_type`, or another scheme, host or port of `api_base_url`, it is
    to be given again, or removed.
    """
    caller, now, changes = request.user, utc_now(), given(data)
    async with state.db.write() as session:
        row = await locked_type(session, caller, agent_type)
        check_if_match(if_match, row.version)
        wanted = _wanted(row, changes, state, caller)
        fields = [field for field, value in wanted.items() if value != getattr(row, field)]
        if "models" in fields:
            await _refuse_lost_models(session, row, wanted["models"])
        has_moved = "sdk_type" in fields or (
            "api_base_url" in fields and _origin(row.api_base_url) != _origin(wanted["api_base_url"])
        )
        for field in fields:
            setattr(row, field, wanted[field])
        await flush_named(session, "an agent type called", row.name)
        if await _change_key(session, row, changes, state, caller, has_moved=has_moved):
            fields.append("api_key")
        if fields:
            row.version += 1
            await audit.record(session, caller.actor, "agent_type.changed", row.id, {"fields": fields}, now)
        return await _answer(session, caller, row, 200)


@delete("/agent-types/{agent_type:str}", status_code=204, responses=documented(400, 401, 403, 404, _USED, 412))
async def delete_agent_type(
    agent_type: FromPath[str], state: State, request: Request[Caller, Any, Any], if_match: IfMatch = None
) -> None:
    """Removes an agent type that no agent is of, and its key."""
    caller, now = request.user, utc_now()
    async with state.db.write() as session:
        row = await locked_type(session, caller, agent_type)
        check_if_match(if_match, row.version)
        agents = select(Agent.name).where(Agent.agent_type_id == row.id).order_by(Agent.name).limit(AGENTS_SHOWN_MAX)
        if names := list(await session.scalars(agents)):
            raise in_use(f"agent type {row.name}", _agents(names), "delete them or give them another type first")
        await stored.clear(session, "agent", row.id, caller.actor, now)
        await session.delete(row)
        await audit.record(session, caller.actor, "agent_type.deleted", row.id, {"name": row.name}, now)


@post(
    "/agent-types/{agent_type:str}/test",
    status_code=200,
    responses=documented(400, 401, 403, 404, _NOTHING_TO_TEST, _UNREADABLE, NO_RUNNER),
)
async def test_agent_type(
    agent_type: FromPath[str], data: JSONBody[TestWish], state: State, request: Request[Caller, Any, Any]
) -> TestReply:
    """Has a runner make one minimal request to the model, and tells in words what came of it."""
    async with state.db.read() as session:
        row = await find_type(session, request.user, agent_type)
        check_may_change(request.user, row)
        if row.sdk_type != "claude":
            detail = f"agent type {row.name} has no model that could be reached: only those of the sdk_type claude have"
            raise ProblemError(409, _NOTHING_TO_TEST.code, _NOTHING_TO_TEST.title, detail)
        model = checked_model("model", model_of(row, data.model))
        try:
            credentials = await stored.read_agent_credentials(session, state.keyring, row)
        except CredentialUnreadable as error:
            raise ProblemError(409, _UNREADABLE.code, _UNREADABLE.title, str(error)) from error
    plaintext = msgspec.json.encode(credentials) if credentials is not None else None
    return await try_out(state.nc, "agent", plaintext, sdk_type="claude", model=model)


def _wanted(row: AgentType, changes: dict[str, Any], state: State, caller: Caller) -> dict[str, Any]:
    """The columns as they are to be: checked where they are given, and as a whole."""
    sdk_type = changes.get("sdk_type", row.sdk_type)
    command = changes.get("command", row.command) or []
    wanted: dict[str, Any] = {"sdk_type": sdk_type, "command": checked_command(command, sdk_type)}
    if "name" in changes:
        wanted["name"] = checked_name(changes["name"])
    if "models" in changes:
        wanted["models"] = checked_models(changes["models"] or [])
    if "api_base_url" in changes:
        wanted["api_base_url"] = _fitting_url(changes["api_base_url"], state, caller)
    return wanted


def _fitting_url(url: str | None, state: State, caller: Caller) -> str | None:
    local = state.settings.local_repositories
    return checked_base_url(url, allow_local=local, allow_private_hosts=local or caller.is_admin) if url else None


def _fitting_key(api_key: str | None, sdk_type: str | None) -> str | None:
    if api_key is not None and sdk_type is None:
        raise bad_request("api_key", "an agent type for people (sdk_type null) needs no key")
    return checked_api_key(api_key) if api_key is not None else None


async def _change_key(
    session: AsyncSession, row: AgentType, changes: dict[str, Any], state: State, caller: Caller, *, has_moved: bool
) -> bool:
    """Sets or clears the key, as the changes say and as the type needs. False where nothing changed."""
    api_key = _fitting_key(changes.get("api_key"), row.sdk_type)
    if api_key is not None:
        await stored.set_api_key(session, state.keyring, row.id, api_key, caller.actor, utc_now())
        return True
    is_asked_to = "api_key" in changes or changes["clear_credentials"]
    must_go = row.sdk_type is None or has_moved
    if must_go and not is_asked_to and await stored.has(session, "agent", row.id):
        detail = _WOULD_CLEAR.detail if row.sdk_type is None else _WOULD_MOVE
        raise ProblemError(409, _WOULD_CLEAR.code, _WOULD_CLEAR.title, detail)
    if must_go or "api_key" in changes:
        return await stored.clear(session, "agent", row.id, caller.actor, utc_now())
    return False


def _origin(url: str | None) -> Origin | None:
    return origin(url) if url is not None else None


async def _refuse_lost_models(session: AsyncSession, row: AgentType, models: list[str]) -> None:
    if not models:
        return
    lost = select(Agent.name).where(Agent.agent_type_id == row.id, Agent.model.not_in(models))
    if names := list(await session.scalars(lost.order_by(Agent.name).limit(AGENTS_SHOWN_MAX))):
        raise in_use("a model that would go", _agents(names), "give them another model first")


def _agents(names: list[str]) -> str:
    return f"agent {', '.join(names)}{' and more' if len(names) == AGENTS_SHOWN_MAX else ''}"


async def _answer(session: AsyncSession, caller: Caller, row: AgentType, status: int) -> Response[AgentTypeView]:
    [view] = await _views(session, caller, [row])
    return Response(view, status_code=status, headers={"ETag": etag(row.version)})


async def _views(session: AsyncSession, caller: Caller, rows: list[AgentType]) -> list[AgentTypeView]:
    admins = await admins_among(session, {row.owner_id for row in rows})
    hints = await stored.hints(session, "agent", [row.id for row in rows if may_change(caller, row)])
    return [
        AgentTypeView(
            id=row.id,
            owner_id=row.owner_id,
            name=row.name,
            sdk_type=msgspec.convert(row.sdk_type, SdkType | None),
            command=row.command,
            api_base_url=row.api_base_url,
            models=row.models,
            is_auto=row.sdk_type is not None,
            is_public=row.owner_id in admins,
            has_api_key=row.id in hints if may_change(caller, row) else None,
            api_key_hint=hints.get(row.id) or None,
            created_at=row.created_at,
            version=row.version,
        )
        for row in rows
    ]


TYPE_ROUTES = [
    list_agent_types, create_agent_type, read_agent_type, change_agent_type, delete_agent_type, test_agent_type,
]  # fmt: skip
