"""Schemathesis over `/schema`, all checks, as an admin and as a user: no 5xx, no answer that is not documented.

`TREADLE_SCHEMA_EXAMPLES` asks for more requests per route than the few that every run makes.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from tests.gateway.conftest import MakeDatabase
from tests.gateway.gateway_process import GatewayProcess
from tests.gateway.plans import made
from tests.gateway.service_process import service
from tests.nats_process import NatsServer

EXAMPLES = os.environ.get("TREADLE_SCHEMA_EXAMPLES", "5")
TIMEOUT_S = 900.0
SCHEMATHESIS = str(Path(sys.executable).with_name("schemathesis"))
ROOT = Path(__file__).parents[2]
CONFIG = """
headers = { Authorization = "${AUTHORIZATION}" }
hooks = "tests.gateway.schema_hooks"

[checks.positive_data_acceptance]
# A schema can't say what a valid plan, an address or an If-Match is: data that fits it may still be refused.
expected-statuses = ["2xx", "400", "401", "403", "404", "409", "412", "413", "422", "428", "429", "503"]

[[operations]]
# No runner is there, which these say with 503 `no_runner`; tests/gateway/agents/test_connection.py has one.
include-name = [
    "POST /api/agent-types/{agent_type}/test",
    "POST /api/plans/{plan}/candidates",
    "POST /api/plans/{plan}/generate",
    "POST /api/plans/{plan}/tasks/{code}/refresh",
    "POST /api/projects/{project}/plans/from-template",
    "POST /api/projects/{project}/plans/generate",
    "POST /api/projects/{project}/refresh",
    "POST /api/projects/{project}/test",
]
checks.not_a_server_error.expected-statuses = ["2xx", "4xx", "503"]
"""
FIELDS = {
    "url": "https://hooks.example.invalid/a",
    "code_repo_url": "https://git.example.com/a/b.git",
    "base_commit": made.COMMIT,
    "text": made.TWO.replace("WHO", "claude"),
    "candidate": "1",
}
ENDLESS = r"/stream$"
"""These never end; tests/gateway/projection/test_streams.py looks at them."""


Asking = tuple[GatewayProcess, dict[str, str]]


@pytest.fixture(
    # Users' requests do with PostgreSQL what admins' do.
    params=[("sqlite", "admin"), ("sqlite", "user"), ("postgresql", "admin")],
    ids="-".join,
)
async def asking(
    request: pytest.FixtureRequest, make_database: MakeDatabase, nats_url: NatsServer, tmp_path: Path
) -> AsyncIterator[Asking]:
    """A gateway with something of the caller's for every path, and what schema_hooks.py wants to know of it.

    With a planner, or an import would answer 503, and a dispatcher, or no plan would have tasks.
    """
    kind, role = request.param
    with (
        make_database(kind, tmp_path) as url,
        GatewayProcess(tmp_path, nats_url, url) as gateway,
        service("planner", nats_url, tmp_path),
        service("dispatcher", nats_url, tmp_path),
    ):
        async with gateway.as_user("ann", role) as ann, gateway.as_user("bob") as bob:
            own_id, other_id = [(await made.ok(one.get("/api/auth/me")))["id"] for one in (ann, bob)]
            there = await _there(ann, other_id)
        yield (
            gateway,
            {
                "AUTHORIZATION": ann.headers["Authorization"],
                "TREADLE_TEST_OWN_ID": own_id,
                "TREADLE_TEST_THERE": json.dumps(there),
                "TREADLE_TEST_FIELDS": json.dumps(
                    FIELDS | {"agent_type_id": there["*"]["agent_type"], "template_id": there["*"]["template"]}
                ),
            },
        )


@pytest.mark.timeout(TIMEOUT_S)
def test_what_is_answered_is_what_the_schema_says(asking: Asking, tmp_path: Path) -> None:
    gateway, environment = asking
    (tmp_path / "schemathesis.toml").write_text(CONFIG)
    output = tmp_path / "output.txt"
    with output.open("wb") as written:
        done = subprocess.run(
            [
                *(SCHEMATHESIS, "--config-file", str(tmp_path / "schemathesis.toml"), "run", "--no-color"),
                *("--checks", "all", "--max-examples", EXAMPLES, "--seed", "1", "--generation-database", "none"),
                *("--exclude-path-regex", ENDLESS, "--request-timeout", "60"),
                f"{gateway.url}/schema/openapi.json",
            ],
            cwd=tmp_path,
            env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": str(ROOT), **environment},
            stdout=written,
            stderr=subprocess.STDOUT,
            timeout=TIMEOUT_S,
        )
    told = output.read_text(errors="replace")
    assert done.returncode == 0, f"{output}:\n" + "\n".join(line[:400] for line in told.splitlines()[-400:])
    assert re.search(r"API Operations:\n  Selected: \d+/\d+\n  Tested: (?:[5-9]\d|\d{3})\n", told), told[-2_000:]


async def _there(client: httpx.AsyncClient, other_id: str) -> dict[str, dict[str, str]]:
    """Something for every path to name, see schema_hooks.py. What a request ends or removes is that route's own."""
    agent, spare = await made.agent(client), await made.agent(client)
    person = await made.agent(client, sdk_type=None)
    project, doomed = await made.project(client, agent), await made.project(client)
    by_hand = await made.project(client, person, mode="manual")
    plans = [await made.plan(client, project, agent["slug"]) for _ in range(4)]
    running, drafted, to_finalize, to_cancel = plans
    manual = await made.plan(client, by_hand, person["slug"])
    asked = (await made.ok(client.post(f"/api/projects/{by_hand}/plans/prompt", json={"goal": "Any."})))["plan"]
    await made.ok(client.patch(f"/api/projects/{project}", json={"allow_concurrent_plans": True}))
    for plan, status in ((running, "queued"), (manual, "readied")):
        await made.finalized(client, plan)
        await made.task_is(client, plan, "T1", status)
    token = await made.ok(client.post("/api/auth/tokens", json={"name": "spare"}))
    hook = {"name": "to tell", "url": FIELDS["url"], "secret": "made-up-secret"}
    webhook, doomed_hook = [await made.ok(client.post("/api/webhooks", json=hook)) for _ in range(2)]
    delivery = await made.ok(client.post(f"/api/webhooks/{webhook['id']}/test"))
    body = {"name": made.name("Template"), "text": "name: x\ntasks: [{code: T1, name: x}]"}
    template, doomed_one = [
        await made.ok(client.post("/api/templates", json=body | more)) for more in ({}, {"name": "y"})
    ]
    file = (await client.get(f"/api/plans/{running}/export", params={"parts": "events"})).content
    imported = await made.ok(client.post("/api/plans/import-log", content=file))
    there = {
        "*": {
            "imported": imported["id"],
            "seq": "1",
            "consumer": "nobody",
            "agent": agent["id"],
            "agent_type": agent["agent_type_id"],
            "code": "T1",
            "plan": running,
            "project": project,
            "template": template["id"],
            "webhook": webhook["id"],
            "delivery": delivery["id"],
            "token_id": token["id"],
            "user_id": other_id,
        },
        "DELETE /api/agents/{agent}": {"agent": spare["id"]},
        "DELETE /api/agent-types/{agent_type}": {"agent_type": spare["agent_type_id"]},
        "DELETE /api/projects/{project}": {"project": doomed},
        "DELETE /api/templates/{template}": {"template": doomed_one["id"]},
        "DELETE /api/webhooks/{webhook}": {"webhook": doomed_hook["id"]},
        "POST /api/plans/{plan}/finalize": {"plan": to_finalize},
        "POST /api/plans/{plan}/cancel": {"plan": to_cancel},
        "PATCH /api/plans/{plan}/tasks/{code}": {"code": "T2"},
        "GET /api/plans/{plan}/tasks/{code}/prompt": {"plan": manual},
        "POST /api/plans/{plan}/tasks/{code}/dispatch": {"plan": manual},
        "POST /api/plans/{plan}/tasks/{code}/refresh": {"plan": manual},
        "POST /api/plans/{plan}/generate": {"plan": drafted},
        "GET /api/plans/{plan}/compare": {"plan": drafted},
        "GET /api/plans/{plan}/prompt": {"plan": asked},
    }
    for route in ("GET", "POST"):
        there[f"{route} /api/plans/{{plan}}/candidates"] = {"plan": drafted}
    for route in ("GET", "PUT"):
        there[f"{route} /api/plans/{{plan}}/spec"] = {"plan": drafted}
    return there
