"""`Idempotency-Key`: the first answer again, the same rows after a crash, nothing for anybody else."""

from __future__ import annotations

import asyncio
import secrets
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import select, text

from services.gateway.credentials.keyring import Keyring
from services.gateway.database.engine import Database, database_url
from services.gateway.database.tables import IdempotentAnswer
from services.gateway.idempotency import ANSWER_MAX_BYTES, Claims
from tests.gateway.answers import assert_problem
from tests.gateway.gateway_process import GatewayProcess
from tests.gateway.plans import made
from tests.gateway.plans.made import COMMIT, ok

PROJECT = {"name": "Once", "code_repo_url": "https://git.example.com/a/b.git"}


def key() -> dict[str, str]:
    return {"Idempotency-Key": secrets.token_hex(8)}


async def change_rows(gateway: GatewayProcess, statement: str, **values: Any) -> None:
    database = Database(database_url(gateway.database_url))
    try:
        async with database.write() as session:
            await session.execute(text(statement), values)
    finally:
        await database.close()


async def test_a_repetition_gets_the_first_answer(gateway: GatewayProcess, planner: None) -> None:
    async with gateway.as_user("ann") as ann:
        headers = key()
        first = await ann.post("/api/projects", json=PROJECT, headers=headers)
        again = await ann.post("/api/projects", json=PROJECT, headers=headers)
        assert (first.status_code, first.text) == (again.status_code, again.text)
        assert first.headers["etag"] == again.headers["etag"]
        assert ("idempotent-replayed" in first.headers, again.headers["idempotent-replayed"]) == (False, "true")
        assert (await ok(ann.get("/api/projects", params={"name": "Once"})))["items"] == [
            {k: v for k, v in first.json().items() if k != "git_credentials_kind"}
        ]
        body = {"text": made.TWO.replace("WHO", "claude"), "base_commit": COMMIT}
        path = f"/api/projects/{first.json()['id']}/plans"
        once = key()
        plans = [await ok(ann.post(path, json=body, headers=sent)) for sent in (once, once, key())]
        assert plans[0] == plans[1] != plans[2]
        faulty, once = {**body, "text": "x: 1"}, key()
        refusals = [await ann.post(path, json=faulty, headers=once) for _ in range(2)]
        assert_problem(refusals[0], 422, "invalid_plan")
        assert refusals[0].json() == refusals[1].json()
        assert "idempotent-replayed" in refusals[1].headers


async def test_a_huge_answer_is_not_kept_and_its_request_may_be_repeated(
    gateway: GatewayProcess, planner: None
) -> None:
    async with gateway.as_user("ann") as ann:
        path = f"/api/projects/{await made.project(ann)}/plans"
        tasks = "".join(f"- {{code: T{n}, name: n, assignee: nobody-{n}, nonsense: 1}}\n" for n in range(400))
        body, once = {"text": f"name: Huge\ntasks:\n{tasks}", "base_commit": COMMIT}, key()
        refusals = [await ann.post(path, json=body, headers=once) for _ in range(2)]
        for refused in refusals:
            assert_problem(refused, 422, "invalid_plan")
            assert len(refused.content) > ANSWER_MAX_BYTES
            assert "idempotent-replayed" not in refused.headers
        assert refusals[0].content == refusals[1].content


async def test_a_key_is_for_one_request_of_one_account(gateway: GatewayProcess) -> None:
    headers = key()
    async with gateway.as_user("ann") as ann, gateway.as_user("bob") as bob:
        mine = await ok(ann.post("/api/projects", json=PROJECT, headers=headers))
        theirs = await ok(bob.post("/api/projects", json=PROJECT, headers=headers))
        assert mine["id"] != theirs["id"]
        other = await ann.post("/api/projects", json={**PROJECT, "name": "Other"}, headers=headers)
        assert_problem(other, 422, "idempotency_key_reused")
        elsewhere = await ann.post("/api/agent-types", json=PROJECT, headers=headers)
        assert_problem(elsewhere, 422, "idempotency_key_reused")
        for bad in ("", "a b", "x" * 256):
            answer = await ann.post("/api/projects", json=PROJECT, headers={"Idempotency-Key": bad})
            assert_problem(answer, 400, "bad_request")


