"""The keys of stored credentials are changed while plans run with them."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.plans import Gate, Plan, git, shell
from tests.end_to_end.suite import Suite
from tests.end_to_end.test_claude_plans import CANARY, scripted
from treadle.scripted_model import ScriptedModel


@pytest.fixture
def model() -> Iterator[ScriptedModel]:
    with scripted() as serving:
        yield serving


def held_then_claude(gate: Gate) -> Plan:
    """A task that waits for the gate; then one whose agent needs the stored key."""
    return {
        "name": "Held",
        "agents": {"hold": shell(gate.wait)},
        "tasks": [
            {"code": "HOLD", "name": "Hold", "assignee": "hold", "allow_no_change": True},
            {"code": "T1", "name": "Write", "assignee": "coder", "depends_on": ["HOLD"], "timeout_minutes": 2},
        ],
    }


def stored_under(suite: Suite) -> dict[str, int]:
    """How many credentials each key of the keyring has, from the database itself."""
    with sqlite3.connect(f"file:{suite.data / 'treadle.sqlite'}?mode=ro", uri=True) as database:
        return dict(database.execute("select key_id, count(*) from credential group by key_id").fetchall())


def keyring(suite: Suite) -> set[str]:
    return set(json.loads((suite.data / "keyring.json").read_text())["keys"])


def test_keys_are_rotated_while_a_plan_runs_and_its_next_task_still_gets_its_credentials(
    own_suite: Suite, model: ScriptedModel, repo: Path, gate: Gate
) -> None:
    own_suite.up()
    kind = own_suite.post(
        "/agent-types", {"name": "claude", "sdk_type": "claude", "api_key": CANARY, "api_base_url": model.base_url}
    )
    agent = own_suite.post("/agents", {"name": "Coder", "slug": "coder", "agent_type_id": kind["id"]})
    project = {"name": "P", "mode": "auto", "code_repo_url": str(repo), "agent_ids": [agent["id"]]}
    own_suite.use_project(repo, own_suite.post("/projects", project)["id"])
    made = own_suite.submit(held_then_claude(gate), repo)
    own_suite.event(made, "started", "HOLD")
    assert stored_under(own_suite) == {"k1": 1}

    rotated = own_suite.command("keys", "rotate")
    assert rotated.status == 0, rotated.err
    assert "key k2 is the current one: 1 credentials were encrypted anew" in rotated.err
    assert (stored_under(own_suite), keyring(own_suite)) == ({"k2": 1}, {"k1", "k2"})
    gate.open()
    own_suite.standing(made, "completed")
    assert {request.headers.get("x-api-key") for request in model.requests if request.method == "POST"} == {CANARY}
    assert git(repo, "show", f"treadle/{made}:one.txt") == "one"

    again = own_suite.command("keys", "rotate")
    assert (again.status, keyring(own_suite)) == (0, {"k2", "k3"}), "a key that nothing needs goes, the last one stays"
    assert (own_suite.data / "keyring.json").stat().st_mode & 0o077 == 0
    own_suite.down()
    own_suite.up()
    assert own_suite.post(f"/agent-types/{kind['id']}/test", {})["code"] == "ok"


def test_rotating_with_a_broken_keyring_changes_nothing_and_says_so(own_suite: Suite) -> None:
    own_suite.up()
    path = own_suite.data / "keyring.json"
    whole = path.read_bytes()
    path.write_bytes(whole[:20])
    refused = own_suite.command("keys", "rotate")
    assert refused.status == 2
    assert "keyring" in refused.err
    assert path.read_bytes() == whole[:20]
    path.write_bytes(whole)
    assert own_suite.command("keys", "rotate").status == 0
