"""A goal becomes a finished branch with no hand on it.

Once with Claude, of which only the model is scripted; the ways there and the ways astray with programs as agents.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

import pytest

from tests.end_to_end.model import Model, answers
from tests.end_to_end.plans import Gate, files, git, shell
from tests.end_to_end.suite import Suite, ended, types
from treadle.scripted_model import PLANNING, Block, Script

KEY = "sk-ant-goal-51c09e"
GOAL = "Greet people by name."
ONE: dict[str, Any] = {"code": "T1", "name": "Write", "description": "Write a file.", "timeout_minutes": 2}
TWO: dict[str, Any] = {"code": "T2", "name": "Look", "description": "Look.", "depends_on": ["T1"], "timeout_minutes": 2}
PLAN = {"name": "Greet people", "tasks": [ONE, TWO]}
INVALID = {"name": "Greet people", "tasks": [{**ONE, "depends_on": ["T9"]}, {**TWO, "code": "t1"}]}
"""As the schema wants it, so that it is the planner who has to refuse it."""
REFUSED = ('"T9" is not a task of this plan', "is used twice")


def answer(plan: dict[str, Any]) -> list[Block]:
    return [Block(tool="StructuredOutput", input=plan)]


def scripts() -> dict[str, Script]:
    return {
        PLANNING: [
            [Block(text="I look."), Block(tool="Read", input={"file_path": "a.txt"})],
            answer(INVALID),
            answer(PLAN),
        ],
        "T1": [
            [Block(tool="Write", input={"file_path": "one.txt", "content": "one\n"})],
            [Block(text="I wrote one.txt.")],
        ],
        "T2": [
            [Block(tool="Bash", input={"command": "cat one.txt > two.txt", "description": "look"})],
            [Block(text="I looked.")],
        ],
    }


def test_a_goal_becomes_a_finished_branch_and_an_invalid_answer_is_mended_on_the_way(
    own_suite: Suite, repo: Path
) -> None:
    before = git(repo, "status", "--porcelain", "--branch")
    with Model(scripts(), api_key=KEY) as model:
        own_suite.environment |= {"ANTHROPIC_API_KEY": KEY, "ANTHROPIC_BASE_URL": model.base_url}
        done = own_suite.command("plan", GOAL, "--repo", str(repo), "--run", deadline_s=150)
        requests = [request.body for request in model.requests if request.body.get("tools")]
    assert done.status == 0, done.err
    plan = own_suite.plans()[0]["plan"]
    events = own_suite.events(plan)
    assert types(events, None) == ["requested", "drafted", "finalizing", "finalized", "completed"]
    assert types(events, "_draft-1") == ["planned", "dispatched", "started", "completed"]
    arrived = files(repo, f"treadle/{plan}")
    assert (arrived["one.txt"], arrived["two.txt"]) == ("one", "one")
    assert git(repo, "status", "--porcelain", "--branch") == before

    origin = next(event for event in events if event["type"] == "drafted")["origin"]
    assert origin["draft"] == "_draft-1" and origin["usage"]["cost_usd"] > 0 and origin["duration_s"] > 0
    asked = [body for body in requests if "# Plan the work towards a goal" in json.dumps(body["messages"])]
    assert '"T9"' in json.dumps(answers(asked[-1])), "the answer is mended in the same conversation"
    for words in REFUSED:
        assert words in json.dumps(asked[-1]["messages"]).replace('\\"', '"'), "every fault goes back"
    offered = {tool["name"] for body in asked for tool in body["tools"]}
    assert offered.isdisjoint({"Bash", "Edit", "Write", "NotebookEdit", "WebFetch"})

    # On standard output the plan as `validate` draws it, then its tasks' lines; beside it what the planner did.
    assert "candidate 1: 2 tasks, by claude" in done.out and "longest chain: T1 → T2" in done.out
    assert done.out.index("longest chain") < done.out.index("T1            completed")
    assert "Read a.txt" in done.err and "round 1" in done.err and "tokens, $" in done.err
    logs = own_suite.command("logs", "_draft-1", "--plan", plan)
    assert "Read a.txt" in logs.out and REFUSED[0] in logs.out
    assert "its planning $" in own_suite.command("status", plan).out


def says(plan: Mapping[str, Any], first: str = "") -> dict[str, Any]:
    """An agent that answers with that plan, after the shell's `first`."""
    return shell(f"{first}\ncat <<'END'\nHere it is:\n\n```json\n{json.dumps(plan)}\n```\nEND")


