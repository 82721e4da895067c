"""Who may do what: every route of the application × everybody who may ask. A route without a row here fails."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import httpx
import pytest

from services.gateway.app import make_app
from services.gateway.database.engine import database_url
from services.gateway.settings import Settings
from shared.bus import BusSettings
from tests.gateway.gateway_process import GatewayProcess, password_of
from tests.gateway.plans import made
from tests.gateway.service_process import service
from tests.nats_process import NatsServer

Policy = Literal["open", "signed in", "owned", "public", "shared", "own account", "admin"]
"""`open`: anybody. `signed in`: any account, about its own things. `owned`: owner and admins, others get 404. `public`:
the same, but what admins own others may look at, not change. `shared`: everybody may look at it and use it, not change
it. `own account`: nobody else, admins included. `admin`: others get 403."""


class Row(NamedTuple):
    policy: Policy
    body: Any = None
    """Valid, so that it is not the body that is refused."""
    headers: dict[str, str] | None = None
    query: dict[str, str] | None = None


PLAN = {"text": made.TWO.replace("WHO", "claude"), "base_commit": made.COMMIT}
SPEC = {"text": made.TWO.replace("WHO", "claude").replace("Two", "Other")}
GOAL = {"goal": "Add a login.", "base_commit": made.COMMIT}
TEMPLATE = "name: x\ntasks: [{code: T1, name: x}]"
WEBHOOK = {"name": "to tell", "url": "https://hooks.example.invalid/a", "secret": "made-up-secret"}
FROM_TEMPLATE = {"template_id": "{template}", "base_commit": made.COMMIT}
IF_MATCH = {"If-Match": '"1"'}

MATRIX: dict[tuple[str, str], Row] = {
    ("GET", "/api/health/live"): Row("open"),
    ("GET", "/api/health/ready"): Row("open"),
    ("POST", "/api/auth/login"): Row("open", {"name": "admin", "password": "not its password"}),
    ("GET", "/api/auth/me"): Row("signed in"),
    ("POST", "/api/auth/password"): Row("signed in", {"old": "not its password", "new": "another long password"}),
    ("GET", "/api/auth/tokens"): Row("signed in"),
    ("POST", "/api/auth/tokens"): Row("signed in", {"name": "one"}),
    ("DELETE", "/api/auth/tokens/{token_id}"): Row("own account"),
    ("GET", "/api/users"): Row("admin"),
    ("POST", "/api/users"): Row("admin", {"name": "eve", "role": "user", "password": password_of("eve")}),
    ("GET", "/api/users/{user_id}"): Row("admin"),
    ("PATCH", "/api/users/{user_id}"): Row("admin", {}),
    ("GET", "/api/audit-log"): Row("admin"),
    ("GET", "/api/keys"): Row("admin"),
    ("POST", "/api/keys/reencrypt"): Row("admin"),
    ("GET", "/api/agent-types"): Row("signed in"),
    ("POST", "/api/agent-types"): Row("signed in", {"name": "another", "sdk_type": None}),
    ("GET", "/api/agent-types/{agent_type}"): Row("public"),
    ("PATCH", "/api/agent-types/{agent_type}"): Row("public", {}),
    ("POST", "/api/agent-types/{agent_type}/test"): Row("public", {}),
    ("GET", "/api/agents"): Row("signed in"),
    ("POST", "/api/agents"): Row("signed in", {"name": "another", "agent_type_id": "{agent_type}"}),
    ("GET", "/api/agents/{agent}"): Row("public"),
    ("PATCH", "/api/agents/{agent}"): Row("public", {}),
    ("POST", "/api/agents/{agent}/availability"): Row("public", {"available": True}),
    ("GET", "/api/projects"): Row("signed in"),
    ("POST", "/api/projects"): Row("signed in", {"name": "p", "code_repo_url": "https://git.example.com/a/b.git"}),
    ("GET", "/api/projects/{project}"): Row("owned"),
    ("PATCH", "/api/projects/{project}"): Row("owned", {}),
    ("PUT", "/api/projects/{project}/git-credentials"): Row("owned", {"kind": "token", "secret": "made-up-token"}),
    ("DELETE", "/api/projects/{project}/git-credentials"): Row("owned"),
    ("POST", "/api/projects/{project}/test"): Row("owned"),
    ("GET", "/api/projects/{project}/plans"): Row("owned"),
    ("POST", "/api/projects/{project}/plans"): Row("owned", PLAN),
    ("POST", "/api/projects/{project}/plans/generate"): Row("owned", GOAL),
    ("POST", "/api/projects/{project}/plans/prompt"): Row("owned", GOAL),
    ("POST", "/api/projects/{project}/refresh"): Row("owned"),
    ("GET", "/api/plans"): Row("signed in"),
    ("GET", "/api/plans/{plan}"): Row("owned"),
    ("GET", "/api/plans/{plan}/candidates"): Row("owned"),
    ("POST", "/api/plans/{plan}/candidates"): Row("owned", SPEC),
    ("GET", "/api/plans/{plan}/spec"): Row("owned"),
    ("PUT", "/api/plans/{plan}/spec"): Row("owned", SPEC, IF_MATCH),
    ("POST", "/api/plans/{plan}/generate"): Row("owned", GOAL),
    ("GET", "/api/plans/{plan}/prompt"): Row("owned"),
    ("GET", "/api/plans/{plan}/compare"): Row("owned", query={"a": "1", "b": "1"}),
    ("POST", "/api/plans/{plan}/fork"): Row("owned", {"dry_run": True}),
    ("POST", "/api/plans/{plan}/finalize"): Row("owned", {"candidate": "1"}),
    ("GET", "/api/plans/{plan}/tasks"): Row("owned"),
    ("GET", "/api/plans/{plan}/tasks/{code}"): Row("owned"),
    ("PATCH", "/api/plans/{plan}/tasks/{code}"): Row("owned", {"name": "Other"}, IF_MATCH),
    ("GET", "/api/plans/{plan}/tasks/{code}/prompt"): Row("owned"),
    ("GET", "/api/plans/{plan}/tasks/{code}/diff"): Row("owned"),
    ("POST", "/api/plans/{plan}/tasks/{code}/dispatch"): Row("owned", {}),
    ("POST", "/api/plans/{plan}/tasks/{code}/refresh"): Row("owned"),
    ("POST", "/api/plans/{plan}/tasks/{code}/redispatch"): Row("owned", {}),
    ("POST", "/api/plans/{plan}/tasks/{code}/complete"): Row("owned", {}),
    ("POST", "/api/plans/{plan}/tasks/{code}/abandon"): Row("owned", {}),
    ("POST", "/api/plans/{plan}/tasks/{code}/cancel"): Row("owned", {}),
    ("POST", "/api/plans/{plan}/tasks/{code}/approve"): Row("owned", {"approval": "0" * 64}),
    ("POST", "/api/plans/{plan}/tasks/{code}/deny"): Row("owned", {"approval": "0" * 64}),
    ("GET", "/api/plans/{plan}/events"): Row("owned"),
    ("GET", "/api/plans/{plan}/state"): Row("owned"),
    ("GET", "/api/plans/{plan}/why"): Row("owned"),
    ("GET", "/api/plans/{plan}/why/{code}"): Row("owned"),
    ("GET", "/api/plans/{plan}/export"): Row("owned", query={"parts": "events"}),
    ("POST", "/api/plans/import-log"): Row("signed in"),
    ("GET", "/api/imported-plans"): Row("signed in"),
    ("GET", "/api/plans/{plan}/stream"): Row("owned"),
    ("POST", "/api/plans/{plan}/events/{seq}/skip"): Row("admin", {"reason": "nobody can read it"}),
    ("GET", "/api/plans/{plan}/tasks/{code}/transcript"): Row("owned"),
    ("GET", "/api/plans/{plan}/tasks/{code}/transcript/stream"): Row("owned"),
    ("POST", "/api/plans/{plan}/pause"): Row("owned", {}),
    ("POST", "/api/plans/{plan}/resume"): Row("owned", {}),
    ("POST", "/api/plans/{plan}/cancel"): Row("owned", {}),
    ("GET", "/api/webhooks"): Row("signed in"),
    ("POST", "/api/webhooks"): Row("signed in", WEBHOOK),
    ("GET", "/api/webhooks/{webhook}"): Row("own account"),
    ("PATCH", "/api/webhooks/{webhook}"): Row("own account", {"name": "other"}),
    ("POST", "/api/webhooks/{webhook}/test"): Row("own account"),
    ("GET", "/api/webhooks/{webhook}/deliveries"): Row("own account"),
    ("POST", "/api/webhooks/{webhook}/deliveries/{delivery}/redeliver"): Row("own account"),
    ("GET", "/api/templates"): Row("signed in"),
    ("POST", "/api/templates"): Row("signed in", {"name": "another", "text": TEMPLATE}),
    ("GET", "/api/templates/{template}"): Row("shared"),
    ("PATCH", "/api/templates/{template}"): Row("shared", {"description": "other"}),
    ("POST", "/api/templates/{template}/preview"): Row("shared", {}),
    ("POST", "/api/projects/{project}/plans/from-template"): Row("owned", FROM_TEMPLATE),
    ("GET", "/api/suite"): Row("signed in"),
    ("GET", "/api/runners"): Row("signed in"),
    ("GET", "/api/projection"): Row("admin"),
    ("POST", "/api/projection/rebuild"): Row("admin"),
    ("GET", "/api/projection/verify"): Row("admin"),
    ("POST", "/api/projection/verify"): Row("admin"),
    ("GET", "/api/consumers"): Row("admin"),
    # Behind the log's end, so that no other test's pool begins anew.
    ("POST", "/api/consumers/{consumer}/reset"): Row("admin", {"to": str(10**15), "reason": "to look at it"}),
    ("GET", "/api/metrics"): Row("admin"),
    # What ends the things that the rows above are about.
    ("DELETE", "/api/imported-plans/{imported}"): Row("owned"),
    ("DELETE", "/api/agents/{agent}"): Row("public"),
    ("DELETE", "/api/agent-types/{agent_type}"): Row("public"),
    ("DELETE", "/api/projects/{project}"): Row("owned"),
    ("DELETE", "/api/templates/{template}"): Row("shared"),
    ("DELETE", "/api/webhooks/{webhook}"): Row("own account"),
}


def routes() -> set[tuple[str, str]]:
    """Every route of the application as it is deployed, but for the schema's own."""
    settings = Settings(
        host="127.0.0.1",
        port=1,
        bus=BusSettings("nats://127.0.0.1:1"),
        database=database_url("sqlite:///nowhere"),
        keyring_file=Path("nowhere"),
        session_secret=secrets.token_urlsafe(32),
    )
    listed = ((method, route.path_format) for route in make_app(settings).routes for method in route.methods)
    return {(method, path) for method, path in listed if method != "OPTIONS" and not path.startswith("/schema")}


