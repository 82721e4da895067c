"""Errors: documented where they are answered, 503 where a part is away, never a word of SQL."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.gateway.answers import assert_problem
from tests.gateway.conftest import DATABASES, MakeDatabase
from tests.gateway.gateway_process import GatewayProcess
from tests.gateway.postgres_cluster import OwnCluster, PostgresCluster, postgres_cluster
from tests.nats_process import NatsServer

OURS = ("/api/auth", "/api/users", "/api/audit-log")


def operations(schema: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [
        (f"{method} {path}", operation)
        for path, item in schema["paths"].items()
        if path.startswith(OURS)
        for method, operation in item.items()
    ]


async def test_every_error_of_an_account_route_is_documented_with_an_example(gateway: GatewayProcess) -> None:
    async with gateway.anonymous() as client:
        schema = (await client.get("/schema/openapi.json")).json()
    found = operations(schema)
    assert len(found) == 11, [name for name, _ in found]
    for name, operation in found:
        assert operation["summary"], name
        assert operation["description"], name
        errors = {status: body for status, body in operation["responses"].items() if int(status) >= 400}
        assert {"400", "401", "503"} <= set(errors), name
        for status, body in errors.items():
            [(media_type, content)] = body["content"].items()
            assert media_type == "application/problem+json", (name, status)
            assert content["schema"]["$ref"].endswith("Problem"), (name, status)
            for code, example in content["examples"].items():
                assert (str(example["value"]["status"]), example["value"]["code"]) == (status, code), name


async def test_database_that_is_away_is_told_as_such_and_used_again_when_it_is_back(
    nats_url: NatsServer, tmp_path_factory: pytest.TempPathFactory, postgres: PostgresCluster
) -> None:
    if not isinstance(postgres, OwnCluster):
        pytest.skip("a container comes back on another port")
    with postgres_cluster() as own:
        assert isinstance(own, OwnCluster)
        directory = tmp_path_factory.mktemp("gateway")
        with GatewayProcess(directory, nats_url, own.fresh_database()) as gateway:
            async with gateway.as_admin() as admin:
                assert (await admin.get("/api/auth/me")).status_code == 200
                own.stop()
                for _ in range(3):
                    answer = await admin.get("/api/auth/me")
                    assert_problem(answer, 503, "database_unavailable")
                    assert int(answer.headers["retry-after"]) >= 1
                    assert "sql" not in answer.text.lower()
                own.start()
                assert (await admin.get("/api/auth/me")).status_code == 200


@pytest.mark.parametrize("kind", DATABASES)
def test_logs_of_a_gateway_hold_no_password_and_no_token(
    kind: str, make_database: MakeDatabase, nats_url: NatsServer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("gateway")
    with make_database(kind, directory) as url, GatewayProcess(directory, nats_url, url) as gateway:
        secrets = [gateway.admin_password, gateway.token_of("admin"), gateway.session_secret]
        login = {"name": "admin\x00", "password": gateway.admin_password}
        httpx.post(f"{gateway.url}/api/auth/login", json=login, timeout=60, trust_env=False)
        log = gateway.log.read_text()
    assert not any(secret in log for secret in secrets)
