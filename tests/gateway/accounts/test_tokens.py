"""API tokens: shown once, stored hashed, gone when revoked."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from hashlib import sha256

from sqlalchemy import select, update

from services.gateway.accounts import tokens
from services.gateway.database.engine import Database
from services.gateway.database.engine import database_url as parsed
from services.gateway.database.tables import ApiToken, User
from shared.clock import new_id
from tests.gateway.answers import assert_problem
from tests.gateway.gateway_process import GatewayProcess


async def test_token_is_shown_once_and_only_its_hash_is_stored(gateway: GatewayProcess) -> None:
    async with gateway.as_user("once") as client:
        made = await client.post("/api/auth/tokens", json={"name": "ci"})
        listed = await client.get("/api/auth/tokens")
    body = made.json()
    assert made.status_code == 201
    token = body.pop("token")
    assert token.startswith("trd_")
    assert len(token) >= 4 + 43  # 256 bits in base64
    assert listed.json() == {"items": [body], "next": None}
    database = Database(parsed(gateway.database_url))
    async with database.read() as session:
        row = await session.get_one(ApiToken, body["id"])
    await database.close()
    assert row.token_hash == sha256(token.encode()).hexdigest()


async def test_token_opens_its_account_and_notes_its_last_use_to_the_minute(gateway: GatewayProcess) -> None:
    async with gateway.as_user("uses") as client:
        made = (await client.post("/api/auth/tokens", json={"name": "ci"})).json()
        assert made["last_used_at"] is None
        before = datetime.now(UTC).replace(second=0, microsecond=0)
        async with gateway.client(made["token"]) as program:
            assert (await program.get("/api/auth/me")).json()["name"] == "uses"
            used = (await program.get("/api/auth/tokens")).json()["items"][0]["last_used_at"]
    assert before <= datetime.fromisoformat(used) <= datetime.now(UTC)
    assert datetime.fromisoformat(used).second == 0


async def test_revoked_token_is_out_at_once_and_unknown_to_others(gateway: GatewayProcess) -> None:
    async with gateway.as_user("revokes") as client, gateway.as_user("stranger") as stranger:
        made = (await client.post("/api/auth/tokens", json={"name": "ci"})).json()
        path = f"/api/auth/tokens/{made['id']}"
        async with gateway.client(made["token"]) as program:
            assert_problem(await stranger.delete(path), 404, "not_found")
            async with gateway.as_admin() as admin:
                assert_problem(await admin.delete(path), 404, "not_found")
            assert (await program.get("/api/auth/me")).status_code == 200
            assert (await client.delete(path)).status_code == 204
            assert_problem(await program.get("/api/auth/me"), 401, "unauthorized")
        assert_problem(await client.delete(path), 404, "not_found")
        assert (await client.get("/api/auth/tokens")).json()["items"] == []


async def test_token_expires(gateway: GatewayProcess) -> None:
    async with gateway.as_user("expires") as client:
        later = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
        made = (await client.post("/api/auth/tokens", json={"name": "ci", "expires_at": later})).json()
        async with gateway.client(made["token"]) as program:
            assert (await program.get("/api/auth/me")).status_code == 200
            database = Database(parsed(gateway.database_url))
            async with database.write() as session:
                over = datetime.now(UTC) - timedelta(seconds=1)
                await session.execute(update(ApiToken).where(ApiToken.id == made["id"]).values(expires_at=over))
            await database.close()
            assert_problem(await program.get("/api/auth/me"), 401, "unauthorized")


async def test_token_that_makes_no_sense_is_refused(gateway: GatewayProcess) -> None:
    async with gateway.as_user("nonsense") as client:
        for body in (
            {"name": ""},
            {"name": "a\nb"},
            {"name": "a\n"},
            {"name": "\x00"},
            {"name": "\x9b31m"},
            {"name": "x" * 201},
            {"name": "ci", "expires_at": "2001-01-01T00:00:00Z"},
            {"name": "ci", "expires_at": "2999-01-01T00:00:00"},
            {"name": "ci", "expires_at": "9999-12-31T23:59:59-12:00"},
            {"name": "ci", "expires_at": "0001-01-01T00:00:00+12:00"},
            {"name": "ci", "scope": "all"},
        ):
            problem = assert_problem(await client.post("/api/auth/tokens", json=body), 400, "bad_request")
            assert problem["fields"]
        assert (await client.delete("/api/auth/tokens/%00")).status_code in (400, 404)  # PostgreSQL has no such text
        assert (await client.get("/api/auth/tokens")).json()["items"] == []


async def test_account_has_so_many_tokens_and_no_more(gateway: GatewayProcess) -> None:
    async with gateway.as_user("hoards") as client:
        made = [(await client.post("/api/auth/tokens", json={"name": f"t{n}"})).status_code for n in range(101)]
    assert made == [201] * 100 + [409]


async def test_audit_log_tells_of_tokens_and_holds_none(gateway: GatewayProcess) -> None:
    async with gateway.as_user("audited") as client, gateway.as_admin() as admin:
        made = (await client.post("/api/auth/tokens", json={"name": "ci"})).json()
        await client.delete(f"/api/auth/tokens/{made['id']}")
        answer = await admin.get("/api/audit-log", params={"subject": made["id"]})
        whole = await admin.get("/api/audit-log", params={"limit": 200})
    assert [(e["actor"], e["action"]) for e in answer.json()["items"]] == [
        ("user:audited", "token.revoked"),
        ("user:audited", "token.created"),
    ]
    database = Database(parsed(gateway.database_url))
    async with database.read() as session:
        hashes = list(await session.scalars(select(ApiToken.token_hash)))
    await database.close()
    assert not any(secret in whole.text for secret in (made["token"], *hashes))


async def test_repeated_request_with_a_key_makes_one_token_and_shows_it_again(gateway: GatewayProcess) -> None:
    async with gateway.as_user("repeats") as client, gateway.as_admin() as admin:
        headers = {"Idempotency-Key": "first"}
        answers = [await client.post("/api/auth/tokens", json={"name": "ci"}, headers=headers) for _ in range(2)]
        assert answers[0].json() == answers[1].json()
        assert len((await client.get("/api/auth/tokens")).json()["items"]) == 1
        body = {"name": "made-once", "password": "a new and long password"}
        made = [await admin.post("/api/users", json=body, headers={"Idempotency-Key": "user"}) for _ in range(2)]
        assert [answer.status_code for answer in made] == [201, 201]
        assert made[0].json() == made[1].json()


async def test_token_of_a_request_whose_answer_was_lost_gives_way_to_its_repetitions(db: Database) -> None:
    user, now = new_id(), datetime.now(UTC)
    async with db.write() as session:
        session.add(
            User(
                id=user, name="ann", role="user", password_hash=None, is_frozen=False, session_version=1, created_at=now
            )
        )
    for hash_ in ("lost", "shown"):
        async with db.write() as session:
            await tokens.add(session, ApiToken(id="one", user_id=user, name="ci", token_hash=hash_, created_at=now))
    async with db.read() as session:
        assert list(await session.scalars(select(ApiToken.token_hash))) == ["shown"]
