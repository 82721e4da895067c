"""`treadle workspaces` tells what is on this machine, and why."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from services.runner.deliver import push_lease
from services.runner.in_use import lease_in_use
from services.runner.leftovers import commit_leftovers
from tests.runner.repositories import PLAN, Project, make_project
from treadle.main import main


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return make_project(tmp_path)


def told(project: Project, *words: str) -> Result:
    result = CliRunner().invoke(main, ["--data", str(project.data_dir), "workspaces", *words])
    assert result.exit_code == 0, result.output
    return result


def test_each_workspace_is_listed_with_the_reason_why_it_is_there(project: Project) -> None:
    unsaved, saved, running = (project.workspace(task) for task in ("T1", "T2", "T3"))
    for workspace in (unsaved, saved, running):
        (workspace.code / "a.txt").write_text("edited\n" * 10_000)
    push_lease(saved, commit_leftovers(saved, "a task").commit)
    half = running.path.with_name(".T4-2.new")
    half.mkdir()
    with lease_in_use(project.data_dir, PLAN, "T3", 1), lease_in_use(project.data_dir, PLAN, "T4", 2):
        found = json.loads(told(project, "--json").stdout)
    assert [(one["task"], one["lease"], one["unsaved"], one["reason"]) for one in found] == [
        ("T1", 1, True, "holds work that was never pushed"),
        ("T2", 1, False, "its lease has ended: a runner removes it"),
        ("T3", 1, True, "running"),
        ("T4", 2, False, "being made"),
    ]
    assert found[0]["path"] == str(unsaved.code) and found[0]["plan"] == PLAN
    assert found[0]["size_bytes"] > 70_000 and 0 <= found[0]["age_s"] < 600


def test_words_go_out_plain_and_the_hint_beside_them(project: Project) -> None:
    workspace = project.workspace("T1")
    (workspace.code / "a.txt").write_text("edited\n")
    shown = told(project)
    assert shown.stdout.split()[:4] == [PLAN, "T1", "lease", "1"]
    assert "holds work that was never pushed" in shown.stdout and str(workspace.code) in shown.stdout
    assert "\x1b" not in shown.stdout and shown.stdout.count("\n") == 1
    assert "treadle clean" in shown.stderr


def test_none_is_said_and_is_an_empty_list(project: Project) -> None:
    assert told(project).stderr.startswith("no workspaces")
    assert json.loads(told(project, "--json").stdout) == []


def test_a_gateway_elsewhere_has_no_workspaces_here(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "token").write_text("token\n")
    monkeypatch.setenv("TREADLE_TOKEN_FILE", str(tmp_path / "token"))
    result = CliRunner().invoke(main, ["--url", "https://treadle.example", "workspaces"])
    assert result.exit_code == 2 and "this machine's own suite" in result.output
