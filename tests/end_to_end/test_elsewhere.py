"""The command as the client of a gateway elsewhere: an API token, and no suite of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.plans import Gate, files, plan, shell, task, write
from tests.end_to_end.suite import Ended, Suite, ended, until


class Elsewhere:
    """Another person's environment: the gateway's address and a token, and nothing else of the suite."""

    def __init__(self, suite: Suite, directory: Path, token: str) -> None:
        self.here = Suite(directory, sandboxed=False)
        file = directory / "token"
        file.write_text(token)
        self.here.environment |= {"TREADLE_TOKEN_FILE": str(file), "TREADLE_URL": suite.info["gateway_url"]}

    def command(self, *args: str, **more: str) -> Ended:
        return ended(self.here.start(*args, env=more))


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Suite]:
    """A suite whose git goes to `ssh://` addresses by way of a program that runs git here."""
    directory = tmp_path_factory.mktemp("serving")
    ssh = directory / "ssh"
    ssh.write_text('#!/bin/sh\nfor last; do :; done\nexec sh -c "$last"\n')
    ssh.chmod(0o755)
    running = Suite(directory / "suite", sandboxed=False)
    running.environment["GIT_SSH_COMMAND"] = str(ssh)
    running.up("--slots", "4")
    try:
        yield running
    finally:
        running.down()


@pytest.fixture
def elsewhere(serving: Suite, tmp_path: Path) -> Iterator[Elsewhere]:
    made = serving.post("/auth/tokens", {"name": "elsewhere"})
    yield Elsewhere(serving, tmp_path / "elsewhere", made["token"])
    with serving.http() as http:
        assert http.delete(f"/auth/tokens/{made['id']}").is_success


def test_a_plan_runs_on_a_gateway_elsewhere_and_is_watched_from_here(
    serving: Suite, elsewhere: Elsewhere, repo: Path, tmp_path: Path
) -> None:
    content = write(tmp_path, plan(task("T1", "echo said; echo x > x.txt")))
    ssh = serving.environment["GIT_SSH_COMMAND"]
    done = elsewhere.command("run", content, "--repo", f"ssh://git@localhost{repo}", "--json", GIT_SSH_COMMAND=ssh)
    assert done.status == 0, done.err
    made = done.events[0]["plan"]
    assert done.events == serving.events(made)
    assert files(repo, f"treadle/{made}")["x.txt"] == "x"
    assert made in elsewhere.command("ls").out
    assert json.loads(elsewhere.command("status", made, "--json").out)["standing"] == "completed"
    assert "said" in elsewhere.command("logs", "T1", "--plan", made).out
    assert "said" in elsewhere.command("logs", "T1", "-f", "--plan", made).out
    assert f"ssh://git@localhost{repo}" in elsewhere.command("projects").out
    assert "runner-1" in elsewhere.command("runners").out
    assert elsewhere.command("watch", made).status == 0
    assert not elsewhere.here.data.exists(), "a suite of our own was thought of"


def test_a_gateway_elsewhere_knows_its_agents_and_tells_every_fault(
    serving: Suite, elsewhere: Elsewhere, repo: Path, tmp_path: Path
) -> None:
    address, ssh = f"ssh://git@localhost{repo}", serving.environment["GIT_SSH_COMMAND"]
    kind = serving.post("/agent-types", {"name": "script", **shell("echo x > x.txt")})["id"]
    agent = serving.post("/agents", {"name": "Worker", "slug": "worker", "agent_type_id": kind})["id"]
    body = {"name": "team", "mode": "auto", "code_repo_url": address, "agent_ids": [agent]}
    serving.post("/projects", body)

    def run(*assignees: str) -> Ended:
        tasks = [
            {"code": f"T{n}", "name": "N", "assignee": name, "description": "d"} for n, name in enumerate(assignees)
        ]
        path = write(tmp_path, {"name": "x", "tasks": tasks})
        return elsewhere.command("run", path, "--repo", address, GIT_SSH_COMMAND=ssh)

    done = run("worker")
    assert done.status == 0, done.err
    assert files(repo, serving.plans()[0]["branch"])["x.txt"] == "x"
    refused = run("nobody", "worker", "nobody")
    assert (refused.status, refused.out) == (2, "")
    for code in ("T0", "T2"):
        assert f'task {code}, assignee: "nobody"' in refused.err and "line 1" in refused.err


def test_a_persons_word_reaches_a_plan_elsewhere(serving: Suite, elsewhere: Elsewhere, repo: Path, gate: Gate) -> None:
    made = serving.submit(plan(task("T1", gate.wait), task("T2", "true", "T1")), repo)
    serving.event(made, "started", "T1")
    assert elsewhere.command("pause", made[:9], "--note", "lunch").status == 0
    assert "paused" in elsewhere.command("ls").out
    assert elsewhere.command("resume", made).status == 0
    assert elsewhere.command("task", "cancel", "T1", "--plan", made).status == 0
    serving.standing(made, "needs_attention")
    assert elsewhere.command("cancel", made).status == 0
    serving.standing(made, "cancelled")


@pytest.mark.parametrize("command", [["up"], ["down"], ["clean"], ["doctor"], ["keys", "rotate"]])
def test_what_is_about_this_machine_is_refused_and_says_so(elsewhere: Elsewhere, command: list[str]) -> None:
    done = elsewhere.command(*command)
    assert done.status == 2
    assert "this machine" in done.err and "--url" in done.err
    assert not elsewhere.here.data.exists()


def test_a_path_of_this_machine_is_no_repository_for_a_gateway_elsewhere(
    elsewhere: Elsewhere, repo: Path, tmp_path: Path
) -> None:
    done = elsewhere.command("run", write(tmp_path, plan(task("T1", "true"))), "--repo", str(repo))
    assert (done.status, "clone URL" in done.err) == (2, True)


def test_without_a_token_and_with_a_wrong_one_nothing_is_told(elsewhere: Elsewhere) -> None:
    none = elsewhere.command("ls", TREADLE_TOKEN_FILE="")
    assert none.status == 2 and "TREADLE_TOKEN" in none.err
    wrong = elsewhere.command("ls", TREADLE_TOKEN_FILE="", TREADLE_TOKEN="trd_wrong")
    assert (wrong.status, wrong.out) == (2, "")
    assert "trd_wrong" not in wrong.err


def test_watching_outlives_a_gateway_that_is_started_again(
    serving: Suite, elsewhere: Elsewhere, repo: Path, gate: Gate
) -> None:
    made = serving.submit(plan(task("T1", gate.wait), task("T2", "echo x > x.txt", "T1")), repo)
    watching = elsewhere.here.start("watch", made, "--json")
    until(lambda: serving.get("/suite")["clients"], "the stream is open")
    pid = serving.pid("gateway")
    serving.kill(pid)
    until(lambda: serving.pid("gateway") != pid, "the gateway is back")
    gate.open()
    done = ended(watching)
    assert done.status == 0, done.err
    assert done.events == serving.events(made)


def test_the_projection_is_rebuilt_from_elsewhere_with_plain_lines(
    serving: Suite, elsewhere: Elsewhere, repo: Path
) -> None:
    made = serving.submit(plan(task("T1", "true")), repo)
    serving.standing(made, "completed")
    before, plans = serving.get("/projection")["generation"], serving.plans()
    done = elsewhere.command("projection", "rebuild")
    assert done.status == 0, done.err
    assert "rebuilt" in done.err and "\x1b" not in done.err
    assert serving.get("/projection")["generation"] > before
    assert serving.plans() == plans
