"""Logging in, sessions, and one's own password."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta

import httpx
import jwt

from tests.gateway.answers import assert_problem
from tests.gateway.gateway_process import GatewayProcess, password_of


async def log_in(client: httpx.AsyncClient, name: str, password: str) -> httpx.Response:
    return await client.post("/api/auth/login", json={"name": name, "password": password})


def address(host: str) -> httpx.AsyncHTTPTransport:
    """Asks from another loopback address, which has its own count of failures."""
    return httpx.AsyncHTTPTransport(local_address=host)


async def test_right_password_opens_a_session_of_twelve_hours(gateway: GatewayProcess) -> None:
    async with gateway.anonymous() as client:
        answer = await log_in(client, "admin", gateway.admin_password)
        body = answer.json()
        me = await client.get("/api/auth/me", headers={"Authorization": f"Bearer {body['token']}"})
    assert answer.status_code == 200
    assert me.json() == body["user"]
    assert (me.json()["name"], me.json()["role"], me.json()["has_password"]) == ("admin", "admin", True)
    left = datetime.fromisoformat(body["expires_at"]) - datetime.now(UTC)
    assert timedelta(hours=11, minutes=59) < left <= timedelta(hours=12)


async def test_name_is_taken_whatever_its_case(gateway: GatewayProcess) -> None:
    async with gateway.anonymous() as client:
        assert (await log_in(client, "ADMIN", gateway.admin_password)).status_code == 200


async def test_wrong_password_unknown_name_and_impossible_name_are_answered_alike(gateway: GatewayProcess) -> None:
    gateway.as_user("wrong-password")
    async with gateway.client(transport=address("127.0.0.2")) as client:
        answers = [
            await log_in(client, name, "not the password at all")
            for name in ("wrong-password", "nobody-has-this", "\x00' OR 1=1 --")
        ]
    bodies = [assert_problem(answer, 401, "unauthorized") for answer in answers]
    assert bodies[0] == bodies[1] == bodies[2]
    assert all(answer.headers["www-authenticate"].startswith("Bearer") for answer in answers)


async def test_account_without_a_token_reaches_only_the_open_routes(gateway: GatewayProcess) -> None:
    async with gateway.anonymous() as client:
        assert (await client.get("/api/health/live")).status_code == 200
        for path in ("/api/auth/me", "/api/auth/tokens", "/api/users", "/api/audit-log"):
            assert_problem(await client.get(path), 401, "unauthorized")
        for header in ("Bearer", "Basic YWRtaW46eA==", "trd_x", "Bearer trd_" + "x" * 43, "Bearer a.b.c"):
            assert_problem(await client.get("/api/auth/me", headers={"Authorization": header}), 401, "unauthorized")


async def test_expired_tampered_and_unsigned_sessions_are_refused(gateway: GatewayProcess) -> None:
    token = gateway.token_of("admin")
    claims = jwt.decode(token, options={"verify_signature": False})
    secret, now = gateway.session_secret, datetime.now(UTC)
    head, body, signature = token.split(".")

    def encoded(value: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

    def signed(**changes: object) -> str:
        kept = {name: value for name, value in (claims | changes).items() if value is not None}
        return jwt.encode(kept, secret, algorithm="HS256")

    forged = {
        "expired": signed(exp=now - timedelta(seconds=1)),
        "of another secret": jwt.encode(claims, "x" * 48, algorithm="HS256"),
        "with changed claims": f"{head}.{encoded(claims | {'version': 2})}.{signature}",
        "without a signature": f"{encoded({'alg': 'none', 'typ': 'JWT'})}.{body}.",
        "of another algorithm": jwt.encode(claims, secret * 2, algorithm="HS512"),
        "of our secret by another algorithm": jwt.encode(claims, secret, algorithm="HS384"),
        "for ever": signed(exp=None),
        "of no version": signed(version=None),
        "of another version": signed(version=2),
        "of a version in words": signed(version="one"),
        "of nobody": signed(sub="0" * 24),
        "of no subject": signed(sub=None),
    }
    async with gateway.client(signed()) as client:
        assert (await client.get("/api/auth/me")).status_code == 200, "the forgeries below would prove nothing"
    for kind, token in forged.items():
        async with gateway.client(token) as client:
            answer = await client.get("/api/auth/me")
        assert answer.status_code == 401, f"a session {kind} was let in"
        assert_problem(answer, 401, "unauthorized")


async def test_new_password_ends_all_sessions_and_keeps_api_tokens(gateway: GatewayProcess) -> None:
    async with gateway.as_user("changes-password") as client, gateway.anonymous() as anybody:
        token = (await client.post("/api/auth/tokens", json={"name": "ci"})).json()["token"]
        old, new = password_of("changes-password"), "quite another password"
        answer = await client.post("/api/auth/password", json={"old": old, "new": new})
        assert answer.status_code == 200
        assert_problem(await client.get("/api/auth/me"), 401, "unauthorized")
        for still in (answer.json()["token"], token):
            me = await anybody.get("/api/auth/me", headers={"Authorization": f"Bearer {still}"})
            assert me.status_code == 200
        assert_problem(await log_in(anybody, "changes-password", old), 401, "unauthorized")
        assert (await log_in(anybody, "changes-password", new)).status_code == 200


async def test_new_password_wants_the_old_one_and_a_good_one(gateway: GatewayProcess) -> None:
    async with gateway.as_user("mistypes") as client:
        wrong = {"old": "not the old one, sorry", "new": "quite another password"}
        assert_problem(await client.post("/api/auth/password", json=wrong), 403, "wrong_password")
        for bad in ("short", "x" * 257, None, 12):
            body = {"old": password_of("mistypes"), "new": bad}
            problem = assert_problem(await client.post("/api/auth/password", json=body), 400, "bad_request")
            assert [fault["field"] for fault in problem["fields"]] == ["new"]
        assert (await client.get("/api/auth/me")).status_code == 200


async def test_sixth_failure_of_a_name_from_one_address_is_told_to_wait_even_with_the_right_password(
    gateway: GatewayProcess,
) -> None:
    gateway.as_user("hammered")
    for name, right in (("hammered", password_of("hammered")), ("does-not-exist", "any password will do")):
        async with gateway.client(transport=address("127.0.0.3")) as client:
            for _ in range(5):
                assert_problem(await log_in(client, name, "a wrong password"), 401, "unauthorized")
            answer = await log_in(client, name, right)
            assert_problem(answer, 429, "too_many_logins")
            assert 800 < int(answer.headers["retry-after"]) <= 900
    async with gateway.as_user("hammered") as client:
        assert (await client.get("/api/auth/me")).status_code == 200, "a session that is open stays open"


async def test_login_forgets_the_failures_of_its_name(gateway: GatewayProcess) -> None:
    gateway.as_user("fumbles")
    async with gateway.client(transport=address("127.0.0.4")) as client:
        for _ in range(3):
            for _ in range(4):
                assert_problem(await log_in(client, "fumbles", "a wrong password"), 401, "unauthorized")
            assert (await log_in(client, "fumbles", password_of("fumbles"))).status_code == 200


async def test_twenty_first_failure_of_an_address_is_told_to_wait_whatever_its_headers_say(
    gateway: GatewayProcess,
) -> None:
    async with gateway.client(transport=address("127.0.0.5")) as client:
        for number in range(20):
            client.headers["X-Forwarded-For"] = f"203.0.113.{number}"
            assert_problem(await log_in(client, f"guess-{number}", "a wrong password"), 401, "unauthorized")
        assert_problem(await log_in(client, "admin", gateway.admin_password), 429, "too_many_logins")
    async with gateway.client(transport=address("127.0.0.6")) as client:
        assert (await log_in(client, "admin", gateway.admin_password)).status_code == 200


async def test_behind_a_trusted_proxy_each_client_has_an_address_of_its_own(own_gateway: GatewayProcess) -> None:
    own_gateway.stop()
    own_gateway.environment["TREADLE_TRUSTED_PROXIES"] = "127.0.0.7, 192.0.2.0/24"
    own_gateway.start()
    async with own_gateway.client(transport=address("127.0.0.7")) as proxy:
        guesser, ann = {"X-Forwarded-For": "203.0.113.1"}, {"X-Forwarded-For": "203.0.113.9, 203.0.113.2"}
        for number in range(21):
            body = {"name": f"guess-{number}", "password": "a wrong password"}
            answer = await proxy.post("/api/auth/login", json=body, headers=guesser)
        assert_problem(answer, 429, "too_many_logins")
        right = {"name": "admin", "password": own_gateway.admin_password}
        assert_problem(await proxy.post("/api/auth/login", json=right, headers=guesser), 429, "too_many_logins")
        assert (await proxy.post("/api/auth/login", json=right, headers=ann)).status_code == 200
    async with own_gateway.client(transport=address("127.0.0.8")) as nobody:
        for number in range(21):
            nobody.headers["X-Forwarded-For"] = f"203.0.113.{number + 10}"
            answer = await log_in(nobody, f"guess-{number}", "a wrong password")
        assert_problem(answer, 429, "too_many_logins")


async def test_malformed_bodies_say_what_is_wrong_where(gateway: GatewayProcess) -> None:
    async with gateway.anonymous() as client:
        unknown = await client.post("/api/auth/login", json={"name": "a", "password": "b", "remember": True})
        assert "remember" in assert_problem(unknown, 400, "bad_request")["detail"]
        wrong = await client.post("/api/auth/login", json={"name": 5, "password": "b"})
        fields = assert_problem(wrong, 400, "bad_request")["fields"]
        assert fields == [{"field": "name", "source": "body", "message": "Expected `str`, got `int`"}]
        for content in (b"", b"{", b"[]", b"null", b'{"name": "\xff"}', b"[" * 100_000):
            answer = await client.post("/api/auth/login", content=content)
            assert_problem(answer, 400, "bad_request")
        assert_problem(await client.get("/api/nothing-here"), 404, "not_found")
        refused = await client.put("/api/auth/login", json={})
        assert_problem(refused, 405, "method_not_allowed")
