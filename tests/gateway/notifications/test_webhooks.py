"""Webhooks over HTTP: their owner's alone, their secrets never shown, and told what happens."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from services.gateway.notifications.routes import WEBHOOKS_MAX
from shared import commands as c
from shared.jetstream import JetStreamStore
from shared.transact import to_plan, to_task
from tests.gateway.answers import assert_problem
from tests.gateway.conftest import DATABASES, MakeDatabase
from tests.gateway.gateway_process import GatewayProcess
from tests.gateway.notifications.receiver import Answer, Receiver
from tests.gateway.notifications.world import failed, happens
from tests.gateway.plans import made
from tests.gateway.projection.histories import ANN, spec_of, submit
from tests.nats_process import NatsServer

LOCAL = {"TREADLE_LOCAL_REPOSITORIES": "1", "TREADLE_GATEWAY_PUBLIC_URL": "https://treadle.example.com/"}
SECRET = "whsec-canary-7c1d"


@pytest.fixture(scope="module", params=DATABASES)
def local_gateway(
    request: pytest.FixtureRequest,
    make_migrated_database: MakeDatabase,
    nats_url: NatsServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[GatewayProcess]:
    """One whose operator allows receivers on loopback."""
    directory = tmp_path_factory.mktemp("gateway")
    with (
        make_migrated_database(request.param, directory) as url,
        GatewayProcess(directory, nats_url, url, LOCAL, is_migrated=True) as running,
    ):
        yield running


@pytest.fixture
async def ann(local_gateway: GatewayProcess) -> AsyncIterator[httpx.AsyncClient]:
    async with local_gateway.as_user(f"ann-{secrets.token_hex(4)}") as client:
        yield client


async def create(client: httpx.AsyncClient, url: str, **fields: Any) -> dict[str, Any]:
    body = {"name": "Mine", "url": url, "secret": SECRET} | fields
    created: dict[str, Any] = await made.ok(client.post("/api/webhooks", json=body), 201)
    return created


async def log_of(client: httpx.AsyncClient, hook: str, **query: Any) -> list[dict[str, Any]]:
    page = await made.ok(client.get(f"/api/webhooks/{hook}/deliveries", params=query))
    items: list[dict[str, Any]] = page["items"]
    return items


async def delivered(client: httpx.AsyncClient, hook: str, count: int) -> list[dict[str, Any]]:
    async def look() -> list[dict[str, Any]] | None:
        items = await log_of(client, hook, status="delivered")
        return items if len(items) >= count else None

    found: list[dict[str, Any]] = await made.until(look, f"{count} deliveries of {hook}")
    return found


async def test_a_webhook_is_told_of_its_owners_plans_and_signed(
    ann: httpx.AsyncClient, store: JetStreamStore, receiver: Receiver
) -> None:
    project = await made.project(ann)
    plan = await submit(store, spec_of({"T1": (), "T2": ()}), project=project)
    await happens(store, plan, "T1", failed("before"))
    hook = await create(ann, receiver.url + "?token=abc")
    await happens(store, plan, "T2", failed("after"))
    await to_plan(store, plan, c.CancelPlan(reason=""), ANN)
    await to_task(store, plan, "T1", c.CancelTask(phase="cancelling"), ANN)
    await to_plan(store, plan, c.ConfirmCancelled(), ANN)
    items = await delivered(ann, hook["id"], 2)
    assert [(one["event"], one["task"], one["reason"]) for one in items] == [
        ("plan_finished", "", "the plan is cancelled"),
        ("needs_attention", "T2", "after"),
    ]
    assert all(one["plan"] == plan and one["attempts"] == 1 and one["response_status"] == 200 for one in items)
    assert sorted(heard.delivery for heard in receiver.heard) == sorted(one["id"] for one in items)
    for heard in receiver.heard:
        assert heard.path == "/hook?token=abc"
        parts = dict(part.split("=", 1) for part in heard.headers["treadle-signature"].split(","))
        signed = f"{parts['t']}.".encode() + heard.body
        assert parts["v1"] == hmac.new(SECRET.encode(), signed, hashlib.sha256).hexdigest()
        assert heard.json["plan"]["url"] == f"https://treadle.example.com/api/plans/{plan}"
        assert heard.json["plan"]["project_id"] == project


async def test_neither_address_nor_secret_is_shown_or_stored_in_clear(
    local_gateway: GatewayProcess, ann: httpx.AsyncClient, receiver: Receiver
) -> None:
    hook = await create(ann, receiver.url + "/services/canary-path-9f2e41")
    path = f"/api/webhooks/{hook['id']}"
    await made.ok(ann.post(f"{path}/test"))
    for read in (path, "/api/webhooks", f"{path}/deliveries"):
        text = (await ann.get(read)).text
        assert SECRET not in text and "canary-path" not in text
    assert hook["url"] == receiver.url.removesuffix("/hook") + "/…2e41"
    assert hook["has_secret"] is True
    assert SECRET not in local_gateway.log.read_text() and "canary-path" not in local_gateway.log.read_text()
    if local_gateway.database_url.startswith("sqlite"):
        file = Path(local_gateway.database_url.removeprefix("sqlite:///"))
        for one in file.parent.glob(f"{file.name}*"):
            assert SECRET.encode() not in one.read_bytes() and b"canary-path" not in one.read_bytes()


async def test_a_test_says_at_once_what_came_of_it_and_is_tried_once(
    ann: httpx.AsyncClient, receiver: Receiver
) -> None:
    receiver.answers = [Answer(404, body=b"no such hook")]
    hook = await create(ann, receiver.url, is_active=False)
    got = await made.ok(ann.post(f"/api/webhooks/{hook['id']}/test"), 200)
    assert (got["status"], got["response_status"], got["attempts"]) == ("given_up", 404, 1)
    assert got["error"] == "the receiver answered HTTP 404: no such hook"
    assert got["next_try_at"] is None
    assert_problem(await ann.post(f"/api/webhooks/{hook['id']}/test"), 429, "too_soon")
    again = await made.ok(ann.post(f"/api/webhooks/{hook['id']}/deliveries/{got['id']}/redeliver"), 202)
    assert (again["status"], again["attempts"], again["error"]) == ("waiting", 0, "")
    [item] = await delivered(ann, hook["id"], 1)
    assert item["id"] == got["id"]
    assert [heard.delivery for heard in receiver.heard] == [got["id"]] * 2


async def test_what_failed_is_delivered_again_on_demand(
    ann: httpx.AsyncClient, store: JetStreamStore, receiver: Receiver
) -> None:
    hook = await create(ann, receiver.url)
    receiver.answers = [Answer(500)]
    plan = await submit(store, spec_of({"T1": ()}), project=await made.project(ann))
    await happens(store, plan, "T1", failed())

    async def has_failed() -> dict[str, Any] | None:
        items = await log_of(ann, hook["id"])
        return items[0] if items and items[0]["error"] else None

    one = await made.until(has_failed, "a try that failed")
    assert (one["status"], one["response_status"]) == ("waiting", 500)
    assert one["next_try_at"] > one["tried_at"]
    path = f"/api/webhooks/{hook['id']}/deliveries/{one['id']}/redeliver"
    await made.ok(ann.patch(f"/api/webhooks/{hook['id']}", json={"is_active": False}))
    assert_problem(await ann.post(path), 409, "webhook_off")
    await made.ok(ann.patch(f"/api/webhooks/{hook['id']}", json={"is_active": True}))
    await made.ok(ann.post(path), 202)
    await delivered(ann, hook["id"], 1)


async def test_a_webhook_that_was_off_is_not_told_what_happened_meanwhile(
    ann: httpx.AsyncClient, store: JetStreamStore, receiver: Receiver
) -> None:
    hook = await create(ann, receiver.url, is_active=False)
    plan = await submit(store, spec_of({"T1": ()}), project=await made.project(ann))
    await happens(store, plan, "T1", failed("while off"))
    await made.ok(ann.patch(f"/api/webhooks/{hook['id']}", json={"is_active": True}))
    await happens(store, plan, "T1", failed("while on"))
    assert [one["reason"] for one in await delivered(ann, hook["id"], 1)] == ["while on"]


async def test_a_change_leaves_what_it_does_not_name(ann: httpx.AsyncClient, receiver: Receiver) -> None:
    hook = await create(ann, "http://127.0.0.1:9/nobody", events=["plan_finished", "plan_finished"])
    assert hook["events"] == ["plan_finished"]
    path = f"/api/webhooks/{hook['id']}"
    changed = await made.ok(ann.patch(path, json={"url": receiver.url}, headers={"If-Match": '"1"'}))
    assert changed == hook | {"url": changed["url"], "version": 2}
    await made.ok(ann.post(f"{path}/test"))
    assert receiver.heard[0].headers["treadle-signature"], "the secret has stayed"
    assert_problem(await ann.patch(path, json={"name": "x"}, headers={"If-Match": '"1"'}), 412, "changed")
    assert (await made.ok(ann.patch(path, json={"name": "Mine"})))["version"] == 2
    refused: tuple[dict[str, Any], ...] = (
        {"secret": None}, {"preset": "slack"}, {"name": None}, {"events": []}, {"events": ["all"]}
    )  # fmt: skip
    for body in refused:
        assert_problem(await ann.patch(path, json=body), 400, "bad_request")
    slack = await made.ok(ann.patch(path, json={"preset": "slack", "secret": None}))
    assert (slack["preset"], slack["has_secret"]) == ("slack", False)
    await made.ok(ann.delete(path), 204)
    assert_problem(await ann.get(path), 404, "not_found")


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("url", {"url": "ftp://example.com/"}),
        ("url", {"url": "https://a:b@example.com/"}),
        ("secret", {"secret": None}),
        ("secret", {"preset": "slack"}),
        ("secret", {"secret": "short"}),
        ("name", {"name": "a\u202eb"}),
        ("project_ids", {"project_ids": ["0" * 24]}),
        ("project_ids", {"project_ids": ["nonsense"]}),
        ("surprise", {"surprise": 1}),
    ],
)
async def test_a_webhook_that_can_not_work_is_refused(
    ann: httpx.AsyncClient, field: str, fields: dict[str, Any]
) -> None:
    body = {"name": "Mine", "url": "http://127.0.0.1:9/", "secret": SECRET} | fields
    told = assert_problem(await ann.post("/api/webhooks", json=body), 400, "bad_request")
    assert field in told["detail"] or field in str(told.get("fields"))


async def test_a_private_host_is_refused_where_the_operator_does_not_allow_it(gateway: GatewayProcess) -> None:
    async with gateway.as_admin() as admin:
        for host in ("127.0.0.1", "localhost", "169.254.169.254", "10.1.2.3", "[::1]", "nats"):
            body = {"name": "Mine", "url": f"http://{host}/", "secret": SECRET}
            told = assert_problem(await admin.post("/api/webhooks", json=body), 400, "bad_request")
            assert told["fields"][0]["field"] == "url"


async def test_webhooks_are_their_owners_alone(local_gateway: GatewayProcess, ann: httpx.AsyncClient) -> None:
    hook = await create(ann, "http://127.0.0.1:9/", project_ids=[await made.project(ann)])
    async with local_gateway.as_admin() as admin, local_gateway.as_user("bob") as bob:
        for other in (admin, bob):
            assert_problem(await other.get(f"/api/webhooks/{hook['id']}"), 404, "not_found")
            ids = [one["id"] for one in (await made.ok(other.get("/api/webhooks")))["items"]]
            assert hook["id"] not in ids
        body = {"name": "b", "url": "http://127.0.0.1:9/", "secret": SECRET, "project_ids": hook["project_ids"]}
        assert_problem(await bob.post("/api/webhooks", json=body), 400, "bad_request")
        assert (await admin.post("/api/webhooks", json=body)).status_code == 201


async def test_an_account_has_a_bounded_number_of_webhooks(ann: httpx.AsyncClient) -> None:
    for _ in range(WEBHOOKS_MAX):
        await create(ann, "http://127.0.0.1:9/")
    body = {"name": "One more", "url": "http://127.0.0.1:9/", "secret": SECRET}
    assert_problem(await ann.post("/api/webhooks", json=body), 409, "too_many_webhooks")


async def test_the_same_request_made_twice_makes_one_webhook(ann: httpx.AsyncClient) -> None:
    body = {"name": "Once", "url": "http://127.0.0.1:9/", "secret": SECRET}
    headers = {"Idempotency-Key": secrets.token_hex(8)}
    first, second = [await made.ok(ann.post("/api/webhooks", json=body, headers=headers)) for _ in range(2)]
    assert first == second
    assert len((await made.ok(ann.get("/api/webhooks")))["items"]) == 1
