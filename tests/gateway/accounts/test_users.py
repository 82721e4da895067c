"""Accounts: made, frozen, given roles; one active admin remains; what the audit log is told."""

from __future__ import annotations

import asyncio

from tests.gateway.answers import assert_problem
from tests.gateway.gateway_process import GatewayProcess, password_of

NEW_PASSWORD = "a new and long password"


async def test_only_admins_reach_accounts_and_the_audit_log(gateway: GatewayProcess) -> None:
    async with gateway.as_user("curious") as client:
        own = gateway.id_of("curious")
        for method, path in (
            ("GET", "/api/users"),
            ("POST", "/api/users"),
            ("GET", f"/api/users/{own}"),
            ("GET", "/api/users/nobody"),
            ("PATCH", f"/api/users/{own}"),
            ("GET", "/api/audit-log"),
        ):
            assert_problem(await client.request(method, path), 403, "forbidden")


async def test_made_account_is_listed_and_read_without_its_password(gateway: GatewayProcess) -> None:
    async with gateway.as_admin() as admin:
        made = await admin.post("/api/users", json={"name": "grace.h-1", "password": NEW_PASSWORD})
        assert made.status_code == 201
        user = made.json()
        assert set(user) == {"id", "name", "role", "is_frozen", "has_password", "created_at"}
        assert (user["role"], user["is_frozen"], user["has_password"]) == ("user", False, True)
        assert (await admin.get(f"/api/users/{user['id']}")).json() == user
        listed = (await admin.get("/api/users", params={"limit": 200, "role": "user"})).json()["items"]
        assert user in listed
        assert [u["name"] for u in listed] == sorted(u["name"] for u in listed)
        assert_problem(await admin.get("/api/users/000000000000000000000000"), 404, "not_found")
        assert (await admin.get("/api/users/%00")).status_code in (400, 404)  # PostgreSQL has no such text


async def test_names_and_passwords_that_cannot_be_are_refused(gateway: GatewayProcess) -> None:
    async with gateway.as_admin() as admin:
        names = ("", "Ann", "-ann", ".ann", "a b", "ann\n", "a" * 64, "änn", "a/b", "\x00", "a\u202eb")
        for name in names:
            answer = await admin.post("/api/users", json={"name": name, "password": NEW_PASSWORD})
            assert assert_problem(answer, 400, "bad_request")["fields"][0]["field"] == "name"
        answer = await admin.post("/api/users", json={"name": "shorty", "password": "eleven char"})
        assert assert_problem(answer, 400, "bad_request")["fields"][0]["field"] == "password"
        for taken in ("admin", "local"):
            answer = await admin.post("/api/users", json={"name": taken, "password": NEW_PASSWORD})
            assert_problem(answer, 409, "name_taken")


async def test_two_accounts_of_one_name_at_once_become_one(gateway: GatewayProcess) -> None:
    async with gateway.as_admin() as admin:
        body = {"name": "twin", "password": NEW_PASSWORD}
        answers = await asyncio.gather(*(admin.post("/api/users", json=body) for _ in range(4)))
    assert sorted(answer.status_code for answer in answers) == [201, 409, 409, 409]


async def test_frozen_account_is_out_at_once_with_session_and_token_and_password(gateway: GatewayProcess) -> None:
    async with gateway.as_user("cold") as client, gateway.as_admin() as admin:
        path = f"/api/users/{gateway.id_of('cold')}"
        token = (await client.post("/api/auth/tokens", json={"name": "ci"})).json()["token"]
        async with gateway.client(token) as program, gateway.anonymous() as anybody:
            assert (await program.get("/api/auth/me")).status_code == 200
            assert (await admin.patch(path, json={"is_frozen": True})).json()["is_frozen"] is True
            for one in (client, program):
                assert_problem(await one.get("/api/auth/me"), 401, "unauthorized")
            login = {"name": "cold", "password": password_of("cold")}
            assert_problem(await anybody.post("/api/auth/login", json=login), 401, "unauthorized")
            assert (await admin.patch(path, json={"is_frozen": False})).json()["is_frozen"] is False
            assert_problem(await client.get("/api/auth/me"), 401, "unauthorized")
            assert (await program.get("/api/auth/me")).status_code == 200
            assert (await anybody.post("/api/auth/login", json=login)).status_code == 200


async def test_change_of_role_holds_at_once(gateway: GatewayProcess) -> None:
    async with gateway.as_user("rises") as client, gateway.as_admin() as admin:
        path = f"/api/users/{gateway.id_of('rises')}"
        assert_problem(await client.get("/api/users"), 403, "forbidden")
        assert (await admin.patch(path, json={"role": "admin"})).status_code == 200
        assert (await client.get("/api/users")).status_code == 200
        assert (await admin.patch(path, json={"role": "user"})).status_code == 200
        assert_problem(await client.get("/api/users"), 403, "forbidden")