def test_every_route_has_a_row_and_every_row_a_route() -> None:
    assert routes() == set(MATRIX)


class Things(NamedTuple):
    """What one account owns: the values of the routes' parameters."""

    agent_type: str
    agent: str
    project: str
    plan: str
    code: str
    token_id: str
    user_id: str
    template: str
    webhook: str
    delivery: str
    imported: str
    seq: str
    """Of the plan's first event."""
    consumer: str = "pool_command"

    def fill(self, text: str) -> str:
        for name, value in self._asdict().items():
            text = text.replace(f"{{{name}}}", value)
        return text


async def things_of(client: httpx.AsyncClient, user_id: str) -> Things:
    """A project with a running plan, and the agent and type that it uses."""
    agent = await made.agent(client, slug=f"claude-{secrets.token_hex(4)}")
    project = await made.project(client, agent, allow_concurrent_plans=True)
    plan = await made.plan(client, project)
    await made.finalized(client, plan)
    await made.task_is(client, plan, "T1", "queued")
    token = await made.ok(client.post("/api/auth/tokens", json={"name": "to look at"}))
    body = {"name": made.name("Template"), "text": TEMPLATE}
    template = await made.ok(client.post("/api/templates", json=body))
    webhook = (await made.ok(client.post("/api/webhooks", json=WEBHOOK)))["id"]
    delivery = (await made.ok(client.post(f"/api/webhooks/{webhook}/test")))["id"]
    file = (await client.get(f"/api/plans/{plan}/export", params={"parts": "events"})).content
    imported = (await made.ok(client.post("/api/plans/import-log", content=file)))["id"]
    return Things(
        agent["agent_type_id"],
        agent["id"],
        project,
        plan,
        "T1",
        token["id"],
        user_id,
        template["id"],
        webhook,
        delivery,
        imported,
        str((await made.ok(client.get(f"/api/plans/{plan}/events", params={"limit": 1})))["events"][0]["seq"]),
    )


