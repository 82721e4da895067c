"""Who is to be told of what has happened: rows in `deliveries`, written in the projector's own transaction.

    happenings of a batch ─┬─ position and rows of the projection   one transaction
                           └─ deliveries, `told`

So a notification is there if and only if the event was taken note of, whichever gateway did it and whenever it died. A
rebuild writes no deliveries, and `told` goes on from the old generation.

A flood is bounded for each webhook and plan: of what comes in bulk, so many are told one by one within a minute (or
while so many wait), the rest is counted in a row that is sent a minute after its first.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

import msgspec
from sqlalchemy import and_, func, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncSession

from services.gateway.database.tables import Delivery, Project, User, Webhook
from services.gateway.notifications.happenings import Happening
from services.gateway.notifications.words import Notice, notice_of

SINGLY_MAX = 10
"""Of what comes in bulk, by webhook and plan, within `BULK_WINDOW` or waiting."""
BULK_WINDOW = timedelta(minutes=1)
IN_BULK = ("needs_attention", "approval_waiting")
"""The others happen a few times in a plan's life."""


async def store_deliveries(
    session: AsyncSession, happened: Sequence[Happening], public_url: str | None, now: datetime
) -> None:
    """Adds what every webhook is to be told of it. Whoever calls holds the lock on the projection's head."""
    projects = await _projects(session, {happening.project for happening in happened})
    if not projects:
        return
    for webhook, owner in await _webhooks(session, {project.owner_id for project in projects.values()}):
        heard = [
            happening
            for happening in happened
            if happening.project in projects and hears(webhook, owner, projects[happening.project], happening)
        ]
        if heard:
            await _tell(session, webhook, heard, projects, public_url, now)


def hears(webhook: Webhook, owner: User, project: Project, happening: Happening) -> bool:
    """Whether it is told: of its owner's projects, or of those that it names and its owner may see."""
    if happening.event not in webhook.events or happening.seq <= webhook.after:
        return False
    if webhook.project_ids is None:
        return project.owner_id == owner.id
    return project.id in webhook.project_ids and (project.owner_id == owner.id or owner.role == "admin")


async def _projects(session: AsyncSession, ids: set[str]) -> dict[str, Project]:
    found = await session.scalars(select(Project).where(Project.id.in_(ids)))
    return {project.id: project for project in found}


async def _webhooks(session: AsyncSession, owner_ids: set[str]) -> list[tuple[Webhook, User]]:
    """Those that may hear of projects of these owners."""
    named = and_(User.role == "admin", Webhook.project_ids.is_not(None))
    rows = await session.execute(
        select(Webhook, User)
        .join(User, User.id == Webhook.owner_id)
        .where(Webhook.is_active, ~User.is_frozen, or_(Webhook.owner_id.in_(owner_ids), named))
        .order_by(Webhook.id)
    )
    return [(webhook, owner) for webhook, owner in rows]


async def _tell(
    session: AsyncSession,
    webhook: Webhook,
    heard: list[Happening],
    projects: dict[str, Project],
    public_url: str | None,
    now: datetime,
) -> None:
    in_bulk = {happening.plan for happening in heard if happening.event in IN_BULK}
    recent = await _recent(session, webhook.id, in_bulk, now)
    left: dict[tuple[str, str], list[Happening]] = {}
    singly: list[Happening] = []
    for happening in heard:
        if happening.event in IN_BULK and recent[happening.plan] >= SINGLY_MAX:
            left.setdefault((happening.plan, happening.event), []).append(happening)
        else:
            recent[happening.plan] += happening.event in IN_BULK
            singly.append(happening)
    rows = [_row(webhook.id, one, projects[one.project].name, public_url, now) for one in singly]
    for (plan, event), several in left.items():
        if not await _count_in(session, webhook.id, plan, event, len(several)):
            rows.append(_row(webhook.id, several[0], projects[several[0].project].name, public_url, now, len(several)))
    for index, row in enumerate(rows):
        row["created_at"] = now + index * timedelta(microseconds=1)  # the log is shown by it: in the events' order
    if rows:
        # What was told before (the database was restored from a backup of before then) keeps its row.
        insert = sqlite.insert if session.get_bind().dialect.name == "sqlite" else postgresql.insert
        await session.execute(insert(Delivery).on_conflict_do_nothing(), rows)


async def _recent(session: AsyncSession, webhook_id: str, plans: Iterable[str], now: datetime) -> Counter[str]:
    """By plan, how many were told one by one of late, or wait to be."""
    rows = await session.execute(
        select(Delivery.plan_id, func.count())
        .where(
            Delivery.webhook_id == webhook_id,
            Delivery.plan_id.in_(set(plans)),
            Delivery.event.in_(IN_BULK),
            Delivery.more == 0,
            or_(Delivery.status == "waiting", Delivery.created_at > now - BULK_WINDOW),
        )
        .group_by(Delivery.plan_id)
    )
    return Counter({row[0]: row[1] for row in rows})


async def _count_in(session: AsyncSession, webhook_id: str, plan: str, event: str, more: int) -> bool:
    """Counts them in a row that nobody has begun to send: what is repeated must be what was sent. False: none is."""
    gathering = (
        Delivery.webhook_id == webhook_id,
        Delivery.plan_id == plan,
        Delivery.event == event,
        Delivery.more > 0,
        Delivery.status == "waiting",
        Delivery.attempts == 0,
    )
    counted = update(Delivery).where(*gathering).values(more=Delivery.more + more).returning(Delivery.id)
    return bool((await session.execute(counted)).all())


def _row(
    webhook_id: str, happening: Happening, project_name: str, public_url: str | None, now: datetime, more: int = 0
) -> dict[str, object]:
    notice = notice_of(happening, project_name, public_url)
    return {
        "id": delivery_id(webhook_id, happening, is_many=more > 0),
        "webhook_id": webhook_id,
        "event": happening.event,
        "plan_id": happening.plan,
        "task_code": "" if more else happening.task,
        "seq": happening.seq,
        "more": more,
        "notice": encoded(notice),
        "status": "waiting",
        "attempts": 0,
        "due_at": now + BULK_WINDOW if more else now,
        "claim": "",
        "response_status": None,
        "error": "",
        "created_at": now,
        "tried_at": None,
        "ended_at": None,
    }


def delivery_id(webhook_id: str, happening: Happening, *, is_many: bool = False) -> str:
    """The same for the same event, whoever works it out and how often: receivers may know it again by it."""
    named = [webhook_id, happening.plan, happening.seq, happening.event, happening.task, is_many]
    return hashlib.sha256(msgspec.json.encode(named)).hexdigest()[:24]


def encoded(notice: Notice) -> bytes:
    """As a row has it."""
    return msgspec.json.encode(notice)
