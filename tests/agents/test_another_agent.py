"""The adapter of docs/another-agent, driven by the real agent `command`.

The CLI is a stand-in: Codex needs an account. It takes Codex's arguments and prints such lines as its documentation
shows.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from services.runner.agents import Finished, Job, open_runner
from shared.spec import AgentSpec
from tests.agents.probes import MakeJob, Reported

ADAPTER = Path(__file__).parents[2] / "docs/another-agent/codex_adapter.py"
THREAD = "0199a213-81c0-7800-8aa1-bbab2a035a53"
STAND_IN = f"""#!{sys.executable}
import json, os, pathlib, sys
with open(os.environ["CALLS"], "a") as calls:
    print(json.dumps([sys.argv[1:], sys.stdin.read()]), file=calls)
pathlib.Path("hello.txt").write_text("hello\\n")
for line in pathlib.Path(os.environ["LINES"]).read_text().splitlines():
    print(line, flush=True)
sys.exit(int(os.environ["STATUS"]))
"""
BEGINNING = [{"type": "thread.started", "thread_id": THREAD}, {"type": "turn.started"}]
LS = {"id": "item_1", "type": "command_execution", "command": "bash -lc ls"}
WORK: list[dict[str, Any]] = [
    {"type": "item.completed", "item": {"id": "item_0", "type": "reasoning", "text": "**Looking around**"}},
    {"type": "item.started", "item": {**LS, "aggregated_output": "", "status": "in_progress"}},
    {"type": "item.completed", "item": {**LS, "aggregated_output": "a.txt\n", "exit_code": 0, "status": "completed"}},
    {"type": "item.completed", "item": {"id": "item_2", "type": "file_change", "status": "completed",
                                        "changes": [{"path": "hello.txt", "kind": "add"}]}},
    {"type": "item.completed", "item": {"id": "item_3", "type": "agent_message", "text": "I wrote hello.txt."}},
]  # fmt: skip
END = {"type": "turn.completed", "usage": {"input_tokens": 24763, "cached_input_tokens": 24448, "output_tokens": 122}}


class Codex:
    """The stand-in, on a PATH of its own."""

    def __init__(self, directory: Path) -> None:
        self.calls_file, self.lines_file = directory / "calls", directory / "lines"
        program = directory / "bin" / "codex"
        program.parent.mkdir()
        program.write_text(STAND_IN)
        program.chmod(0o755)
        self.path = f"{program.parent}:{os.environ['PATH']}"

    def job(self, make_job: MakeJob, *events: dict[str, Any], status: int = 0) -> Job:
        """A job whose agent is the adapter, for a CLI that prints these and ends so."""
        self.lines_file.write_text("".join(f"{json.dumps(event)}\n" for event in events))
        env = {"PATH": self.path, "CALLS": str(self.calls_file), "LINES": str(self.lines_file), "STATUS": str(status)}
        command = (sys.executable, str(ADAPTER), "--model", "gpt-5-codex")
        return make_job(prompt="Greet.", agent=AgentSpec(sdk_type="command", command=command), env=env)

    @property
    def calls(self) -> list[tuple[list[str], str]]:
        """Arguments and standard input of each start."""
        return [tuple(json.loads(line)) for line in self.calls_file.read_text().splitlines()]


@pytest.fixture
def codex(tmp_path: Path) -> Codex:
    return Codex(tmp_path)


async def turns(job: Job, reported: Reported, *messages: str) -> list[Finished]:
    """What one session answers to each message."""
    ends = []
    async with open_runner("command", {}) as runner, runner.open(job, reported.append) as session:
        for message in messages:
            end = await session.turn(message)
            assert isinstance(end, Finished)
            ends.append(end)
    return ends


async def test_work_is_done_shown_line_by_line_and_summed_up_in_its_last_message(
    codex: Codex, make_job: MakeJob, reported: Reported
) -> None:
    job = codex.job(make_job, *BEGINNING, *WORK, END)
    (end,) = await turns(job, reported, job.prompt)
    assert (end.kind, end.summary) == ("completed", "I wrote hello.txt.")
    assert (job.cwd / "hello.txt").read_text() == "hello\n"
    assert codex.calls == [(["exec", "--json", "--model", "gpt-5-codex", "-"], "Greet.")]
    told = "\n".join(reported.texts("output"))
    for words in (
        "**Looking around**",
        "$ bash -lc ls",
        "a.txt\n[exit status 0]",
        "add hello.txt",
        '"output_tokens": 122',
    ):
        assert words in told


async def test_later_message_goes_on_with_the_conversation(codex: Codex, make_job: MakeJob, reported: Reported) -> None:
    job = codex.job(make_job, *BEGINNING, *WORK, END)
    ends = await turns(job, reported, job.prompt, "The tests fail.")
    assert [end.kind for end in ends] == ["completed", "completed"]
    _, again = codex.calls
    assert again == (["exec", "--json", "--model", "gpt-5-codex", "resume", THREAD, "-"], "Greet.\n\nThe tests fail.")


FAILED = {"type": "turn.failed", "error": {"message": "unexpected status 401 Unauthorized"}}


@pytest.mark.parametrize(
    ("events", "status", "words"),
    [
        ([*BEGINNING, {"type": "error", "message": "Reconnecting... 1/5"}, FAILED], 1, "401 Unauthorized"),
        ([*BEGINNING, FAILED], 0, "401 Unauthorized"),
        ([*BEGINNING, *WORK], 0, "in the middle of its turn"),
        ([*BEGINNING, *WORK, END], 3, "status 3"),
    ],
    ids=["failed", "failed with status 0", "broken off", "status"],
)
async def test_turn_that_was_not_completed_is_a_failure_in_words(
    codex: Codex, make_job: MakeJob, reported: Reported, events: list[dict[str, Any]], status: int, words: str
) -> None:
    job = codex.job(make_job, *events, status=status)
    (end,) = await turns(job, reported, job.prompt)
    assert end.kind == "agent_error"
    assert words in end.message
    assert not end.summary


async def test_error_that_the_cli_got_over_is_no_failure(codex: Codex, make_job: MakeJob, reported: Reported) -> None:
    error = {"type": "error", "message": "Reconnecting... 1/5"}
    job = codex.job(make_job, *BEGINNING, error, *WORK, END)
    (end,) = await turns(job, reported, job.prompt)
    assert end.kind == "completed"
    assert "error: Reconnecting... 1/5" in "\n".join(reported.texts("output"))


async def test_missing_cli_is_told(codex: Codex, make_job: MakeJob, reported: Reported) -> None:
    job = codex.job(make_job)
    (Path(codex.path.partition(":")[0]) / "codex").unlink()
    (end,) = await turns(job, reported, job.prompt)
    assert end.kind == "agent_error"
    assert "codex can't be started" in end.message
    assert not codex.calls_file.exists()
