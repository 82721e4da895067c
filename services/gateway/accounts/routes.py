"""Routes: logging in, who one is, one's password and one's API tokens."""

from datetime import datetime
from typing import Annotated, Any

import msgspec
from litestar import Request, Router, delete, get, post
from litestar.datastructures import State
from litestar.di import NamedDependency, Provide
from litestar.params import FromPath, JSONBody
from sqlalchemy import select, update

from services.gateway.accounts import audit, login_limit, tokens
from services.gateway.accounts.access import Caller
from services.gateway.accounts.audit import list_audit_log
from services.gateway.accounts.passwords import GivenPassword, NewPassword
from services.gateway.accounts.users import AccountName, UserView, user_view, users_router
from services.gateway.database.tables import ApiToken, User
from services.gateway.idempotency import ids_of
from services.gateway.paging import Asked, Order, Page, asked_page
from services.gateway.problems import Problem, ProblemError, bad_request, documented, not_found, unauthorized
from shared.clock import utc_now

TokenName = Annotated[str, msgspec.Meta(max_length=200, pattern=r"^[^\x00-\x20\x7f-\x9f][^\x00-\x1f\x7f-\x9f]*(?!\n)$")]
EXPIRY_YEAR_MAX = 9000
_TOKENS = Order({"name": ApiToken.name, "created_at": ApiToken.created_at}, id_=ApiToken.id, default="-created_at")
_TOO_MANY_TOKENS = Problem(
    status=409,
    code="too_many_tokens",
    title="Too many tokens",
    detail=f"an account has at most {tokens.PER_ACCOUNT_MAX} tokens: revoke one first",
)
_WRONG_PASSWORD = Problem(
    status=403, code="wrong_password", title="Wrong password", detail="`old` is not the account's present password"
)


