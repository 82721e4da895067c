"""API tokens: for programs, until they are revoked or expire. Only their hashes are stored."""

import secrets
from datetime import datetime
from hashlib import sha256

from sqlalchemy import delete, func, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from services.gateway.database.engine import Database
from services.gateway.database.tables import ApiToken
from services.gateway.problems import ProblemError

PREFIX = "trd_"
"""Lets scanners for leaked secrets find one."""
PER_ACCOUNT_MAX = 100


def make_token() -> str:
    """256 random bits."""
    return PREFIX + secrets.token_urlsafe(32)


def hash_of(token: str) -> str:
    """SHA-256 in hex: a slow hash would protect nothing, since nobody guesses 256 bits."""
    return sha256(token.encode()).hexdigest()


async def add(session: AsyncSession, row: ApiToken) -> None:
    """Stores a token, in place of one with the same id: a repeated request's, which nobody was shown.

    Raises `ProblemError` 409 `too_many_tokens`.
    """
    others = (ApiToken.user_id == row.user_id) & (ApiToken.id != row.id)
    count = await session.scalar(select(func.count()).select_from(ApiToken).where(others))
    if (count or 0) >= PER_ACCOUNT_MAX:
        detail = f"an account has at most {PER_ACCOUNT_MAX} tokens: revoke one first"
        raise ProblemError(409, "too_many_tokens", "Too many tokens", detail)
    await session.merge(row)


async def revoke(session: AsyncSession, user_id: str, token_id: str) -> bool:
    """False where the account has no such token."""
    gone = await session.scalar(
        delete(ApiToken).where(ApiToken.id == token_id, ApiToken.user_id == user_id).returning(ApiToken.id)
    )
    return gone is not None


async def note_use(db: Database, token_id: str, now: datetime) -> None:
    """Keeps the last use to the minute: one write a minute, not one a request."""
    minute = now.replace(second=0, microsecond=0)
    is_older = or_(ApiToken.last_used_at.is_(None), ApiToken.last_used_at < minute)
    async with db.write() as session:
        await session.execute(update(ApiToken).where(ApiToken.id == token_id, is_older).values(last_used_at=minute))
