"""What holds for every route: which methods a path has, and that bodies and filters are taken as they are written."""

from __future__ import annotations

from typing import Any

import pytest

from tests.gateway.answers import assert_problem
from tests.gateway.gateway_process import GatewayProcess


async def test_options_and_a_wrong_method_name_every_method_of_a_path(gateway: GatewayProcess) -> None:
    async with gateway.anonymous() as nobody:
        for path, methods in (
            ("/api/users", {"GET", "POST", "OPTIONS"}),
            ("/api/projects/0123", {"GET", "PATCH", "DELETE", "OPTIONS"}),
        ):
            answer = await nobody.options(path)
            assert answer.status_code == 204
            assert set(answer.headers["Allow"].split(", ")) == methods
            refused = await nobody.put(path)
            assert_problem(refused, 405, "method_not_allowed")
            assert set(refused.headers["Allow"].split(", ")) == methods


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/api/projects", {"max_parallel": "3"}, "max_parallel"),
        ("/api/projects", {"allow_concurrent_plans": "true"}, "allow_concurrent_plans"),
        ("/api/projects", {"budget_usd": "1.5"}, "budget_usd"),
        ("/api/projects", {"setup": ["true", None]}, "setup[1]"),
        ("/api/auth/tokens", {"expires_at": 4_000_000_000}, "expires_at"),
    ],
)
async def test_a_body_is_taken_as_it_is_written(
    gateway: GatewayProcess, path: str, body: dict[str, Any], field: str
) -> None:
    async with gateway.as_user("ann") as ann:
        good = {"name": "Strict"}
        if path == "/api/projects":
            good["code_repo_url"] = "https://git.example.com/a/b.git"
        refused = assert_problem(await ann.post(path, json={**good, **body}), 400, "bad_request")
        assert [(fault["field"], fault["source"]) for fault in refused["fields"]] == [(field, "body")]


@pytest.mark.parametrize("body", [b"", b"null", b"[]", b"{", b"\xff", b'{"name":"a","name":1}', b"[" * 100_000])
async def test_a_body_that_is_no_such_thing_is_refused(gateway: GatewayProcess, body: bytes) -> None:
    async with gateway.as_user("ann") as ann:
        assert_problem(await ann.post("/api/projects", content=body), 400, "bad_request")


async def test_a_filter_by_yes_or_no_takes_nothing_else(gateway: GatewayProcess) -> None:
    async with gateway.as_admin() as admin:
        for given, status in (("true", 200), ("false", 200), ("null", 400), ("1", 400), ("", 400)):
            for path in ("/api/agents?is_active=", "/api/users?is_frozen="):
                assert (await admin.get(path + given)).status_code == status, path + given


async def test_waiting_for_an_event_that_the_log_does_not_have_is_refused_at_once(gateway: GatewayProcess) -> None:
    async with gateway.as_user("ann") as ann:
        refused = assert_problem(await ann.get("/api/plans", params={"min_seq": 2**53 - 1}), 400, "bad_request")
        assert [(fault["field"], fault["source"]) for fault in refused["fields"]] == [("min_seq", "query")]


@pytest.mark.parametrize("command", ["pause", "cancel", "resume", "tasks/T1/abandon", "tasks/T1/cancel"])
async def test_a_command_without_a_body_is_one_without_a_note(gateway: GatewayProcess, command: str) -> None:
    async with gateway.as_admin() as admin:
        answer = await admin.post(f"/api/plans/p{'a' * 12}/{command}")
    assert_problem(answer, 404, "not_found")
