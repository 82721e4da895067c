"""The connection test: the key travels sealed to the one runner that introduced itself, and comes back in no answer."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import msgspec
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from sqlalchemy import text

from services.gateway.database.engine import Database
from services.gateway.database.engine import database_url as checked_url
from shared import requests as r
from shared.bus import BusSettings, connect
from shared.sealed import SealKey
from shared.spec import DEFAULT_MODEL
from shared.subjects import RUNNER_INTRODUCE, runner_test
from tests.gateway.gateway_process import GatewayProcess
from tests.nats_process import NatsServer

CANARY = "sk-canary-Zq81-0123456789-Xk42"


class Runner:
    """Answers on the bus as a runner does, with a key pair of its own."""

    def __init__(self, nc: Client) -> None:
        self._nc = nc
        self.name = f"r{secrets.token_hex(4)}"
        self.key = SealKey()
        self.seal_to = self.key.public
        self.asked: list[r.TestRequest] = []
        self.opened: list[bytes] = []
        self.heard: list[bytes] = []
        self.answer = r.TestReply(code="ok", message="the model answered", runner=self.name, duration_s=0.4)
        self.raw_answer: bytes | None = None

    async def start(self) -> None:
        await self._nc.subscribe(RUNNER_INTRODUCE, queue="runner", cb=self._introduce)
        await self._nc.subscribe(runner_test(self.name), cb=self._test)
        await self._nc.flush()

    async def _introduce(self, message: Msg) -> None:
        await message.respond(msgspec.json.encode(r.Introduction(runner=self.name, seal_to=self.seal_to)))

    async def _test(self, message: Msg) -> None:
        self.heard.append(message.data)
        request = msgspec.json.decode(message.data, type=r.TestRequest)
        self.asked.append(request)
        if request.sealed:
            self.opened.append(self.key.open(request.sealed, r.test_context(self.name, request.kind)))
        await message.respond(self.raw_answer or msgspec.json.encode(self.answer))


@pytest.fixture
async def nc(lone_nats: NatsServer) -> AsyncIterator[Client]:
    client = await connect(BusSettings(lone_nats.url, lone_nats.user, lone_nats.password), "test runner")
    yield client
    await client.close()


@pytest.fixture
async def runner(nc: Client) -> Runner:
    made = Runner(nc)
    await made.start()
    return made


async def made_type(client: httpx.AsyncClient, **fields: object) -> str:
    body = {"name": f"type {secrets.token_hex(4)}", "sdk_type": "claude", **fields}
    answer = await client.post("/api/agent-types", json=body)
    assert answer.status_code == 201, answer.text
    return f"/api/agent-types/{answer.json()['id']}"


async def test_a_runner_tries_the_key_out_and_tells_in_words(lone_gateway: GatewayProcess, runner: Runner) -> None:
    runner.answer = msgspec.structs.replace(
        runner.answer, code="wrong_key", message="the model refused the key: copy it again"
    )
    async with lone_gateway.as_user("ann") as ann:
        path = await made_type(ann, api_key=CANARY, api_base_url="https://m.example.com", models=["m1"])
        answer = await ann.post(f"{path}/test", json={})
        assert answer.status_code == 200, answer.text
        assert answer.json() == msgspec.to_builtins(runner.answer)
        [request] = runner.asked
        assert (request.kind, request.sdk_type, request.model) == ("agent", "claude", "m1")
        [opened] = runner.opened
        credentials = msgspec.json.decode(opened, type=r.AgentCredentials)
        assert (credentials.api_key, credentials.base_url) == (CANARY, "https://m.example.com")
        assert CANARY.encode() not in runner.heard[0]


async def test_another_model_may_be_tried_and_without_a_key_nothing_is_sealed(
    lone_gateway: GatewayProcess, runner: Runner
) -> None:
    async with lone_gateway.as_user("ann") as ann:
        path = await made_type(ann)
        assert (await ann.post(f"{path}/test", json={"model": "m9"})).status_code == 200
        assert (await ann.post(f"{path}/test", json={})).status_code == 200
        assert [(q.model, q.sealed) for q in runner.asked] == [("m9", b""), (DEFAULT_MODEL, b"")]
        bad = await ann.post(f"{path}/test", json={"model": "--help"})
        assert (bad.status_code, bad.json()["code"]) == (400, "bad_request")
        assert len(runner.asked) == 2


async def test_types_without_a_model_have_nothing_to_test(lone_gateway: GatewayProcess, runner: Runner) -> None:
    async with lone_gateway.as_user("ann") as ann:
        for path in (await made_type(ann, sdk_type=None), await made_type(ann, sdk_type="command", command=["true"])):
            answer = await ann.post(f"{path}/test", json={})
            assert (answer.status_code, answer.json()["code"]) == (409, "nothing_to_test")
    assert not runner.asked


async def test_without_a_runner_the_answer_says_what_to_start(lone_gateway: GatewayProcess) -> None:
    async with lone_gateway.as_user("ann") as ann:
        answer = await ann.post(f"{await made_type(ann, api_key=CANARY)}/test", json={})
        assert (answer.status_code, answer.json()["code"]) == (503, "no_runner")
        assert "start one" in answer.json()["detail"]
        assert answer.headers["retry-after"]


@pytest.mark.parametrize(("seal_to", "raw"), [("no key", None), (None, b"{}"), (None, b"\xff")])
async def test_a_runner_that_makes_no_sense_is_no_runner(
    lone_gateway: GatewayProcess, runner: Runner, seal_to: str | None, raw: bytes | None
) -> None:
    runner.seal_to, runner.raw_answer = seal_to or runner.seal_to, raw
    async with lone_gateway.as_user("ann") as ann:
        answer = await ann.post(f"{await made_type(ann, api_key=CANARY)}/test", json={})
        assert (answer.status_code, answer.json()["code"]) == (503, "no_runner")


async def test_a_key_is_in_no_answer_no_file_and_no_log_line(lone_gateway: GatewayProcess, runner: Runner) -> None:
    answers: list[httpx.Response] = []

    async def keep(response: httpx.Response) -> None:
        await response.aread()
        answers.append(response)

    async with lone_gateway.as_user("ann") as ann, lone_gateway.as_admin() as admin:
        for client in (ann, admin):
            client.event_hooks["response"].append(keep)
        once = {"Idempotency-Key": secrets.token_hex(8)}
        name = f"type {secrets.token_hex(4)}"
        body = {"name": name, "sdk_type": "claude", "api_key": CANARY}
        path = "/api/agent-types/" + (await ann.post("/api/agent-types", json=body, headers=once)).json()["id"]
        await ann.post("/api/agent-types", json=body, headers=once)
        await ann.post("/api/agent-types", json=body)
        await ann.post("/api/agent-types", json={**body, "name": [CANARY]})
        await ann.post("/api/agent-types", json={**body, CANARY: 1, "api_key": f"{CANARY}\u00e9"})
        await ann.post("/api/agent-types", json={**body, "api_key": [CANARY]})
        await ann.patch(path, json={"api_key": CANARY, "sdk_type": None})
        await ann.patch(path, json={"api_key": CANARY}, headers={"If-Match": '"99"'})
        await ann.patch(path, json={"api_key": CANARY})
        await ann.post(f"{path}/test", json={})
        for read in ("/api/agent-types?limit=200", "/api/agents", path, "/api/audit-log?limit=200", "/api/keys"):
            await admin.get(read)
        await admin.post("/api/keys/reencrypt")
        await ann.delete(f"{path}x")
    assert runner.opened  # it was on its way
    assert len(answers) == 17
    # What a caller calls a field is the caller's own; the one answer that repeats it is to them alone.
    repeated = [answer for answer in answers if CANARY in answer.text or CANARY in str(answer.headers)]
    assert [answer.json()["code"] for answer in repeated] == ["bad_request"] * len(repeated)
    assert len(repeated) <= 1
    assert_nowhere(lone_gateway.directory.parent, CANARY.encode())
    assert CANARY not in await whole_database(lone_gateway.database_url)


def assert_nowhere(directory: Path, secret: bytes) -> None:
    """Database, write-ahead log, gateway's log, whatever is there."""
    files = [path for path in directory.rglob("*") if path.is_file()]
    assert any(path.suffix == ".log" for path in files)
    assert [path for path in files if secret in path.read_bytes()] == []


async def whole_database(url: str) -> str:
    database = Database(checked_url(url))
    try:
        async with database.read() as session:
            tables = ("credential", "agent_type", "audit_log", "idempotent_answer", "agent")
            rows = [list(await session.execute(text(f"SELECT * FROM {table}"))) for table in tables]  # noqa: S608 - ours
    finally:
        await database.close()
    assert rows[0]
    return repr([[bytes(v) if isinstance(v, memoryview) else v for v in row] for table in rows for row in table])
