"""Routes: imported plans as things of their own. What is in them is read below `/plans/{id}`, as of any plan."""

from typing import Any

from litestar import Request, Router, delete, get
from litestar.datastructures import State
from litestar.di import NamedDependency, Provide
from litestar.params import FromPath
from sqlalchemy import select

from services.gateway.accounts import audit
from services.gateway.accounts.access import Caller
from services.gateway.archives.exporting import export_plan
from services.gateway.archives.importing import import_log
from services.gateway.archives.rows import ImportedPlanView, find_row, seen_by, view
from services.gateway.database.tables import ImportedPlan
from services.gateway.paging import Asked, Order, Page, asked_page
from services.gateway.problems import documented
from shared.clock import utc_now

IMPORTED_PLANS = Order(
    {"created_at": ImportedPlan.created_at, "name": ImportedPlan.name, "size_bytes": ImportedPlan.size_bytes},
    id_=ImportedPlan.id,
    default="-created_at",
)


@get("/imported-plans", dependencies={"asked": Provide(asked_page)}, responses=documented(400, 401))
async def list_imported_plans(
    state: State, request: Request[Caller, Any, Any], asked: NamedDependency[Asked]
) -> Page[ImportedPlanView]:
    """The plans that one has imported, the newest first; an admin's list has everybody's."""
    query = select(ImportedPlan).where(ImportedPlan.is_whole, seen_by(request.user))
    async with state.db.read() as session:
        rows, next_ = await IMPORTED_PLANS.fetch(session, query, asked)
    return Page([view(row) for row in rows], next_)


@delete("/imported-plans/{imported:str}", status_code=204, responses=documented(401, 404))
async def delete_imported_plan(imported: FromPath[str], state: State, request: Request[Caller, Any, Any]) -> None:
    """Removes an imported plan with its file."""
    caller = request.user
    async with state.db.write() as session:
        row = await find_row(session, caller, imported)
        details = {"origin": row.origin_plan, "digest": row.digest}
        await session.delete(row)
        await audit.record(session, caller.actor, "imported_plan.deleted", row.id, details, utc_now())
    state.imported.forget(imported)


archives_router = Router(
    path="/", tags=["debugging"], route_handlers=[export_plan, import_log, list_imported_plans, delete_imported_plan]
)