async def test_password_that_an_admin_sets_ends_the_sessions(gateway: GatewayProcess) -> None:
    async with gateway.as_user("forgets") as client, gateway.as_admin() as admin, gateway.anonymous() as anybody:
        path = f"/api/users/{gateway.id_of('forgets')}"
        assert (await admin.patch(path, json={"password": NEW_PASSWORD})).status_code == 200
        assert_problem(await client.get("/api/auth/me"), 401, "unauthorized")
        login = {"name": "forgets", "password": NEW_PASSWORD}
        assert (await anybody.post("/api/auth/login", json=login)).status_code == 200


async def test_null_and_unknown_fields_of_a_change_are_refused(gateway: GatewayProcess) -> None:
    async with gateway.as_user("patched") as client, gateway.as_admin() as admin:
        path = f"/api/users/{gateway.id_of('patched')}"
        before = (await admin.get(path)).json()
        for body in ({"role": None}, {"is_frozen": None}, {"password": None}, {"role": "root"}, {"name": "other"}):
            assert_problem(await admin.patch(path, json=body), 400, "bad_request")
        assert (await admin.patch(path, json={})).json() == before
        assert (await client.get("/api/auth/me")).json() == before
        assert_problem(await admin.patch("/api/users/nobody", json={"is_frozen": True}), 404, "not_found")


async def test_last_active_admin_is_neither_frozen_nor_demoted(own_gateway: GatewayProcess) -> None:
    async with own_gateway.as_admin() as admin, own_gateway.as_user("second", "admin") as second:
        own = (await admin.get("/api/auth/me")).json()["id"]
        frozen = await second.patch(f"/api/users/{own_gateway.id_of('second')}", json={"is_frozen": True})
        assert frozen.status_code == 200
        for change in ({"role": "user"}, {"is_frozen": True}, {"role": "user", "password": NEW_PASSWORD}):
            assert_problem(await admin.patch(f"/api/users/{own}", json=change), 409, "last_admin")
        assert (await admin.get("/api/auth/me")).json()["role"] == "admin"


async def test_of_admins_who_demote_and_freeze_one_another_at_once_one_remains(own_gateway: GatewayProcess) -> None:
    names = ("a1", "a2", "a3")
    clients = [own_gateway.as_user(name, "admin") for name in names]
    async with own_gateway.as_admin() as admin:
        own = (await admin.get("/api/auth/me")).json()["id"]
        assert (await clients[0].patch(f"/api/users/{own}", json={"role": "user"})).status_code == 200
        changes = ({"role": "user"}, {"is_frozen": True}, {"role": "user"})
        answers = await asyncio.gather(
            *(
                client.patch(f"/api/users/{own_gateway.id_of(victim)}", json=change)
                for client, victim, change in zip(clients, (names[1], names[2], names[0]), changes, strict=True)
            )
        )
    left = [await client.get("/api/users", params={"role": "admin", "is_frozen": False}) for client in clients]
    for client in clients:
        await client.aclose()
    assert {answer.status_code for answer in answers} <= {200, 401, 403, 409}
    standing = [answer.json()["items"] for answer in left if answer.status_code == 200]
    assert len(standing) == len(standing[0]) >= 1


async def test_audit_log_tells_who_changed_what_and_no_secret(gateway: GatewayProcess) -> None:
    gateway.as_user("watched")
    subject = gateway.id_of("watched")
    async with gateway.as_admin() as admin:
        for change in ({"role": "admin"}, {"is_frozen": True}, {"is_frozen": True}, {"password": NEW_PASSWORD}):
            assert (await admin.patch(f"/api/users/{subject}", json=change)).status_code == 200
        query: dict[str, str | int] = {"subject": subject, "actor": "user:admin", "limit": 3}
        first = (await admin.get("/api/audit-log", params=query)).json()
        second = (await admin.get("/api/audit-log", params=query | {"cursor": first["next"]})).json()
        created = await admin.get("/api/audit-log", params={"subject": subject, "action": "user.created"})
        whole = await admin.get("/api/audit-log", params={"limit": 200})
        assert_problem(await admin.get("/api/audit-log", params={"actor": "\x00"}), 400, "bad_request")
        assert_problem(await admin.get("/api/audit-log", params={"cursor": "nonsense"}), 400, "bad_cursor")
    entries = first["items"] + second["items"]
    assert [(e["action"], e["details"]) for e in entries] == [
        ("user.password_set", {}),
        ("user.frozen", {}),
        ("user.role_changed", {"from": "user", "to": "admin"}),
        ("user.created", {"name": "watched", "role": "user"}),
    ]
    assert second["next"] is None
    assert [e["id"] for e in entries] == sorted((e["id"] for e in entries), reverse=True)
    assert created.json()["items"] == entries[-1:]
    for secret in (NEW_PASSWORD, password_of("watched"), gateway.admin_password, "$argon2"):
        assert secret not in whole.text
