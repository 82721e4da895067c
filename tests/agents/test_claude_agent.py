"""The agent `claude`: the real CLI, through the real proxy, against the scripted model."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from claude_agent_sdk import AssistantMessage, TextBlock, ThinkingBlock

from services.runner.agents import Activity, Finished, Job, open_runner
from services.runner.agents.claude import ClaudeRunner
from services.runner.agents.claude_activity import activities
from services.runner.agents.claude_limits import Limits
from services.runner.proxy import KeyProxy
from shared.requests import AgentCredentials
from shared.spec import AgentSpec
from tests.agents.claude_probes import KEY, call, scripted
from tests.agents.probes import (
    MakeJob,
    Reported,
    environments,
    eventually,
    is_running,
    only_sleep,
    processes,
    run_agent,
)
from treadle.scripted_model import ScriptedModel

LOOK = "env; tr '\\0' '\\n' < /proc/$PPID/environ; : > started; while [ ! -e go ]; do sleep 0.1; done"
# Into a file: on a busy machine it is more than the CLI shows of a command.
PS = "for each in /proc/[0-9]*/cmdline; do tr '\\0' ' ' < $each; echo; done > arguments 2>/dev/null"


@pytest.fixture
async def runner(model: ScriptedModel) -> AsyncIterator[ClaudeRunner]:
    async with KeyProxy(KEY, model.base_url) as proxy:
        yield ClaudeRunner(proxy, limits=Limits(retries_max=1, api_timeout_s=6.0, stream_idle_s=12.0))


async def test_work_is_done_reported_and_counted(
    model: ScriptedModel, runner: ClaudeRunner, make_job: MakeJob, reported: Reported
) -> None:
    job = make_job(
        prompt=scripted(
            [{"text": "I write it."}, call("Write", file_path="src/a.py", content="A = 1\n")],
            [call("Edit", file_path="src/a.py", old_string="A = 1", new_string="A = 2"), call("Bash", command="pwd")],
            [{"text": "A is 2 now."}],
        )
    )
    finished = await run_agent(runner, job, reported.append)
    assert (finished.kind, finished.message, finished.summary) == ("completed", "", "A is 2 now.")
    assert (job.cwd / "src/a.py").read_text() == "A = 2\n"
    assert reported.texts("tool") == ["Write src/a.py", "Edit src/a.py", "Bash pwd"]
    assert reported.texts("text") == ["I write it.", "A is 2 now."]
    assert str(job.cwd) in reported.texts("result")
    told = [activity.usage for activity in reported if activity.usage is not None]
    assert told[-1] == finished.usage
    assert [usage.output_tokens for usage in told] == sorted({usage.output_tokens for usage in told})
    asked = [request for request in model.requests if request.path == "/v1/messages"]
    assert len(asked) == 3
    assert finished.usage.input_tokens > 3 * 1000
    assert finished.usage.cost_usd > 0
    assert not processes(job)


async def test_key_arrives_at_the_api_and_nowhere_else(
    model: ScriptedModel, runner: ClaudeRunner, make_job: MakeJob, reported: Reported, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    job = make_job(prompt=scripted([call("Bash", command=LOOK)], [{"text": "Seen."}]))
    running = asyncio.create_task(run_agent(runner, job, reported.append))
    await eventually((job.cwd / "started").exists)
    shown = [*(text.encode() for text in processes(job).values()), *environments(job)]
    (job.cwd / "go").touch()
    finished = await running
    assert finished.kind == "completed"
    shown += [path.read_bytes() for path in job.scratch.rglob("*") if path.is_file()]
    shown += [repr(reported).encode(), repr(finished).encode()]
    assert any(b"ANTHROPIC_API_KEY=" in text for text in shown), "the search must have looked at the CLI's environment"
    assert not [text for text in shown if KEY.encode() in text]
    assert {request.headers["x-api-key"] for request in model.requests} == {KEY}
    assert not [request for request in model.requests if "authorization" in request.headers]


async def test_token_stands_in_no_argument_list(runner: ClaudeRunner, make_job: MakeJob, reported: Reported) -> None:
    job = make_job(prompt=scripted([call("Bash", command="echo token=$ANTHROPIC_API_KEY"), call("Bash", command=PS)]))
    await run_agent(runner, job, reported.append)
    shown, arguments = reported.texts("result")[0], (job.cwd / "arguments").read_text()
    token = shown.partition("token=")[2].strip()
    assert len(token) > 20
    assert "--session-id" in arguments
    assert token not in arguments
    assert (job.scratch / "claude-start").stat().st_mode & 0o077 == 0


FAULTS: list[tuple[dict[str, Any], str, str]] = [
    ({"fault": 401, "message": "invalid x-api-key"}, "authentication_refused", "invalid x-api-key"),
    ({"fault": 403, "message": "not for you"}, "authentication_refused", "not for you"),
    ({"fault": 400, "message": "Your credit balance is too low"}, "usage_limit", "Top it up"),
    ({"fault": 400, "message": "prompt is odd"}, "agent_error", "prompt is odd"),
    ({"fault": 404, "message": "model: claude-none"}, "agent_error", "claude-none"),
    ({"fault": 429, "headers": {"retry-after": "3600"}}, "usage_limit", "60 minutes"),
    ({"fault": 429, "headers": {"anthropic-ratelimit-unified-reset": "33333333333"}}, "usage_limit", "minutes"),
    ({"fault": 429}, "unavailable", "429"),
    ({"fault": 529}, "unavailable", "529"),
    ({"fault": 500}, "unavailable", "500"),
    ({"fault": "reset"}, "unavailable", "can't be reached"),
]


@pytest.mark.parametrize(("fault", "kind", "words"), FAULTS, ids=lambda value: str(value).replace(" ", ""))
async def test_fault_of_the_api_ends_in_its_kind_and_words(
    runner: ClaudeRunner, make_job: MakeJob, reported: Reported, fault: dict[str, Any], kind: str, words: str
) -> None:
    agent = AgentSpec(sdk_type="claude", model="claude-none" if fault["fault"] == 404 else None)
    finished = await run_agent(runner, make_job(prompt=scripted(fault), agent=agent), reported.append)
    assert (finished.kind, words in finished.message) == (kind, True), finished
    assert (finished.retry_after_s is not None) == ("headers" in fault)


async def plain_run_s(model: ScriptedModel, make_job: MakeJob) -> float:
    """How long a run without any fault takes on this machine just now."""
    async with KeyProxy(KEY, model.base_url) as proxy:
        started = time.monotonic()
        finished = await run_agent(
            ClaudeRunner(proxy), make_job(prompt=scripted([{"text": "Done."}])), Reported().append
        )
        assert finished.kind == "completed"
        return time.monotonic() - started


def tries_again(reported: Reported) -> list[str]:
    return [text for text in reported.texts("treadle") if "trying again" in text]


async def test_wrong_key_is_told_without_a_second_try_though_retries_are_many(
    model: ScriptedModel, make_job: MakeJob, reported: Reported
) -> None:
    plain_s = await plain_run_s(model, make_job)
    asked_before = len(model.requests)
    async with KeyProxy("wrong", model.base_url) as proxy:
        started = time.monotonic()
        finished = await run_agent(ClaudeRunner(proxy, limits=Limits(retries_max=10)), make_job(), reported.append)
    assert finished.kind == "authentication_refused"
    assert len(model.requests) - asked_before == 1
    assert not tries_again(reported)
    # Ten tries wait for more than half a minute in between.
    assert time.monotonic() - started < 2 * plain_s + 25


async def test_a_leases_own_credentials_are_used_in_the_place_of_the_runners(
    model: ScriptedModel, make_job: MakeJob, reported: Reported, unused_tcp_port: int
) -> None:
    job = make_job(prompt=scripted([{"text": "Done by another key."}]), credentials=AgentCredentials(
        api_key=KEY, base_url=model.base_url
    ))  # fmt: skip
    for own in ({}, {"ANTHROPIC_API_KEY": "own", "ANTHROPIC_BASE_URL": f"http://127.0.0.1:{unused_tcp_port}"}):
        async with open_runner("claude", own) as runner:
            finished = await run_agent(runner, job, reported.append)
        assert (finished.kind, finished.summary) == ("completed", "Done by another key.")
    assert KEY not in repr(job) + repr(reported) + repr(finished)
    shown = [path.read_bytes() for path in job.scratch.rglob("*") if path.is_file()]
    assert shown and not any(KEY.encode() in text for text in shown)


@pytest.mark.parametrize(
    ("credentials", "words"),
    [
        ({"api_key": "sk-wrong"}, "a valid key into the agent type"),
        ({"api_key": KEY, "base_url": "nonsense"}, "Correct the agent type's api_base_url"),
    ],
)
async def test_refused_credentials_of_a_lease_name_the_agent_type(
    model: ScriptedModel, make_job: MakeJob, reported: Reported, credentials: dict[str, str], words: str
) -> None:
    own = AgentCredentials(**{"base_url": model.base_url, **credentials})
    async with open_runner("claude", {}) as runner:
        finished = await run_agent(runner, make_job(credentials=own), reported.append)
    assert finished.kind == "authentication_refused"
    assert words in finished.message


async def test_missing_key_is_told_without_a_start(make_job: MakeJob, reported: Reported) -> None:
    async with open_runner("claude", {}) as runner:
        finished = await run_agent(runner, make_job(), reported.append)
    assert finished.kind == "authentication_refused"
    assert "ANTHROPIC_API_KEY" in finished.message


async def test_an_address_that_is_none_fails_the_task_and_not_the_runner(make_job: MakeJob, reported: Reported) -> None:
    async with open_runner("claude", {"ANTHROPIC_API_KEY": KEY, "ANTHROPIC_BASE_URL": "foo"}) as runner:
        finished = await run_agent(runner, make_job(), reported.append)
    assert finished.kind == "authentication_refused"
    assert "ANTHROPIC_BASE_URL: foo is no address" in finished.message


async def test_unreachable_api_is_told_at_once(
    model: ScriptedModel, make_job: MakeJob, reported: Reported, unused_tcp_port: int
) -> None:
    plain_s = await plain_run_s(model, make_job)
    environment = {"ANTHROPIC_API_KEY": KEY, "ANTHROPIC_BASE_URL": f"http://127.0.0.1:{unused_tcp_port}"}
    started = time.monotonic()
    async with open_runner("claude", environment) as runner:
        finished = await run_agent(runner, make_job(), reported.append)
    assert finished.kind == "unavailable"
    assert str(unused_tcp_port) in finished.message
    assert not tries_again(reported)
    assert time.monotonic() - started < 2 * plain_s + 25


async def test_passing_overload_is_survived(runner: ClaudeRunner, make_job: MakeJob, reported: Reported) -> None:
    script = scripted(
        [call("Write", file_path="a.txt", content="a")], {"fault": 529, "times": 1, "blocks": [{"text": "Done."}]}
    )
    finished = await run_agent(runner, make_job(prompt=script), reported.append)
    assert finished.kind == "completed"
    assert tries_again(reported)


async def test_api_that_hangs_is_given_up_and_an_answer_that_stalls_is_tried_again(
    runner: ClaudeRunner, make_job: MakeJob, tmp_path: Path
) -> None:
    prompts = [{"fault": "hang"}, {"fault": "stall", "times": 1, "blocks": [{"text": "Recovered."}]}]
    jobs = separate_jobs(make_job, tmp_path, [scripted(prompt) for prompt in prompts])
    hung, stalled = await asyncio.gather(*(run_agent(runner, job, Reported().append) for job in jobs))
    assert hung.kind == "unavailable"
    assert (stalled.kind, stalled.summary) == ("completed", "Recovered.")


async def test_cancelling_at_the_start_leaves_no_process(
    runner: ClaudeRunner, make_job: MakeJob, reported: Reported
) -> None:
    job = make_job()
    running = asyncio.create_task(run_agent(runner, job, reported.append))
    await eventually(lambda: processes(job))
    started = time.monotonic()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert time.monotonic() - started < 15
    assert not processes(job)


async def test_receiver_that_fails_ends_the_run(runner: ClaudeRunner, make_job: MakeJob) -> None:
    def refuse(activity: Activity) -> None:
        raise ValueError("full")

    job = make_job(prompt=scripted([{"text": "I begin."}, call("Bash", command=only_sleep())]))
    started = time.monotonic()
    with pytest.raises(ValueError, match="full"):
        await run_agent(runner, job, refuse)
    assert time.monotonic() - started < 60
    assert not processes(job)


async def test_cli_that_is_killed_is_an_agent_error(
    runner: ClaudeRunner, make_job: MakeJob, reported: Reported
) -> None:
    job = make_job(prompt=scripted([call("Bash", command="kill -9 $PPID")]))
    finished = await run_agent(runner, job, reported.append)
    assert finished.kind == "agent_error"
    assert "The Claude CLI failed" in finished.message
    assert finished.usage.input_tokens > 0


async def test_cli_dies_with_a_killed_runner(model: ScriptedModel, make_job: MakeJob) -> None:
    sleep = only_sleep()
    job = make_job(prompt=scripted([call("Bash", command=sleep)]))
    code = f"""