class Login(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who somebody says they are."""

    name: Annotated[str, msgspec.Meta(max_length=255)]
    password: GivenPassword


class SessionView(msgspec.Struct, frozen=True):
    """A session. The token is sent as `Authorization: Bearer …`; to log out, forget it."""

    token: str
    expires_at: datetime
    user: UserView


class PasswordChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One's old and new password."""

    old: GivenPassword
    new: NewPassword


class NewToken(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An API token to be made."""

    name: TokenName
    """What it is for."""
    expires_at: datetime | None = None
    """None: it is good until it is revoked."""


class TokenView(msgspec.Struct, frozen=True, kw_only=True):
    """An API token, without what it says."""

    id: str
    name: str
    created_at: datetime
    last_used_at: datetime | None
    """To the minute."""
    expires_at: datetime | None


class TokenShown(TokenView, frozen=True, kw_only=True):
    """A new API token."""

    token: str
    """Shown this once: only its hash is kept."""


@post("/login", status_code=200, responses=documented(400, 401, 429))
async def log_in(data: JSONBody[Login], request: Request[Any, Any, Any], state: State) -> SessionView:
    """Opens a session of twelve hours.

    In a quarter of an hour five logins may fail with one name from one address, twenty from one address, and fifty
    with one name.
    """
    now, name, address = utc_now(), data.name.lower(), _address(request)
    await login_limit.count_attempt(state.db, name, address, now)
    user = None
    if _is_account_name(name):
        async with state.db.read() as session:
            user = await session.scalar(select(User).where(User.name == name))
    checked = await state.passwords.check(user.password_hash if user else None, data.password)
    if user is None or not checked.is_right or user.is_frozen:
        raise unauthorized("the name or the password is wrong, or the account is frozen")
    async with state.db.write() as session:
        await login_limit.forgive(session, name, address, now)
        if checked.new_hash is not None:
            same = (User.id == user.id) & (User.password_hash == user.password_hash)
            await session.execute(update(User).where(same).values(password_hash=checked.new_hash))
    return _session(state, user, now)


@get("/me", responses=documented(401))
async def me(request: Request[Caller, Any, Any], state: State) -> UserView:
    """Who one is."""
    async with state.db.read() as session:
        return user_view(await session.get_one(User, request.user.id))


@post("/password", status_code=200, responses=documented(400, 401, _WRONG_PASSWORD, 429))
async def change_password(
    data: JSONBody[PasswordChange], request: Request[Caller, Any, Any], state: State
) -> SessionView:
    """Changes one's own password. All sessions end; the answer is a new one. API tokens stay."""
    now, name, address = utc_now(), request.user.name, _address(request)
    await login_limit.count_attempt(state.db, name, address, now)
    async with state.db.read() as session:
        before = await session.get_one(User, request.user.id)
    if not (await state.passwords.check(before.password_hash, data.old)).is_right:
        raise ProblemError(403, _WRONG_PASSWORD.code, _WRONG_PASSWORD.title, _WRONG_PASSWORD.detail)
    new_hash = await state.passwords.hash(data.new)
    async with state.db.write() as session:
        await login_limit.forgive(session, name, address, now)
        user = await session.get_one(User, request.user.id, with_for_update=True)
        if user.is_frozen or user.password_hash != before.password_hash:
            raise unauthorized("the account was changed at this moment: log in again")
        user.password_hash = new_hash
        user.session_version += 1
        await audit.record(session, request.user.actor, "user.password_changed", user.id, {}, now)
    await state.watch.announce(user.id)
    return _session(state, user, now)


@get("/tokens", dependencies={"asked": Provide(asked_page)}, responses=documented(400, 401))
async def list_tokens(
    request: Request[Caller, Any, Any], state: State, asked: NamedDependency[Asked]
) -> Page[TokenView]:
    """One's own API tokens, the newest first."""
    async with state.db.read() as session:
        rows, next_ = await _TOKENS.fetch(session, select(ApiToken).where(ApiToken.user_id == request.user.id), asked)
    return Page([TokenView(**_fields(row)) for row in rows], next_)


@post("/tokens", responses=documented(400, 401, _TOO_MANY_TOKENS))
async def create_token(data: JSONBody[NewToken], request: Request[Caller, Any, Any], state: State) -> TokenShown:
    """Makes an API token. The answer alone shows it."""
    now, token = utc_now(), tokens.make_token()
    if data.expires_at is not None and data.expires_at.tzinfo is None:
        raise bad_request("expires_at", "a time needs a zone, such as 2031-01-31T12:00:00Z")
    if data.expires_at is not None and (data.expires_at <= now or data.expires_at.year > EXPIRY_YEAR_MAX):
        raise bad_request("expires_at", f"must be in the future, and not after the year {EXPIRY_YEAR_MAX}")
    row = ApiToken(
        id=ids_of(request).new_id(),
        user_id=request.user.id,
        name=data.name,
        token_hash=tokens.hash_of(token),
        created_at=now,
        last_used_at=None,
        expires_at=data.expires_at,
    )
    async with state.db.write() as session:
        await tokens.add(session, row)
        details = {"name": row.name, "expires_at": row.expires_at.isoformat() if row.expires_at else None}
        await audit.record(session, request.user.actor, "token.created", row.id, details, now)
    return TokenShown(token=token, **_fields(row))


@delete("/tokens/{token_id:str}", responses=documented(401, 404))
async def revoke_token(token_id: FromPath[str], request: Request[Caller, Any, Any], state: State) -> None:
    """Revokes one of one's own API tokens, at once."""
    async with state.db.write() as session:
        if not await tokens.revoke(session, request.user.id, token_id):
            raise not_found(f"token {token_id}", "GET /api/auth/tokens")
        await audit.record(session, request.user.actor, "token.revoked", token_id, {}, utc_now())
    await state.watch.announce(request.user.id)


def _session(state: State, user: User, now: datetime) -> SessionView:
    token, expires_at = state.sessions.give(user.id, user.session_version, now)
    return SessionView(token, expires_at, user_view(user))


def _address(request: Request[Any, Any, Any]) -> str:
    return request.client.host if request.client else ""


def _is_account_name(name: str) -> bool:
    try:
        msgspec.convert(name, AccountName)
    except msgspec.ValidationError:
        return False
    return True


def _fields(row: ApiToken) -> dict[str, Any]:
    return {name: getattr(row, name) for name in TokenView.__struct_fields__}


accounts_router = Router(
    path="/",
    route_handlers=[
        Router(
            path="/auth",
            tags=["auth"],
            route_handlers=[log_in, me, change_password, list_tokens, create_token, revoke_token],
        ),
        users_router,
        Router(path="/", tags=["audit"], route_handlers=[list_audit_log]),
    ],
)
