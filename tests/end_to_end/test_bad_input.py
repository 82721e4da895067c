"""What can't work: one clear message with what to do, the right exit status, no traceback, nothing lost.

`Suite.command` fails on any traceback.
"""

from __future__ import annotations

import json
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.plans import Plan, git, make_repo, plan, task, write
from tests.end_to_end.suite import Ended, Suite, until


def assert_refused(done: Ended, *words: str) -> None:
    """Status 2, and a message of few lines that holds the words."""
    assert done.status == 2, (done.out, done.err)
    assert done.out == ""
    for word in words:
        assert word in done.err, done.err
    assert len(done.err.splitlines()) <= 20, done.err
    assert len(done.err) < 4000


def two(first: dict[str, Any], second: dict[str, Any]) -> Plan:
    return plan(task("T1", "true", **first), task("T2", "true", **second))


BAD_PLANS: dict[str, tuple[object, tuple[str, ...]]] = {
    "cyclic": (two({"depends_on": ["T2"]}, {"depends_on": ["T1"]}), ("wait for one another", "T1 → T2 → T1")),
    "empty": (plan(), ("task",)),
    "duplicate": (plan(task("T1", "true"), task("t1", "true")), ("t1", "T1")),
    "wrong type": ({"name": "x", "tasks": "everything"}, ("tasks",)),
    "several faults": (
        plan(
            task("T1", "true", "T9", timeout_minute=3),
            task("../x", "true", timeout_minutes=0),
            task("a b", "true", "a b"),
            task("x" * 300, "true"),
            task("_deliver", "true"),
            task("\x1b[2J", "true"),
        ),
        ("T9", "timeout_minute", "../x", "timeout_minutes", "a b", "_deliver"),
    ),
    "of megabytes": (
        plan(*(task(f"T{n}", "true", description="x" * 200_000) for n in range(60))),
        ("bytes", "shorten"),
    ),
}


@pytest.mark.parametrize("name", BAD_PLANS)
def test_a_plan_that_is_not_valid_is_refused_with_every_fault(
    suite: Suite, repo: Path, tmp_path: Path, name: str
) -> None:
    content, words = BAD_PLANS[name]
    bad = write(tmp_path, content)
    before = suite.plans()
    done = suite.command("run", bad, "--repo", str(repo))
    assert_refused(done, "plan.json", *words)
    assert "\x1b" not in done.err
    assert suite.plans() == before


def test_validate_names_the_same_faults_and_shows_the_order_of_a_valid_plan(suite: Suite, tmp_path: Path) -> None:
    bad = write(tmp_path, two({"depends_on": ["T2"]}, {"depends_on": ["T1"], "timeout_minutes": -1}))
    assert_refused(suite.command("validate", bad), "wait for one another", "timeout_minutes")
    good = suite.command("validate", write(tmp_path, plan(task("T1", "true"), task("T2", "true", "T1"))))
    assert good.status == 0
    assert "step 2" in good.out and "T1 → T2" in good.out


def test_a_plan_file_that_is_missing_or_no_file_is_refused(suite: Suite, repo: Path, tmp_path: Path) -> None:
    assert_refused(suite.command("run", str(tmp_path / "no.yaml"), "--repo", str(repo)), "no.yaml", "No such file")
    assert_refused(suite.command("run", str(tmp_path), "--repo", str(repo)), "directory")
    assert_refused(suite.command("run", "-", "--repo", str(repo), text="tasks: [\n"), "standard input")


@pytest.fixture
def good(tmp_path: Path) -> str:
    return write(tmp_path, plan(task("T1", "true")))


