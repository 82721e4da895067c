"""Agents, projects and plans, made over HTTP."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Any

import httpx

COMMIT = "0123456789abcdef0123456789abcdef01234567"
DEADLINE_S = 90.0
TWO = """
name: Two
tasks:
- {code: T1, name: First, description: Do it., assignee: WHO}
- {code: T2, name: Second, description: Do more., assignee: WHO, depends_on: [T1]}
"""


def name(of: str) -> str:
    """Of this test alone."""
    return f"{of} {secrets.token_hex(4)}"


async def ok(answer: Awaitable[httpx.Response], status: int = 0) -> Any:
    """The body of a good answer."""
    got = await answer
    assert got.is_success, f"{got.request.method} {got.request.url}: {got.status_code} {got.text}"
    assert not status or got.status_code == status
    return got.json() if got.content else None


async def agent(
    client: httpx.AsyncClient, sdk_type: str | None = "claude", *, called: str = "agent", **fields: Any
) -> dict[str, Any]:
    """An agent with a type of its own. Its slug begins with `called` and is this test's alone: all share a gateway."""
    type_ = await ok(client.post("/api/agent-types", json={"name": name("Type"), "sdk_type": sdk_type}))
    slug = f"{called}-{secrets.token_hex(4)}"
    body = {"name": name("Agent"), "slug": slug, "agent_type_id": type_["id"], **fields}
    made: dict[str, Any] = await ok(client.post("/api/agents", json=body))
    return made


async def project(client: httpx.AsyncClient, *agents: dict[str, Any], **fields: Any) -> str:
    """A project with these agents."""
    body = {
        "name": name("Project"),
        "code_repo_url": f"https://git.example.com/a/{secrets.token_hex(4)}.git",
        "agent_ids": [one["id"] for one in agents],
        **fields,
    }
    return str((await ok(client.post("/api/projects", json=body), 201))["id"])


async def plan(client: httpx.AsyncClient, project_id: str, who: str = "claude", text: str = TWO) -> str:
    """A drafted plan."""
    body = {"text": text.replace("WHO", who), "base_commit": COMMIT}
    return str((await ok(client.post(f"/api/projects/{project_id}/plans", json=body), 201))["plan"])


async def finalized(client: httpx.AsyncClient, plan_id: str, candidate: str = "1") -> dict[str, Any]:
    """The plan runs from now on."""
    done: dict[str, Any] = await ok(client.post(f"/api/plans/{plan_id}/finalize", json={"candidate": candidate}), 202)
    return done


async def until(look: Callable[[], Awaitable[Any]], what: str) -> Any:
    """What `look` gives as soon as it gives something."""
    deadline = monotonic() + DEADLINE_S
    while monotonic() < deadline:
        if seen := await look():
            return seen
        await asyncio.sleep(0.05)  # between two looks
    raise AssertionError(f"{what} did not come to be within {DEADLINE_S} s")


async def task_is(client: httpx.AsyncClient, plan_id: str, code: str, *statuses: str) -> dict[str, Any]:
    """The task, once it has one of the statuses."""

    async def look() -> Any:
        answer = await client.get(f"/api/plans/{plan_id}/tasks/{code}")
        body = answer.json()
        return {**body, "etag": answer.headers["etag"]} if answer.is_success and body["status"] in statuses else None

    found: dict[str, Any] = await until(look, f"{code} being {statuses}")
    return found
