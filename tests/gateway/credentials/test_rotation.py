"""The keyring is rotated while the gateway serves."""

from __future__ import annotations

import asyncio
import json
import secrets
from pathlib import Path

import httpx

from services.gateway.credentials import stored
from services.gateway.credentials.keyring import Keyring
from services.gateway.database.engine import Database
from services.gateway.database.engine import database_url as checked_url
from tests.gateway.credentials.keyring_file import key, rotate
from tests.gateway.gateway_process import GatewayProcess

TYPES = 20
ROTATIONS = 3


def keyring_of(gateway: GatewayProcess) -> Path:
    return gateway.directory / "keyring.json"


async def made_type(client: httpx.AsyncClient, api_key: str) -> str:
    body = {"name": f"type {secrets.token_hex(4)}", "sdk_type": "claude", "api_key": api_key}
    answer = await client.post("/api/agent-types", json=body)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


async def test_rotating_takes_no_request_down_and_loses_no_key(own_gateway: GatewayProcess) -> None:
    path = keyring_of(own_gateway)
    newest: dict[str, str] = {}
    rotated = asyncio.Event()
    statuses: set[int] = set()

    async def keep_setting(client: httpx.AsyncClient, type_id: str) -> None:
        while not rotated.is_set():
            newest[type_id] = f"sk-{secrets.token_hex(16)}"
            changed = await client.patch(f"/api/agent-types/{type_id}", json={"api_key": newest[type_id]})
            read = await client.get(f"/api/agent-types/{type_id}")
            statuses.update((changed.status_code, read.status_code))
            assert read.json()["api_key_hint"] == newest[type_id][-4:]

    async def keep_rotating(admin: httpx.AsyncClient) -> None:
        try:
            for number in range(ROTATIONS):
                rotate(path, f"new{number}")
                answer = await admin.post("/api/keys/reencrypt")
                assert (answer.status_code, answer.json()["unreadable"]) == (200, []), answer.text
                assert answer.json()["current_key"] == f"new{number}"
        finally:
            rotated.set()

    async with own_gateway.as_user("ann") as ann, own_gateway.as_admin() as admin:
        for number in range(TYPES):
            api_key = f"sk-{number}-{secrets.token_hex(16)}"
            newest[await made_type(ann, api_key)] = api_key
        busy = list(newest)[:4]
        await asyncio.gather(keep_rotating(admin), *(keep_setting(ann, type_id) for type_id in busy))
        assert statuses == {200}
        last = f"new{ROTATIONS - 1}"
        await admin.post("/api/keys/reencrypt")
        shown = (await admin.get("/api/keys")).json()
        assert shown["current"] == last
        assert {k["id"]: k["credentials"] for k in shown["keys"]} == {
            "k1": 0, "new0": 0, "new1": 0, last: TYPES,
        }  # fmt: skip
        again = (await admin.post("/api/keys/reencrypt")).json()
        assert (again["reencrypted"], again["changed_meanwhile"]) == (0, 0)
    ring = json.loads(path.read_text())
    alone = path.with_name("alone.json")
    alone.touch(mode=0o600)
    alone.write_text(json.dumps({"current": last, "keys": {last: ring["keys"][last]}}))
    database = Database(checked_url(own_gateway.database_url))
    async with database.read() as session:
        for type_id, api_key in newest.items():
            assert await stored.read_api_key(session, Keyring(alone), type_id) == api_key
    await database.close()


async def test_only_admins_see_and_turn_the_keyring(own_gateway: GatewayProcess) -> None:
    async with own_gateway.as_user("ann") as ann, own_gateway.anonymous() as nobody:
        for method, path in (("GET", "/api/keys"), ("POST", "/api/keys/reencrypt")):
            assert (await ann.request(method, path)).status_code == 403
            assert (await nobody.request(method, path)).status_code == 401


async def test_a_broken_keyring_is_told_and_the_old_keys_go_on(own_gateway: GatewayProcess) -> None:
    path = keyring_of(own_gateway)
    good = path.read_text()
    async with own_gateway.as_user("ann") as ann, own_gateway.as_admin() as admin:
        await made_type(ann, "sk-0123456789-0123456789")
        path.write_text(json.dumps({"current": "k2", "keys": {"k1": key("other")}}))
        refused = await admin.post("/api/keys/reencrypt")
        assert (refused.status_code, refused.json()["code"]) == (409, "keyring_unusable")
        assert "'k2'" in refused.json()["detail"]
        await made_type(ann, "sk-0123456789-0123456789")
        path.write_text(good)
        assert (await admin.post("/api/keys/reencrypt")).json()["reencrypted"] == 0
        path.write_text(json.dumps({"current": "k2", "keys": {"k2": key("k2")}}))
        lost = (await admin.post("/api/keys/reencrypt")).json()
        assert (lost["reencrypted"], len(lost["unreadable"])) == (0, 2)
        assert "'k1'" in lost["unreadable"][0]["reason"]
        keys = (await admin.get("/api/keys")).json()["keys"]
        assert keys == [
            {"id": "k1", "is_current": False, "is_present": False, "credentials": 2},
            {"id": "k2", "is_current": True, "is_present": True, "credentials": 0},
        ]
