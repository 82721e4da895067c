"""The projection and the plans in memory, over an event that nobody can read and the word that leaves it out."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import httpx
import msgspec
import pytest
from nats.aio.client import Client

from services.gateway.database.engine import Database
from services.gateway.projection.folds import read_fold
from services.gateway.projection.live import LivePlans, log_end
from services.gateway.projection.projector import Projector
from services.gateway.projection.rebuild import Rebuilder
from shared import commands as c
from shared.bus import BusSettings, connect
from shared.jetstream import JetStreamStore
from shared.streams import declare_streams
from shared.subjects import PLAN, plan_filter
from shared.transact import to_plan, to_task
from tests.damage import KINDS, Kind, store_unreadable
from tests.gateway.gateway_process import GatewayProcess
from tests.gateway.projection.histories import ANN, DEADLINE_S, found_rows, running, spec_of, submit, until
from tests.nats_process import NatsServer


@pytest.fixture(params=["gateway_on_sqlite", "gateway_on_postgresql"])
def gateway(request: pytest.FixtureRequest) -> GatewayProcess:
    found: GatewayProcess = request.getfixturevalue(request.param)
    return found


async def connected(server: NatsServer) -> AsyncIterator[Client]:
    client = await connect(BusSettings(server.url, server.user, server.password), "test")
    await declare_streams(client.jetstream())
    yield client
    await client.close()


@pytest.fixture
async def nc(nats_url: NatsServer) -> AsyncIterator[Client]:
    async for client in connected(nats_url):
        yield client


@pytest.fixture
async def own_nc(own_nats: NatsServer) -> AsyncIterator[Client]:
    async for client in connected(own_nats):
        yield client


async def skip(store: JetStreamStore, plan: str, entity: str, seq: int) -> int:
    word = c.Skip(seq=seq, reason="nobody can read it")
    if entity == PLAN:
        return (await to_plan(store, plan, word, ANN)).seq
    return (await to_task(store, plan, entity, word, ANN)).seq


@pytest.mark.parametrize("entity", ["A", PLAN])
async def test_live_and_stored_and_replayed_agree_before_and_after_a_skip(
    db: Database, own_nc: Client, entity: str
) -> None:
    store, find_end = JetStreamStore(own_nc), partial(log_end, own_nc)
    projector, live = Projector(store, db, find_end), LivePlans(store, find_end)
    async with running(projector.run(), live.run()):
        await live.ready.wait()
        plan = await submit(store, spec_of({"A": (), "B": ("A",)}))
        looked_at = await live.fold(plan)
        assert looked_at is not None

        async def agree(seq: int) -> dict[str, Any]:
            """How it stands, which everybody sees alike."""
            await projector.at_least(seq, DEADLINE_S)
            await live.at_least(seq)
            replayed = await read_fold(store, plan)
            assert replayed is not None
            assert looked_at.view_json() == replayed.view_json(), "what a stream holds on to goes along"
            _, rows = await found_rows(db)
            assert rows[plan, ""][-1] == replayed.view_json()
            for code in replayed.board.codes:
                assert looked_at.task_json(code) == rows[plan, code][-1] == replayed.task_json(code)
            assert {key for key in rows if key[0] == plan} == {(plan, ""), *((plan, t) for t in replayed.board.codes)}
            seen: dict[str, Any] = msgspec.json.decode(replayed.view_json())
            return seen

        seqs = [await store_unreadable(own_nc, plan, entity, kind) for kind in ("unknown name", "no text")]
        seen = await agree(seqs[-1])
        assert (seen["standing"], seen["fault"].startswith(f"event {seqs[0]} ")) == ("needs_attention", True)
        seen = await agree(await skip(store, plan, entity, seqs[0]))
        assert seen["fault"].startswith(f"event {seqs[1]} "), "the next one comes to light"
        seen = await agree(await skip(store, plan, entity, seqs[1]))
        assert (seen["fault"], seen["standing"]) == ("", "running")
        seen = await agree((await to_plan(store, plan, c.Pause(), ANN)).seq)
        assert seen["standing"] == "paused"
        rebuilder = Rebuilder(store, db)
        await rebuilder.start_verifying(replace=False)

        async def is_done() -> bool:
            return rebuilder.verification.state != "at work"

        await until(is_done)
        assert (rebuilder.verification.state, rebuilder.verification.first) == ("agrees", ())


async def test_an_event_of_a_task_that_the_plan_does_not_have_stops_that_plan_and_no_gateway(
    db: Database, own_nc: Client
) -> None:
    """A runner may store a start of anything."""
    store = JetStreamStore(own_nc)
    plan = await submit(store, spec_of({"A": ()}))
    subject = plan_filter(plan).removesuffix(">") + "ELSE.started"
    ack = await own_nc.jetstream().publish(subject, b'{"lease":1,"runner":"r","execution":"x"}')
    other = await submit(store, spec_of({"A": ()}))
    projector = Projector(store, db, partial(log_end, own_nc))
    async with running(projector.run()):
        await projector.at_least(await log_end(own_nc), DEADLINE_S)
        _, rows = await found_rows(db)
        stopped, goes_on = (msgspec.json.decode(rows[one, ""][-1]) for one in (plan, other))
        assert (stopped["standing"], f"event {ack.seq} " in stopped["fault"]) == ("needs_attention", True)
        assert (goes_on["standing"], goes_on["fault"]) == ("running", "")
        await projector.at_least(await skip(store, plan, "ELSE", ack.seq), DEADLINE_S)
        _, rows = await found_rows(db)
        assert msgspec.json.decode(rows[plan, ""][-1])["fault"] == ""
        assert (plan, "ELSE") not in rows


async def _events(client: httpx.AsyncClient, plan: str, **params: str | int) -> dict[str, Any]:
    answer = await client.get(f"/api/plans/{plan}/events", params=params)
    assert answer.is_success, answer.text
    found: dict[str, Any] = answer.json()
    return found


@pytest.mark.parametrize("kind", KINDS)
async def test_an_unreadable_event_is_shown_with_its_bytes_and_skipped_by_admins(
    gateway: GatewayProcess, nc: Client, kind: Kind
) -> None:
    store = JetStreamStore(nc)
    plan = await submit(store, spec_of({"A": ()}))
    seq = await store_unreadable(nc, plan, "A", kind)
    path = f"/api/plans/{plan}/events/{seq}/skip"
    async with gateway.as_user("reader") as reader, gateway.as_admin() as admin:
        (shown,) = [event for event in (await _events(admin, plan))["events"] if event["seq"] == seq]
        (stored,) = [record for record in await store.read(plan) if record.seq == seq]
        assert b64decode(shown["unreadable"]["bytes"]) == stored.body
        assert shown["unreadable"]["fault"] == stored.fault
        assert shown["unreadable"]["text"] == (None if kind == "no text" else stored.body.decode())
        assert (await reader.post(path, json={"reason": "x"})).status_code == 403
        assert (await admin.post(path, json={"reason": ""})).status_code == 400
        cancelled = await admin.post(f"/api/plans/{plan}/tasks/A/cancel", json={})
        assert (cancelled.status_code, "can't be read" in cancelled.json()["detail"]) == (409, True)
        first = await admin.post(path, json={"reason": "x"})
        assert (first.status_code, first.json()["changed"]) == (202, True)
        again = await admin.post(path, json={"reason": "x"})
        assert (again.status_code, again.json()["changed"]) == (202, False)
        view = (await admin.get(f"/api/plans/{plan}", params={"min_seq": first.json()["seq"]})).json()
        assert (view["fault"], view["standing"]) == ("", "running")
        (word,) = (await _events(admin, plan, type="skipped"))["events"]
        assert (word["skipped_seq"], word["seq"], word["reason"]) == (seq, first.json()["seq"], "x")
        other = await admin.post(f"/api/plans/{plan}/events/{word['seq']}/skip", json={"reason": "x"})
        assert (other.status_code, other.json()["code"]) == (409, "readable")


async def test_a_page_of_what_is_rare_reads_no_more_than_one_answer_may_take(
    gateway: GatewayProcess, nc: Client
) -> None:
    store = JetStreamStore(nc)
    plan = await submit(store, spec_of({f"T{number}": () for number in range(4_300)}))
    async with gateway.as_admin() as client:
        page = await _events(client, plan, type="finalized")
        assert (page["events"], page["next_after"] is not None) == ([], True), "it is behind thousands of others"
        page = await _events(client, plan, type="finalized", after=page["next_after"])
        assert [event["type"] for event in page["events"]] == ["finalized"]
        assert page["next_after"] is None
        (planned,) = (await _events(client, plan, task="T4000"))["events"]
        assert planned["type"] == "planned"
        since = (await _events(client, plan, since=planned["time"], limit=1))["events"]
        assert [event["seq"] for event in since] == [planned["seq"]]
        assert (await _events(client, plan, since="2100-01-01"))["events"] == []
        for wrong in ({"since": "soon"}, {"until": "0000-00-00"}, {"task": "a.b"}):
            answer = await client.get(f"/api/plans/{plan}/events", params=wrong)
            assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")
