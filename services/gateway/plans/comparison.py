"""Route: what tells two candidates of a plan from one another. The planner knows; nothing is decided here."""

from typing import Annotated, Any

from litestar import Request, Router, get
from litestar.datastructures import State
from litestar.params import FromPath, QueryParameter

from services.gateway.accounts.access import Caller
from services.gateway.plans.commands import REFUSED
from services.gateway.plans.lookup import find_plan, promptly
from services.gateway.plans.planner_client import compare
from services.gateway.problems import documented, not_found
from shared.commands import Refused
from shared.plan import EARLY
from shared.requests import CompareReply
from shared.transact import load_plan

Name = Annotated[str, QueryParameter(min_length=1, max_length=64, description="A candidate's name.")]


@get("/plans/{plan:str}/compare", responses=documented(400, 401, 404, REFUSED))
async def compare_candidates(
    plan: FromPath[str], state: State, request: Request[Caller, Any, Any], a: Name, b: Name
) -> CompareReply:
    """What has to be done to get from candidate `a` to `b`, and what is to be expected of each."""
    await find_plan(state, request.user, plan)
    known = (await promptly(load_plan(state.store, plan))).state
    if known.status not in EARLY:
        raise Refused(f"the plan is {known.status}: of its candidates only the chosen one is left")
    for name in (a, b):
        if name not in known.candidates:
            raise not_found(f"candidate {name} of plan {plan}", f"GET /api/plans/{plan}/candidates")
    return await compare(state.nc, plan, a, b)


comparison_router = Router(path="/", tags=["plans"], route_handlers=[compare_candidates])
