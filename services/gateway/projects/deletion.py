"""Deletes projects: their plans are cancelled, and once all of those have ended the project goes, and runners are told.

    deleting_since set → every open plan is told to cancel → all have ended → `deleted` is stored → the rows go

Each step may be done again, by another gateway too: a plan is cancelled once, `deleted` has one subject per project and
carries an id by which the server knows it again, and of rows that are gone there is nothing to remove.
"""

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from datetime import datetime

import msgspec
from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.js.errors import APIError
from sqlalchemy import delete, or_, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession

from services.gateway.accounts import audit
from services.gateway.credentials import stored
from services.gateway.database.engine import Database
from services.gateway.database.tables import AuditEntry, PlanRow, Project, ProjectAgent, ProjectionHead
from services.gateway.projection.live import log_end
from services.gateway.projection.projector import Projector
from services.gateway.projects.repositories import repo_urls
from shared.clock import new_id, utc_now
from shared.commands import CancelPlan, Refused
from shared.plan import ENDED
from shared.requests import ProjectDeleted
from shared.store import EventStore, Meta, StoreUnavailable
from shared.subjects import project_deleted
from shared.transact import to_plan

log = logging.getLogger("treadle.gateway.projects")

LOOK_AGAIN_S = 1.0
"""While something is being deleted: its plans end when they end."""
IDLE_S = 30.0
"""Another gateway that began a deletion may have died."""
PATIENCE_S = 5.0
BEGUN = "project.deletion_begun"


class BeingDeleted(msgspec.Struct, frozen=True, kw_only=True):
    """What goes with a project."""

    project: str
    plans_cancelled: list[str]
    """Those that had not ended."""
    plans: list[str]
    """All of them: runners remove their workspaces. The event log keeps their history."""
    repositories: list[str]
    """Whose mirrors runners remove, since no other project uses them."""
    agents_released: list[str]
    deleting_since: datetime


async def begin_deletion(session: AsyncSession, project: Project, actor: str, now: datetime) -> BeingDeleted:
    """Closes the project to everything new; begun before, it stays begun."""
    if project.deleting_since is None:
        project.deleting_since = now
        project.version += 1
        await audit.record(session, actor, BEGUN, project.id, {"name": project.name}, now)
    plans = await _plans_of(session, project.id)
    agents = await session.scalars(select(ProjectAgent.agent_id).where(ProjectAgent.project_id == project.id))
    return BeingDeleted(
        project=project.id,
        plans_cancelled=[plan.id for plan in plans if plan.status not in ENDED],
        plans=[plan.id for plan in plans],
        repositories=list(await _used_nowhere_else(session, project.id, repo_urls(project))),
        agents_released=list(agents),
        deleting_since=project.deleting_since,
    )


class Deletions:
    """Brings begun deletions to their end, in the background of every gateway."""

    def __init__(self, nc: Client, store: EventStore, db: Database, projector: Projector) -> None:
        self._nc = nc
        self._store = store
        self._db = db
        self._projector = projector
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """There is something to delete."""
        self._woken.set()

    async def run(self) -> None:
        """Works for ever; outages are waited out."""
        while True:
            self._woken.clear()
            try:
                left = await self.look()
            except (StoreUnavailable, NatsError, APIError, SQLAlchemyError, OSError, TimeoutError) as error:
                log.warning("projects can't be deleted now; trying again: %r", error)
                left = True
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_AGAIN_S if left else IDLE_S):
                    await self._woken.wait()

    async def look(self) -> bool:
        """Takes every deletion as far as it goes now. Whether any is left."""
        async with self._db.read() as session:
            projects = list(await session.scalars(select(Project).where(Project.deleting_since.is_not(None))))
        return any([not await self._advance(project) for project in projects])

    async def _advance(self, project: Project) -> bool:
        """Whether the project is gone."""
        # What the log holds now are all of its plans: since `deleting_since` is set, none is added.
        await self._projector.at_least(await log_end(self._nc), PATIENCE_S)
        async with self._db.read() as session:
            plans = await _plans_of(session, project.id)
        open_plans = [plan for plan in plans if plan.status not in ENDED]
        for plan in open_plans:
            if plan.status != "cancelling":
                await self._cancel(plan.id, await self._actor(project.id))
        if open_plans:
            return False
        await self._remove(project, plans)
        return True

    async def _cancel(self, plan: str, actor: str) -> None:
        command = CancelPlan(reason="its project is being deleted")
        meta = Meta(actor=actor, command_id=new_id(), correlation=new_id())
        with contextlib.suppress(Refused):  # it has just ended by itself
            await to_plan(self._store, plan, command, meta, patience_s=PATIENCE_S)

    async def _actor(self, project_id: str) -> str:
        """Who wanted it."""
        query = select(AuditEntry.actor).where(AuditEntry.subject == project_id, AuditEntry.action == BEGUN)
        async with self._db.read() as session:
            return await session.scalar(query.order_by(AuditEntry.id.desc()).limit(1)) or audit.SYSTEM

    async def _remove(self, project: Project, plans: list["_Plan"]) -> None:
        # A project's address may have been another one when a plan was drafted.
        urls = [*repo_urls(project), *(plan.repo_url for plan in plans)]
        ids = [plan.id for plan in plans]
        async with self._db.read() as session:
            unused = await _used_nowhere_else(session, project.id, urls)
        event = ProjectDeleted(project=project.id, plans=tuple(ids), repo_urls=unused)
        await self._nc.jetstream(timeout=PATIENCE_S).publish(
            project_deleted(project.id), msgspec.json.encode(event), headers={"Nats-Msg-Id": f"deleted {project.id}"}
        )
        now, actor = utc_now(), await self._actor(project.id)
        async with self._db.write() as session:
            await session.execute(delete(ProjectAgent).where(ProjectAgent.project_id == project.id))
            gone = delete(Project).where(Project.id == project.id).returning(Project.id)
            if (await session.execute(gone)).scalar_one_or_none() is None:
                return  # another gateway was faster
            await stored.clear(session, "git", project.id, actor, now)
            told = {"name": project.name, "plans": ids, "repositories": list(unused)}
            await audit.record(session, actor, "project.deleted", project.id, told, now)
        log.info("project %s is deleted, with %d plans", project.id, len(ids))


class _Plan(msgspec.Struct, frozen=True):
    id: str
    status: str
    repo_url: str


class _View(msgspec.Struct, frozen=True):
    """What is needed of a stored `PlanView`."""

    repo_url: str


async def _plans_of(session: AsyncSession, project_id: str) -> list[_Plan]:
    current = select(ProjectionHead.generation).where(ProjectionHead.is_current).scalar_subquery()
    rows = await session.execute(
        select(PlanRow.id, PlanRow.status, PlanRow.view)
        .where(PlanRow.generation == current, PlanRow.project_id == project_id)
        .order_by(PlanRow.created_at, PlanRow.id)
    )
    return [_Plan(id_, status, msgspec.json.decode(view, type=_View).repo_url) for id_, status, view in rows]


async def _used_nowhere_else(session: AsyncSession, project_id: str, urls: Sequence[str]) -> tuple[str, ...]:
    wanted = tuple(dict.fromkeys(urls))
    others = await session.execute(
        select(Project.code_repo_url, Project.collab_repo_url).where(
            Project.id != project_id, or_(Project.code_repo_url.in_(wanted), Project.collab_repo_url.in_(wanted))
        )
    )
    used = {url for row in others for url in row}
    return tuple(url for url in wanted if url not in used)
