"""The agent `command`, and the processes it starts."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
import tracemalloc
from pathlib import Path

import pytest

from services.runner.agents import ACTIVITY_MAX_BYTES, Activity, Job, open_runner
from services.runner.agents.command import CommandRunner, ShellFailure, run_shell
from services.runner.process import end_lease
from shared.spec import AgentSpec
from tests.agents.probes import (
    FORK_CHAIN,
    MakeJob,
    MakeLease,
    Reported,
    eventually,
    is_running,
    only_sleep,
    processes,
    run_agent,
)


def program(*command: str) -> AgentSpec:
    return AgentSpec(sdk_type="command", command=command)


async def test_program_gets_the_prompt_on_standard_input_in_its_worktree(make_job: MakeJob, reported: Reported) -> None:
    job = make_job(agent=program("sh", "-c", "cat > prompt.txt; echo written >&2; echo; echo all done; echo"))
    async with open_runner("command", {}) as runner:
        finished = await run_agent(runner, job, reported.append)
    assert (finished.kind, finished.summary) == ("completed", "all done")
    assert (job.cwd / "prompt.txt").read_text() == job.prompt
    assert "written" in "\n".join(reported.texts("output"))


async def test_environment_is_built_from_nothing_but_the_allow_list(
    make_job: MakeJob, reported: Reported, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "canary")
    show = "import json, os; json.dump(dict(os.environ), open('env.json', 'w'))"
    job = make_job(agent=program(sys.executable, "-c", show), env={"COLOUR": "blue", "BASH_FUNC_x%%": "() { :; }"})
    finished = await run_agent(CommandRunner(), job, reported.append)
    assert finished.kind == "completed"
    assert json.loads((job.cwd / "env.json").read_text()) == {
        "COLOUR": "blue",
        "PATH": os.environ["PATH"],
        "HOME": str(job.scratch / "home"),
        "TMPDIR": str(job.scratch / "tmp"),
        "LANG": "C.UTF-8",
        "LC_ALL": "C.UTF-8",
        "TREADLE_PLAN": job.plan,
        "TREADLE_TASK": "T1",
        "TREADLE_ATTEMPT": "2",
        "TREADLE_LEASE": f"{job.plan}/T1/3",
    }


@pytest.mark.parametrize(
    ("script", "words"),
    [("echo one; echo two >&2; exit 7", "exit status 7"), ("echo one; echo two; kill -9 $$", "signal 9 (Killed)")],
)
async def test_failing_program_is_an_agent_error_with_status_and_last_lines(
    make_job: MakeJob, reported: Reported, script: str, words: str
) -> None:
    finished = await run_agent(CommandRunner(), make_job(agent=program("sh", "-c", script)), reported.append)
    assert finished.kind == "agent_error"
    assert words in finished.message
    assert "one" in finished.message
    assert "two" in finished.message


@pytest.mark.parametrize("command", ["no-such-program", "./no-such-script", "."])
async def test_missing_program_is_named(make_job: MakeJob, reported: Reported, command: str) -> None:
    finished = await run_agent(CommandRunner(), make_job(agent=program(command)), reported.append)
    assert finished.kind == "agent_error"
    assert command in finished.message
    assert "did not start" in finished.message


async def test_program_in_the_worktree_is_found(make_job: MakeJob, reported: Reported) -> None:
    job = make_job(agent=program("./tool"))
    (job.cwd / "tool").write_text("#!/bin/sh\necho from the tool\n")
    (job.cwd / "tool").chmod(0o755)
    assert (await run_agent(CommandRunner(), job, reported.append)).summary == "from the tool"


async def test_program_may_ignore_a_large_standard_input(make_job: MakeJob, reported: Reported) -> None:
    job = make_job(agent=program("true"), prompt="x" * 7_000_000)
    assert (await run_agent(CommandRunner(), job, reported.append)).kind == "completed"


async def test_a_hundred_megabytes_of_output_need_little_memory(make_job: MakeJob) -> None:
    lines = "yes 0123456789abcdef | head -c 70000000"
    one_line = "head -c 30000000 /dev/zero | tr '\\0' x"
    job = make_job(agent=program("sh", "-c", f"{lines}; {one_line}; echo; echo the end"))
    seen: list[int] = []
    tracemalloc.start()
    try:
        finished = await run_agent(CommandRunner(), job, lambda activity: seen.append(len(activity.text.encode())))
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert finished.summary.endswith("the end")
    assert sum(seen) > 69_000_000
    assert max(seen) <= ACTIVITY_MAX_BYTES
    assert peak_bytes < 4_000_000


async def test_output_that_is_no_text_does_no_harm(make_job: MakeJob, reported: Reported) -> None:
    job = make_job(agent=program("sh", "-c", r"printf '\377\376\033[31m\nfine'"))
    assert (await run_agent(CommandRunner(), job, reported.append)).summary.endswith("fine")


async def test_last_words_are_cut_to_two_kibibytes(make_job: MakeJob, reported: Reported) -> None:
    job = make_job(agent=program("sh", "-c", "seq 100000 100999"))
    summary = (await run_agent(CommandRunner(), job, reported.append)).summary
    assert summary.endswith("100998\n100999")
    assert len(summary) <= 2048


async def test_cancelling_ends_the_whole_tree(make_job: MakeJob, reported: Reported) -> None:
    sleeps = [only_sleep() for _ in range(4)]
    tree = "setsid {} & setsid sh -c 'trap \"\" TERM; {}; true' & env -i {} & {}".format(*sleeps)
    job = make_job(agent=program("sh", "-c", tree))
    running = asyncio.create_task(run_agent(CommandRunner(), job, reported.append))
    await eventually(lambda: all(map(is_running, sleeps)))
    started = time.monotonic()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert time.monotonic() - started < 15  # `make bench-agent` holds it to 2
    assert not processes(job)
    assert not any(map(is_running, sleeps))


async def test_timeout_ends_the_program_and_says_so(make_job: MakeJob, reported: Reported) -> None:
    job = make_job(agent=program("sleep", "600"), timeout_s=0.2)
    finished = await run_agent(CommandRunner(), job, reported.append)
    assert finished.kind == "timeout"
    assert "0.2 seconds" in finished.message
    assert not processes(job)


async def test_daemon_that_holds_the_output_open_does_not_hold_up_the_end(
    make_job: MakeJob, reported: Reported
) -> None:
    job = make_job(agent=program("sh", "-c", "setsid sleep 600 & echo started"))
    finished = await asyncio.wait_for(run_agent(CommandRunner(), job, reported.append), 60)
    assert (finished.kind, finished.summary) == ("completed", "started")
    assert not processes(job)


async def test_receiver_that_fails_ends_the_run(make_job: MakeJob) -> None:
    def refuse(activity: Activity) -> None:
        raise ValueError("full")

    job = make_job(agent=program("sh", "-c", "echo x; sleep 600"))
    with pytest.raises(ValueError, match="full"):
        await run_agent(CommandRunner(), job, refuse)
    assert not processes(job)


async def test_shell_commands_stop_at_the_first_failure(make_job: MakeJob, reported: Reported) -> None:
    job = make_job()
    failure = await run_shell(["echo one > one", "echo broken >&2; exit 3", "echo two > two"], job, reported.append)
    assert failure == ShellFailure("echo broken >&2; exit 3", 3, "broken")
    assert (job.cwd / "one").exists()
    assert not (job.cwd / "two").exists()
    assert await run_shell(["true", "test -f one"], job, reported.append) is None


async def test_later_turn_runs_the_program_again_with_the_prompt_and_what_was_wrong(
    make_lease: MakeLease, reported: Reported
) -> None:
    job = await make_lease(agent=program("sh", "-c", "cat > told.txt; echo again >> runs.txt; echo done"))
    async with CommandRunner().open(job, reported.append) as session:
        await session.turn(job.prompt)
        assert (job.cwd / "told.txt").read_text() == job.prompt
        finished = await session.turn("a.txt is missing.")
    assert (finished.kind, (job.cwd / "told.txt").read_text()) == ("completed", f"{job.prompt}\n\na.txt is missing.")
    assert (job.cwd / "runs.txt").read_text() == "again\nagain\n"


async def test_what_verification_prints_is_told_from_what_an_agent_prints(
    make_lease: MakeLease, reported: Reported
) -> None:
    job = await make_lease()
    assert await run_shell(["echo checked"], job, reported.append, "verify") is None
    assert reported.texts("verify") == ["$ echo checked", "checked"]
    assert not reported.texts("output")


async def test_leftovers_of_a_former_life_are_ended_by_their_mark(make_job: MakeJob) -> None:
    job: Job = make_job()
    other: Job = make_job(lease=33)
    children = [
        await asyncio.create_subprocess_exec(
            # Some machines start their jobs with signals ignored.
            *("env", "--default-signal=TERM", "sleep", "600"),
            env={**os.environ, "TREADLE_LEASE": each.mark},
        )
        for each in (job, other)
    ]
    try:
        await end_lease(job.mark)
        assert await asyncio.wait_for(children[0].wait(), 30) == -signal.SIGTERM
        assert processes(other)
    finally:
        children[1].kill()
        await children[1].wait()


async def test_a_chain_of_forks_is_gone_when_a_lease_was_ended(make_job: MakeJob, tmp_path: Path) -> None:
    job: Job = make_job()
    beat = tmp_path / "beat"
    env = {"PATH": os.environ["PATH"], "TREADLE_LEASE": job.mark}
    for _ in range(2):
        await asyncio.create_subprocess_exec("perl", "-e", FORK_CHAIN, cwd=tmp_path, env=env)
    await eventually(lambda: beat.exists() and beat.stat().st_size > 50)
    for _ in range(3):
        await end_lease(job.mark)
        seen = beat.stat().st_size
        begun = time.monotonic()
        while time.monotonic() < begun + 0.2:  # many times as long as any of its processes lives
            await asyncio.sleep(0.01)
            assert beat.stat().st_size == seen


async def test_programs_die_with_a_killed_runner(make_job: MakeJob) -> None:
    job = make_job(agent=program("sleep", "600"))
    code = f"""
import asyncio
from pathlib import Path
from services.runner.agents import Job
from services.runner.agents.command import CommandRunner
from services.runner.sandbox import Unsandboxed
from shared.spec import AgentSpec
from tests.agents.probes import run_agent
job = Job(plan={job.plan!r}, task="T1", attempt=2, lease=3, prompt="", agent=AgentSpec(sdk_type="command",
    command=("sleep", "600")), cwd=Path({str(job.cwd)!r}), scratch=Path({str(job.scratch)!r}), timeout_s=60,
    budget_usd=1, env={{}}, enclosure=Unsandboxed())
asyncio.run(run_agent(CommandRunner(), job, print))
"""
    runner = await asyncio.create_subprocess_exec(sys.executable, "-c", code)
    await eventually(lambda: any(line.endswith("/sleep 600 ") for line in processes(job).values()))
    runner.kill()
    await runner.wait()
    await eventually(lambda: not processes(job))
