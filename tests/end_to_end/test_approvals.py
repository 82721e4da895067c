"""A person allows a call: the whole suite, the real CLI in the sandbox, only the model is scripted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.model import Model
from tests.end_to_end.plans import files
from tests.end_to_end.suite import Suite, types
from treadle.scripted_model import Block, Script

KEY = "sk-ant-made-up-4c1f"
PATH = "/treadle/code/asked/new.txt"
SCRIPTS: dict[str, Script] = {
    "T1": [
        [Block(tool="Bash", input={"command": "pwd > first.txt", "description": "look"})],
        [Block(tool="Write", input={"file_path": PATH, "content": "once\n"})],
        [Block(tool="Bash", input={"command": "cat asked/new.txt; pwd > then.txt", "description": "look"})],
        [Block(text="Written.")],
    ]
}


@pytest.fixture
def asking(tmp_path: Path) -> Iterator[Suite]:
    """A suite whose runner takes a key that only the scripted model knows."""
    with Model(SCRIPTS, api_key=KEY) as model:
        made = Suite(tmp_path / "suite")
        made.environment |= {"ANTHROPIC_API_KEY": KEY, "ANTHROPIC_BASE_URL": model.base_url}
        made.up("--runners", "1", "--slots", "1")
        try:
            yield made
        finally:
            made.down()


def test_a_call_that_names_an_absolute_path_runs_once_it_is_allowed_in_another_lease(asking: Suite, repo: Path) -> None:
    rules = [{"tool": "Write", "pattern": "asked/*", "answer": "ask"}]
    made = asking.post("/projects", {"name": "asks", "mode": "auto", "code_repo_url": str(repo), "permissions": rules})
    asking.use_project(repo, made["id"])
    plan = asking.submit({"name": "A plan", "tasks": [{"code": "T1", "name": "Write", "timeout_minutes": 5}]}, repo)
    wanted = asking.event(plan, "approval_requested", "T1")
    assert (wanted["tool"], json.loads(wanted["input"])["file_path"]) == ("Write", PATH)
    done = asking.command("task", "approve", "T1", "--plan", plan, "--approval", wanted["approval"])
    assert done.status == 0, done.err
    asking.event(plan, "completed", "T1")
    asking.standing(plan, "completed")
    told = types(asking.events(plan), "T1")
    counted = {name: told.count(name) for name in ("started", "approval_requested", "approval_used", "failed")}
    assert counted == {"started": 2, "approval_requested": 1, "approval_used": 1, "failed": 0}, asking.told(plan)
    arrived = files(repo, f"treadle/{plan}")
    assert arrived["asked/new.txt"] == "once"
    assert (arrived["first.txt"], arrived["then.txt"]) == ("/treadle/code",) * 2
