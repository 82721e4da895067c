"""Who asks: every request but a few carries a bearer token, a session's or an API token's.

`Caller` is in `request.user` once the middleware has let a request through. The account is read from the database at
every request: whatever one gateway changes holds at once at all of them. For streams, which outlive their request's
check, there is `AccountWatch` (`state.watch`):

    async with state.watch.following(request.user) as ended:
        ...  # stop as soon as `ended` is set, and at each keep-alive: if not await state.watch.still_active(caller)
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

import msgspec
from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler
from litestar.middleware import AbstractAuthenticationMiddleware, AuthenticationResult
from litestar.types import Receive, Scope, Send
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import Error as NatsError
from sqlalchemy import bindparam, select
from sqlalchemy.exc import SQLAlchemyError

from services.gateway.accounts import tokens
from services.gateway.accounts.sessions import Session, Sessions
from services.gateway.database.engine import Database
from services.gateway.database.tables import ApiToken, Role, User
from services.gateway.problems import forbidden, unauthorized
from shared.clock import Clock, utc_now
from shared.subjects import ACCOUNT_CHANGES, account_changed

log = logging.getLogger("treadle.gateway")

OPEN_PATHS = frozenset({"/api/auth/login", "/api/health/live", "/api/health/ready"})
"""Templates of the routes that anybody may ask; `/schema` is open too."""


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """The account behind a request. It was active when the request came."""

    id: str
    name: str
    role: Role
    session_version: int = 0
    """Of a session; 0 with an API token."""
    token_id: str | None = None
    """Of an API token; None with a session."""
    expires_at: datetime | None = None
    """When the session or the token does."""

    @property
    def is_admin(self) -> bool:
        return self.role == "admin"

    @property
    def actor(self) -> str:
        """As events and the audit log name it."""
        return f"user:{self.name}"


def as_role(stored: str) -> Role:
    """A role as a row has it."""
    return "admin" if stored == "admin" else "user"


def admin_only(connection: ASGIConnection[Any, Caller, Any, Any], _: BaseRouteHandler) -> None:
    """A Litestar guard. Answers 403 `forbidden` to everybody but admins."""
    if not connection.user.is_admin:
        raise forbidden("only an admin may do this")


class Authentication(AbstractAuthenticationMiddleware):
    """Lets in who has a valid token, and nobody else but to `OPEN_PATHS`. Answers 401 `unauthorized`."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # By the template of the route that was found, not by the path as it was written.
        template = scope.get("path_template", "")
        if template in OPEN_PATHS or template == "/schema" or template.startswith("/schema/"):
            await self.app(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)

    async def authenticate_request(self, connection: ASGIConnection[Any, Any, Any, Any]) -> AuthenticationResult:
        """The caller of a request. Raises `ProblemError` 401."""
        scheme, _, token = connection.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise unauthorized("send a session's token (POST /api/auth/login) or an API token as a bearer token")
        state = connection.app.state
        caller = await caller_of(state.db, state.sessions, token.strip(), utc_now())
        return AuthenticationResult(user=caller, auth=None)


async def caller_of(db: Database, sessions: Sessions, token: str, now: datetime) -> Caller:
    """Whose token it is. Raises `ProblemError` 401, the same for every reason: a stranger learns nothing from it."""
    session = sessions.read(token)
    caller = await _caller_of_session(db, session) if session else await _caller_of_token(db, token, now)
    if caller is None:
        raise unauthorized("the token is unknown, expired or revoked, or its account is frozen: log in again")
    return caller


# Made once: every request asks one of them, and making it costs as much as asking.
_BY_SESSION = select(User.id, User.name, User.role).where(
    User.id == bindparam("user_id"), User.session_version == bindparam("version"), User.is_frozen.is_(False)
)
_BY_TOKEN = (
    select(User.id, User.name, User.role, ApiToken.id, ApiToken.expires_at, ApiToken.last_used_at)
    .join(User, User.id == ApiToken.user_id)
    .where(ApiToken.token_hash == bindparam("token_hash"), User.is_frozen.is_(False))
)


