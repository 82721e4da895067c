"""Agents over HTTP: slugs, models, whose types they may be of, limits that reset, and what keeps them from going."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from shared.spec import CAPABILITIES_MAX_CHARS
from tests.gateway.answers import assert_problem
from tests.gateway.gateway_process import GatewayProcess


def name() -> str:
    return f"Agent {secrets.token_hex(4)}"


async def made_type(client: httpx.AsyncClient, **fields: Any) -> str:
    answer = await client.post("/api/agent-types", json={"name": name(), "sdk_type": "claude", **fields})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


async def made(client: httpx.AsyncClient, type_id: str | None = None, **fields: Any) -> dict[str, Any]:
    body = {"name": name(), "agent_type_id": type_id or await made_type(client), **fields}
    answer = await client.post("/api/agents", json=body)
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def test_an_agent_takes_its_slug_from_its_name(gateway: GatewayProcess) -> None:
    async with gateway.as_user("ann") as ann:
        agent = await made(ann, name="Zoë’s  Coder! 7")
        assert agent["slug"] == "zoes-coder-7"
        assert (agent["is_auto"], agent["is_public"], agent["is_active"]) == (True, False, True)
        assert agent["availability"] == {"state": "available", "until": None, "limit": None}
        again = await ann.post("/api/agents", json={"name": "zoes coder 7", "agent_type_id": agent["agent_type_id"]})
        assert (again.status_code, again.json()["code"]) == (409, "name_taken")
        nothing = await ann.post("/api/agents", json={"name": "日本", "agent_type_id": agent["agent_type_id"]})
        assert (nothing.status_code, nothing.json()["fields"][0]["field"]) == (400, "slug")


@pytest.mark.parametrize("slug", ["", "-a", "A", "a_b", "a b", "x" * 64, "a\n", "ä"])
async def test_a_slug_of_another_form_is_refused(gateway: GatewayProcess, slug: str) -> None:
    async with gateway.as_user("ann") as ann:
        agent = await made(ann)
        for answer in (
            await ann.post("/api/agents", json={"name": name(), "slug": slug, "agent_type_id": agent["agent_type_id"]}),
            await ann.patch(f"/api/agents/{agent['id']}", json={"slug": slug}),
        ):
            assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")


async def test_a_change_is_three_valued(gateway: GatewayProcess) -> None:
    async with gateway.as_user("ann") as ann:
        agent = await made(ann, model="m1", short_window_hours=5, expires_at="2999-01-01T00:00:00Z")
        path = f"/api/agents/{agent['id']}"
        absent = (await ann.patch(path, json={"long_window_hours": 168})).json()
        assert {**agent, "long_window_hours": 168, "version": 2} == absent
        cleared = (await ann.patch(path, json={"model": None, "short_window_hours": None, "expires_at": None})).json()
        assert (cleared["model"], cleared["short_window_hours"], cleared["expires_at"]) == (None, None, None)
        for field in ("name", "slug", "agent_type_id", "is_active"):
            assert (await ann.patch(path, json={field: None})).status_code == 400
        assert (await ann.patch(path, json={"is_auto": False})).status_code == 400


@pytest.mark.parametrize(
    "fields",
    [
        {"short_window_hours": 0}, {"short_window_hours": -1}, {"long_window_hours": 10**6},
        {"expires_at": "2030-01-01T00:00:00"}, {"expires_at": "9999-12-31T23:59:59-12:00"},
        {"expires_at": "0001-01-01T00:00:00+12:00"}, {"model": "-m"}, {"model": "m\x00"}, {"agent_type_id": "x\x00"},
        {"agent_type_id": "0" * 24}, {"name": "a\x07b"},
    ],
)  # fmt: skip
async def test_what_can_not_be_is_refused_in_words(gateway: GatewayProcess, fields: dict[str, Any]) -> None:
    async with gateway.as_user("ann") as ann:
        agent = await made(ann)
        body = {"name": name(), "agent_type_id": agent["agent_type_id"], **fields}
        for answer in (
            await ann.post("/api/agents", json=body),
            await ann.patch(f"/api/agents/{agent['id']}", json=fields),
        ):
            assert (answer.status_code, answer.json()["code"]) == (400, "bad_request"), answer.text


async def test_a_model_is_one_of_its_types(gateway: GatewayProcess) -> None:
    async with gateway.as_user("ann") as ann:
        narrow, open_ = await made_type(ann, models=["m1", "m2"]), await made_type(ann)
        agent = await made(ann, narrow, model="m2")
        path = f"/api/agents/{agent['id']}"
        assert (await ann.patch(path, json={"model": "m3"})).status_code == 400
        assert (await ann.patch(path, json={"model": "m3", "agent_type_id": open_})).status_code == 200
        assert (await ann.patch(path, json={"agent_type_id": narrow})).status_code == 400
        assert (await ann.patch(path, json={"agent_type_id": narrow, "model": None})).status_code == 200


async def test_an_agent_is_of_its_owners_type_or_of_a_public_one(gateway: GatewayProcess) -> None:
    async with gateway.as_user("ann") as ann, gateway.as_user("bob") as bob, gateway.as_admin() as admin:
        anns, admins = await made_type(ann, api_key="sk-0123456789-0123456789"), await made_type(admin)
        assert (await made(bob, admins))["is_public"] is False
        assert (await made(admin, admins))["is_public"] is True
        for client in (bob, admin):  # an admin's agent is public, so it would lend ann's key to everybody
            answer = await client.post("/api/agents", json={"name": name(), "agent_type_id": anns})
            assert (answer.status_code, answer.json()["fields"][0]["field"]) == (400, "agent_type_id")
        bobs = await made(bob, admins)
        assert (await admin.patch(f"/api/agents/{bobs['id']}", json={"agent_type_id": anns})).status_code == 400


async def test_private_agents_are_their_owners_and_public_ones_read_only(gateway: GatewayProcess) -> None:
    async with gateway.as_user("ann") as ann, gateway.as_user("bob") as bob, gateway.as_admin() as admin:
        private, public = await made(ann), await made(admin)
        report = {"available": True}
        for agent, status in ((private, 404), (public, 403)):
            path = f"/api/agents/{agent['id']}"
            assert (await bob.get(path)).status_code == (404 if status == 404 else 200)
            assert (await bob.patch(path, json={})).status_code == status
            assert (await bob.delete(path)).status_code == status
            assert (await bob.post(f"{path}/availability", json=report)).status_code == status
        ours = {private["id"], public["id"]}
        listed = (await bob.get("/api/agents?limit=200&sort=-created_at")).json()["items"]
        assert {agent["id"] for agent in listed} & ours == {public["id"]}
        assert (await admin.patch(f"/api/agents/{private['id']}", json={"is_active": False})).status_code == 200
        found = (await admin.get(f"/api/agents?agent_type_id={private['agent_type_id']}&is_active=false")).json()
        assert [agent["id"] for agent in found["items"]] == [private["id"]]


async def test_a_limit_that_was_hit_resets_when_it_is_said_to(gateway: GatewayProcess) -> None:
    async with gateway.as_user("ann") as ann:
        agent = await made(ann, short_window_hours=5)
        path = f"/api/agents/{agent['id']}/availability"
        before = datetime.now(UTC)
        short = (await ann.post(path, json={"limit": "short"})).json()["availability"]
        after = datetime.now(UTC)
        assert (short["state"], short["limit"]) == ("resetting", "short")
        assert before <= datetime.fromisoformat(short["until"]) - timedelta(hours=5) <= after
        unknown = await ann.post(path, json={"limit": "long"})
        assert (unknown.status_code, unknown.json()["code"]) == (422, "no_window")
        later = (after + timedelta(days=3)).replace(microsecond=0)
        long = (await ann.post(path, json={"limit": "long", "resets_at": later.isoformat()})).json()["availability"]
        assert (long["state"], long["limit"], datetime.fromisoformat(long["until"])) == ("resetting", "long", later)
        assert (await ann.post(path, json={"available": True})).json()["availability"]["state"] == "available"


@pytest.mark.parametrize(
    "body",
    [
        {}, {"limit": "short", "available": True}, {"available": False}, {"limit": "weekly"},
        {"limit": "short", "resets_at": "2001-01-01T00:00:00Z"},
        {"limit": "short", "resets_at": "2999-01-01T00:00:00Z"},
        {"limit": "short", "resets_at": "9999-12-31T23:59:59-12:00"}, {"limit": "short", "resets_at": "soon"},
        {"available": True, "resets_at": "2030-01-01T00:00:00Z"},
    ],
)  # fmt: skip
async def test_a_report_that_makes_no_sense_is_refused(gateway: GatewayProcess, body: dict[str, Any]) -> None:
    async with gateway.as_user("ann") as ann:
        agent = await made(ann)
        answer = await ann.post(f"/api/agents/{agent['id']}/availability", json=body)
        assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")


async def test_the_list_is_paged(gateway: GatewayProcess) -> None:
    async with gateway.as_user("carl") as carl:
        type_id = await made_type(carl)
        slugs = sorted([(await made(carl, type_id))["slug"] for _ in range(5)])
        seen: list[str] = []
        cursor: str | None = ""
        while cursor is not None:
            query = {"agent_type_id": type_id, "limit": "2", "sort": "slug", **({"cursor": cursor} if cursor else {})}
            page = (await carl.get("/api/agents", params=query)).json()
            seen += [agent["slug"] for agent in page["items"]]
            cursor = page["next"]
        assert seen == slugs


async def test_a_stale_etag_is_refused(gateway: GatewayProcess) -> None:
    async with gateway.as_user("ann") as ann:
        path = f"/api/agents/{(await made(ann))['id']}"
        assert (await ann.get(path)).headers["etag"] == '"1"'
        assert (await ann.patch(path, json={"is_active": False}, headers={"If-Match": '"1"'})).status_code == 200
        assert (await ann.patch(path, json={"is_active": True}, headers={"If-Match": '"1"'})).status_code == 412
        assert (await ann.delete(path, headers={"If-Match": '"1"'})).status_code == 412


async def test_what_an_agent_is_good_at_is_kept_changed_and_cleared(gateway: GatewayProcess) -> None:
    async with gateway.as_user("ann") as ann:
        coder = await made(ann)
        assert coder["capabilities"] == ""
        path = f"/api/agents/{coder['id']}"
        changed = await ann.patch(path, json={"capabilities": " Knows the schema.\nAnd SQL. "})
        assert changed.json()["capabilities"] == "Knows the schema.\nAnd SQL."
        for text in ("\x1b[2J", "x" * (CAPABILITIES_MAX_CHARS + 1)):
            assert_problem(await ann.patch(path, json={"capabilities": text}), 400, "bad_request")
        assert (await ann.patch(path, json={"capabilities": None})).json()["capabilities"] == ""
