"""A person's word in the middle of a plan: pause, resume, cancel, stop the suite."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from tests.end_to_end.plans import Gate, Plan, files, git, lease_processes, plan, task, write
from tests.end_to_end.suite import Suite, ended, types, until

WIDE = 12
SLOTS = 4
STOPPED_WITHIN_S = 20.0
"""`make bench-agent` holds it to 2. Nobody opens the gate meanwhile: what is not stopped never ends."""


def wide_plan(at_work: Path, gate: Gate, **more: object) -> Plan:
    """Independent tasks, each of which tells that it runs and waits for the gate."""
    at_work.mkdir(exist_ok=True)
    script = f"touch {at_work}/$TREADLE_TASK; {gate.wait}; echo x > $TREADLE_TASK.txt"
    return plan(*(task(f"T{n:02}", script) for n in range(WIDE)), **more)


def running(at_work: Path) -> int:
    return len(list(at_work.iterdir()))


def test_a_paused_wide_plan_finishes_what_runs_starts_nothing_and_goes_on_when_resumed(
    suite: Suite, repo: Path, tmp_path: Path, gate: Gate
) -> None:
    at_work = tmp_path / "at-work"
    made = suite.submit(wide_plan(at_work, gate), repo)
    until(lambda: running(at_work) == SLOTS, "every slot is taken")
    paused = suite.command("pause", made, "--note", "lunch")
    assert (paused.status, paused.err.count("Traceback")) == (0, 0)
    gate.open()
    view = suite.standing(made, "paused")
    # The others were queued before the pause: runners give them back.
    until(lambda: set(suite.get(f"/plans/{made}")["counts"]) == {"completed", "pending"}, "nothing moves any more")
    assert running(at_work) == SLOTS
    started = [e["task"] for e in suite.events(made) if e["type"] == "started"]
    assert len(started) == SLOTS
    assert view["reason"] == "lunch"
    assert "is paused already" in suite.command("pause", "--plan", made).err
    assert f"plan {made} is paused: lunch" in suite.command("status", "--plan", made).out

    assert suite.command("resume", made).status == 0
    suite.standing(made, "completed")
    assert len(files(repo, f"treadle/{made}")) == WIDE + 1
    for code, view in suite.tasks(made).items():
        assert view["attempt"] == 1, f"giving {code} back spent an attempt"


def test_cancelling_a_wide_plan_stops_what_runs_within_seconds_and_frees_every_slot(
    suite: Suite, repo: Path, tmp_path: Path, gate: Gate
) -> None:
    at_work = tmp_path / "at-work"
    made = suite.submit(wide_plan(at_work, gate), repo)
    until(lambda: running(at_work) == SLOTS, "every slot is taken")
    watching = suite.start("watch", made)
    asked_s = time.monotonic()
    suite.post(f"/plans/{made}/cancel", {"note": "wrong plan"})
    view = suite.standing(made, "cancelled")
    took_s = time.monotonic() - asked_s
    assert took_s < STOPPED_WITHIN_S, f"it took {took_s:.1f} s"
    assert view["counts"] == {"cancelled": WIDE + 1}
    assert lease_processes(made) == []
    done = ended(watching)
    assert done.status == 1
    assert "wrong plan" in done.out

    free = tmp_path / "free"
    other = suite.submit(wide_plan(free, gate), repo)
    until(lambda: running(free) == SLOTS, "every slot is free again")
    suite.post(f"/plans/{other}/cancel")
    suite.standing(other, "cancelled")


def test_cancelling_a_paused_plan_ends_it(suite: Suite, repo: Path, tmp_path: Path, gate: Gate) -> None:
    at_work = tmp_path / "at-work"
    made = suite.submit(wide_plan(at_work, gate), repo)
    until(lambda: running(at_work) == SLOTS, "every slot is taken")
    suite.post(f"/plans/{made}/pause")
    suite.post(f"/plans/{made}/cancel")
    suite.standing(made, "cancelled")
    assert lease_processes(made) == []
    refused = suite.command("resume", made)
    assert refused.status == 2
    assert "cancelled" in refused.err


def test_a_cancelled_task_needs_attention_and_runs_again_when_redispatched(
    suite: Suite, repo: Path, tmp_path: Path, gate: Gate
) -> None:
    at_work = tmp_path / "at-work"
    at_work.mkdir()
    made = suite.submit(plan(task("T1", f"touch {at_work}/one; {gate.wait}; echo x > x.txt")), repo)
    until(lambda: running(at_work), "the task runs")
    asked = suite.command("task", "cancel", "T1", "--plan", made, "--note", "too slow")
    assert asked.status == 0
    suite.standing(made, "needs_attention")
    assert lease_processes(made) == []
    assert suite.tasks(made)["T1"]["failure"] == "cancelled"
    gate.open()
    assert suite.command("task", "redispatch", "T1", "--plan", made).status == 0
    suite.standing(made, "completed")
    assert files(repo, f"treadle/{made}")["x.txt"] == "x"


def test_a_task_that_was_marked_complete_lets_its_successors_go_ahead(suite: Suite, repo: Path) -> None:
    made = suite.submit(plan(task("T1", "exit 1"), task("T2", "echo x > x.txt", "T1")), repo)
    suite.standing(made, "needs_attention")
    assert suite.command("task", "complete", "T1", "--plan", made, "--note", "I did it").status == 0
    suite.standing(made, "completed")
    assert suite.tasks(made)["T1"]["summary"] == "I did it"
    assert files(repo, f"treadle/{made}")["x.txt"] == "x"


def test_a_stopped_suite_hands_its_tasks_back_and_the_next_command_goes_on_with_the_plan(
    own_suite: Suite, repo: Path, tmp_path: Path, gate: Gate
) -> None:
    at_work = tmp_path / "at-work"
    made_file = write(tmp_path, wide_plan(at_work, gate))
    submitted = own_suite.command("run", made_file, "--repo", str(repo), "--detach", "--slots", "4")
    assert submitted.status == 0, submitted.err
    [made] = re.findall(r"^plan (p[a-z0-9]+)", submitted.err, re.MULTILINE)
    until(lambda: running(at_work) == SLOTS, "every slot is taken")
    asked_s = time.monotonic()
    own_suite.down()
    took_s = time.monotonic() - asked_s
    assert took_s < STOPPED_WITHIN_S, f"stopping took {took_s:.1f} s"
    assert lease_processes(made) == []
    gate.open()

    done = own_suite.command("watch", made, "--json")
    assert done.status == 0, done.err
    assert len(files(repo, f"treadle/{made}")) == WIDE + 1
    events = done.events
    assert sum(event["type"] == "released" for event in events) == SLOTS
    for n in range(WIDE):
        code = f"T{n:02}"
        assert types(events, code)[-1] == "completed"
        assert all(event.get("attempt", 1) == 1 for event in events if event["task"] == code)


@pytest.mark.parametrize("word", ["abandon", "complete"])
def test_what_a_person_may_not_say_is_refused_with_the_reason(
    suite: Suite, repo: Path, tmp_path: Path, gate: Gate, word: str
) -> None:
    at_work = tmp_path / "at-work"
    at_work.mkdir()
    made = suite.submit(plan(task("T1", f"touch {at_work}/one; {gate.wait}")), repo)
    until(lambda: running(at_work), "the task runs")
    refused = suite.command("task", word, "T1", "--plan", made)
    assert refused.status == 2
    assert "running: cancel it first" in refused.err
    gate.open()
    suite.standing(made, "completed")
    assert git(repo, "branch", "--list", f"treadle/{made}") != ""


def test_a_plan_over_its_budget_ends_the_watching_with_the_reason_and_is_resumed_with_another(
    suite: Suite, repo: Path
) -> None:
    # No budget here suffices for the task, so that no model is ever asked.
    dear = {"code": "T2", "name": "Dear", "assignee": "dear", "description": "d", "budget_usd": 5, "depends_on": ["T1"]}
    content = plan(task("T1", "true"), dear)
    content["agents"]["dear"] = {"sdk_type": "claude"}
    # Of the project: a plan whose own budget is too small for its tasks is not taken.
    settings = {"mode": "auto", "code_repo_url": str(repo), "budget_usd": 1}
    suite.use_project(repo, suite.post("/projects", {"name": f"of {repo}", **settings})["id"])
    made = suite.submit(content, repo)
    for budget_usd in (1, 2):
        watching = suite.command("watch", made)
        assert watching.status == 1
        assert f"the plan's budget is {budget_usd} USD" in watching.err and "--budget" in watching.err
        assert f"the plan's budget is {budget_usd} USD" in suite.command("status", made).out
        resumed = suite.command("resume", made, "--budget", "2")
        assert resumed.status == 0, resumed.err
        suite.event(made, "paused", after=suite.event(made, "resumed", budget_usd=2)["seq"])
    assert suite.command("resume", made, "--budget", "0").status == 2
    assert suite.command("resume", made, "--budget", "nan").status == 2
    assert suite.command("cancel", made).status == 0
    suite.standing(made, "cancelled")


def test_a_word_that_changes_nothing_is_answered_with_how_it_stands(suite: Suite, repo: Path) -> None:
    done = suite.submit(plan(task("T1", "true")), repo)
    suite.standing(done, "completed")
    for word in ("complete", "cancel"):
        said = suite.command("task", word, "T1", "--plan", done)
        assert said.status == 0
        assert said.err.endswith(f"task T1 of plan {done}: is completed already\n")
    over = suite.submit(plan(task("T1", "exit 1")), repo)
    suite.standing(over, "needs_attention")
    assert "T1 of plan" in (said := suite.command("task", "cancel", "T1", "--plan", over)).err
    assert "needs attention already" in said.err
    assert "is at work already" in suite.command("resume", over).err
    refused = suite.command("resume", over, "--budget", "9")
    assert (refused.status, "its budget stays" in refused.err) == (2, True)
    suite.post(f"/plans/{over}/cancel")
    suite.standing(over, "cancelled")
    said = suite.command("cancel", over)
    assert said.status == 0
    assert said.err.endswith(f"plan {over}: is cancelled already\n")
    twice = suite.command("cancel", over, "--plan", over)
    assert (twice.status, "once" in twice.err) == (2, True)


def test_cancelling_ends_everything_in_a_sandbox_too(boxed: Suite, repo: Path, gate: Gate) -> None:
    made = boxed.submit(plan(task("T1", f"env -i setsid sleep 600 & {gate.wait}"), task("T2", "true", "T1")), repo)
    boxed.event(made, "started", "T1")
    until(lambda: lease_processes(made), "the agent runs")
    boxed.post(f"/plans/{made}/cancel")
    boxed.standing(made, "cancelled")
    until(lambda: not lease_processes(made), "nothing of it is left")
