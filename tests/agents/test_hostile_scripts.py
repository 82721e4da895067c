"""What hostile scripts try works where nothing keeps an agent in; so a test in which it fails proves something."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import psutil
import pytest

from tests.agents import hostile_scripts as hostile
from tests.end_to_end.plans import git, make_repo
from treadle.scripted_model import turn_for

SECRET = "sk-canary-in-the-open"


def run(turns: hostile.Turns, cwd: Path) -> str:
    """Runs the shell calls of a script with nothing around them; returns what they printed."""
    told = ""
    for command in hostile.commands_of(turns):
        done = subprocess.run(
            ["sh", "-c", command],  # as an agent's shell would
            cwd=cwd, env={"PATH": os.environ["PATH"], "HOME": str(cwd), "CANARY": SECRET},
            capture_output=True, text=True, timeout=30, check=False, errors="replace",
        )  # fmt: skip
        told += done.stdout + done.stderr
    return told


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    made = make_repo(tmp_path / "repository")
    git(made, "branch", "other")
    return made


@pytest.fixture
def worktree(tmp_path: Path, repository: Path) -> Path:
    """A clone that shares the repository's objects."""
    git(tmp_path, "clone", "-q", "--shared", str(repository), "worktree")
    return tmp_path / "worktree"


@pytest.fixture
def listener() -> Iterator[tuple[str, int]]:
    """An HTTP server that answers everybody with a word."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"reached")

        def log_message(self, *_words: object) -> None:
            """Says nothing."""

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield ("127.0.0.1", server.server_port)
        server.shutdown()
        thread.join()


def test_a_file_outside_is_written_by_shell_and_through_a_link(worktree: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.txt"
    outside.touch()
    run(hostile.writes_outside(outside), worktree)
    assert outside.read_text() == "hostile\nhostile\n"


def test_secrets_are_read_from_environments_and_files(worktree: Path, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("sk-canary-in-a-file")
    told = run(hostile.reads_secrets(key), worktree)
    assert SECRET in told
    assert f"PYTEST_CURRENT_TEST={os.environ['PYTEST_CURRENT_TEST'].split()[0]}" not in told  # set after the start
    assert f"HOME={os.environ.get('HOME', '')}" in told  # the test's own process was looked at
    assert "sk-canary-in-a-file" in told


def test_another_branch_is_moved(worktree: Path, repository: Path) -> None:
    before = git(repository, "rev-parse", "other")
    run(hostile.moves_branch("other", repository), worktree)
    after = git(repository, "rev-parse", "other")
    assert after != before
    assert after == git(worktree, "rev-parse", "HEAD")


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is missing")
def test_the_network_is_reached_by_three_ways(worktree: Path, listener: tuple[str, int]) -> None:
    assert run(hostile.reaches_network(*listener), worktree).count("reached") == 3


def test_a_daemon_outlives_its_shell_and_sigterm(worktree: Path) -> None:
    run(hostile.leaves_daemon(), worktree)
    daemon = psutil.Process(int((worktree / "daemon.pid").read_text()))
    try:
        assert os.getsid(daemon.pid) == daemon.pid
        daemon.send_signal(signal.SIGTERM)
        with pytest.raises(psutil.TimeoutExpired):
            daemon.wait(0.3)
    finally:
        daemon.kill()


def test_shared_objects_are_spoilt(worktree: Path, repository: Path) -> None:
    run(hostile.corrupts_objects(repository), worktree)
    done = subprocess.run(["git", "fsck"], cwd=repository, capture_output=True, check=False)
    assert done.returncode != 0


def test_fifty_calls_make_fifty_lines(worktree: Path) -> None:
    turns = hostile.fifty_calls()
    assert len(hostile.commands_of(turns)) == 50
    run(turns, worktree)
    assert (worktree / "calls.txt").read_text().split() == [str(n) for n in range(1, 51)]


def test_large_write_is_larger_than_the_sdks_usual_buffer() -> None:
    (write, *_), _ = hostile.large_write()
    assert len(write.input["content"]) == hostile.LARGE_BYTES > 1024 * 1024


def test_question_offers_its_answers() -> None:
    (ask, *_), _ = hostile.asks("Which colour?", ["red", "green"])
    assert ask.tool == "AskUserQuestion"
    (question,) = ask.input["questions"]
    assert (question["question"], [o["label"] for o in question["options"]]) == ("Which colour?", ["red", "green"])


def test_fenced_script_is_the_same_script() -> None:
    turns = hostile.leaves_daemon()
    prompt = f"# Task T1: a test\n\n{hostile.fenced(turns)}"
    body = {"messages": [{"role": "user", "content": prompt}], "tools": [{"name": "Bash"}]}
    assert turn_for(body, {}).blocks == turns[0]
