"""Claude asks a person: the real CLI, in the real enclosures, each lease with directories of its own."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any, Literal

import pytest

from services.runner.agents import Asks, Finished, Job
from services.runner.agents.claude import ClaudeRunner
from services.runner.redaction import Redactor
from shared.spec import Permission, WorkRules
from shared.task import Approval
from tests.agents.claude_probes import asked, call, last_said, scripted
from tests.agents.kept import Kept, LeaseOver, answered
from tests.agents.probes import MakeLease, Reported, processes, run_agent, run_turn
from treadle.scripted_model import ScriptedModel

RULES = WorkRules(permissions=(Permission(tool="Bash", pattern="*once*", answer="ask"),))
ONCE = call("Bash", command="echo ran >> once.txt")
SCRIPT = scripted([call("Bash", command="echo first >> first.txt")], [ONCE], [{"text": "Done."}])
QUESTION = {
    "questions": [
        {
            "question": "Which colour?",
            "header": "Colour",
            "multiSelect": False,
            "options": [{"label": "red", "description": "warm"}, {"label": "blue", "description": "cold"}],
        }
    ]
}


@pytest.fixture
def kept() -> Kept:
    return Kept()


def lines(job: Job, name: str) -> list[str]:
    path = job.cwd / name
    return path.read_text().splitlines() if path.exists() else []


async def asks(runner: ClaudeRunner, make_lease: MakeLease, kept: Kept, prompt: str = SCRIPT) -> Asks:
    """A first lease, up to what it asks a person."""
    job = await make_lease(lease=3, prompt=prompt, rules=RULES, memory=kept.lease())
    end = await run_turn(runner, job, Reported().append)
    assert isinstance(end, Asks), end
    assert not processes(job)
    return end


async def goes_on(
    runner: ClaudeRunner, make_lease: MakeLease, kept: Kept, approval: Approval | None, **fields: Any
) -> tuple[Job, Finished]:
    job = await make_lease(
        **{
            "lease": 4,
            "prompt": SCRIPT,
            "rules": RULES,
            "memory": kept.lease(resumes=True),
            "approval": approval,
            **fields,
        }
    )
    return job, await run_agent(runner, job, Reported().append)


async def test_allowed_call_runs_once_and_is_said_to_run_before(
    runner: ClaudeRunner, make_lease: MakeLease, kept: Kept
) -> None:
    asked_for = await asks(runner, make_lease, kept)
    assert (asked_for.kind, asked_for.tool, asked_for.input["command"]) == ("tool", "Bash", ONCE["input"]["command"])
    assert "*once*" in asked_for.why
    assert asked_for.usage.input_tokens > 0
    used: list[list[str]] = []
    code = (await make_lease()).cwd

    async def use_approval() -> None:
        used.append((code / "once.txt").read_text().splitlines() if (code / "once.txt").exists() else [])

    job, finished = await goes_on(runner, make_lease, kept, answered(asked_for, "granted"), use_approval=use_approval)
    assert (finished.kind, finished.summary) == ("completed", "Done.")
    assert used == [[]], "it was said once, and before the call ran"
    assert (lines(job, "first.txt"), lines(job, "once.txt")) == (["first"], ["ran"])
    # A later lease of the attempt still sees the answer; that it was used, and the call's result, tell it what to do.
    job, finished = await goes_on(runner, make_lease, kept, answered(asked_for, "granted", used_by=4), lease=5)
    assert finished.kind == "completed"
    assert lines(job, "once.txt") == ["ran"]


async def test_call_that_another_lease_was_about_to_run_does_not_run(
    model: ScriptedModel, runner: ClaudeRunner, make_lease: MakeLease, kept: Kept
) -> None:
    asked_for = await asks(runner, make_lease, kept)
    job, finished = await goes_on(runner, make_lease, kept, answered(asked_for, "granted", used_by=4), lease=5)
    assert finished.kind == "completed"
    assert lines(job, "once.txt") == []
    assert "it may have run, or half of it" in last_said(model)


async def test_denied_call_does_not_run_and_the_reason_is_told_once(
    model: ScriptedModel, runner: ClaudeRunner, make_lease: MakeLease, kept: Kept
) -> None:
    asked_for = await asks(runner, make_lease, kept)
    denied = answered(asked_for, "denied", note="not on a Friday")
    for lease in (4, 5):
        job, finished = await goes_on(runner, make_lease, kept, denied, lease=lease)
        assert finished.kind == "completed"
        assert (lines(job, "first.txt"), lines(job, "once.txt")) == (["first"], [])
        assert last_said(model).count("not on a Friday") == 1


async def test_lost_question_does_not_run_the_call_either(
    model: ScriptedModel, runner: ClaudeRunner, make_lease: MakeLease, kept: Kept
) -> None:
    await asks(runner, make_lease, kept)
    job, finished = await goes_on(runner, make_lease, kept, None)
    assert finished.kind == "completed"
    assert lines(job, "once.txt") == []
    assert "nobody was asked" in last_said(model)


async def test_other_call_than_the_allowed_one_does_not_run(
    runner: ClaudeRunner, make_lease: MakeLease, kept: Kept
) -> None:
    asked_for = await asks(runner, make_lease, kept)
    other = Asks(kind="tool", tool="Bash", input={**asked_for.input, "command": "echo x > once.txt"}, why="")
    job, finished = await goes_on(runner, make_lease, kept, answered(other, "granted"))
    assert finished.kind == "completed"
    assert lines(job, "once.txt") == []


async def test_nothing_runs_when_the_lease_is_over_before_the_call(
    runner: ClaudeRunner, make_lease: MakeLease, kept: Kept
) -> None:
    asked_for = await asks(runner, make_lease, kept)

    async def use_approval() -> None:
        raise LeaseOver

    with pytest.raises(LeaseOver):
        await goes_on(runner, make_lease, kept, answered(asked_for, "granted"), use_approval=use_approval)
    assert lines(await make_lease(), "once.txt") == []


async def test_question_is_put_to_a_person_and_their_answer_to_claude(
    model: ScriptedModel, runner: ClaudeRunner, make_lease: MakeLease, kept: Kept
) -> None:
    prompt = scripted([call("AskUserQuestion", **QUESTION)], [{"text": "Blue it is."}])
    asked_for = await asks(runner, make_lease, kept, prompt)
    assert asked_for.kind == "question"
    assert asked_for.input["questions"][0]["question"] == "Which colour?"
    answer = answered(asked_for, "granted", note="the second, please")
    _, finished = await goes_on(runner, make_lease, kept, answer, prompt=prompt)
    assert finished.summary == "Blue it is."
    told = last_said(model)
    assert "Which colour? (red, blue)" in told
    assert "A person answers: the second, please" in told


@pytest.mark.parametrize("first", [call("AskUserQuestion", **QUESTION), ONCE])
@pytest.mark.parametrize("given", ["granted", "denied"])
async def test_claude_writes_into_the_worktree_of_the_lease_that_goes_on(
    runner: ClaudeRunner, make_lease: MakeLease, kept: Kept, first: dict[str, Any], given: Literal["granted", "denied"]
) -> None:
    write = call("Write", file_path="chosen.txt", content="blue\n")
    prompt = scripted([first], [write], [{"text": "Written."}])
    asked_for = await asks(runner, make_lease, kept, prompt)
    answer = answered(asked_for, given, note="blue")
    job, finished = await goes_on(runner, make_lease, kept, answer, prompt=prompt)
    assert finished.kind == "completed"
    assert lines(job, "chosen.txt") == ["blue"]


async def test_other_calls_of_the_same_message_are_not_lost(
    model: ScriptedModel, runner: ClaudeRunner, make_lease: MakeLease, kept: Kept
) -> None:
    again = call("Bash", command="echo again >> once-more.txt")
    prompt = scripted(
        [call("Bash", command="echo a >> a.txt"), ONCE, again, call("Bash", command="echo c >> c.txt")],
        [{"text": "Done."}],
    )
    asked_for = await asks(runner, make_lease, kept, prompt)
    assert asked_for.input == ONCE["input"]
    job, finished = await goes_on(runner, make_lease, kept, answered(asked_for, "granted"), prompt=prompt)
    assert finished.kind == "completed"
    assert [lines(job, name) for name in ("a.txt", "once.txt", "once-more.txt", "c.txt")] == [["a"], ["ran"], [], ["c"]]
    results = [
        block
        for message in asked(model)[-1]["messages"]
        for block in message["content"]
        if isinstance(block, dict) and block.get("type") == "tool_result"
    ]
    assert len(results) == 4
    assert "make this one again" in json.dumps(results)


async def test_call_that_is_too_large_for_a_person_is_refused_at_once(
    model: ScriptedModel, runner: ClaudeRunner, make_lease: MakeLease, kept: Kept
) -> None:
    large = call("Bash", command=f"echo once > once.txt # {'x' * 1_100_000}")
    job = await make_lease(prompt=scripted([large], [{"text": "Then not."}]), rules=RULES, memory=kept.lease())
    finished = await run_agent(runner, job, Reported().append)
    assert (finished.kind, finished.summary) == ("completed", "Then not.")
    assert "make it smaller" in last_said(model)
    assert lines(job, "once.txt") == []


async def test_where_nothing_is_kept_nobody_is_asked(
    model: ScriptedModel, runner: ClaudeRunner, make_lease: MakeLease
) -> None:
    job = await make_lease(prompt=SCRIPT, rules=RULES)
    finished = await run_agent(runner, job, Reported().append)
    assert finished.kind == "completed"
    assert lines(job, "once.txt") == []
    assert "Nobody can be asked here" in last_said(model)


async def test_rules_open_and_close_tools(model: ScriptedModel, runner: ClaudeRunner, make_lease: MakeLease) -> None:
    rules = WorkRules(
        permissions=(
            Permission(tool="WebFetch", answer="always"),
            Permission(tool="Bash", pattern="rm *", answer="never"),
        )
    )
    turn = [call("Bash", command="rm kept.txt"), call("WebFetch", url="http://127.0.0.1:9/", prompt="What?")]
    job = await make_lease(prompt=scripted(turn, [{"text": "Done."}]), rules=rules)
    (job.cwd / "kept.txt").touch()
    finished = await run_agent(runner, job, Reported().append)
    assert (job.cwd / "kept.txt").exists()
    assert "Bash rm kept.txt" in finished.message
    assert "WebFetch" not in finished.message
    assert "WebFetch" in {tool["name"] for tool in asked(model)[0]["tools"]}


@pytest.mark.parametrize(
    "ask",
    [call("Bash", command="echo once hunter2-deploy"), call("AskUserQuestion", **QUESTION)],
    ids=["call", "question"],
)
async def test_nobody_is_shown_a_call_with_a_secret_in_it(
    model: ScriptedModel, runner: ClaudeRunner, make_lease: MakeLease, kept: Kept, ask: dict[str, Any]
) -> None:
    redactor = Redactor(["hunter2-deploy", "Which colour?"])
    prompt = scripted([ask], [{"text": "Done."}])
    job = await make_lease(lease=3, prompt=prompt, rules=RULES, memory=kept.lease(), without_secrets=redactor)
    end = await run_turn(runner, job, Reported().append)
    assert isinstance(end, Finished) and end.kind == "completed", end
    assert "password or key" in last_said(model)


@pytest.fixture
def other_worktree(tmp_path: Path) -> Path:
    """Of a lease on another runner: the first one's files lie elsewhere, and are gone."""
    path = tmp_path / "elsewhere" / "code"
    subprocess.run(["git", "init", "--quiet", path], check=True)
    return path


