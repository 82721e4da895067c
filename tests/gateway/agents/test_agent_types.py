"""Agent types over HTTP: three-valued changes, keys that go in and never come out, who sees what."""

from __future__ import annotations

import secrets
from typing import Any

import httpx
import pytest

from tests.gateway.gateway_process import GatewayProcess

KEY = "sk-made-up-0123456789-wxyz"


def name() -> str:
    return f"type {secrets.token_hex(4)}"


async def made(client: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    body = {"name": name(), "sdk_type": "claude", **fields}
    answer = await client.post("/api/agent-types", json=body)
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def changed(client: httpx.AsyncClient, type_id: str, **fields: Any) -> dict[str, Any]:
    answer = await client.patch(f"/api/agent-types/{type_id}", json=fields)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def test_a_type_shows_everything_but_its_key(gateway: GatewayProcess) -> None:
    async with gateway.as_user("ann") as ann:
        made_type = await made(ann, api_base_url="https://m.example.com/", models=["m1", "m2", "m1"], api_key=KEY)
        assert made_type["api_base_url"] == "https://m.example.com"
        assert made_type["models"] == ["m1", "m2"]
        assert (made_type["has_api_key"], made_type["api_key_hint"]) == (True, "wxyz")
        assert (made_type["is_auto"], made_type["is_public"], made_type["version"]) == (True, False, 1)
        assert "api_key" not in made_type
        read = await ann.get(f"/api/agent-types/{made_type['id']}")
        assert read.json() == made_type
        assert read.headers["etag"] == '"1"'


async def test_a_change_is_three_valued(gateway: GatewayProcess) -> None:
    async with gateway.as_user("ann") as ann:
        type_id = (await made(ann, api_base_url="https://m.example.com", models=["m1"], api_key=KEY))["id"]
        absent = await changed(ann, type_id, name=name())
        assert (absent["api_base_url"], absent["models"], absent["has_api_key"]) == (
            "https://m.example.com",
            ["m1"],
            True,
        )
        cleared = await changed(ann, type_id, api_base_url=None, models=None, api_key=None)
        assert (cleared["api_base_url"], cleared["models"], cleared["has_api_key"]) == (None, [], False)
        assert cleared["api_key_hint"] is None
        given = await changed(ann, type_id, api_base_url="https://n.example.com", models=["m2"], api_key=f" {KEY}\n")
        assert (given["api_base_url"], given["models"], given["api_key_hint"]) == (
            "https://n.example.com",
            ["m2"],
            "wxyz",
        )
        assert given["version"] == 4
        assert (await changed(ann, type_id))["version"] == 4
        assert (await changed(ann, type_id, models=["m2"]))["version"] == 4
        null = await ann.patch(f"/api/agent-types/{type_id}", json={"name": None})
        assert (null.status_code, null.json()["code"]) == (400, "bad_request")


async def test_giving_a_type_to_people_needs_a_word_about_its_key(gateway: GatewayProcess) -> None:
    async with gateway.as_user("ann") as ann:
        made_type = await made(ann, api_key=KEY)
        path = f"/api/agent-types/{made_type['id']}"
        refused = await ann.patch(path, json={"sdk_type": None})
        assert (refused.status_code, refused.json()["code"]) == (409, "would_clear_credentials")
        assert (await ann.get(path)).json() == made_type
        manual = await changed(ann, made_type["id"], sdk_type=None, clear_credentials=True)
        assert (manual["sdk_type"], manual["is_auto"], manual["has_api_key"]) == (None, False, False)
        back = await changed(ann, made_type["id"], sdk_type="claude")
        assert back["has_api_key"] is False
        keyed = await ann.patch(path, json={"sdk_type": None, "api_key": KEY})
        assert (keyed.status_code, keyed.json()["code"]) == (400, "bad_request")
        assert (await changed(ann, made_type["id"], sdk_type=None))["sdk_type"] is None


async def test_a_command_belongs_to_commands_alone(gateway: GatewayProcess) -> None:
    async with gateway.as_user("ann") as ann:
        command = await made(ann, sdk_type="command", command=["agent", "--quiet"])
        assert command["command"] == ["agent", "--quiet"]
        refused: list[dict[str, Any]] = [
            {"command": None},
            {"command": []},
            {"sdk_type": "claude"},
            {"command": ["a\x00"]},
        ]
        for fields in refused:
            answer = await ann.patch(f"/api/agent-types/{command['id']}", json=fields)
            assert (answer.status_code, answer.json()["fields"][0]["field"]) == (400, "command"), fields
        claude = await changed(ann, command["id"], sdk_type="claude", command=None)
        assert (claude["sdk_type"], claude["command"]) == ("claude", [])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", ""), ("name", " x"), ("name", "a\x00b"), ("name", "a\nb"), ("name", "x" * 64), ("name", "\u202ex"),
        ("sdk_type", "gpt"), ("models", ["-m"]), ("models", ["a b"]), ("models", ["m"] * 101), ("models", "m"),
        ("api_key", ""), ("api_key", "  "), ("api_key", "a b"), ("api_key", "é" * 30), ("api_key", "a\x00b"),
        ("api_base_url", "http://m.example.com"), ("api_base_url", "http://127.0.0.1:8080"),
        ("api_base_url", "ftp://m.example.com"), ("api_base_url", "m.example.com"), ("api_base_url", "https://"),
        ("api_base_url", "https://ann:pw@m.example.com"), ("api_base_url", "https://m.example.com/#a"),
        ("api_base_url", "https://m.example.com/?key=1"), ("api_base_url", "https://127.0.0.1"),
        ("api_base_url", "https://169.254.169.254/latest"), ("api_base_url", "https://0x7f.1"),
        ("api_base_url", "https://[::ffff:10.0.0.1]"), ("api_base_url", "https://localhost"),
        ("api_base_url", "https://m.example.com:0"), ("api_base_url", "https://m.example.com:99999"),
        ("api_base_url", "https://m.exa\x00mple.com"), ("api_base_url", "https://m.example.com/ x"),
        ("unknown", 1),
    ],
)  # fmt: skip
async def test_what_can_not_be_is_refused_in_words(gateway: GatewayProcess, field: str, value: object) -> None:
    async with gateway.as_user("ann") as ann:
        made_type = await made(ann)
        for answer in (
            await ann.post("/api/agent-types", json={"name": name(), "sdk_type": "claude", field: value}),
            await ann.patch(f"/api/agent-types/{made_type['id']}", json={field: value}),
        ):
            assert (answer.status_code, answer.json()["code"]) == (400, "bad_request"), answer.text
            assert field in answer.json()["detail"]
        assert (await ann.get(f"/api/agent-types/{made_type['id']}")).json() == made_type