class World(NamedTuple):
    gateway: GatewayProcess
    anonymous: httpx.AsyncClient
    frozen: httpx.AsyncClient
    ada: httpx.AsyncClient
    bob: httpx.AsyncClient
    admin: httpx.AsyncClient


@pytest.fixture(scope="module")
def services(nats_url: NatsServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    directory = tmp_path_factory.mktemp("services")
    with service("planner", nats_url, directory), service("dispatcher", nats_url, directory):
        yield


@pytest.fixture
async def world(own_gateway: GatewayProcess, services: None) -> AsyncIterator[World]:
    gateway = own_gateway
    people = [
        gateway.anonymous(),
        gateway.as_user("frida"),
        gateway.as_user("ada"),
        gateway.as_user("bob"),
        gateway.as_admin(),
    ]
    await made.ok(people[1].get("/api/auth/me"))
    await made.ok(people[4].patch(f"/api/users/{gateway.id_of('frida')}", json={"is_frozen": True}))
    yield World(gateway, *people)
    for client in people:
        await client.aclose()


async def status_of(client: httpx.AsyncClient, method: str, path: str, row: Row, things: Things) -> tuple[int, str]:
    """The answer's status, and its code where it is a problem. Of a stream only its beginning is read."""
    body = None if row.body is None else {k: things.fill(v) if isinstance(v, str) else v for k, v in row.body.items()}
    async with client.stream(method, things.fill(path), json=body, headers=row.headers, params=row.query) as answer:
        if answer.is_success:
            return answer.status_code, ""
        await answer.aread()
        return answer.status_code, answer.json()["code"]


def passes(status: int, code: str) -> bool:
    """Whether the request got past the question of who asks. What is said after it is no refusal of the caller."""
    return code in ("no_runner", "wrong_password") or (status not in (401, 403, 404) and status < 500)


async def test_nobody_does_what_is_not_theirs_and_everybody_what_is(world: World) -> None:
    adas = await things_of(world.ada, world.gateway.id_of("ada"))
    admins = await things_of(world.admin, world.gateway.id_of("bob"))
    wrong: list[str] = []

    async def expect(who: str, row: Row, method: str, path: str, things: Things, wanted: int | None) -> None:
        status, code = await status_of(getattr(world, who), method, path, row, things)
        if not (passes(status, code) if wanted is None else status == wanted):
            wrong.append(f"{who}: {method} {path} answers {status} {code}, not {wanted or 'what goes on'}")

    for (method, path), row in MATRIX.items():
        if path == "/api/auth/login":
            continue  # 401 is what it says of a wrong password
        stranger: dict[Policy, int | None] = {
            "open": None, "signed in": None, "owned": 404, "public": 404, "own account": 404, "admin": 403,
            "shared": None if method in ("GET", "POST") else 403,
        }  # fmt: skip
        for who in ("anonymous", "frozen"):
            await expect(who, row, method, path, adas, None if row.policy == "open" else 401)
        await expect("bob", row, method, path, adas, stranger[row.policy])
        if row.policy == "public":
            await expect("bob", row, method, path, admins, None if method == "GET" else 403)
        if row.policy == "own account":
            await expect("admin", row, method, path, adas, 404)
    assert not wrong, "\n".join(wrong)
    # Only now the owner and the admin, whose requests change things. Each has a set of their own to use up.
    for who, things in (("ada", adas), ("admin", await things_of(world.ada, world.gateway.id_of("ada")))):
        for (method, path), row in MATRIX.items():
            if row.policy == "own account" and who == "admin":
                continue
            if path == "/api/auth/login":
                continue
            await expect(who, row, method, path, things, 403 if (row.policy, who) == ("admin", "ada") else None)
    assert not wrong, "\n".join(wrong)


async def test_what_is_not_there_answers_like_what_is_somebody_elses(world: World) -> None:
    """Else asking for ids at random would tell which exist."""
    adas = await things_of(world.ada, world.gateway.id_of("ada"))
    no = "0" * 24
    nothing = Things(no, no, no, "p" + "a" * 12, "T1", no, no, no, no, no, "i" + "a" * 12, "1")
    for (method, path), row in MATRIX.items():
        if "{" in path and row.policy in ("owned", "public", "own account"):
            foreign, missing = [await status_of(world.bob, method, path, row, things) for things in (adas, nothing)]
            assert foreign == missing == (404, "not_found"), f"{method} {path}"
