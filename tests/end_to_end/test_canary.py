"""Secrets that are set through the API: a plan runs with them, and they are nowhere but where they are used."""

from __future__ import annotations

import base64
import json
import secrets
import subprocess
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import httpx
import pytest

from tests.end_to_end.model import Model
from tests.end_to_end.plans import Gate
from tests.end_to_end.suite import Suite, until
from tests.end_to_end.test_claude_plans import held, scripts, two_tasks
from treadle.scripted_model import ScriptedModel


def of_this_run(kind: str) -> str:
    """They are looked for in every process of the machine: another run, or whoever reads this file, has others."""
    return f"{kind}-canary-{secrets.token_hex(8)}"


KEY = of_this_run("sk-ant")
TOKEN = of_this_run("ghp")
PASSWORD = of_this_run("password")
"""Of an account."""
WEBHOOK_SECRET = of_this_run("webhook")
WEBHOOK_PATH = of_this_run("path")
"""With some receivers it is all that a sender needs."""
SECRETS = (KEY, TOKEN, PASSWORD, WEBHOOK_SECRET, WEBHOOK_PATH)


def spellings(secret: str) -> Iterator[bytes]:
    """The secret itself, and what base64 makes of it wherever it begins in a longer text."""
    raw = secret.encode()
    yield raw
    for before in range(3):
        encoded = base64.b64encode(bytes(before) + raw)
        yield encoded[(0, 2, 3)[before] : -4]


def assert_no_secret(content: bytes, where: object) -> None:
    for secret in SECRETS:
        for spelling in spellings(secret):
            assert spelling not in content, f"{secret} is in {where}"


@pytest.fixture
def model(gate: Gate) -> Iterator[ScriptedModel]:
    with Model(scripts() | {"T1": held(gate)}, api_key=KEY) as serving:
        yield serving


@pytest.fixture
def plain_suite(tmp_path: Path) -> Iterator[Suite]:
    """No key in its environment: whatever it knows it was told through the API. Its agents can see the gate."""
    made = Suite(tmp_path / "canary")
    made.environment["TREADLE_SANDBOX_READ"] = str(tmp_path)
    made.up()
    try:
        yield made
    finally:
        made.down()


def processes() -> dict[int, bytes]:
    """Command line and environment of every process of the machine that may be read."""
    told: dict[int, bytes] = {}
    for directory in Path("/proc").iterdir():
        if not directory.name.isdecimal():
            continue
        try:
            told[int(directory.name)] = (
                (directory / "cmdline").read_bytes() + b"\0\0" + (directory / "environ").read_bytes()
            )
        except OSError:
            continue  # it has ended, or is none of ours
    return told


def answers(http: httpx.Client, schema: dict[str, Any], known: dict[str, str]) -> dict[str, bytes]:
    """What every GET route of the schema answers; parameters are filled in by name."""
    told: dict[str, bytes] = {}
    for template, methods in schema["paths"].items():
        if "get" not in methods or template.endswith("/stream"):
            continue
        path = template.removeprefix("/api")
        for name, value in known.items():
            path = path.replace(f"{{{name}}}", value)
        assert "{" not in path, f"nobody knows what to put into {template}"
        told[path] = http.get(path).content
        if path.endswith("/export"):
            told[path] = unpacked(told[path])
    return told


def unpacked(archive: bytes) -> bytes:
    """Everything that is in a zip."""
    with ZipFile(BytesIO(archive)) as opened:
        return b"\n".join(opened.read(name) for name in opened.namelist())


def test_secrets_that_were_set_through_the_api_are_found_nowhere_but_where_they_are_used(
    plain_suite: Suite, model: ScriptedModel, repo: Path, gate: Gate
) -> None:
    model.requests.clear()
    kind = plain_suite.post(
        "/agent-types",
        {"name": "claude", "sdk_type": "claude", "api_key": KEY, "api_base_url": model.base_url},
    )
    agent = plain_suite.post("/agents", {"name": "Coder", "slug": "coder", "agent_type_id": kind["id"]})
    project = plain_suite.post(
        "/projects", {"name": "Canary", "mode": "auto", "code_repo_url": str(repo), "agent_ids": [agent["id"]]}
    )
    user = plain_suite.post("/users", {"name": "ada", "role": "user", "password": PASSWORD})
    with plain_suite.http() as http:
        credentials = {"kind": "token", "secret": TOKEN}
        assert http.put(f"/projects/{project['id']}/git-credentials", json=credentials).is_success
        assert http.post("/auth/login", json={"name": "ada", "password": PASSWORD}).is_success
    tested = plain_suite.post(f"/agent-types/{kind['id']}/test", {})
    assert tested["code"] == "ok", tested

    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=repo, capture_output=True, text=True, check=True)
    content = two_tasks() | {"tasks": [{**task, "assignee": "coder"} for task in two_tasks()["tasks"]]}
    body = {"text": json.dumps(content), "base_commit": head.stdout.strip()}
    plan = plain_suite.post(f"/projects/{project['id']}/plans", body)["plan"]
    model.requests.clear()
    plain_suite.post(f"/plans/{plan}/finalize", {"candidate": "1"})
    until(lambda: any(request.path == "/v1/messages" for request in model.requests), "the agent asks the model")
    looked_at = processes()
    services = {pid for name in ("gateway", "planner", "dispatcher", "runner") for pid in plain_suite.pids(name)}
    assert set(looked_at) >= services, "some process of the suite can't be looked at"
    assert any(b"ANTHROPIC_BASE_URL=http://" in told for told in looked_at.values()), "no agent to look at"
    for pid, told in looked_at.items():
        assert_no_secret(told, f"the environment or arguments of process {pid}")
    gate.open()
    plain_suite.standing(plan, "completed")
    # The proxy did use it: a canary that nobody carries proves nothing.
    assert {request.headers.get("x-api-key") for request in model.requests if request.method == "POST"} == {KEY}

    hook = {"name": "x", "url": f"http://127.0.0.1:9/{WEBHOOK_PATH}", "secret": WEBHOOK_SECRET}
    webhook = plain_suite.post("/webhooks", hook)
    plain_suite.post(f"/webhooks/{webhook['id']}/test", {})
    template = plain_suite.post("/templates", {"name": "x", "text": "name: x\ntasks: [{code: T1, name: x}]"})
    known = {
        "agent_type": kind["id"],
        "agent": agent["id"],
        "project": project["id"],
        "user_id": user["id"],
        "plan": plan,
        "code": "T1",
        "template": template["id"],
        "webhook": webhook["id"],
    }
    with plain_suite.http() as http:
        schema = http.get(str(http.base_url).removesuffix("/api/") + "/schema/openapi.json").json()
        told_by_api = answers(http, schema, known)
    assert len(told_by_api) > 20
    assert b'"type":"completed"' in told_by_api[f"/plans/{plan}/export"], "what is packed is not looked at"
    for path, answer in told_by_api.items():
        assert_no_secret(answer, f"the answer of GET {path}")

    plain_suite.down()  # so that everything is on the disk
    stored = [path for place in (plain_suite.data, repo) for path in place.rglob("*") if path.is_file()]
    assert any("TREADLE_EVENTS" in str(path) for path in stored) and any(p.name == "treadle.sqlite" for p in stored)
    for file in stored:
        assert_no_secret(file.read_bytes(), file)
