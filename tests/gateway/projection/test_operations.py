"""Health, metrics, runners and the projection's routes, over real HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime

import httpx
import msgspec
import pytest
from nats.aio.client import Client
from prometheus_client.parser import text_string_to_metric_families

from services.gateway.database.engine import Database
from services.gateway.database.engine import database_url as checked_url
from shared import commands as c
from shared.bus import BusSettings, connect
from shared.clock import new_id
from shared.jetstream import JetStreamStore
from shared.requests import PresentLease, RunnerPresence
from shared.streams import RUNNERS, declare_streams
from shared.transact import to_plan
from tests.gateway.gateway_process import GatewayProcess
from tests.gateway.projection.histories import ANN, found_rows, spec_of, submit, until
from tests.nats_process import NatsServer


@pytest.fixture
async def nc(nats_url: NatsServer) -> AsyncIterator[Client]:
    made = await connect(BusSettings(nats_url.url, nats_url.user, nats_url.password), "test")
    await declare_streams(made.jetstream())
    yield made
    await made.close()


async def _is_ready(gateway: GatewayProcess) -> bool:
    async with gateway.anonymous() as client:
        return (await client.get("/api/health/ready")).is_success


async def test_anybody_may_ask_for_health(gateway: GatewayProcess) -> None:
    async with gateway.anonymous() as client:
        assert (await client.get("/api/health/live")).json() == {"status": "live"}
        assert (await client.get("/api/health/ready")).json() == {"status": "ready"}


async def test_a_gateway_without_its_log_is_live_but_not_ready_and_says_why(
    database_url: str, own_nats: NatsServer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with GatewayProcess(tmp_path_factory.mktemp("gateway"), own_nats, database_url) as gateway:
        assert await _is_ready(gateway)
        own_nats.kill()
        async with gateway.anonymous() as client:
            answer = await client.get("/api/health/ready")
            assert (answer.status_code, answer.json()["code"]) == (503, "not_ready")
            assert "the event log does not answer" in answer.json()["detail"]
            assert "Retry-After" in answer.headers
            assert (await client.get("/api/health/live")).is_success
        own_nats.start()
        await until(lambda: _is_ready(gateway))


async def test_the_suite_is_busy_while_a_plan_goes_on_by_itself(gateway: GatewayProcess, nc: Client) -> None:
    store = JetStreamStore(nc)
    plan = await submit(store, spec_of({"A": ()}))

    async def busy(client: httpx.AsyncClient, wanted: bool) -> bool:
        return bool((await client.get("/api/suite")).json()["busy"]) is wanted

    async with gateway.as_admin() as client:
        assert await busy(client, True)
        await to_plan(store, plan, c.CompletePlan(head_commit="0" * 40), ANN)
        seen = (await client.get("/api/suite")).json()
        assert set(seen) == {"busy", "clients"}


async def test_runners_are_listed_with_their_leases_for_admins_only(gateway: GatewayProcess, nc: Client) -> None:
    bucket = await nc.jetstream().key_value(RUNNERS)
    name = f"r-{new_id()[:8]}"
    presence = RunnerPresence(
        runner=name,
        pools=("command",),
        slots=4,
        busy=1,
        leases=(PresentLease("p234567abcdef", "T1", 3),),
        started=datetime.now(UTC),
        version="0.1.0",
    )
    await bucket.put(name, msgspec.json.encode(presence))
    await bucket.put(f"{name}-gone", msgspec.json.encode(presence))
    await bucket.delete(f"{name}-gone")
    await bucket.put(f"{name}-strange", b"?")
    for client, leases in ((gateway.as_admin(), 1), (gateway.as_user("reader"), 0)):
        async with client:
            items = (await client.get("/api/runners")).json()["items"]
        found = [item for item in items if item["runner"].startswith(name)]
        assert [(item["runner"], item["slots"], len(item["leases"])) for item in found] == [(name, 4, leases)]


async def test_the_projection_is_shown_and_rebuilt_by_admins_while_it_serves(
    gateway: GatewayProcess, nc: Client
) -> None:
    store = JetStreamStore(nc)
    plan = await submit(store, spec_of({f"T{i}": () for i in range(20)}))
    async with gateway.as_user("reader") as client:
        assert (await client.get("/api/projection")).status_code == 403
        assert (await client.post("/api/projection/rebuild")).status_code == 403
    async with gateway.as_admin() as client:
        before = (await client.get("/api/projection")).json()
        assert before["rebuilding"] is None
        answer = await client.post("/api/projection/rebuild")
        assert answer.status_code == 202, answer.text

        async def is_rebuilt() -> bool:
            listed = await client.get(f"/api/plans/{plan}")
            assert listed.status_code == 200, listed.text
            stands = (await client.get("/api/projection")).json()
            return stands["rebuilding"] is None and bool(stands["generation"] > before["generation"])

        await until(is_rebuilt)
        assert (await client.get("/api/projection")).json()["position"] >= before["position"]
    db = Database(checked_url(gateway.database_url))
    _, rows = await found_rows(db)
    await db.close()
    assert len([key for key in rows if key[0] == plan]) == 22


async def test_metrics_count_answers_by_route_and_are_for_admins(gateway: GatewayProcess, nc: Client) -> None:
    plan = await submit(JetStreamStore(nc), spec_of({"A": ()}))
    async with gateway.as_user("reader") as client:
        assert (await client.get("/api/metrics")).status_code == 403
        await client.get(f"/api/plans/{plan}")
        await client.get("/api/never-heard-of")
    async with gateway.as_admin() as client:
        assert (await client.post(f"/api/plans/{plan}/pause", json={})).status_code == 202
        text = (await client.get("/api/metrics")).text
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    counted = {
        (s.labels["method"], s.labels["route"], s.labels["status"])
        for s in samples
        if s.name == "treadle_gateway_requests_total"
    }
    assert ("GET", "/api/plans/{plan}", "404") in counted
    assert ("GET", "/api/metrics", "403") in counted
    assert plan not in text
    assert "never-heard-of" not in text
    timed = {s.labels["route"] for s in samples if s.name == "treadle_gateway_command_seconds_count"}
    assert "/api/plans/{plan}/pause" in timed
    assert {"treadle_projection_lag_seconds", "treadle_gateway_open_streams"} <= {s.name for s in samples}
