"""The audit log: who changed which account, credential or setting, and when. Never a secret."""

from datetime import datetime
from typing import Annotated, Any

import msgspec
from litestar import get
from litestar.datastructures import State
from litestar.di import NamedDependency, Provide
from litestar.params import QueryParameter
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from services.gateway.accounts.access import admin_only
from services.gateway.database.tables import AuditEntry
from services.gateway.paging import Asked, Order, Page, asked_page
from services.gateway.problems import documented

SYSTEM = "system"
"""The actor of what the gateway does by itself."""
_ORDER = Order({"id": AuditEntry.id, "time": AuditEntry.time}, id_=AuditEntry.id, default="-id")

Word = Annotated[str | None, QueryParameter(max_length=80, pattern=r"^[^\x00-\x1f]*$")]


class AuditView(msgspec.Struct, frozen=True):
    """One change."""

    id: int
    time: datetime
    actor: str
    """`user:<name>`, or `system`."""
    action: str
    subject: str
    details: dict[str, Any]


async def record(
    session: AsyncSession, actor: str, action: str, subject: str, details: dict[str, Any], now: datetime
) -> None:
    """Adds an entry to the caller's transaction: it is there if and only if the change is.

    `details` name what changed (`fields`), and hold new values only where those are no secret.
    """
    session.add(AuditEntry(time=now, actor=actor, action=action, subject=subject, details=details))


@get(
    "/audit-log", guards=[admin_only], dependencies={"asked": Provide(asked_page)}, responses=documented(400, 401, 403)
)
async def list_audit_log(
    state: State, asked: NamedDependency[Asked], actor: Word = None, action: Word = None, subject: Word = None
) -> Page[AuditView]:
    """Who changed which account, credential or setting: the newest first. Admins only."""
    query = select(AuditEntry)
    for column, wanted in ((AuditEntry.actor, actor), (AuditEntry.action, action), (AuditEntry.subject, subject)):
        if wanted is not None:
            query = query.where(column == wanted)
    async with state.db.read() as session:
        rows, next_ = await _ORDER.fetch(session, query, asked)
    return Page([AuditView(r.id, r.time, r.actor, r.action, r.subject, r.details) for r in rows], next_)
