"""Finds a template, which everybody may see, and says who may change it."""

from sqlalchemy.ext.asyncio import AsyncSession

from services.gateway.accounts.access import Caller
from services.gateway.database.tables import Template
from services.gateway.problems import forbidden, not_found
from services.gateway.templates.bodies import template_text
from shared.requests import TemplateText
from shared.subjects import ROW_ID


async def find_template(session: AsyncSession, template_id: str) -> Template:
    """Raises `ProblemError` 404."""
    found = await session.get(Template, template_id) if ROW_ID.fullmatch(template_id) else None
    if found is None:
        raise not_found(f"template {template_id[:80]}", "GET /api/templates")
    return found


async def locked_template(session: AsyncSession, caller: Caller, template_id: str) -> Template:
    """One that the caller may change, which nobody else changes meanwhile. Raises `ProblemError` 403 or 404."""
    check_may_change(caller, await find_template(session, template_id))
    row = await session.get(Template, template_id, with_for_update=True, populate_existing=True)
    if row is None:  # deleted by another gateway between the two looks
        raise not_found(f"template {template_id}", "GET /api/templates")
    return row


def check_may_change(caller: Caller, row: Template) -> None:
    """Raises `ProblemError` 403."""
    if row.owner_id is None:
        raise forbidden(f"{row.name} comes with Treadle and stays as it is: copy it (POST /api/templates), change that")
    if not caller.is_admin and row.owner_id != caller.id:
        raise forbidden(f"{row.name} is somebody else's: you may use and copy it, its owner or an admin may change it")


def text_of(row: Template) -> TemplateText:
    """What the planner wants to know of it."""
    return template_text({"text": row.text, "roles": row.roles, "inputs": row.inputs})
