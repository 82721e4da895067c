"""No notification is lost or told for two events, whichever gateway is killed and when."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import update

from services.gateway.database.engine import Database, database_url
from services.gateway.database.tables import Delivery
from shared.jetstream import JetStreamStore
from tests.gateway.gateway_process import GatewayProcess
from tests.gateway.notifications.receiver import Receiver
from tests.gateway.notifications.test_webhooks import LOCAL, create, delivered, log_of
from tests.gateway.notifications.world import failed, happens
from tests.gateway.plans import made
from tests.gateway.projection.histories import spec_of, submit
from tests.nats_process import NatsServer


@pytest.fixture
def first(migrated_url: str, nats_url: NatsServer, tmp_path: Path) -> Iterator[GatewayProcess]:
    with GatewayProcess(tmp_path, nats_url, migrated_url, LOCAL, is_migrated=True) as running:
        yield running


async def claims_end(url: str) -> None:
    """As if the claims' time were over."""
    db = Database(database_url(url))
    try:
        async with db.write() as session:
            past = datetime.now(UTC) - timedelta(minutes=1)
            await session.execute(update(Delivery).where(Delivery.status == "waiting").values(due_at=past))
    finally:
        await db.close()


async def told_to(receiver: Receiver, count: int) -> None:
    async def look() -> bool:
        return len({heard.delivery for heard in receiver.heard}) >= count

    await made.until(look, f"{count} deliveries at the receiver")


async def test_a_gateway_that_is_killed_while_it_sends_has_it_sent_after_its_restart(
    first: GatewayProcess, store: JetStreamStore, receiver: Receiver
) -> None:
    async with first.as_admin() as admin:
        hook = (await create(admin, receiver.url))["id"]
        project = await made.project(admin)
        receiver.may_answer.clear()
        plan = await submit(store, spec_of({"T1": (), "T2": ()}), project=project)
        await happens(store, plan, "T1", failed())
        await told_to(receiver, 1)
        first.kill()
        receiver.may_answer.set()
        await happens(store, plan, "T2", failed("while nobody was there"))
        await claims_end(first.database_url)
        first.start()
        items = await delivered(admin, hook, 2)
        assert {one["task"]: one["attempts"] for one in items} == {"T1": 2, "T2": 1}
        assert len(receiver.heard) == 3
        assert len({heard.delivery for heard in receiver.heard}) == 2, "what is sent again has the id that it had"


async def test_two_gateways_of_which_one_is_killed_tell_everything_once(
    first: GatewayProcess, store: JetStreamStore, receiver: Receiver, nats_url: NatsServer, tmp_path: Path
) -> None:
    second = GatewayProcess(tmp_path, nats_url, first.database_url, LOCAL, is_migrated=True)
    with second:
        async with first.as_admin() as admin:
            hook = (await create(admin, receiver.url))["id"]
            project = await made.project(admin)
            plans = [await submit(store, spec_of({"T1": (), "T2": ()}), project=project) for _ in range(4)]
            for plan in plans:
                await happens(store, plan, "T1", failed())
            await told_to(receiver, len(plans))
            second.kill()
            for plan in plans:
                await happens(store, plan, "T2", failed())
            await claims_end(first.database_url)
            items = await delivered(admin, hook, 2 * len(plans))
        assert sorted((one["plan"], one["task"]) for one in items) == sorted(
            (plan, task) for plan in plans for task in ("T1", "T2")
        )
        # Only what the second one was at when it was killed may have been sent twice.
        assert len(items) <= len(receiver.heard) <= len(items) + 1
        second.start()


async def test_a_rebuild_of_the_projection_tells_nobody_anything_again(
    first: GatewayProcess, store: JetStreamStore, receiver: Receiver
) -> None:
    async with first.as_admin() as admin:
        hook = (await create(admin, receiver.url))["id"]
        plan = await submit(store, spec_of({"T1": ()}), project=await made.project(admin))
        await happens(store, plan, "T1", failed())
        await delivered(admin, hook, 1)
        generation = (await made.ok(admin.post("/api/projection/rebuild")))["generation"]

        async def is_rebuilt() -> bool:
            stands = await made.ok(admin.get("/api/projection"))
            return bool(stands["generation"] > generation and not stands["rebuilding"])

        await made.until(is_rebuilt, "a new generation")
        await happens(store, plan, "T1", failed("again"))
        await delivered(admin, hook, 2)
        assert len(await log_of(admin, hook)) == len(receiver.heard) == 2


async def test_figures_tell_how_tries_ended(first: GatewayProcess, receiver: Receiver) -> None:
    async with first.as_admin() as admin:
        hook = (await create(admin, receiver.url))["id"]
        await made.ok(admin.post(f"/api/webhooks/{hook}/test"))
        told = await admin.get("/api/metrics")
    assert 'treadle_notification_tries_total{outcome="delivered"} 1.0' in told.text
