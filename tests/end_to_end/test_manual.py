"""A manual project from its plan to its branch: people's prompts, git pushes, and all that goes wrong on the way."""

from __future__ import annotations

import json
import secrets
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.end_to_end.person import Person
from tests.end_to_end.plans import files, git, make_repo
from tests.end_to_end.suite import Suite, types

GOAL = "Let the shop greet people by name."
MOVED_S = 0.5
"""By how much clocks of the log and of a runner may seem to differ."""


def task(code: str, *after: str, **more: Any) -> dict[str, Any]:
    return {
        "code": code,
        "name": f"Task {code}",
        "description": f"Do {code} well.",
        "assignee": "paula",
        "depends_on": list(after),
        "expected_output": f"{code}/done.txt",
        **more,
    }


PLAN = {
    "name": "Greet people",
    "tasks": [
        task("design"),
        task("late", timeout_minutes=0.05),
        task("gone"),
        task("build", "design"),
        task("last", "build", "late", "gone"),
    ],
}


@pytest.fixture
def collab(tmp_path: Path) -> Path:
    """A bare repository with one commit, of its own beside the code's."""
    git(tmp_path, "clone", "-q", "--bare", str(make_repo(tmp_path / "seed")), str(tmp_path / "collab.git"))
    return tmp_path / "collab.git"


class Project(NamedTuple):
    id: str
    person: str
    """Whom its tasks are given to: a slug."""


@pytest.fixture
def project(suite: Suite, repo: Path, collab: Path) -> Project:
    """A manual project with one person in it."""
    kind = suite.post("/agent-types", {"name": f"Person {secrets.token_hex(4)}"})
    person = suite.post("/agents", {"name": f"Paula {secrets.token_hex(4)}", "agent_type_id": kind["id"]})
    body = {
        "name": "By hand",
        "goal": GOAL,
        "mode": "manual",
        "code_repo_url": str(repo),
        "collab_repo_url": str(collab),
        "collab_dir": "shared/plans",
        "poll_interval_s": 5,
        "agent_ids": [person["id"]],
    }
    return Project(suite.post("/projects", body)["id"], person["slug"])


@pytest.mark.timeout(300)
def test_people_make_the_plan_and_do_it_to_its_end_whatever_goes_wrong(
    suite: Suite, project: Project, repo: Path, collab: Path, tmp_path: Path
) -> None:
    before = git(repo, "status", "--porcelain", "--branch")

    # The plan is asked for with a prompt that stands alone, and comes back by a push.
    asked = suite.post(f"/projects/{project.id}/plans/prompt")
    plan, prompt = asked["plan"], asked["prompt"]
    for words in (GOAL, project.person, "depends_on", str(repo), git(repo, "rev-parse", "HEAD")):
        assert words in prompt, f"{words} is missing in:\n{prompt}"
    assert asked["path"] == f"shared/plans/plan-{plan}.json"
    person = Person(suite, plan, tmp_path / "paula")
    made = json.dumps(PLAN, indent=2).replace('"paula"', json.dumps(project.person))
    blob = person.push(asked["repo_url"], asked["path"], f"My plan:\n\n```json\n{made}\n```\n")
    drafted = suite.event(plan, "drafted")
    assert (drafted["candidate"], drafted["origin"]["blob"]) == ("1", blob)
    suite.post(f"/plans/{plan}/finalize", {"candidate": "1"})

    # One task is given up; what waits for it goes on without it, below.
    person.begin("gone")
    person.sees("gone", status="running")
    suite.post(f"/plans/{plan}/tasks/gone/abandon", {"note": "nobody needs it"})

    # One person is late. What is pushed after all counts, without a word to Treadle.
    told = person.begin("late")
    person.sees("late", status="needs_attention", failure="timeout")
    person.hand_in(told, commit=person.work(told, "late"), summary="Better late than never.")
    assert person.sees("late", status="completed")["summary"] == "Better late than never."

    told = person.begin("design")
    assert person.sees("design", status="running")["runner"] == "watch"
    designed = person.work(told, "design")
    person.hand_in(told, commit=designed)
    assert person.sees("design", status="completed")["commit"] == designed

    # A result that is none is told of, and a mended one takes its place.
    told = person.begin("build")
    assert f"Start from commit {designed}, the work of design." in told
    built = person.work(told, "build")
    wrong = person.hand_in(told, task_code="design", summary="", artifacts=["../secret"], commit=built)
    failed = suite.event(plan, "failed", "build", kind="invalid_result", blob=wrong)
    view = person.sees("build", status="needs_attention", failure="invalid_result")
    for words in ("task_code", "summary", "../secret", "shared/plans"):
        assert words in view["message"] and words in failed["message"]
    person.hand_in(told, commit=built)
    person.sees("build", status="completed")

    # While nobody can fetch, that is what is said, and the time that a person has stands still.
    told = person.begin("last")
    assert "gone" in told.split("Given up")[1] and built in told
    started = suite.event(plan, "started", "last")
    away = collab.with_name("away.git")
    collab.rename(away)
    fault = suite.event(plan, "watch_failed", "last")
    shown = person.sees("last", status="running", watch_fault=fault["reason"])
    assert str(collab) in shown["watch_fault"] and shown["watch_fault_since"] is not None
    away.rename(collab)
    restored = suite.event(plan, "watch_restored", "last")
    gained = _time(restored["deadline"]) - _time(started["deadline"])
    assert gained.total_seconds() >= (_time(restored["time"]) - _time(fault["time"])).total_seconds() - MOVED_S
    assert person.sees("last", watch_fault="")["deadline"] == restored["deadline"]
    person.hand_in(told, commit=person.work(told, "last"))

    view = suite.standing(plan, "completed")
    arrived = files(repo, view["branch"])
    assert {name for name in arrived if name.endswith("done.txt")} == {
        "design/done.txt",
        "build/done.txt",
        "late/done.txt",
        "last/done.txt",
    }
    events = suite.events(plan)
    assert types(events, "gone") == ["planned", "readied", "dispatched", "started", "abandoned"]
    assert types(events, "late")[-2:] == ["failed", "completed"]
    assert types(events, "last").count("started") == 1
    assert git(repo, "status", "--porcelain", "--branch") == before


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)