async def test_an_admin_may_name_a_private_host(gateway: GatewayProcess) -> None:
    async with gateway.as_admin() as admin:
        assert (await made(admin, api_base_url="https://models.internal:8443/v1"))["is_public"] is True


async def test_names_are_unique_per_owner(gateway: GatewayProcess) -> None:
    taken = name()
    async with gateway.as_user("ann") as ann, gateway.as_user("bob") as bob:
        await made(ann, name=taken)
        await made(bob, name=taken)
        other = await made(ann)
        for answer in (
            await ann.post("/api/agent-types", json={"name": taken}),
            await ann.patch(f"/api/agent-types/{other['id']}", json={"name": taken}),
            await ann.patch(f"/api/agent-types/{other['id']}", json={"name": taken, "sdk_type": None}),
        ):
            assert (answer.status_code, answer.json()["code"]) == (409, "name_taken")


async def test_a_stale_etag_is_refused_and_none_is_needed(gateway: GatewayProcess) -> None:
    async with gateway.as_user("ann") as ann:
        path = f"/api/agent-types/{(await made(ann))['id']}"
        first = await ann.patch(path, json={"models": ["m1"]}, headers={"If-Match": '"1"'})
        assert (first.status_code, first.headers["etag"]) == (200, '"2"')
        for stale in (
            await ann.patch(path, json={"models": ["m2"]}, headers={"If-Match": '"1"'}),
            await ann.delete(path, headers={"If-Match": '"1"'}),
        ):
            assert (stale.status_code, stale.json()["code"]) == (412, "changed")
        assert (await ann.delete(path, headers={"If-Match": '"2"'})).status_code == 204
        assert (await ann.get(path)).status_code == 404


async def test_private_types_are_their_owners_and_public_ones_are_seen_without_credentials(
    gateway: GatewayProcess,
) -> None:
    async with gateway.as_user("ann") as ann, gateway.as_user("bob") as bob, gateway.as_admin() as admin:
        private, public = await made(ann, api_key=KEY), await made(admin, api_key=KEY)
        private_path, public_path = f"/api/agent-types/{private['id']}", f"/api/agent-types/{public['id']}"
        missing = await bob.get("/api/agent-types/" + "0" * 24)
        for answer in (
            await bob.get(private_path),
            await bob.patch(private_path, json={}),
            await bob.delete(private_path),
        ):
            assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
            assert answer.json()["detail"] == missing.json()["detail"].replace("0" * 24, private["id"])
        assert (await bob.post(f"{private_path}/test", json={})).status_code == 404
        shown = (await bob.get(public_path)).json()
        assert (shown["is_public"], shown["has_api_key"], shown["api_key_hint"]) == (True, None, None)
        for answer in (
            await bob.patch(public_path, json={"api_key": "sk-bobs"}),
            await bob.delete(public_path),
            await bob.post(f"{public_path}/test", json={}),
        ):
            assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
        assert (await admin.get(private_path)).json() == private
        assert (await changed(admin, private["id"], models=["m"]))["owner_id"] == private["owner_id"]
        for client, sees in ((ann, {private["id"], public["id"]}), (bob, {public["id"]})):
            listed = (await client.get("/api/agent-types?limit=200&sort=-created_at")).json()["items"]
            assert {t["id"] for t in listed} & {private["id"], public["id"]} == sees
            for type_ in listed:
                mine = type_["owner_id"] == gateway.id_of("ann" if client is ann else "bob")
                assert (type_["has_api_key"] is not None) == mine


