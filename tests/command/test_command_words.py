"""What the gateway refuses is told in the command's words."""

from __future__ import annotations

import pytest

from treadle.api import ApiError


@pytest.mark.parametrize(
    ("detail", "told"),
    [
        (
            "event 9 of plan pabc does not exist here; `GET /api/plans/pabc/events` lists what does",
            "event 9 of plan pabc does not exist here; `treadle events pabc` lists what does",
        ),
        (
            "consumer x does not exist here; `GET /api/consumers` lists what does",
            "consumer x does not exist here; `treadle consumers` lists what does",
        ),
        (
            "agent x does not exist here; `GET /api/agents` lists what does",
            "agent x does not exist here",
        ),
        (
            "you have 100 imported plans: remove some: DELETE /api/imported-plans/{id}",
            "you have 100 imported plans: remove some: `treadle imported remove PLAN`",
        ),
        (
            "there is nothing to follow; read GET /api/plans/iabc/tasks/T1/transcript",
            "there is nothing to follow; read `treadle logs T1 --plan iabc`",
        ),
        ("set one (PATCH /api/projects/…), or ask", "set one (`treadle projects set PROJECT`), or ask"),
        ("send it (POST /api/nothing) again", "send it (POST /api/nothing) again"),
        ("the plan's api is /api/plans", "the plan's api is /api/plans"),
    ],
)
def test_routes_become_commands(detail: str, told: str) -> None:
    assert str(ApiError(404, "not_found", detail)) == told
