"""What a person is told where nothing goes on, or agents are not kept in; and that looking at a plan fails nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.plans import Gate, plan, task, write
from tests.end_to_end.suite import Suite, types, until
from tests.end_to_end.test_claude_plans import CANARY, scripted
from treadle.scripted_model import ScriptedModel


@pytest.fixture
def model() -> Iterator[ScriptedModel]:
    with scripted() as serving:
        yield serving


def path_without(program: str, directory: Path) -> Path:
    """A directory with all that PATH offers, but for one program."""
    directory.mkdir()
    for place in map(Path, os.environ["PATH"].split(os.pathsep)):
        for found in place.iterdir() if place.is_dir() else ():
            if found.name != program and not (directory / found.name).is_symlink():
                (directory / found.name).symlink_to(found)
    return directory


def test_looking_without_a_key_fails_no_task_that_needs_one(
    own_suite: Suite, model: ScriptedModel, repo: Path, tmp_path: Path
) -> None:
    key, gate = {"ANTHROPIC_API_KEY": CANARY, "ANTHROPIC_BASE_URL": model.base_url}, Gate(tmp_path / "gate")
    claude = {"code": "T1", "name": "Write"}
    content = write(tmp_path, {"name": "Held", "setup": [gate.wait], "tasks": [claude]})
    assert own_suite.command("run", content, "--repo", str(repo), "--detach", env=key).status == 0
    (made,) = own_suite.plans()
    own_suite.event(made["plan"], "started", "T1")
    own_suite.down()
    gate.open()
    assert own_suite.command("status").status == 0  # starts a suite, which has no key
    until(lambda: "stay in the queue" in own_suite.log("runner-1"), "the runner leaves the task alone")
    until(lambda: "set ANTHROPIC_API_KEY" in own_suite.command("status").out, "status says why it waits")
    assert own_suite.tasks(made["plan"])["T1"]["status"] == "queued"
    own_suite.down()
    assert own_suite.command("watch", env=key).status == 0
    assert "failed" not in types(own_suite.events(made["plan"]), "T1")


def test_a_full_disk_and_a_missing_sandbox_are_told(own_suite: Suite, repo: Path, tmp_path: Path) -> None:
    content = write(tmp_path, plan(task("T1", "true")))
    full = {
        "TREADLE_DISK_FLOOR_MB": "10000000",
        "TREADLE_SANDBOX": "preferred",
        "PATH": str(path_without("bwrap", tmp_path / "bin")),
    }
    done = own_suite.command("run", content, "--repo", str(repo), "--detach", env=full)
    assert done.status == 0 and "no runner has a sandbox" in done.err
    until(lambda: "to be kept free" in own_suite.command("status").out, "status says why it waits")
    said = tmp_path / "said"
    with said.open("w") as stderr:
        watching = own_suite.start("watch", stderr=stderr)
    try:
        until(lambda: "to be kept free" in said.read_text(), "watch says it too")
    finally:
        watching.kill()
        watching.communicate()


@pytest.mark.parametrize("command", [("run", "plan.json"), ("up",)])
def test_an_address_of_the_api_that_is_none_is_refused_at_once(
    own_suite: Suite, tmp_path: Path, command: tuple[str, ...]
) -> None:
    write(tmp_path, plan(task("T1", "true")))
    done = own_suite.command(*command, env={"ANTHROPIC_BASE_URL": "foo"}, cwd=tmp_path)
    assert done.status == 2
    assert "ANTHROPIC_BASE_URL: foo is no address" in done.err
    assert not (own_suite.data / "suite.json").exists()
