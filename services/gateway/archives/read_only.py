"""Nothing of an imported plan can be changed: said once, for every route that names one."""

from typing import Any

from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler

from services.gateway.accounts.access import Caller
from services.gateway.archives.rows import find_row, is_imported
from services.gateway.problems import Problem, ProblemError

READ_ONLY_PLAN = Problem(
    status=409,
    code="read_only_plan",
    title="The plan is read-only",
    detail="plan ia2b3c4d5e6f7 was imported from a file: it is a record of what happened elsewhere, and can be looked "
    "at, not changed",
)
_WHY = {
    "/api/plans/{plan}/fork": "a fork needs the repository with the commits of what it keeps, so fork the plan where "
    "it ran; to do the work again here, import its plan file into a project",
    "/api/plans/{plan}/stream": "nothing happens to it any more, so there is nothing to follow; read its events: "
    "GET /api/plans/{plan}/events",
    "/api/plans/{plan}/tasks/{code}/transcript/stream": "nothing happens to it any more, so there is nothing to "
    "follow; read GET /api/plans/{plan}/tasks/{code}/transcript",
    "/api/plans/{plan}/prompt": "nobody can hand in a candidate of it",
}


async def refuse_what_is_read_only(connection: ASGIConnection[Any, Caller, Any, Any], _: BaseRouteHandler) -> None:
    """A Litestar guard of all routes: an imported plan is read, and else answers 409 `read_only_plan`."""
    plan = connection.path_params.get("plan")
    if not isinstance(plan, str) or not is_imported(plan):
        return
    template = connection.scope.get("path_template", "")
    if connection.scope["method"] == "GET" and template not in _WHY:  # type: ignore[typeddict-item]  # HTTP has one
        return
    async with connection.app.state.db.read() as session:
        await find_row(session, connection.user, plan)
    why = _WHY.get(template, "it is a record of what happened elsewhere, and can be looked at, not changed")
    for name, value in connection.path_params.items():
        why = why.replace(f"{{{name}}}", str(value)[:80])
    raise read_only(plan, why)


def read_only(plan: str, why: str) -> ProblemError:
    """409 `read_only_plan`."""
    detail = f"plan {plan} was imported from a file: {why}"
    return ProblemError(READ_ONLY_PLAN.status, READ_ONLY_PLAN.code, READ_ONLY_PLAN.title, detail)
