"""Accounts, projects and webhooks as rows, and what plans do as events."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from sqlalchemy import select

from services.gateway.credentials import stored
from services.gateway.credentials.keyring import Keyring
from services.gateway.database.engine import Database
from services.gateway.database.tables import Delivery, Project, User, Webhook
from services.gateway.notifications.bodies import ALL_EVENTS
from services.gateway.notifications.sender import Secrets
from shared import events as e
from shared.clock import new_id
from shared.store import EventStore, Meta

START = datetime(2026, 1, 1, tzinfo=UTC)
SECRET = "a made-up secret"
DISPATCHER = Meta(actor="dispatcher")


class SetClock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now

    def go_on(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


async def add(db: Database, row: Any) -> Any:
    async with db.write() as session:
        session.add(row)
    return row


async def user(db: Database, name: str, role: str = "user") -> str:
    row = User(
        id=new_id(), name=name, role=role, password_hash=None, is_frozen=False, session_version=1, created_at=START
    )
    return str((await add(db, row)).id)


async def project(db: Database, owner: str, name: str = "Shop") -> str:
    row = Project(
        id=new_id(),
        owner_id=owner,
        name=name,
        mode="auto",
        code_repo_url="https://git.example.com/a/b.git",
        collab_dir="treadle",
        planning_mode="balanced",
        task_timeout_minutes=30.0,
        max_parallel=4,
        delivery="branch",
        setup=[],
        env_allow=[],
        created_at=START,
    )
    return str((await add(db, row)).id)


async def webhook(
    db: Database,
    owner: str,
    keyring: Keyring | None = None,
    url: str = "http://127.0.0.1:9/",
    secret: str = SECRET,
    **fields: Any,
) -> str:
    """Without a keyring it has no address."""
    columns: dict[str, Any] = {
        "name": "Hook",
        "url_shown": "http://127.0.0.1/…",
        "preset": "generic",
        "has_secret": True,
        "events": list(ALL_EVENTS),
        "project_ids": None,
        "is_active": True,
        "after": 0,
        "created_at": START,
    } | fields
    row = await add(db, Webhook(id=new_id(), owner_id=owner, **columns))
    if keyring is not None:
        plaintext = msgspec.json.encode(Secrets(url=url, secret=secret))
        async with db.write() as session:
            await stored.set_webhook_secrets(session, keyring, row.id, plaintext, "user:test", START)
    return str(row.id)


async def deliveries(db: Database, webhook_id: str | None = None) -> Sequence[Delivery]:
    """In the order of the events that they are about."""
    query = select(Delivery).order_by(Delivery.seq, Delivery.event, Delivery.task_code)
    async with db.read() as session:
        return [row for row in await session.scalars(query) if webhook_id in (None, row.webhook_id)]


async def happens(store: EventStore, plan: str, entity: str, event: e.Event, meta: Meta = DISPATCHER) -> int:
    """Appends an event as it is: what comes of it is folded, whatever was before."""
    return await store.append(plan, entity, event, meta, expected=await store.last_seq(plan, entity))


def failed(message: str = "it broke", cost_usd: float = 0.0) -> e.TaskFailed:
    return e.TaskFailed(lease=1, kind="agent_error", message=message, usage=e.Usage(cost_usd=cost_usd))


def asked(why: str = "may I?") -> e.TaskApprovalRequested:
    return e.TaskApprovalRequested(
        lease=1, approval="0" * 64, kind="tool", tool="Bash", input='{"command": "secret"}', why=why, expires_at=START
    )