import asyncio
from pathlib import Path
from services.runner.agents import Job, open_runner
from services.runner.sandbox import Unsandboxed
from shared.spec import AgentSpec
from tests.agents.probes import run_agent

async def main():
    environment = {{"ANTHROPIC_API_KEY": {KEY!r}, "ANTHROPIC_BASE_URL": {model.base_url!r}}}
    job = Job(plan={job.plan!r}, task="T1", attempt=2, lease=3, prompt={job.prompt!r}, agent=AgentSpec(
        sdk_type="claude"), cwd=Path({str(job.cwd)!r}), scratch=Path({str(job.scratch)!r}), timeout_s=600,
        budget_usd=1, env={{}}, enclosure=Unsandboxed())
    async with open_runner("claude", environment) as runner:
        await run_agent(runner, job, print)

asyncio.run(main())
"""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code)
    await eventually(lambda: is_running(sleep))
    process.kill()
    await process.wait()
    await eventually(lambda: not processes(job))


async def test_model_is_not_replaced_by_a_newer_one(
    model: ScriptedModel, runner: ClaudeRunner, make_job: MakeJob, reported: Reported
) -> None:
    agent = AgentSpec(sdk_type="claude", model="claude-opus-4-1-20250805")
    await run_agent(runner, make_job(agent=agent, prompt=scripted([{"text": "Done."}])), reported.append)
    assert [request.body["model"] for request in model.requests] == ["claude-opus-4-1-20250805"]


async def test_timeout_ends_the_run_and_keeps_its_costs(
    runner: ClaudeRunner, make_job: MakeJob, reported: Reported
) -> None:
    sleep = only_sleep()
    job = make_job(prompt=scripted([call("Bash", command=sleep)]), timeout_s=15.0)  # enough to begin, on any machine
    finished = await run_agent(runner, job, reported.append)
    assert finished.kind == "timeout"
    assert finished.usage.input_tokens > 0
    assert not processes(job)
    assert not is_running(sleep)


async def test_spent_budget_ends_the_run(
    model: ScriptedModel, runner: ClaudeRunner, make_job: MakeJob, reported: Reported
) -> None:
    dear = {"blocks": [call("Bash", command="true")], "usage": {"output_tokens": 1_000_000}}
    finished = await run_agent(runner, make_job(prompt=scripted(dear, dear, dear), budget_usd=2.0), reported.append)
    assert finished.kind == "budget_spent"
    assert "of the 2 USD" in finished.message
    assert finished.usage.output_tokens == 1_000_000
    assert len(model.requests) == 1


async def test_writing_outside_the_worktree_is_denied_and_said(
    runner: ClaudeRunner, make_job: MakeJob, reported: Reported, tmp_path: Path
) -> None:
    outside = tmp_path / "outside.txt"
    script = scripted(
        [call("Write", file_path=str(outside), content="x"), call("Write", file_path="../up.txt", content="x")],
        [{"text": "I could not."}],
    )
    finished = await run_agent(runner, make_job(prompt=script), reported.append)
    assert not outside.exists()
    assert not (tmp_path / "up.txt").exists()
    assert finished.kind == "completed"
    assert "not allowed" in finished.message
    assert "outside.txt" in finished.message


async def test_instructions_of_the_repository_join_the_prompt(
    model: ScriptedModel, runner: ClaudeRunner, make_job: MakeJob, reported: Reported
) -> None:
    job = make_job(prompt=scripted([{"text": "Done."}]))
    (job.cwd / "CLAUDE.md").write_text("Use four spaces, said the canary.")
    finished = await run_agent(runner, job, reported.append)
    assert finished.kind == "completed"
    assert "said the canary" in json.dumps(model.requests[0].body["messages"])


async def test_thoughts_are_reported(make_job: MakeJob) -> None:
    message = AssistantMessage([ThinkingBlock("Hm.", "signature"), TextBlock("x" * 100_000)], "some-model")
    thought, said = activities(message, make_job())
    assert (thought.kind, thought.text) == ("thinking", "Hm.")
    assert said.text.endswith("[cut]")


async def test_instructions_that_lead_out_of_the_repository_are_not_read(
    model: ScriptedModel, runner: ClaudeRunner, make_job: MakeJob, reported: Reported, tmp_path: Path
) -> None:
    (tmp_path / "secret.md").write_text("the canary")
    job: Job = make_job(prompt=scripted([{"text": "Done."}]))
    (job.cwd / "CLAUDE.md").symlink_to(tmp_path / "secret.md")
    finished: Finished = await run_agent(runner, job, reported.append)
    assert finished.kind == "completed"
    assert "the canary" not in json.dumps(model.requests[0].body)


async def test_unknown_price_is_said(runner: ClaudeRunner, make_job: MakeJob, reported: Reported) -> None:
    agent = AgentSpec(sdk_type="claude", model="claude-new-9")
    finished = await run_agent(runner, make_job(agent=agent, prompt=scripted([{"text": "Done."}])), reported.append)
    assert finished.kind == "completed"
    assert "No price is known for claude-new-9" in reported.texts("treadle")[0]


async def test_jobs_at_once_do_not_mix(
    model: ScriptedModel, runner: ClaudeRunner, make_job: MakeJob, tmp_path: Path
) -> None:
    prompts = [
        scripted(
            [call("Write", file_path="n.txt", content=str(number))],
            {"blocks": [{"text": f"Done {number}."}], "usage": {"output_tokens": 1000 * number}},
        )
        for number in range(1, 4)
    ]
    jobs = separate_jobs(make_job, tmp_path, prompts)
    finished = await asyncio.gather(*(run_agent(runner, job, Reported().append) for job in jobs))
    assert [each.summary for each in finished] == ["Done 1.", "Done 2.", "Done 3."]
    assert [(job.cwd / "n.txt").read_text() for job in jobs] == ["1", "2", "3"]
    assert [each.usage.output_tokens // 1000 for each in finished] == [1, 2, 3]


def separate_jobs(make_job: MakeJob, tmp_path: Path, prompts: list[str]) -> list[Job]:
    """A job for each prompt, each with directories of its own."""
    jobs = []
    for number, prompt in enumerate(prompts):
        code, scratch = tmp_path / f"code-{number}", tmp_path / f"scratch-{number}"
        code.mkdir()
        scratch.mkdir()
        jobs.append(make_job(task=f"T{number}", prompt=prompt, cwd=code, scratch=scratch))
    return jobs