WRITES = WorkRules(permissions=(Permission(tool="Write", pattern="granted/*", answer="ask"),))


@pytest.mark.parametrize("make_lease", ["sandboxed"], indirect=True)
async def test_allowed_write_to_an_absolute_path_runs_in_the_worktree_of_the_lease_that_goes_on(
    model: ScriptedModel, runner: ClaudeRunner, make_lease: MakeLease, kept: Kept, other_worktree: Path
) -> None:
    path = "/treadle/code/granted/new.txt"
    prompt = scripted(
        [call("Bash", command="pwd; git rev-parse --show-toplevel")],
        [call("Write", file_path=path, content="once\n")],
        [call("Bash", command='echo "$PWD" > pwd.txt; cat granted/new.txt >> all.txt')],
        [{"text": "Done."}],
    )
    job = await make_lease(lease=3, prompt=prompt, rules=WRITES, memory=kept.lease())
    asked_for = await run_turn(runner, job, (reported := Reported()).append)
    assert isinstance(asked_for, Asks), asked_for
    assert reported.texts("result") == ["/treadle/code\n/treadle/code"]
    assert reported.texts("tool")[-1] == "Write granted/new.txt"
    assert asked_for.input["file_path"] == path
    used: list[bool] = []

    async def use_approval() -> None:
        used.append((other_worktree / "granted").exists())

    job, finished = await goes_on(
        runner,
        make_lease,
        kept,
        answered(asked_for, "granted"),
        prompt=prompt,
        rules=WRITES,
        cwd=other_worktree,
        use_approval=use_approval,
    )
    assert (finished.kind, finished.message, finished.summary) == ("completed", "", "Done.")
    assert used == [False], "it was said once, and before the call ran"
    assert (other_worktree / "granted/new.txt").read_text() == "once\n"
    assert (other_worktree / "all.txt").read_text() == "once\n"
    assert (other_worktree / "pwd.txt").read_text() == "/treadle/code\n"
    assert "have moved" not in json.dumps(asked(model)[-1])


