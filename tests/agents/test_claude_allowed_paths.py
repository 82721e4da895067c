"""What a person allowed is what runs, whatever Claude called it and wherever its files are: the real CLI."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from services.runner.agents import Asks
from services.runner.agents.claude import ClaudeRunner
from tests.agents.claude_probes import call, last_said, scripted
from tests.agents.kept import Kept, answered
from tests.agents.probes import MakeLease, Reported, run_turn
from tests.agents.test_claude_approvals import QUESTION, WRITES, asks, goes_on, lines
from treadle.scripted_model import ScriptedModel


@pytest.fixture
def kept() -> Kept:
    return Kept()


@pytest.fixture
def other_worktree(tmp_path: Path) -> Path:
    path = tmp_path / "elsewhere" / "code"
    subprocess.run(["git", "init", "--quiet", path], check=True)
    return path


def written(worktree: Path) -> dict[str, str]:
    """The text files in it, by name."""
    return {path.name: path.read_text() for path in worktree.rglob("*.txt")}


BY_OTHER_NAMES = ["granted/x.txt", "./granted//x.txt ", "(cd granted) x.txt"]
"""What Claude calls the file; the last one after it has gone there."""


async def asks_to_write(
    runner: ClaudeRunner, make_lease: MakeLease, kept: Kept, path: str, then: str = "true"
) -> tuple[Asks, dict[str, Any]]:
    """A first lease, up to the question, and what the next one is given."""
    goes, _, name = path.rpartition(") ")
    command = f"mkdir -p granted; {goes.removeprefix('(') or 'true'}"
    turns = [[call("Bash", command=command)], [call("Write", file_path=name, content="once\n")]]
    prompt = scripted(*turns, [call("Bash", command=then)], [{"text": "Done."}])
    job = await make_lease(lease=3, prompt=prompt, rules=WRITES, memory=kept.lease())
    asked_for = await run_turn(runner, job, Reported().append)
    assert isinstance(asked_for, Asks), asked_for
    assert asked_for.input == {"file_path": str(job.worktree.inside / "granted/x.txt"), "content": "once\n"}
    return asked_for, {"prompt": prompt, "rules": WRITES}


class Uses:
    """Counts how often it was said that a call is about to run."""

    def __init__(self) -> None:
        self.count = 0

    async def __call__(self) -> None:
        self.count += 1


@pytest.mark.parametrize("make_lease", ["sandboxed"], indirect=True)
@pytest.mark.parametrize("path", BY_OTHER_NAMES)
async def test_allowed_write_runs_once_where_the_person_saw_it_whatever_claude_calls_the_file(
    model: ScriptedModel, runner: ClaudeRunner, make_lease: MakeLease, kept: Kept, worktree: Path, path: str
) -> None:
    asked_for, fields = await asks_to_write(runner, make_lease, kept, path, "mv granted/x.txt moved.txt")
    uses = Uses()
    granted = answered(asked_for, "granted")
    job, finished = await goes_on(runner, make_lease, kept, granted, use_approval=uses, **fields)
    assert (finished.kind, finished.message, finished.summary) == ("completed", "", "Done.")
    assert (lines(job, "moved.txt"), uses.count) == (["once"], 1)
    job, finished = await goes_on(
        runner, make_lease, kept, answered(asked_for, "granted", used_by=4), lease=5, use_approval=uses, **fields
    )
    assert (finished.kind, uses.count) == ("completed", 1)
    assert written(worktree) == {"moved.txt": "once\n"}


@pytest.mark.parametrize("path", BY_OTHER_NAMES)
async def test_denied_write_is_told_with_its_reason_whatever_claude_calls_the_file(
    model: ScriptedModel, runner: ClaudeRunner, make_lease: MakeLease, kept: Kept, worktree: Path, path: str
) -> None:
    asked_for, fields = await asks_to_write(runner, make_lease, kept, path)
    denied = answered(asked_for, "denied", note="not on a Friday")
    _, finished = await goes_on(runner, make_lease, kept, denied, **fields)
    assert finished.kind == "completed"
    assert last_said(model).count("This was not allowed, and not run: not on a Friday") == 1
    assert written(worktree) == {}


async def test_question_that_left_something_out_gets_its_answer(
    model: ScriptedModel, runner: ClaudeRunner, make_lease: MakeLease, kept: Kept
) -> None:
    bare = {name: value for name, value in QUESTION["questions"][0].items() if name != "multiSelect"}
    prompt = scripted([call("AskUserQuestion", questions=[bare])], [{"text": "Blue it is."}])
    asked_for = await asks(runner, make_lease, kept, prompt)
    await goes_on(runner, make_lease, kept, answered(asked_for, "granted", note="the second"), prompt=prompt)
    assert "A person answers: the second" in last_said(model)


async def test_a_command_is_put_to_a_person_only_with_the_directory_that_it_is_to_run_in(
    model: ScriptedModel, runner: ClaudeRunner, make_lease: MakeLease, kept: Kept, worktree: Path
) -> None:
    root = (await make_lease()).worktree.inside
    bare, whole = "echo once >> x.txt", "cd granted && echo once >> x.txt"
    commands = ("mkdir granted; cd granted", bare, f"cd {root}", whole)
    prompt = scripted(*([call("Bash", command=command)] for command in commands), [{"text": "Done."}])
    asked_for = await asks(runner, make_lease, kept, prompt)
    assert asked_for.input["command"] == whole
    assert any(f"not in {root}/granted, where you are" in json.dumps(request.body) for request in model.requests)
    _, finished = await goes_on(runner, make_lease, kept, answered(asked_for, "granted"), prompt=prompt)
    assert (finished.kind, written(worktree)) == ("completed", {"x.txt": "once\n"})


@pytest.mark.parametrize("make_lease", ["sandboxed"], indirect=True)
@pytest.mark.parametrize("content", ["once\n", "evil\n"])
async def test_of_a_transcript_with_another_call_under_the_same_id_only_what_the_person_saw_can_run(
    runner: ClaudeRunner, make_lease: MakeLease, kept: Kept, worktree: Path, content: str
) -> None:
    asked_for, fields = await asks_to_write(runner, make_lease, kept, "granted/x.txt")
    said = next(
        block
        for entry in kept.entries
        if entry["type"] == "assistant"
        for block in entry["message"]["content"]
        if block.get("name") == "Write"
    )
    said["input"] = {"file_path": "granted/evil.txt", "content": content}
    await goes_on(runner, make_lease, kept, answered(asked_for, "granted"), **fields)
    assert written(worktree) == {"x.txt": "once\n"}


@pytest.mark.parametrize("make_lease", ["sandboxed"], indirect=True)
async def test_nothing_runs_when_the_transcript_says_that_something_else_was_asked_for(
    model: ScriptedModel, runner: ClaudeRunner, make_lease: MakeLease, kept: Kept, worktree: Path
) -> None:
    asked_for, fields = await asks_to_write(runner, make_lease, kept, "granted/x.txt")
    for entry in kept.entries:
        if entry.get("attachment", {}).get("type") == "hook_deferred_tool":
            entry["attachment"]["toolInput"]["content"] = "evil\n"
    uses = Uses()
    await goes_on(runner, make_lease, kept, answered(asked_for, "granted"), use_approval=uses, **fields)
    assert (uses.count, written(worktree)) == (0, {})
    assert "nobody was asked" in last_said(model)


async def test_allowed_write_to_where_the_files_are_no_more_does_not_run_and_claude_is_told_where_they_are(
    model: ScriptedModel, runner: ClaudeRunner, make_lease: MakeLease, kept: Kept, worktree: Path, other_worktree: Path
) -> None:
    asked_for, fields = await asks_to_write(runner, make_lease, kept, "granted/x.txt")
    old = str((await make_lease()).worktree.inside)
    if old == "/treadle/code":  # kept since before the worktree had one name
        old = "/srv/treadle/p1/T1-3/code"
        kept.entries = json.loads(json.dumps(kept.entries).replace("/treadle/code", old))
        moved = {**asked_for.input, "file_path": f"{old}/granted/x.txt"}
        asked_for = Asks(kind="tool", tool="Write", input=moved, why="", usage=asked_for.usage)
    uses = Uses()
    job, finished = await goes_on(
        runner, make_lease, kept, answered(asked_for, "granted"), cwd=other_worktree, use_approval=uses, **fields
    )
    assert finished.kind == "completed"
    assert (uses.count, written(worktree), written(other_worktree)) == (0, {}, {})
    told = last_said(model)
    assert "it was not run: it names a place that your files have moved from" in told
    assert f"Working directory: {job.worktree.inside}\\nIt was {old} before" in told
    assert "it was run" not in told


async def test_allowed_command_that_names_no_place_runs_where_the_files_are_now(
    runner: ClaudeRunner, make_lease: MakeLease, kept: Kept, other_worktree: Path
) -> None:
    asked_for = await asks(runner, make_lease, kept)
    job, _ = await goes_on(runner, make_lease, kept, answered(asked_for, "granted"), cwd=other_worktree)
    assert lines(job, "once.txt") == ["ran"]


@pytest.mark.parametrize("make_lease", ["sandboxed"], indirect=True)
async def test_allowed_write_does_not_run_once_it_would_lead_out_of_the_worktree(
    model: ScriptedModel, runner: ClaudeRunner, make_lease: MakeLease, kept: Kept, worktree: Path, tmp_path: Path
) -> None:
    asked_for, fields = await asks_to_write(runner, make_lease, kept, "granted/x.txt")
    (worktree / "granted").rmdir()
    (worktree / "granted").symlink_to(tmp_path)
    uses = Uses()
    await goes_on(runner, make_lease, kept, answered(asked_for, "granted"), use_approval=uses, **fields)
    assert (uses.count, (tmp_path / "x.txt").exists()) == (0, False)
    assert "Only files in /treadle/code can be changed" in last_said(model)
