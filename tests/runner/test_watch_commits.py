"""A commit that a person names rests on what the task began with, or the person is told what to merge."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.runner.git import GitFailed
from services.runner.mirror import Mirror, mirror_of
from services.runner.watch.commits import why_no_work
from shared import events as e
from shared.clock import new_plan_id
from shared.events import Head
from shared.spec import AgentSpec
from tests.runner.repositories import PROJECT_ID, git
from tests.runner.watch_world import CollabRepository

PLAN = new_plan_id()


@pytest.fixture
def code(tmp_path: Path) -> CollabRepository:
    return CollabRepository(tmp_path, "code.git")


@pytest.fixture
def mirror(code: CollabRepository, tmp_path: Path) -> Mirror:
    return mirror_of(tmp_path / "data", code.url, PROJECT_ID)


def branch(code: CollabRepository, name: str, start: str) -> str:
    """A commit on a branch of its own, there and pushed."""
    git(code.clone, "checkout", "-q", "-b", name, start)
    git(code.clone, "commit", "-q", "--allow-empty", "-m", name)
    git(code.clone, "push", "-q", str(code.bare), name)
    return git(code.clone, "rev-parse", "HEAD")


def handed_out(base: str, *heads: Head) -> e.TaskDispatched:
    return e.TaskDispatched(
        dispatch=1, attempt=1, prompt="", agent=AgentSpec(sdk_type=None), repo_url="", base_commit=base, heads=heads,
        plan_name="P", task_name="T", timeout_s=60, budget_usd=0,
    )  # fmt: skip


def test_all_that_is_missing_is_named_and_what_contains_it_all_is_taken(code: CollabRepository, mirror: Mirror) -> None:
    base = git(code.clone, "rev-parse", "HEAD")
    one, two, mine = (branch(code, name, base) for name in ("one", "two", "mine"))
    dispatch = handed_out(base, Head("T1", one), Head("T2", two))
    why = why_no_work(mirror, PLAN, dispatch, mine)
    assert f"merge commit {one} (the work of T1), commit {two} (the work of T2) into yours" in why
    assert base not in why
    git(code.clone, "merge", "-q", "-m", "m", one)
    git(code.clone, "push", "-q", str(code.bare), "mine")
    half = git(code.clone, "rev-parse", "HEAD")
    assert f"merge commit {two} (the work of T2) into yours" in why_no_work(mirror, PLAN, dispatch, half)
    assert not why_no_work(mirror, PLAN, handed_out(base, Head("T1", one)), half)
    assert not why_no_work(mirror, PLAN, handed_out(base, Head("T1", one)), one)
    # One that is only a part of what there was before takes work back.
    assert f"commit {one} (the work of T1)" in why_no_work(mirror, PLAN, handed_out(base, Head("T1", one)), base)


def test_a_commit_without_a_common_history_is_not_taken_and_a_plan_without_a_base_takes_any(
    code: CollabRepository, mirror: Mirror
) -> None:
    base = git(code.clone, "rev-parse", "HEAD")
    git(code.clone, "checkout", "-q", "--orphan", "other")
    git(code.clone, "commit", "-q", "-m", "unrelated")
    git(code.clone, "push", "-q", str(code.bare), "other")
    other = git(code.clone, "rev-parse", "HEAD")
    assert f"merge commit {base} (where the plan begins) into yours" in why_no_work(
        mirror, PLAN, handed_out(base), other
    )
    assert not why_no_work(mirror, PLAN, handed_out(""), other)


def test_what_the_repository_lost_of_the_tasks_before_is_no_fault_of_the_persons(
    code: CollabRepository, mirror: Mirror
) -> None:
    base = git(code.clone, "rev-parse", "HEAD")
    with pytest.raises(GitFailed, match="a" * 12):
        why_no_work(mirror, PLAN, handed_out(base, Head("T1", "a" * 40)), base)