class Team:
    """A project of the repository with a writer for its tasks, and agents that plan."""

    def __init__(self, suite: Suite, repo: Path, mark: str) -> None:
        self._suite, self._mark = suite, mark
        self.writer = self.add("writer", shell("echo $TREADLE_TASK > $TREADLE_TASK.txt"))
        body = {
            "name": repo.name,
            "mode": "auto",
            "code_repo_url": str(repo),
            "allow_concurrent_plans": True,
            "budget_usd": 50,
        }
        self.project = suite.post("/projects", {**body, "agent_ids": [self.id]})["id"]

    def add(self, name: str, kind: dict[str, Any]) -> str:
        """Makes an agent; returns its slug."""
        made = self._suite.post("/agent-types", {"name": f"{name}-{self._mark}", **kind})
        body = {"name": f"{name}-{self._mark}", "slug": f"{name}-{self._mark}", "agent_type_id": made["id"]}
        agent = self._suite.post("/agents", body)
        self.id = agent["id"]
        return str(agent["slug"])


@pytest.fixture
def team(suite: Suite, repo: Path) -> Team:
    return Team(suite, repo, uuid4().hex[:8])


def test_a_project_that_finalizes_by_itself_needs_nobody_who_watches(suite: Suite, repo: Path, team: Team) -> None:
    team.add("planner", says(PLAN))
    changed = suite.command("projects", "set", team.project, "auto_finalize=true")
    assert changed.status == 0, changed.err
    made = suite.post(f"/projects/{team.project}/plans/generate", {"goal": GOAL, "agent_id": team.id})
    view = suite.standing(made["plan"], "completed")
    assert files(repo, view["branch"])["T2.txt"] == "T2"
    finalizing = next(event for event in suite.events(made["plan"]) if event["type"] == "finalizing")
    assert finalizing["actor"].startswith("user:"), "it is done in the name of whoever asked"


def test_of_several_candidates_one_is_changed_compared_and_chosen(suite: Suite, repo: Path, team: Team) -> None:
    planner = team.add("planner", says(PLAN))
    words = ["--repo", str(repo), "--agent", planner, "--candidates", "2", "--json"]
    done = suite.command("plan", "-", *words, text=GOAL)
    assert done.status == 0, done.err
    plan = done.events[0]["plan"]
    assert sorted(event["candidate"] for event in done.events if event["type"] == "drafted") == ["1", "2"]
    assert f"treadle compare {plan} 1 2" in done.err

    text = json.loads(suite.command("candidates", plan, "--text", "1").out)
    text["tasks"] = [{**text["tasks"][0], "name": "Write it"}]
    added = suite.command("add", plan, "-", text=json.dumps(text))
    assert added.status == 0, added.err
    listed = suite.command("candidates", plan).out.splitlines()
    assert [line.split()[0] for line in listed] == ["1", "2", "3"]
    assert "(2 tasks" in listed[0] and "(1 task)" in listed[2]
    assert "their tasks are the same" in suite.command("compare", plan, "1", "2").out
    differs = suite.command("compare", plan, "1", "3").out
    assert "- T2" in differs and "~ T1: name" in differs
    unknown = suite.command("compare", plan, "1", "9")
    assert unknown.status == 2 and "9" in unknown.err

    unnamed = suite.command("choose", plan)
    assert unnamed.status == 2 and "name one of 1, 2, 3" in unnamed.err
    ran = suite.command("choose", plan, "3", "--run")
    assert ran.status == 0, ran.err
    assert "T1.txt" in files(repo, f"treadle/{plan}") and "T2.txt" not in files(repo, f"treadle/{plan}")
    late = suite.command("plan", "--plan", plan, "--agent", planner)
    assert late.status == 2 and "completed" in late.err


def test_a_plan_that_can_not_be_made_valid_fails_with_every_fault_and_may_be_asked_for_again(
    suite: Suite, repo: Path, team: Team
) -> None:
    wrong, right = team.add("wrong", says(INVALID)), team.add("right", says(PLAN))
    words = team.add("words", shell("echo I would begin with a file."))
    done = suite.command("plan", GOAL, "--repo", str(repo), "--agent", wrong)
    assert done.status == 1 and done.out == ""
    plan = suite.plans()[0]["plan"]
    last = done.err[done.err.rindex(f"candidate 1 of plan {plan} did not come about") :]
    status = suite.command("status", plan)
    for fault in REFUSED:
        assert fault in last and fault in status.out
    assert "treadle logs _draft-1" in last and "needs attention" in status.out
    assert suite.command("watch", plan).status == 1

    said = suite.command("plan", "--plan", plan, "--agent", words)
    assert said.status == 1 and f"candidate 2 of plan {plan} did not come about" in said.err
    again = suite.command("plan", "--plan", plan, "--agent", right)
    assert again.status == 0, again.err
    assert "candidate 3: 2 tasks" in again.out and "candidate 1" not in again.out


