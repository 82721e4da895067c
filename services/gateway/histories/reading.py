"""Finds a plan's history for whoever may read the plan, wherever its events lie."""

from litestar.datastructures import State

from services.gateway.accounts.access import Caller
from services.gateway.archives.rows import is_imported
from services.gateway.plans.lookup import find_plan
from shared.history.history import History


async def of(state: State, caller: Caller, plan: str) -> History:
    """The plan's whole history as of now. What takes long is to be asked of it by `Turns.ask`.

    An imported plan's has its events as they were: under the id that it had. Raises `ProblemError` 404,
    `StoreUnavailable`.
    """
    await find_plan(state, caller, plan)
    if is_imported(plan):
        imported: History = (await state.imported.known(plan)).history
        return imported
    history: History = await state.histories.up_to_date(plan)
    return history