async def _caller_of_session(db: Database, session: Session) -> Caller | None:
    async with db.look() as connection:
        named = {"user_id": session.user_id, "version": session.version}
        row = (await connection.execute(_BY_SESSION, named)).one_or_none()
    if row is None:
        return None
    id_, name, role = row
    return Caller(id=id_, name=name, role=as_role(role), session_version=session.version, expires_at=session.expires_at)


async def _caller_of_token(db: Database, token: str, now: datetime) -> Caller | None:
    async with db.look() as connection:
        row = (await connection.execute(_BY_TOKEN, {"token_hash": tokens.hash_of(token)})).one_or_none()
    if row is None:
        return None
    id_, name, role, token_id, expires_at, last_used_at = row
    if expires_at is not None and expires_at <= now:
        return None
    if last_used_at is None or last_used_at < now.replace(second=0, microsecond=0):
        await tokens.note_use(db, token_id, now)
    return Caller(id=id_, name=name, role=as_role(role), token_id=token_id, expires_at=expires_at)


class _Follower:
    """A stream that somebody reads."""

    def __init__(self, caller: Caller) -> None:
        self.caller = caller
        self.ended = asyncio.Event()


class AccountWatch:
    """Ends streams whose reader may not read on: frozen, of another role, logged out, with a revoked token."""

    def __init__(self, db: Database, nc: Client, clock: Clock = utc_now) -> None:
        self._db = db
        self._nc = nc
        self._clock = clock
        self._followers: dict[str, set[_Follower]] = {}
        self._subscription: Subscription | None = None

    async def start(self) -> None:
        """Listens to what all gateways tell."""

        async def told(message: Msg) -> None:
            await self._look_again(message.subject.rpartition(".")[2])

        self._subscription = await self._nc.subscribe(ACCOUNT_CHANGES, cb=told)

    async def stop(self) -> None:
        """Listens no more, and ends whatever is followed."""
        if self._subscription is not None:
            await self._subscription.unsubscribe()
        for follower in [f for followers in self._followers.values() for f in followers]:
            follower.ended.set()

    @asynccontextmanager
    async def following(self, caller: Caller) -> AsyncIterator[asyncio.Event]:
        """The event is set as soon as the caller may not read on."""
        follower = _Follower(caller)
        self._followers.setdefault(caller.id, set()).add(follower)
        try:
            if not await self.still_active(caller):  # changed since the request was let through
                follower.ended.set()
            yield follower.ended
        finally:
            self._followers[caller.id].discard(follower)
            if not self._followers[caller.id]:
                del self._followers[caller.id]

    async def still_active(self, caller: Caller) -> bool:
        """Whether the caller may read on. To be asked at each keep-alive: a message of NATS may get lost."""
        return (await self._active(caller.id, [caller]))[0]

    async def announce(self, user_id: str) -> None:
        """To be called once a change of an account is committed. Streams of this gateway are ended when it returns."""
        await self._look_again(user_id)
        try:
            await self._nc.publish(account_changed(user_id))
        except NatsError as error:  # the change is made; streams elsewhere end with their next keep-alive
            log.warning("other gateways were not told that account %s has changed: %s", user_id, error)

    async def _look_again(self, user_id: str) -> None:
        followers = list(self._followers.get(user_id, ()))
        if not followers:
            return
        try:
            active = await self._active(user_id, [follower.caller for follower in followers])
        except (SQLAlchemyError, OSError) as error:
            log.warning(
                "account %s has changed, and the database does not say how: its streams end (%s)", user_id, error
            )
            active = [False] * len(followers)
        for follower, is_active in zip(followers, active, strict=True):
            if not is_active:
                follower.ended.set()

    async def _active(self, user_id: str, callers: Iterable[Caller]) -> list[bool]:
        now = self._clock()
        async with self._db.read() as session:
            account = (
                await session.execute(
                    select(User.role, User.session_version).where(User.id == user_id, User.is_frozen.is_(False))
                )
            ).one_or_none()
            token_ids = set(await session.scalars(select(ApiToken.id).where(ApiToken.user_id == user_id)))
        if account is None:
            return [False for _ in callers]
        role, version = account
        return [
            caller.role == role
            and (caller.expires_at is None or caller.expires_at > now)
            and (caller.token_id in token_ids if caller.token_id else caller.session_version == version)
            for caller in callers
        ]
