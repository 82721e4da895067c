"""Finds what a path names. What is not there answers 404, however the name was written."""

from litestar.datastructures import State

from services.gateway.model import ReadModel
from services.gateway.problems import not_found
from services.gateway.views import PlanFold
from shared.subjects import PLAN_ID


def read_model(state: State) -> ReadModel:
    """The gateway's view of all plans."""
    model: ReadModel = state.model
    return model


def find_plan(state: State, plan: str) -> PlanFold:
    """The plan's fold."""
    fold = read_model(state).plans.get(plan) if PLAN_ID.fullmatch(plan) else None
    if fold is None:
        raise not_found(f"plan {plan}", "treadle ls")
    return fold


def find_task(state: State, plan: str, code: str) -> PlanFold:
    """The fold of a finalized plan that has that task."""
    fold = find_plan(state, plan)
    if not fold.has_task(code):
        raise not_found(f"task {code} of plan {plan}", f"treadle status {plan}")
    return fold
