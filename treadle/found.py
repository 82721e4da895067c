"""Which plan and which task a person means."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from shared.subjects import IMPORTED_ID, PLAN_ID
from treadle.api import ApiError, Gateway
from treadle.bad_input import BadInput
from treadle.plain_text import one_line

Plan = dict[str, Any]


def find_plan(gateway: Gateway, wanted: str | None) -> Plan:
    """The plan whose id begins so, or the newest. Raises `BadInput` for none and for several."""
    if wanted is None:
        newest = next(gateway.pages("/plans", sort="-created_at", limit=1), None)
        if newest is None:
            raise BadInput("there is no plan yet: `treadle run plan.yaml --repo PATH` makes one")
        return newest
    if not wanted:
        raise BadInput("a plan's id is empty: `treadle ls` lists the plans")
    found = _plans_like(gateway, wanted)
    if len(found) == 1:
        return found[0]
    if not found:
        raise BadInput(f"there is no plan {one_line(wanted, 40)}: `treadle ls` lists the plans")
    raise BadInput(f"{len(found)} plans begin with {wanted}: {', '.join(plan['plan'] for plan in found[:5])}")


def imported_plans(gateway: Gateway) -> list[Plan]:
    """Plans that came from archives, the newest first, with the little that lists show of them."""
    return [
        {
            **{field: one[field] for field in ("name", "status", "standing")},
            "plan": one["id"],
            "imported": {"plan": one["origin_plan"], "by": one["imported_by"], "at": one["created_at"]},
        }
        for one in gateway.pages("/imported-plans")
    ]


def _plans_like(gateway: Gateway, wanted: str) -> list[Plan]:
    if not (PLAN_ID.fullmatch(wanted) or IMPORTED_ID.fullmatch(wanted)):
        if wanted.startswith("i"):
            ids = [plan["plan"] for plan in imported_plans(gateway) if plan["plan"].startswith(wanted)]
            return [gateway.get(f"/plans/{id_}", Plan) for id_ in ids]
        # A gateway that does not know the filter lists all plans.
        return [plan for plan in gateway.pages("/plans", id_prefix=wanted) if plan["plan"].startswith(wanted)]
    try:
        return [gateway.get(f"/plans/{wanted}", Plan)]
    except ApiError as error:
        if error.status != 404:
            raise
        return []


@contextlib.contextmanager
def known_task(plan: str, code: str) -> Iterator[str]:
    """The task's path. Raises `BadInput` for what is no task of the plan."""
    # A task code on its way into a URL's path.
    if not all(ch.isalnum() or ch in "_-" for ch in code) or not code.isascii() or not code:
        raise BadInput(f"{one_line(code, 40)} is not a task code")
    try:
        yield f"/plans/{plan}/tasks/{code}"
    except ApiError as error:
        if error.status != 404:
            raise
        raise BadInput(f"plan {plan} has no task {code[:80]}: `treadle status {plan}` lists its tasks") from error
