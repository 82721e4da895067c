"""Open streams end when their reader may not read on, at whichever gateway."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, suppress
from datetime import UTC, datetime, timedelta

import pytest
from nats.aio.client import Client
from sqlalchemy import delete, update

from services.gateway.accounts import tokens
from services.gateway.accounts.access import AccountWatch, Caller, caller_of
from services.gateway.accounts.sessions import Sessions
from services.gateway.database.engine import Database
from services.gateway.database.tables import ApiToken, User
from shared.bus import BusSettings, connect
from shared.clock import new_id
from tests.nats_process import NatsServer

PATIENCE_S = 60.0
NOW = datetime.now(UTC)
SESSIONS = Sessions("s" * 16 + "0123456789abcdef")
TOKEN = tokens.make_token()
Change = Callable[[str], object]
CHANGES: dict[str, Change] = {
    "freezing": lambda user: update(User).where(User.id == user).values(is_frozen=True),
    "a change of role": lambda user: update(User).where(User.id == user).values(role="admin"),
    "the end of sessions": lambda user: update(User).where(User.id == user).values(session_version=2),
    "revoking the token": lambda user: delete(ApiToken).where(ApiToken.user_id == user),
}
ENDS = {
    "freezing": {"session", "token"},
    "a change of role": {"session", "token"},
    "the end of sessions": {"session"},
    "revoking the token": {"token"},
}


@pytest.fixture
async def clients(nats_url: NatsServer) -> AsyncIterator[tuple[Client, Client]]:
    settings = BusSettings(nats_url.url, nats_url.user, nats_url.password)
    pair = (await connect(settings, "here"), await connect(settings, "there"))
    yield pair
    for client in pair:
        await client.close()


async def add_user(db: Database) -> tuple[str, dict[str, Caller]]:
    """The id of a new account, and its callers by a session and by a token."""
    user = new_id()
    async with db.write() as session:
        session.add(
            User(
                id=user, name="ann", role="user", password_hash=None, is_frozen=False, session_version=1, created_at=NOW
            )
        )
        await session.flush()
        hash_ = tokens.hash_of(TOKEN)
        session.add(ApiToken(id=new_id(), user_id=user, name="ci", token_hash=hash_, created_at=NOW))
    session_token, _ = SESSIONS.give(user, 1, NOW)
    return user, {
        "session": await caller_of(db, SESSIONS, session_token, NOW),
        "token": await caller_of(db, SESSIONS, TOKEN, NOW),
    }


async def watch(db: Database, client: Client) -> AccountWatch:
    started = AccountWatch(db, client)
    await started.start()
    await client.flush()  # the server knows of it
    return started


@pytest.mark.parametrize("change", CHANGES)
async def test_streams_end_at_all_gateways_with(db: Database, clients: tuple[Client, Client], change: str) -> None:
    here, there = await watch(db, clients[0]), await watch(db, clients[1])
    user, callers = await add_user(db)
    async with AsyncExitStack() as stack:
        followed = {
            (place, kind): await stack.enter_async_context(watching.following(caller))
            for place, watching in (("here", here), ("there", there))
            for kind, caller in callers.items()
        }
        assert not any(ended.is_set() for ended in followed.values())
        async with db.write() as session:
            await session.execute(CHANGES[change](user))  # type: ignore[call-overload]  # update and delete share no type
        await here.announce(user)
        for (place, kind), ended in followed.items():
            if kind in ENDS[change]:
                await asyncio.wait_for(ended.wait(), PATIENCE_S)
                assert not await here.still_active(callers[kind])
            else:
                assert not ended.is_set(), f"{kind} {place}"
                assert await here.still_active(callers[kind])


async def test_gateway_ends_its_own_streams_even_while_nats_is_away(db: Database, own_nats: NatsServer) -> None:
    settings = BusSettings(own_nats.url, own_nats.user, own_nats.password)
    client = await connect(settings, "here")
    here = await watch(db, client)
    user, callers = await add_user(db)
    async with here.following(callers["session"]) as ended:
        own_nats.kill()
        async with db.write() as session:
            await session.execute(update(User).where(User.id == user).values(is_frozen=True))
        await here.announce(user)
        assert ended.is_set()
    with suppress(ConnectionError):  # nats-py still wants to tell the server
        await client.close()


async def test_stream_of_an_account_that_was_frozen_a_moment_ago_ends_at_once(
    db: Database, clients: tuple[Client, Client]
) -> None:
    here = await watch(db, clients[0])
    user, callers = await add_user(db)
    async with db.write() as session:
        await session.execute(update(User).where(User.id == user).values(is_frozen=True))
    async with here.following(callers["token"]) as ended:
        assert ended.is_set()


async def test_other_accounts_streams_go_on(db: Database, clients: tuple[Client, Client]) -> None:
    here = await watch(db, clients[0])
    _, callers = await add_user(db)
    async with here.following(callers["session"]) as ended:
        await here.announce(new_id())
        assert not ended.is_set()


async def test_session_that_ran_out_is_not_active(db: Database, clients: tuple[Client, Client]) -> None:
    _, callers = await add_user(db)
    later = AccountWatch(db, clients[0], clock=lambda: NOW + timedelta(hours=12))
    assert not await later.still_active(callers["session"])
    assert await later.still_active(callers["token"])