def heard(pipe: IO[str] | None, words: str) -> None:
    """Reads until a line says so."""
    assert pipe is not None
    seen = []
    for line in pipe:
        seen.append(line)
        if words in line:
            return
    pytest.fail(f"nobody said {words!r}, but:\n{''.join(seen)}")


def test_at_an_interrupt_the_planning_goes_on_and_is_taken_up_again(
    suite: Suite, repo: Path, team: Team, gate: Gate
) -> None:
    planner = team.add("planner", says(PLAN, gate.wait))
    running = suite.start("plan", GOAL, "--repo", str(repo), "--agent", planner, "--run")
    heard(running.stderr, "started on")
    running.send_signal(signal.SIGINT)
    left = ended(running)
    plan = suite.plans()[0]["plan"]
    assert left.status == 130 and f"`treadle watch {plan}` takes it up again" in left.err
    again = suite.start("watch", plan)
    heard(again.stderr, "started on")
    assert suite.get(f"/plans/{plan}")["standing"] == "drafting"
    gate.open()
    watched = ended(again)
    assert watched.status == 0, watched.err
    assert "longest chain: T1 → T2" in watched.out
    assert suite.standing(plan, "completed")["counts"] == {"completed": 3}


def test_a_planning_that_is_cancelled_ends_and_whoever_watches_is_told(
    suite: Suite, repo: Path, team: Team, gate: Gate
) -> None:
    planner = team.add("planner", says(PLAN, gate.wait))
    running = suite.start("plan", GOAL, "--repo", str(repo), "--agent", planner)
    heard(running.stderr, "started on")
    plan = suite.plans()[0]["plan"]
    assert suite.command("cancel", plan).status == 0
    done = ended(running)
    assert done.status == 1 and f"plan {plan} is cancelled" in done.err
    assert suite.standing(plan, "cancelled")["status"] == "cancelled"


def test_a_person_makes_the_plan_and_brings_it_back_by_the_repository_or_by_hand(
    suite: Suite, repo: Path, team: Team
) -> None:
    assert suite.command("projects", "set", team.project, "poll_interval_s=5").status == 0
    asked = suite.command("plan", GOAL, "--repo", str(repo), "--by-hand", "--json")
    assert asked.status == 0, asked.err
    found = json.loads(asked.out)
    again = suite.command("plan", "Greet people twice.", "--repo", str(repo), "--by-hand")
    assert "Greet people twice." in again.out and found["path"] in again.out and found["plan"] in again.err

    (repo / found["path"]).parent.mkdir(parents=True)
    (repo / found["path"]).write_text(json.dumps(INVALID))
    git(repo, "add", "--all")
    git(repo, "commit", "-q", "-m", "A plan")
    failed = suite.event(found["plan"], "failed")
    assert any("T9" in fault["message"] for fault in failed["faults"])
    assert REFUSED[0] in suite.command("candidates", found["plan"]).out

    (repo / found["path"]).write_text(f"Here it is:\n\n```json\n{json.dumps(PLAN)}\n```\n")
    git(repo, "commit", "-q", "--all", "-m", "A better plan")
    watched = suite.command("watch", found["plan"])
    assert watched.status == 0, watched.err
    assert "candidate 1: 2 tasks" in watched.out
    pasted = suite.command("add", found["plan"], "-", text=json.dumps({**PLAN, "tasks": [ONE]}))
    assert pasted.status == 0, pasted.err
    ran = suite.command("choose", found["plan"], "2", "--run")
    assert ran.status == 0, ran.err
    assert files(repo, f"treadle/{found['plan']}")["T1.txt"] == "T1"


def test_a_template_is_filled_in_and_runs(suite: Suite, repo: Path, team: Team) -> None:
    name = f"Note {team.writer}"
    text = 'name: "{{title}}"\ntasks:\n- {code: T1, name: "{{title}}", description: "{{title}}", assignee: agent-1}\n'
    inputs = [{"name": "title", "description": "What to note."}]
    suite.post("/templates", {"name": name, "text": text, "roles": [{"slot": "agent-1"}], "inputs": inputs})
    assert name in suite.command("templates").out and "Review loop" in suite.command("templates").out
    shown = suite.command("templates", "show", name).out
    assert "--role agent-1=AGENT" in shown and "--input title=TEXT  (needed) What to note." in shown
    missing = suite.command("run", "--template", name, "--repo", str(repo))
    assert missing.status == 2 and "title" in missing.err and "agent-1" in missing.err
    given = ["--role", f"agent-1={team.writer}", "--input", "title=Milk: two = 2"]
    done = suite.command("run", "--template", name, "--repo", str(repo), *given)
    assert done.status == 0, done.err
    made = suite.plans()[0]
    assert made["name"] == "Milk: two = 2" and files(repo, made["branch"])["T1.txt"] == "T1"
