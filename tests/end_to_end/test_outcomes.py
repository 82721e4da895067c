"""How tasks end, from a plan file to its branch."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.model import Model, answers
from tests.end_to_end.plans import Gate, files, git, lease_processes, plan, task, write
from tests.end_to_end.suite import Suite, types, until
from treadle.scripted_model import Block, ScriptedModel


def test_a_plan_file_goes_in_and_a_branch_with_everybodys_work_comes_out(
    boxed: Suite, repo: Path, tmp_path: Path
) -> None:
    done = boxed.command("run", write(tmp_path, plan(task("T1", "echo hello > b.txt"))), "--repo", str(repo))
    assert done.status == 0, done.err
    (branch,) = git(repo, "branch", "--list", "treadle/*", "--format=%(refname:short)").splitlines()
    assert files(repo, branch) == {"a.txt": "one\ntwo\nthree", "b.txt": "hello"}
    assert f"completed: branch {branch} is at" in done.out
    assert "Treadle-Task: T1" in git(repo, "log", "-1", "--format=%B", branch)


def test_the_join_of_a_diamond_sees_the_files_of_both_sides(suite: Suite, repo: Path, tmp_path: Path) -> None:
    # Each side waits for the other: they run at the same time, or never end.
    left, right = tmp_path / "left", tmp_path / "right"
    meet = "touch {0}; while [ ! -e {1} ]; do sleep 0.02; done; echo {2} > {2}.txt"
    diamond = plan(
        task("TOP", "echo top > top.txt"),
        task("LEFT", meet.format(left, right, "left"), "TOP"),
        task("RIGHT", meet.format(right, left, "right"), "TOP"),
        task("JOIN", "cat top.txt left.txt right.txt > join.txt", "LEFT", "RIGHT"),
    )
    made = suite.submit(diamond, repo)
    suite.standing(made, "completed")
    assert files(repo, f"treadle/{made}")["join.txt"] == "top\nleft\nright"


def test_behind_an_abandoned_task_its_ancestors_work_still_arrives(boxed: Suite, repo: Path) -> None:
    made = boxed.submit(
        plan(
            task("FIRST", "echo first > first.txt"),
            task("MIDDLE", "echo half > middle.txt; exit 3", "FIRST"),
            task("LAST", "cp first.txt last.txt; ls > seen.txt", "MIDDLE"),
        ),
        repo,
    )
    boxed.standing(made, "needs_attention")
    assert "exit status 3" in boxed.tasks(made)["MIDDLE"]["message"]
    boxed.post(f"/plans/{made}/tasks/MIDDLE/abandon", {"note": "not worth it"})
    boxed.standing(made, "completed")
    arrived = files(repo, f"treadle/{made}")
    assert arrived["last.txt"] == "first"
    assert "middle.txt" not in arrived


def test_a_merge_conflict_names_files_and_tasks_and_the_plan_ends_once_a_person_has_chosen(
    boxed: Suite, repo: Path, tmp_path: Path
) -> None:
    sides = write(
        tmp_path,
        plan(
            task("LEFT", "echo left > a.txt"),
            task("RIGHT", "echo right > a.txt"),
            task("JOIN", "cat a.txt > join.txt", "LEFT", "RIGHT"),
        ),
    )
    done = boxed.command("run", sides, "--repo", str(repo), "--json")
    assert done.status == 1
    (failed,) = [event for event in done.events if event["type"] == "failed"]
    assert (failed["task"], failed["kind"], failed.get("retry_at")) == ("JOIN", "merge_conflict", None)
    assert all(word in failed["message"] for word in ("a.txt", "LEFT", "RIGHT"))
    made = failed["plan"]
    assert made in done.err and "redispatch" in done.err

    # Another attempt meets the same conflict, and says so again.
    before = boxed.events(made)[-1]["seq"]
    assert boxed.command("task", "redispatch", "JOIN", "--plan", made).status == 0
    boxed.event(made, "failed", "JOIN", after=before)
    boxed.standing(made, "needs_attention")
    boxed.post(f"/plans/{made}/tasks/JOIN/abandon")
    # The delivery merges the same two sides.
    boxed.event(made, "failed", "_deliver", kind="merge_conflict")
    assert boxed.standing(made, "needs_attention")["counts"] == {
        "completed": 2,
        "abandoned": 1,
        "needs_attention": 1,
    }
    boxed.post(f"/plans/{made}/cancel")
    boxed.standing(made, "cancelled")


def test_an_agent_error_needs_a_person_who_may_have_it_tried_again(suite: Suite, repo: Path, tmp_path: Path) -> None:
    mended = tmp_path / "mended"
    made = suite.submit(plan(task("T1", f"echo why it failed >&2; test -e {mended}; echo x > x.txt")), repo)
    suite.standing(made, "needs_attention")
    failed = suite.event(made, "failed", "T1")
    assert failed["kind"] == "agent_error"
    assert "why it failed" in failed["message"]
    mended.touch()
    suite.post(f"/plans/{made}/tasks/T1/redispatch")
    suite.standing(made, "completed")
    assert files(repo, f"treadle/{made}")["x.txt"] == "x"
    assert suite.tasks(made)["T1"]["attempt"] == 2


def test_a_task_is_tried_as_often_as_it_says(suite: Suite, repo: Path, tmp_path: Path) -> None:
    tries = tmp_path / "tries"
    retry = {"max_attempts": 3, "backoff_s": 0.1}
    script = f'echo "$TREADLE_ATTEMPT" >> {tries}; test "$TREADLE_ATTEMPT" = 3'
    made = suite.submit(plan(task("T1", script, retry=retry), task("T2", "exit 1", retry=retry)), repo)
    suite.standing(made, "needs_attention")
    assert tries.read_text().split() == ["1", "2", "3"]
    tasks = suite.tasks(made)
    assert (tasks["T1"]["status"], tasks["T1"]["attempt"]) == ("completed", 3)
    assert (tasks["T2"]["status"], tasks["T2"]["attempt"]) == ("needs_attention", 3)


def test_a_task_past_its_time_is_stopped_with_all_its_processes(boxed: Suite, repo: Path) -> None:
    made = boxed.submit(plan(task("T1", "sleep 600 & sleep 600", timeout_minutes=0.02)), repo)
    boxed.standing(made, "needs_attention")
    failed = boxed.event(made, "failed", "T1")
    assert failed["kind"] == "timeout"
    assert "timeout_minutes" in failed["message"]
    assert lease_processes(made) == []


def test_a_failing_setup_command_is_named_and_no_agent_starts(suite: Suite, repo: Path, tmp_path: Path) -> None:
    started = tmp_path / "started"
    made = suite.submit(plan(task("T1", f"touch {started}"), setup=["echo no such package >&2; exit 7"]), repo)
    suite.standing(made, "needs_attention")
    failed = suite.event(made, "failed", "T1")
    assert failed["kind"] == "setup_failed"
    assert all(word in failed["message"] for word in ("exit 7", "status 7", "no such package"))
    assert not started.exists()


def test_a_failing_verify_command_is_named_and_nothing_is_delivered(boxed: Suite, repo: Path) -> None:
    verify = ["test -e good.txt", "cat good.txt; exit 9"]
    made = boxed.submit(plan(task("T1", "echo almost >> good.txt", verify=verify, verify_rounds=1)), repo)
    boxed.standing(made, "needs_attention")
    failed = boxed.event(made, "failed", "T1")
    assert failed["kind"] == "verification_failed"
    assert all(word in failed["message"] for word in ("exit 9", "status 9", "almost", "was run again once"))
    assert git(repo, "branch", "--list", f"treadle/{made}") == ""
    # What it came to is there for whoever looks at it.
    ref = f"refs/treadle/{made}/T1/1-wip"
    assert ref in failed["message"]
    assert files(repo, ref)["good.txt"] == "almost\nalmost"


def test_a_task_that_changes_nothing_fails_unless_it_may(boxed: Suite, repo: Path) -> None:
    made = boxed.submit(plan(task("T1", "echo I looked around", allow_no_change=False, verify_rounds=0)), repo)
    boxed.standing(made, "needs_attention")
    failed = boxed.event(made, "failed", "T1")
    assert (failed["kind"], "No file was changed" in failed["message"]) == ("verification_failed", True)


def test_a_task_that_may_change_nothing_says_so_and_the_plan_completes(boxed: Suite, repo: Path) -> None:
    made = boxed.submit(plan(task("T1", "echo I looked around")), repo)
    boxed.standing(made, "completed")
    assert boxed.tasks(made)["T1"]["summary"] == "I looked around (no file was changed)"
    assert "no task changed a file" in boxed.tasks(made)["_deliver"]["summary"]
    assert git(repo, "rev-parse", f"treadle/{made}") == git(repo, "rev-parse", "main")


def test_never_more_tasks_run_at_once_than_the_plan_allows(
    suite: Suite, repo: Path, tmp_path: Path, gate: Gate
) -> None:
    at_work = tmp_path / "at-work"
    at_work.mkdir()
    script = f"touch {at_work}/$TREADLE_TASK; ls {at_work} | wc -l; {gate.wait}; rm {at_work}/$TREADLE_TASK"
    made = suite.submit(plan(*(task(f"T{n}", script) for n in range(5)), max_parallel=2), repo)
    until(lambda: len(list(at_work.iterdir())) == 2, "two tasks run")
    assert types(suite.events(made), "T2") == ["planned"]
    gate.open()
    suite.standing(made, "completed")
    counts = {code: int(view["summary"].split()[0]) for code, view in suite.tasks(made).items() if code != "_deliver"}
    assert max(counts.values()) == 2, counts


def test_the_prompt_reaches_the_agent_on_standard_input_and_its_environment_is_built_from_nothing(
    suite: Suite, repo: Path
) -> None:
    agent = {"sdk_type": "command", "command": ["sh", "-c", "cat > prompt.txt; env > env.txt; pwd > pwd.txt"]}
    asked = {
        "name": "A plan",
        "goal": "See everything",
        "agents": {"a": agent},
        "tasks": [{"code": "T1", "name": "Look", "description": "Look closely.", "assignee": "a"}],
    }
    made = suite.submit(json.loads(json.dumps(asked)), repo)
    suite.standing(made, "completed")
    found = files(repo, f"treadle/{made}")
    assert all(words in found["prompt.txt"] for words in ("# Task T1: Look", "See everything", "Look closely."))
    variables = dict(line.split("=", 1) for line in found["env.txt"].splitlines())
    assert (variables["TREADLE_PLAN"], variables["TREADLE_TASK"], variables["TREADLE_ATTEMPT"]) == (made, "T1", "1")
    allowed = {"PATH", "HOME", "TMPDIR", "LANG", "LC_ALL", "PWD", "SHLVL", "OLDPWD", "_"}
    allowed |= {"PIP_CACHE_DIR", "UV_CACHE_DIR", "UV_LINK_MODE", "XDG_CACHE_HOME", "npm_config_cache"}
    assert {name for name in variables if not name.startswith("TREADLE_")} <= allowed
    assert set(variables) - allowed == {"TREADLE_PLAN", "TREADLE_TASK", "TREADLE_ATTEMPT", "TREADLE_LEASE"}
    assert Path(found["pwd.txt"]).is_relative_to(suite.data)


KEY = "sk-ant-made-up-0123456789"
NEVER_WRONG = "grep -qx right answer.txt || { echo the answer is $(cat answer.txt), which is not right; exit 3; }"


def wrote(name: str, text: str) -> list[Block]:
    return [Block(tool="Write", input={"file_path": name, "content": f"{text}\n"})]


@pytest.fixture
def model() -> Iterator[ScriptedModel]:
    """Says twice too early that it is done."""
    done = [Block(text="Done.")]
    mends = [Block(tool="Bash", input={"command": "echo right > answer.txt; echo x > more.txt", "description": "mend"})]
    with Model({"T1": [done, wrote("answer.txt", "wrong"), done, mends, done]}, api_key=KEY) as serving:
        yield serving


@pytest.mark.skipif(shutil.which("bwrap") is None, reason="there is no bubblewrap here")
def test_what_is_wrong_goes_back_to_the_same_conversation_until_it_is_right(
    model: ScriptedModel, own_suite: Suite, repo: Path
) -> None:
    own_suite.environment |= {"ANTHROPIC_API_KEY": KEY, "ANTHROPIC_BASE_URL": model.base_url}
    own_suite.up("--sandbox", "required")
    verify = ["echo traces > traces.txt", NEVER_WRONG]
    asked = {"code": "T1", "name": "Answer", "description": "Write the answer.", "verify": verify, "verify_rounds": 2}
    made = own_suite.submit({"name": "A plan", "tasks": [{**asked, "expected_output": "answer.txt"}]}, repo)
    # "Done" without a file; with a file that is not right; then all is as it should be.
    own_suite.standing(made, "completed")
    arrived = files(repo, f"treadle/{made}")
    assert (arrived["answer.txt"], arrived["more.txt"], "traces.txt" in arrived) == ("right", "x", False)
    conversation = [r.body for r in model.requests if r.path == "/v1/messages" and r.body.get("tools")]
    told = json.dumps(conversation[-1]["messages"])
    assert "No file was changed" in told and "the answer is wrong, which is not right" in told
    assert len([body for body in conversation if not answers(body)]) == 1, "the conversation began anew"
    completed = own_suite.event(made, "completed", "T1")
    assert completed["usage"]["output_tokens"] > 0
    refs = git(repo, "for-each-ref", "--format=%(refname)", f"refs/treadle/{made}/T1").splitlines()
    assert refs == [f"refs/treadle/{made}/T1/1", f"refs/treadle/{made}/T1/head"]
