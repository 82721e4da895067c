"""The accounts that a gateway makes by itself: `admin` with a password, `local` with the machine's token."""

from datetime import datetime

from sqlalchemy import delete, func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from services.gateway.accounts import audit, tokens
from services.gateway.accounts.passwords import Passwords
from services.gateway.database.engine import Database
from services.gateway.database.tables import ApiToken, User
from services.gateway.settings import Settings
from shared.clock import new_id

ADMIN = "admin"
LOCAL = "local"
"""Whoever can read the machine's token file. Nobody else may have this name."""
_LOCAL_TOKEN_NAME = "gateway.token"  # noqa: S105 - a name


async def ensure_first_accounts(db: Database, passwords: Passwords, settings: Settings, now: datetime) -> None:
    """Makes what the settings ask for and what is not there yet. Several gateways may do so at once."""
    try:
        await _ensure(db, passwords, settings, now)
    except IntegrityError:  # another gateway was faster by a moment: now its rows are seen
        await _ensure(db, passwords, settings, now)


async def _ensure(db: Database, passwords: Passwords, settings: Settings, now: datetime) -> None:
    async with db.read() as session:
        is_empty = await _is_empty(session)
    admin_hash = None
    if is_empty and settings.admin_password is not None:
        admin_hash = await passwords.hash(settings.admin_password)  # takes its time: no transaction waits for it
    async with db.write() as session:
        if admin_hash is not None and await _is_empty(session):
            await _add_admin(session, ADMIN, admin_hash, now)
        await _ensure_local(session, settings.local_token, now)


async def _is_empty(session: AsyncSession) -> bool:
    return not await session.scalar(select(func.count()).select_from(User))


async def _add_admin(session: AsyncSession, name: str, password_hash: str | None, now: datetime) -> User:
    user = User(
        id=new_id(),
        name=name,
        role="admin",
        password_hash=password_hash,
        is_frozen=False,
        session_version=1,
        created_at=now,
    )
    session.add(user)
    await session.flush()
    await audit.record(session, audit.SYSTEM, "user.created", user.id, {"name": name, "role": "admin"}, now)
    return user


async def _ensure_local(session: AsyncSession, token: str | None, now: datetime) -> None:
    """Exactly the present token opens `local`; none does where the gateway has none, on a network for instance."""
    user = await session.scalar(select(User).where(User.name == LOCAL))
    if user is None and token is None:
        return
    if user is None:
        user = await _add_admin(session, LOCAL, None, now)
    is_ours = (ApiToken.user_id == user.id) & (ApiToken.name == _LOCAL_TOKEN_NAME)
    wanted = tokens.hash_of(token) if token is not None else None
    stored = set(await session.scalars(select(ApiToken.token_hash).where(is_ours)))
    if stored == ({wanted} if wanted else set()):
        return
    await session.execute(delete(ApiToken).where(is_ours))
    if wanted is not None:
        session.add(ApiToken(id=new_id(), user_id=user.id, name=_LOCAL_TOKEN_NAME, token_hash=wanted, created_at=now))
    await audit.record(session, audit.SYSTEM, "token.replaced", user.id, {"name": _LOCAL_TOKEN_NAME}, now)
