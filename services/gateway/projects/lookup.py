"""Finds the project that a path names, for whoever may see it: its owner and admins."""

from sqlalchemy import ColumnElement, true
from sqlalchemy.ext.asyncio import AsyncSession

from services.gateway.accounts.access import Caller
from services.gateway.database.tables import Project
from services.gateway.problems import ProblemError, not_found
from shared.subjects import ROW_ID


def seen_by(caller: Caller) -> ColumnElement[bool]:
    """The projects that a caller sees."""
    return true() if caller.is_admin else Project.owner_id == caller.id


async def find_project(session: AsyncSession, caller: Caller, project_id: str, *, lock: bool = False) -> Project:
    """Raises `ProblemError` 404, also for somebody else's. `lock` keeps other writers away for the transaction."""
    project = None
    if ROW_ID.fullmatch(project_id):
        project = await session.get(Project, project_id, with_for_update=lock or None)
    if project is None or not (caller.is_admin or project.owner_id == caller.id):
        raise not_found(f"project {project_id[:80]}", "GET /api/projects")
    return project


async def find_open_project(session: AsyncSession, caller: Caller, project_id: str, *, lock: bool = False) -> Project:
    """The same. Raises `ProblemError` 409 `being_deleted` for one that nothing new may be made in."""
    project = await find_project(session, caller, project_id, lock=lock)
    if project.deleting_since is not None:
        raise being_deleted(project.id)
    return project


def being_deleted(project_id: str) -> ProblemError:
    """The project is about to go."""
    detail = f"project {project_id} is being deleted: nothing of it can be changed, and nothing new made in it"
    return ProblemError(409, "being_deleted", "The project is being deleted", detail)


BEING_DELETED = being_deleted("5f0c5e5e9f6b4d3e8a1b2c3d").problem
"""As `/schema` shows it."""