async def test_a_type_with_agents_stays_and_so_do_the_models_that_they_use(gateway: GatewayProcess) -> None:
    async with gateway.as_user("ann") as ann:
        made_type = await made(ann, models=["m1", "m2"])
        path = f"/api/agent-types/{made_type['id']}"
        agent = (
            await ann.post("/api/agents", json={"name": name(), "agent_type_id": made_type["id"], "model": "m1"})
        ).json()
        used = await ann.delete(path)
        assert (used.status_code, used.json()["code"]) == (409, "in_use")
        assert agent["name"] in used.json()["detail"]
        lost = await ann.patch(path, json={"models": ["m2"]})
        assert (lost.status_code, lost.json()["code"]) == (409, "in_use")
        assert (await ann.patch(path, json={"models": ["m1"]})).status_code == 200
        assert (await ann.delete(f"/api/agents/{agent['id']}")).status_code == 204
        assert (await ann.delete(path)).status_code == 204


async def test_a_repeated_post_makes_one_type(gateway: GatewayProcess) -> None:
    headers, body = {"Idempotency-Key": secrets.token_hex(8)}, {"name": name(), "sdk_type": "claude", "api_key": KEY}
    async with gateway.as_user("ann") as ann:
        first, second = [await ann.post("/api/agent-types", json=body, headers=headers) for _ in range(2)]
        assert (first.status_code, second.status_code) == (201, 201)
        assert first.json() == second.json()


async def test_names_and_ids_from_the_path_never_break_the_database(gateway: GatewayProcess) -> None:
    async with gateway.as_user("ann") as ann:
        for odd in ("%00", "a%00b", "'", "%F0%9F%98%80", "x" * 3000, "..%2f"):
            assert (await ann.get(f"/api/agent-types/{odd}")).status_code == 404
            assert (await ann.get(f"/api/agents/{odd}")).status_code == 404
        assert (await ann.get("/api/agent-types?name=a%00b")).status_code == 400


async def test_every_change_is_in_the_audit_log_without_a_secret(gateway: GatewayProcess) -> None:
    async with gateway.as_user("ann") as ann, gateway.as_admin() as admin:
        type_id = (await made(ann, api_key=KEY))["id"]
        await changed(ann, type_id, models=["m1"], api_key="sk-second-0123456789-abcd")
        await changed(ann, type_id, api_key=None)
        await ann.delete(f"/api/agent-types/{type_id}")
        entries = (await admin.get(f"/api/audit-log?subject={type_id}&sort=id")).json()["items"]
        assert [entry["action"] for entry in entries] == [
            "agent_type.created",
            "agent_type.credential_set",
            "agent_type.credential_set",
            "agent_type.changed",
            "agent_type.credential_cleared",
            "agent_type.changed",
            "agent_type.deleted",
        ]
        assert {entry["actor"] for entry in entries} == {"user:ann"}
        assert entries[3]["details"] == {"fields": ["models", "api_key"]}


async def test_a_key_does_not_follow_its_type_to_another_place(gateway: GatewayProcess) -> None:
    async with gateway.as_user("ann") as ann, gateway.as_admin() as admin:
        made_type = await made(ann, api_key=KEY, api_base_url="https://a.example.com/v1")
        path = f"/api/agent-types/{made_type['id']}"
        moves: list[dict[str, object]] = [
            {"api_base_url": "https://b.example.com/v1"},
            {"api_base_url": "https://a.example.com:8443/v1"},
            {"api_base_url": None},
            {"sdk_type": "command", "command": ["true"]},
        ]
        for client in (ann, admin):
            for move in moves:
                refused = await client.patch(path, json=move)
                assert (refused.status_code, refused.json()["code"]) == (409, "would_clear_credentials"), move
        assert (await ann.get(path)).json() == made_type
        near = await changed(ann, made_type["id"], api_base_url="https://A.example.com:443/v2")
        assert near["has_api_key"] is True
        anew = await changed(ann, made_type["id"], api_base_url="https://b.example.com", api_key=KEY)
        assert anew["has_api_key"] is True
        assert (await changed(ann, made_type["id"], clear_credentials=True))["has_api_key"] is True
        bare = await changed(ann, made_type["id"], api_base_url="https://c.example.com", clear_credentials=True)
        assert (bare["api_base_url"], bare["has_api_key"]) == ("https://c.example.com", False)
        assert (await changed(ann, made_type["id"], api_base_url="https://d.example.com"))["has_api_key"] is False