@pytest.mark.parametrize("make_lease", ["sandboxed"], indirect=True)
async def test_allowed_call_by_another_name_of_the_worktree_or_out_of_it_is_never_asked_for(
    model: ScriptedModel, runner: ClaudeRunner, make_lease: MakeLease, kept: Kept, worktree: Path, tmp_path: Path
) -> None:
    (worktree / "away").symlink_to(tmp_path)
    paths = [f"{worktree}/granted/x", "/treadle/code/../x", "/treadle/x", "/treadle/code/away/x", f"{tmp_path}/x"]
    writes = [call("Write", file_path=path, content="x") for path in paths]
    every = WorkRules(permissions=(Permission(tool="Write", answer="ask"),))
    job = await make_lease(prompt=scripted(writes, [{"text": "Then not."}]), rules=every, memory=kept.lease())
    finished = await run_agent(runner, job, Reported().append)
    assert (finished.kind, finished.summary) == ("completed", "Then not.")
    assert last_said(model).count("Only files in /treadle/code can be changed") == len(paths)
    assert [path.exists() for path in (tmp_path / "x", worktree / "granted", worktree.parent / "x")] == [False] * 3


async def test_lost_lease_s_conversation_goes_on_where_the_files_are_now(
    model: ScriptedModel, runner: ClaudeRunner, make_lease: MakeLease, kept: Kept, other_worktree: Path
) -> None:
    await asks(runner, make_lease, kept)
    before = (await make_lease()).worktree.inside
    job, finished = await goes_on(runner, make_lease, kept, None, cwd=other_worktree)
    assert finished.kind == "completed"
    told = f"Working directory: {other_worktree}\nIt was {before} before"
    is_moved = json.dumps(told)[1:-1] in last_said(model)
    assert (is_moved, "have moved" in last_said(model)) == (not job.enclosure.is_sandboxed,) * 2
    assert {entry["cwd"] for entry in kept.entries[-3:] if "cwd" in entry} == {str(job.worktree.inside)}


@pytest.mark.parametrize("make_lease", ["sandboxed"], indirect=True)
async def test_conversation_from_before_the_worktree_had_one_name_is_told_where_the_files_are(
    model: ScriptedModel, runner: ClaudeRunner, make_lease: MakeLease, kept: Kept
) -> None:
    write = call("Write", file_path="later.txt", content="later\n")
    prompt = scripted([call("Bash", command="true")], [ONCE], [write], [{"text": "Done."}])
    await asks(runner, make_lease, kept, prompt)
    old = "/srv/treadle/p1/T1-3/code"
    kept.entries = json.loads(json.dumps(kept.entries).replace("/treadle/code", old))
    job, finished = await goes_on(runner, make_lease, kept, None, prompt=prompt)
    assert (finished.kind, finished.summary) == ("completed", "Done.")
    assert f"Working directory: /treadle/code\\nIt was {old} before" in last_said(model)
    assert lines(job, "later.txt") == ["later"]
