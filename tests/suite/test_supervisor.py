from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.suite.conditions import gone, until, wait_for
from treadle.supervision.environment import service_environment
from treadle.supervision.nats_server import NatsServer, why_it_ended
from treadle.supervision.processes import born_at, end_leftovers
from treadle.supervision.supervisor import Child, ChildFailed, Supervisor

STAND_IN = str(Path(__file__).with_name("stand_in.py"))


class Watched:
    """A supervisor in a directory, what it said, and what its children told."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "work").mkdir()
        self.said: list[str] = []
        self.children_file = directory / "children.json"
        self.supervisor = Supervisor(self.children_file, self.said.append)

    def child(self, name: str, role: str = "", *, stdin: bytes = b"", stop_after_s: float = 60.0) -> Child:
        env = service_environment(os.environ) | {"TREADLE_DATA": str(self.directory)}
        argv = [sys.executable, STAND_IN, role or name]
        return Child(name, argv, env, self.directory / f"{name}.log", self.directory, stdin, stop_after_s)

    def told(self, event: str) -> list[tuple[str, int]]:
        """The role and the process of those that told of the event, in order."""
        path = self.directory / "work" / "told.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [(line["role"], line["pid"]) for line in lines if line["event"] == event]


@pytest.fixture
async def watched(tmp_path: Path) -> Watched:
    return Watched(tmp_path)


async def test_killed_child_comes_back_and_is_given_its_input_again(watched: Watched) -> None:
    watched.supervisor.start([watched.child("runner", stdin=b"the secret")])
    await until(lambda: len(watched.told("started")) == 1)
    first = watched.told("started")[0][1]
    os.kill(first, signal.SIGKILL)
    await until(lambda: len(watched.told("started")) == 2)
    second = watched.told("started")[1][1]
    for pid in (first, second):
        assert (watched.directory / "work" / f"stdin-{pid}").read_text() == "the secret"
    assert watched.said == ["runner ended with signal 9 (Killed); starting it again in 0.1 s"]
    await watched.supervisor.stop()
    assert gone(second)


async def test_groups_stop_in_the_reverse_order_each_after_the_other_has_ended(watched: Watched) -> None:
    for name in ("dispatcher", "planner", "runner"):
        watched.supervisor.start([watched.child(name)])
    await until(lambda: len(watched.told("started")) == 3)
    await watched.supervisor.stop()
    assert [role for role, _ in watched.told("asked to stop")] == ["runner", "planner", "dispatcher"]
    assert all(gone(pid) for _, pid in watched.told("started"))
    assert json.loads(watched.children_file.read_text()) == {}


async def test_child_that_ignores_the_signal_is_killed_after_its_time(watched: Watched) -> None:
    watched.supervisor.start([watched.child("stubborn", stop_after_s=0.3)])
    await until(lambda: watched.told("started"))
    await watched.supervisor.stop()
    assert watched.said == ["stubborn has not stopped: killed"]
    assert gone(watched.told("started")[0][1])


async def test_hurry_kills_at_once(watched: Watched) -> None:
    watched.supervisor.start([watched.child("stubborn", stop_after_s=600)])
    await until(lambda: watched.told("started"))
    stopping = asyncio.create_task(watched.supervisor.stop())
    await until(lambda: watched.told("asked to stop"))
    watched.supervisor.hurry()
    await asyncio.wait_for(stopping, 60)
    assert gone(watched.told("started")[0][1])


async def test_wrong_configuration_is_fatal_even_late_and_says_the_last_line_of_the_log(watched: Watched) -> None:
    watched.supervisor.settled()
    watched.supervisor.start([watched.child("gateway", "misconfigured"), watched.child("planner")])
    with pytest.raises(ChildFailed, match=r"gateway ended with exit status 78: .*the setting X is wrong \(its log: "):
        await watched.supervisor.during(asyncio.Event().wait())
    await watched.supervisor.stop()
    assert len([line for line in watched.said if line.startswith("gateway ended")]) == 2


async def test_message_of_a_failed_child_holds_no_terminal_codes(watched: Watched) -> None:
    watched.supervisor.start([watched.child("gateway", "misconfigured")])
    with pytest.raises(ChildFailed) as failure:
        await watched.supervisor.during(asyncio.Event().wait())
    assert str(failure.value).isprintable()
    await watched.supervisor.stop()


async def test_child_that_keeps_dying_at_the_start_is_fatal(watched: Watched) -> None:
    child = Child("planner", ["/nonexistent/planner"], {}, watched.directory / "log", watched.directory)
    watched.supervisor.start([child])
    with pytest.raises(ChildFailed, match=r"planner ended .*can't be started: .*No such file"):
        await watched.supervisor.during(asyncio.Event().wait())
    pauses = [line.rpartition(" in ")[2] for line in watched.said]
    assert pauses == ["0.1 s", "0.2 s", "0.4 s", "0.8 s"]
    await watched.supervisor.stop()


async def test_child_that_keeps_dying_later_is_started_again_and_again(watched: Watched) -> None:
    watched.supervisor.settled()
    child = Child("planner", ["false"], {"PATH": os.environ["PATH"]}, watched.directory / "log", watched.directory)
    watched.supervisor.start([child])
    await watched.supervisor.during(until(lambda: len(watched.said) == 6))
    assert watched.supervisor.troubled()
    await watched.supervisor.stop()


async def test_nats_server_that_cannot_start_says_why(watched: Watched) -> None:
    server = NatsServer(watched.directory / "nats")
    (watched.directory / "nats" / "jetstream").write_text("in the way")
    log = watched.directory / "nats.log"
    watched.supervisor.start([Child("nats-server", server.argv, {}, log, watched.directory, explain=why_it_ended)])
    with pytest.raises(ChildFailed, match=r"nats-server ended .*: Can't start JetStream: .*not a directory"):
        await watched.supervisor.during(asyncio.Event().wait())
    await watched.supervisor.stop()
    server.release_port()


def test_leftovers_of_a_killed_supervisor_are_ended_and_strangers_with_their_pids_are_not(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "600"]) as left, subprocess.Popen(["sleep", "600"]) as stranger:
        born = born_at(left.pid)
        assert born is not None
        record = tmp_path / "children.json"
        record.write_text(json.dumps({left.pid: born, stranger.pid: born - 3600}))
        assert end_leftovers(record, wait_s=0.1) == 1
        wait_for(lambda: left.poll() is not None)
        assert stranger.poll() is None
        stranger.kill()


async def test_child_that_runs_once_is_not_started_again_and_its_failure_is_told(watched: Watched) -> None:
    log, env = watched.directory / "log", {"PATH": os.environ["PATH"]}
    await watched.supervisor.run_once(Child("migration", ["true"], env, log, watched.directory))
    failing = Child("migration", ["sh", "-c", "echo no such table >&2; exit 3"], env, log, watched.directory)
    with pytest.raises(ChildFailed, match=r"migration ended with exit status 3: no such table \(its log: "):
        await watched.supervisor.run_once(failing)
    assert watched.said == []
    await watched.supervisor.stop()


async def test_child_that_runs_once_is_ended_by_stop(watched: Watched) -> None:
    log, env = watched.directory / "log", {"PATH": os.environ["PATH"]}
    child = Child("migration", ["sleep", "600"], env, log, watched.directory)
    running = asyncio.create_task(watched.supervisor.run_once(child))

    def recorded() -> list[str]:
        return list(json.loads(watched.children_file.read_text())) if watched.children_file.exists() else []

    (pid,) = await until(recorded)
    running.cancel()
    await watched.supervisor.stop()
    assert gone(int(pid))