async def test_repetitions_at_the_same_time_are_carried_out_once(gateway: GatewayProcess) -> None:
    async with gateway.as_user("ann") as ann:
        headers, body = key(), {**PROJECT, "name": made.name("Storm")}
        answers = await asyncio.gather(*(ann.post("/api/projects", json=body, headers=headers) for _ in range(8)))
        for answer in answers:
            if answer.status_code != 201:
                assert_problem(answer, 409, "in_progress")
                assert answer.headers["retry-after"]
        assert len({answer.json()["id"] for answer in answers if answer.status_code == 201}) == 1
        assert len((await ok(ann.get("/api/projects", params={"name": body["name"]})))["items"]) == 1


async def test_a_gateway_that_died_in_between_makes_nothing_twice(own_gateway: GatewayProcess, planner: None) -> None:
    """The crash is made by hand: the claim is as a dead gateway leaves it, and what it had made is there."""
    async with own_gateway.as_user("ann") as ann:
        made_key, plan_key = key(), key()
        first = await ok(ann.post("/api/projects", json=PROJECT, headers=made_key))
        body = {"text": made.TWO.replace("WHO", "claude"), "base_commit": COMMIT}
        path = f"/api/projects/{first['id']}/plans"
        plan = await ok(ann.post(path, json=body, headers=plan_key))
        more_key = key()
        candidates = f"/api/plans/{plan['plan']}/candidates"
        other = {"text": body["text"].replace("Two", "Three")}
        candidate = await ok(ann.post(candidates, json=other, headers=more_key))
    await forget_answers(own_gateway, minutes_ago=0)
    own_gateway.kill()
    own_gateway.start()
    async with own_gateway.as_user("ann") as ann:
        busy = await ann.post("/api/projects", json=PROJECT, headers=made_key)
        assert_problem(busy, 409, "in_progress")
        await forget_answers(own_gateway, minutes_ago=2)
        assert await ok(ann.post("/api/projects", json=PROJECT, headers=made_key)) == first
        assert await ok(ann.post(path, json=body, headers=plan_key)) == plan
        assert await ok(ann.post(candidates, json=other, headers=more_key)) == candidate
        assert len((await ok(ann.get(candidates)))["items"]) == 2


async def forget_answers(gateway: GatewayProcess, minutes_ago: int) -> None:
    """Every claim is as it was before its answer was kept."""
    database = Database(database_url(gateway.database_url))
    keyring = Keyring(gateway.directory / "keyring.json")
    try:
        async with database.write() as session:
            for row in await session.scalars(select(IdempotentAnswer)):
                claims = Claims(database, keyring, row.user_id, row.key)
                row.answer = claims.encrypted(claims.decrypted(row).begun())
                row.started_at = datetime.now(UTC) - timedelta(minutes=minutes_ago)
    finally:
        await database.close()


async def test_answers_are_forgotten_after_a_day(own_gateway: GatewayProcess) -> None:
    async with own_gateway.as_user("ann") as ann:
        headers = key()
        first = await ok(ann.post("/api/projects", json=PROJECT, headers=headers))
        await change_rows(own_gateway, "UPDATE idempotent_answer SET started_at = '2020-01-01 00:00:00'")
        second = await ok(ann.post("/api/projects", json=PROJECT, headers=headers))
        assert first["id"] != second["id"]


async def test_what_is_kept_shows_nothing(own_gateway: GatewayProcess) -> None:
    async with own_gateway.as_user("ann") as ann:
        body = {"name": "T", "sdk_type": "claude", "api_key": "a-secret-of-this-test-0123456789"}
        await ok(ann.post("/api/agent-types", json=body, headers=key()))
        token = await ok(ann.post("/api/auth/tokens", json={"name": "T"}, headers=key()))
        assert token["token"].startswith("trd_")
    database = Database(database_url(own_gateway.database_url))
    try:
        async with database.read() as session:
            rows = (await session.execute(text("SELECT fingerprint, answer FROM idempotent_answer"))).all()
    finally:
        await database.close()
    assert len(rows) == 2
    kept = b"".join(bytes(row.answer) + row.fingerprint.encode() for row in rows)
    assert b"trd_" not in kept
    assert b"a-secret-of-this-test-0123456789" not in kept
