"""Whose work can't be merged by itself, and where a plan's branch goes: as a project has it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.plans import files, git, plan, task
from tests.end_to_end.suite import Suite

RESOLVES = (
    'case "$TREADLE_TASK" in merge-*) grep -q "^<<<<<<<" a.txt; echo "T1 and T2" > a.txt;; *) cp a.txt j.txt;; esac'
)


def in_conflict(join: str = RESOLVES) -> dict[str, Any]:
    """T1 and T2 change the same lines; J is behind both."""
    return plan(task("T1", "echo T1 > a.txt"), task("T2", "echo T2 > a.txt"), task("J", join, "T1", "T2"))


@pytest.fixture
def bare(repo: Path, tmp_path: Path) -> Path:
    """The repository as a server has it: no branch of it is checked out."""
    git(tmp_path, "clone", "-q", "--bare", str(repo), str(tmp_path / "bare.git"))
    return tmp_path / "bare.git"


def submit(suite: Suite, repo: Path, content: dict[str, Any], **settings: Any) -> str:
    """A plan in a project with these settings."""
    made = suite.post("/projects", {"name": f"of {repo}", "mode": "auto", "code_repo_url": str(repo), **settings})
    suite.use_project(repo, made["id"])
    return suite.submit(content, repo)


def test_a_conflict_is_reported_with_its_files_and_both_tasks(suite: Suite, repo: Path) -> None:
    made = submit(suite, repo, in_conflict())
    suite.standing(made, "needs_attention")
    failed = suite.event(made, "failed", "J")
    assert failed["kind"] == "merge_conflict"
    assert failed["conflict"] == {"files": ["a.txt"], "tasks": ["T1", "T2"]}
    assert "The work of T2 conflicts with that of T1 in a.txt" in failed["message"]


def test_an_agent_merges_in_a_task_of_its_own_and_the_plan_is_merged_into_the_default_branch(
    suite: Suite, bare: Path
) -> None:
    before = git(bare, "rev-parse", "main")
    made = submit(suite, bare, in_conflict(), on_conflict="agent", delivery="merge")
    suite.standing(made, "completed")
    tasks = suite.tasks(made)
    assert tasks["merge-J"]["status"] == "completed"
    heads = {code: tasks[code]["commit"] for code in ("T1", "T2", "merge-J")}
    parents = git(bare, "rev-list", "--parents", "-1", heads["merge-J"]).split()[1:]
    assert parents == [heads["T1"], heads["T2"]]
    assert files(bare, "main") == {"a.txt": "T1 and T2", "j.txt": "T1 and T2"}
    assert git(bare, "rev-parse", "main") == git(bare, "rev-parse", f"treadle/{made}") != before


def test_markers_that_an_agent_left_go_back_to_it_and_never_into_a_merge(suite: Suite, bare: Path) -> None:
    leaves = 'case "$TREADLE_TASK" in merge-*) echo "and more" >> a.txt;; esac'
    made = submit(suite, bare, in_conflict(leaves), on_conflict="agent", verify_rounds=1)
    suite.standing(made, "needs_attention")
    failed = suite.event(made, "failed", "merge-J")
    assert failed["kind"] == "verification_failed"
    assert "still conflict markers in a.txt" in failed["message"]


def test_the_projects_command_gets_the_branch(suite: Suite, bare: Path) -> None:
    command = 'test "$(git rev-parse HEAD)" = "$TREADLE_COMMIT"; echo "$TREADLE_PLAN is on $TREADLE_BRANCH"; cat x.txt'
    made = submit(
        suite, bare, plan(task("T1", "echo x > x.txt")), delivery="command", delivery_command=f"set -e; {command}"
    )
    suite.standing(made, "completed")
    told = suite.get(f"/plans/{made}/tasks/_deliver/transcript")["items"]
    said = "".join(f"{entry['activity'].get('text', '')}\n" for entry in told)
    assert f"{made} is on treadle/{made}\nx\n" in said
