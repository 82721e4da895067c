"""Streams and pages where events are large, and streams whose reader's token expires."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest

from services.gateway.plans.sse import KEEP_ALIVE_S
from shared import commands as c
from shared.bus import BusSettings, connect
from shared.clock import new_id, new_plan_id, utc_now
from shared.events import PlanDrafted
from shared.jetstream import JetStreamStore
from shared.subjects import PLAN, transcript
from shared.transact import to_plan
from tests.gateway.gateway_process import GatewayProcess
from tests.gateway.projection.histories import ANN, DEADLINE_S, spec_of, submit, until
from tests.gateway.projection.sse_client import Ended, SseClient
from tests.nats_process import NatsServer

LARGE_BYTES = 7 * 1024**2
DRAFTS = 20
"""More than a NATS server keeps for a connection, and than a client keeps for a subscription."""
TOKEN_S = 6.0


async def test_a_plan_of_many_large_drafts_is_streamed_and_paged(
    own_nats: NatsServer, database_url: str, tmp_path: Path
) -> None:
    """On a log of its own: others need not read all that."""
    nc = await connect(BusSettings(own_nats.url, own_nats.user, own_nats.password), "test")
    with GatewayProcess(tmp_path, own_nats, database_url) as gateway:
        plan, seqs = await _draft_at_large(JetStreamStore(nc), gateway)
        paged: list[int] = []
        after: int | None = 0
        async with gateway.as_admin() as client:
            while after is not None:
                answer = await client.get(f"/api/plans/{plan}/events", params={"after": after, "limit": 1000})
                assert answer.status_code == 200, answer.text
                assert len(answer.content) < 2 * LARGE_BYTES
                paged += [event["seq"] for event in answer.json()["events"]]
                after = answer.json()["next_after"]
        assert paged == seqs
        path = f"/api/plans/{plan}/stream"
        async with await SseClient.open(gateway.url, path, gateway.token_of("admin")) as stream:
            assert [event.id for event in await stream.until("live") if event.name == "log"] == seqs
    await nc.close()


async def _draft_at_large(store: JetStreamStore, gateway: GatewayProcess) -> tuple[str, list[int]]:
    plan, spec = new_plan_id(), spec_of({"A": ()})
    [task] = spec.tasks
    spec = msgspec.structs.replace(spec, tasks=(msgspec.structs.replace(task, description="x" * LARGE_BYTES),))
    draft = PlanDrafted(candidate="1", spec=spec, repo_url="https://example.org/r.git", base_commit="base")
    seqs = [0]
    async with gateway.as_admin() as client:

        async def is_projected() -> bool:
            return (await client.get(f"/api/plans/{plan}", params={"min_seq": seqs[-1]})).is_success

        for _ in range(DRAFTS):
            seqs.append(await store.append(plan, PLAN, draft, ANN, expected=seqs[-1]))
            await until(is_projected)  # as fast as people write, not as fast as a disk
    return plan, seqs[1:]


async def test_busy_streams_end_when_the_token_expires(gateway: GatewayProcess, store: JetStreamStore) -> None:
    plan = await submit(store, spec_of({"A": ()}))
    expires_at = utc_now() + timedelta(seconds=TOKEN_S)
    async with gateway.as_admin() as client:
        body = {"name": f"short {new_id()[:8]}", "expires_at": expires_at.isoformat()}
        made = await client.post("/api/auth/tokens", json=body)
        assert made.status_code == 201, made.text
    token = made.json()["token"]

    async def talk() -> None:
        while True:
            await to_plan(store, plan, c.Pause(), ANN)
            await to_plan(store, plan, c.Resume(), ANN)
            await store._js.publish(transcript(plan, "A", 1), b'{"kind":"text","text":"on and on"}')

    async def heard_until(path: str) -> None:
        async with await SseClient.open(gateway.url, path, token) as stream:
            with pytest.raises(Ended):
                while True:
                    await stream.next()
        # The gateway waits by the monotonic clock, which the wall clock does not follow to the millisecond.
        early = timedelta(milliseconds=100)
        assert expires_at - early <= utc_now() < expires_at + timedelta(seconds=KEEP_ALIVE_S / 2)

    talking = asyncio.create_task(talk())
    paths = (f"/api/plans/{plan}/stream", f"/api/plans/{plan}/tasks/A/transcript/stream")
    async with asyncio.timeout(DEADLINE_S):
        await asyncio.gather(*map(heard_until, paths))
    assert not talking.done()
    talking.cancel()
