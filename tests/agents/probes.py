"""What the tests of agents look at: reported activities, and the machine's processes."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from services.runner.agents import Activity, AgentRunner, Asks, Finished, Job, Report
from services.runner.process import LEASE_VARIABLE

MakeJob = Callable[..., Job]
MakeLease = Callable[..., Awaitable[Job]]

FORK_CHAIN = """
$SIG{CHLD} = "IGNORE";
$SIG{TERM} = "IGNORE";
while (time < $^T + 60) { open(B, ">>", "beat"); syswrite(B, "x"); close(B); exit if fork; }
"""
"""For perl, which forks fast: no process of it lives for long, and each leaves one. It grows the file `beat`."""


class Reported(list[Activity]):
    """Collects activities; pass its `append` as the receiver."""

    def texts(self, kind: str) -> list[str]:
        return [activity.text for activity in self if activity.kind == kind]


async def run_agent(runner: AgentRunner, job: Job, report: Report) -> Finished:
    """A session of one turn that nobody is asked in."""
    end = await run_turn(runner, job, report)
    assert isinstance(end, Finished)
    return end


async def run_turn(runner: AgentRunner, job: Job, report: Report) -> Finished | Asks:
    """A session of one turn."""
    async with runner.open(job, report) as session:
        return await session.turn(job.prompt)


def processes(job: Job) -> dict[int, str]:
    """Living processes of a job's lease, command line by pid; found here without the code under test."""
    mark = f"{LEASE_VARIABLE}={job.mark}".encode()
    return {pid: line for pid, (line, environment) in _all_processes().items() if mark in environment.split(b"\0")}


def environments(job: Job) -> list[bytes]:
    mark = f"{LEASE_VARIABLE}={job.mark}".encode()
    return [environment for _, environment in _all_processes().values() if mark in environment.split(b"\0")]


def only_sleep() -> str:
    """A command that sleeps for long, and that no other process of the machine is, be it another run of these tests."""
    return f"sleep 600.{secrets.randbelow(10**12):012}"


def is_running(command: str) -> bool:
    """Whether a process, of whomever, is that command: not a shell, or another, that has it among its words."""
    return any(line.split() == command.split() for line, _ in _all_processes().values())


def _all_processes() -> dict[int, tuple[str, bytes]]:
    found = {}
    for directory in Path("/proc").iterdir():
        if not directory.name.isdigit():
            continue
        try:
            line = (directory / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            found[int(directory.name)] = (line, (directory / "environ").read_bytes())
        except OSError:
            continue  # it ended while we looked
    return found


async def eventually(condition: Callable[[], object], within_s: float = 60.0) -> None:
    """Returns once the condition holds; fails when it has not by the deadline."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {within_s} seconds"
        await asyncio.sleep(0.02)