def test_a_repository_that_can_not_be_used_is_refused(suite: Suite, good: str, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    git(empty, "init", "-q")
    plain = tmp_path / "plain"
    plain.mkdir()
    for place, words in {
        str(tmp_path / "nowhere"): ("no repository", "nowhere"),
        str(plain): ("git init",),
        str(empty): ("no commit",),
        "https://user:secret@example.com/x.git": ("example.com",),
        "https://github.com/someone/project/tree/main": ("github.com",),
        "ext::sh -c whoami": ("ext::",),
        "--upload-pack=x": (),
    }.items():
        done = suite.command("run", good, f"--repo={place}")
        assert_refused(done, *words)
        assert "secret" not in done.err


def test_a_repository_that_disappears_meanwhile_fails_its_task_with_the_reason(
    suite: Suite, good: str, tmp_path: Path
) -> None:
    repo = make_repo(tmp_path / "soon-gone")
    commit = git(repo, "rev-parse", "HEAD")
    repo.rename(tmp_path / "gone")
    made = suite.submit(json.loads(Path(good).read_text()), repo, commit)
    suite.standing(made, "needs_attention")
    failed = suite.tasks(made)["T1"]
    assert failed["failure"] == "setup_failed"
    assert "soon-gone" in failed["message"]


def test_claude_tasks_without_a_key_are_refused_before_anything_starts(
    own_suite: Suite, suite: Suite, repo: Path, tmp_path: Path
) -> None:
    content = write(tmp_path, {"name": "x", "tasks": [{"code": "T1", "name": "One"}]})
    done = own_suite.command("run", content, "--repo", str(repo))
    assert_refused(done, "ANTHROPIC_API_KEY")
    assert not (own_suite.data / "suite.json").exists()
    # The running suite was started without one, and can't be given it now.
    key = {"ANTHROPIC_API_KEY": "sk-made-up-0123456789"}
    done = suite.command("run", content, "--repo", str(repo), env=key)
    assert_refused(done, "treadle down", "ANTHROPIC_API_KEY")
    assert "sk-made-up" not in done.err


ABOUT_PLANS = ("status", "watch", "pause", "resume", "cancel")
ABOUT_TASKS = (
    "task redispatch", "task abandon", "task complete", "task cancel", "task approve", "task deny", "logs", "logs -f",
    "diff",
)  # fmt: skip


def test_an_unknown_plan_or_task_is_named_in_every_command(suite: Suite, repo: Path) -> None:
    made = suite.submit(plan(task("T1", "true")), repo)
    suite.standing(made, "completed")
    unknown_plan = [[*command.split(), "pnosuchplan22"] for command in ABOUT_PLANS]
    unknown_plan += [[*command.split(), "T1", "--plan", "pnosuchplan22"] for command in ABOUT_TASKS]
    for arguments in unknown_plan:
        assert_refused(suite.command(*arguments), "pnosuchplan22", "treadle ls")
    for command in ABOUT_TASKS:
        done = suite.command(*command.split(), "T9", "--plan", made)
        assert_refused(done, "T9", f"`treadle status {made}`")
        assert "/api/" not in done.err
    for code in ("../x", "a b", "\x1b[2J"):
        for command in ("logs", "task cancel"):
            done = suite.command(*command.split(), code, "--plan", made)
            assert_refused(done, "not a task code")
            assert "\x1b" not in done.err


def test_a_port_in_use_is_named(own_suite: Suite) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert_refused(own_suite.command("up", "--port", str(port)), str(port), "in use")


def test_a_data_directory_of_another_version_or_of_somebody_else_is_left_alone(
    own_suite: Suite, good: str, repo: Path, tmp_path: Path
) -> None:
    own_suite.data.mkdir()
    (own_suite.data / "VERSION").write_text("99\n")
    assert_refused(own_suite.command("run", good, "--repo", str(repo)), "99", "--data")
    assert [path.name for path in own_suite.data.iterdir()] == ["VERSION"]
    (own_suite.data / "VERSION").unlink()
    (own_suite.data / "thesis.tex").write_text("years of work")
    assert_refused(own_suite.command("run", good, "--repo", str(repo)), "thesis.tex", "--data")
    assert (own_suite.data / "thesis.tex").read_text() == "years of work"
    (own_suite.data / "thesis.tex").unlink()
    own_suite.data.rmdir()
    own_suite.data.write_text("a file")
    assert_refused(own_suite.command("ls"), str(own_suite.data))
    own_suite.data.unlink()


def test_a_second_suite_in_the_same_directory_is_refused_and_the_first_goes_on(suite: Suite) -> None:
    pid = suite.info["pid"]
    assert_refused(suite.command("up"), str(suite.data), str(pid))
    assert suite.info["pid"] == pid
    assert suite.command("ls").status == 0


def test_a_nats_server_that_can_not_be_reached_is_named(own_suite: Suite, good: str, repo: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    done = own_suite.command("run", good, "--repo", str(repo), "--nats", f"nats://127.0.0.1:{port}")
    assert_refused(done, str(port))


@pytest.mark.parametrize("arguments", [["nonsense"], ["run"], ["run", "--nonsense"]])
def test_a_command_line_that_means_nothing_gets_status_2_and_help(suite: Suite, arguments: list[str]) -> None:
    done = suite.command(*arguments)
    assert_refused(done, "Usage")


def test_a_service_log_holds_no_traceback_in_an_ordinary_life(suite: Suite, repo: Path) -> None:
    services = ("planner", "dispatcher", "gateway", "runner-1")
    before = {service: len(suite.log(service)) for service in services}  # other tests' lives are less ordinary
    made = suite.submit(plan(task("T1", "exit 1")), repo)
    suite.standing(made, "needs_attention")
    for service in services:
        said = suite.log(service)[before[service] :]
        assert "Traceback" not in said, said[-3000:]


def test_hostile_bodies_are_answered_with_problems_and_not_with_tracebacks(suite: Suite, repo: Path) -> None:
    plans = f"/projects/{suite.project(repo)}/plans"
    with suite.http() as http:
        for body in ("", "[]", "{", '{"text": 1}', '{"text": "x", "base_commit": "y", "z": 1}', "[" * 100_000, "\xff"):
            answer = http.post(plans, content=body, headers={"Content-Type": "application/json"})
            assert answer.status_code in (400, 422), (body[:50], answer.text)
            assert set(answer.json()) >= {"status", "code", "detail", "title"}
        for url in ("--upload-pack=x", "ext::sh", "", "relative/path", "https://u:p@h/x", "file:///etc"):
            answer = http.post("/projects", json={"name": "x", "code_repo_url": url})
            assert answer.status_code in (400, 422), (url, answer.text)
        for path in ("/plans/..%2f..%2fetc", "/plans/%00", f"/plans/{'x' * 5000}", "/plans/pabcdefghij22/stream"):
            assert http.get(path).status_code in (404, 414), path
        assert http.get("/plans/x/events?after=-1").status_code in (400, 404)


def test_an_import_waits_for_a_planner_that_is_just_starting(suite: Suite, repo: Path) -> None:
    pid = suite.pid("planner")
    subprocess.run(["kill", "-9", str(pid)], check=True)
    made = suite.submit(plan(task("T1", "true")), repo)
    suite.standing(made, "completed")
    until(lambda: suite.pid("planner") != pid, "another planner runs")
