"""The accounts that a gateway makes by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import func, select

from services.gateway.accounts.access import caller_of
from services.gateway.accounts.first_accounts import ensure_first_accounts
from services.gateway.accounts.passwords import Passwords
from services.gateway.accounts.sessions import Sessions
from services.gateway.database.engine import Database
from services.gateway.database.tables import AuditEntry, User
from services.gateway.problems import ProblemError
from services.gateway.settings import Settings
from shared.bus import BusSettings
from shared.clock import utc_now

SESSIONS = Sessions("0123456789abcdef" * 2)
PASSWORD = "the operator's choice"


@pytest.fixture(scope="module")
def passwords() -> Iterator[Passwords]:
    made = Passwords()
    yield made
    made.close()


def settings(db: Database, admin_password: str | None = None, local_token: str | None = None) -> Settings:
    return Settings(
        host="127.0.0.1",
        port=0,
        bus=BusSettings("nats://127.0.0.1:1"),
        database=db.url,
        keyring_file=Path("keyring.json"),
        session_secret="0123456789abcdef" * 2,
        admin_password=admin_password,
        local_token=local_token,
    )


async def users(db: Database) -> dict[str, User]:
    async with db.read() as session:
        return {user.name: user for user in await session.scalars(select(User))}


async def test_empty_database_gets_the_admin_of_the_password_file_once(db: Database, passwords: Passwords) -> None:
    await ensure_first_accounts(db, passwords, settings(db, PASSWORD), utc_now())
    await ensure_first_accounts(db, passwords, settings(db, "another password"), utc_now())
    found = await users(db)
    assert set(found) == {"admin"}
    assert found["admin"].role == "admin"
    assert (await passwords.check(found["admin"].password_hash, PASSWORD)).is_right


async def test_nothing_is_made_where_nothing_was_asked_for(db: Database, passwords: Passwords) -> None:
    await ensure_first_accounts(db, passwords, settings(db), utc_now())
    assert await users(db) == {}


async def test_gateways_that_start_at_once_make_each_account_once(db: Database, passwords: Passwords) -> None:
    wanted = settings(db, PASSWORD, "t" * 40)
    await asyncio.gather(*(ensure_first_accounts(db, passwords, wanted, utc_now()) for _ in range(5)))
    assert set(await users(db)) == {"admin", "local"}
    async with db.read() as session:
        told = select(func.count()).select_from(AuditEntry).where(AuditEntry.action == "user.created")
        assert await session.scalar(told) == 2
    assert (await caller_of(db, SESSIONS, "t" * 40, utc_now())).name == "local"


async def test_only_the_present_token_of_the_machine_opens_local(db: Database, passwords: Passwords) -> None:
    old, new = "o" * 40, "n" * 40
    for token in (old, old, new):
        await ensure_first_accounts(db, passwords, settings(db, local_token=token), utc_now())
    caller = await caller_of(db, SESSIONS, new, utc_now())
    assert (caller.name, caller.is_admin) == ("local", True)
    with pytest.raises(ProblemError):
        await caller_of(db, SESSIONS, old, utc_now())
    await ensure_first_accounts(db, passwords, settings(db), utc_now())
    with pytest.raises(ProblemError):
        await caller_of(db, SESSIONS, new, utc_now())


async def test_frozen_local_stays_frozen(db: Database, passwords: Passwords) -> None:
    wanted = settings(db, local_token="t" * 40)
    await ensure_first_accounts(db, passwords, wanted, utc_now())
    async with db.write() as session:
        (await session.scalars(select(User))).one().is_frozen = True
    await ensure_first_accounts(db, passwords, wanted, utc_now())
    with pytest.raises(ProblemError):
        await caller_of(db, SESSIONS, "t" * 40, utc_now())
