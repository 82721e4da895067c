"""A runner dies in the middle of a conversation with the real CLI: the next lease goes on in it, with its files.

Here the suite's own runner comes back; on the bench another one takes over, which has nothing in common with the dead
one but NATS and the code repository.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from shared.events import TaskReleased, TaskStarted
from shared.store import Recorded
from shared.streams import SESSIONS, TRANSCRIPTS
from shared.subjects import PLAN, conversation
from tests.end_to_end.model import Model, answers
from tests.end_to_end.plans import Plan, files, git
from tests.end_to_end.runner_bench import ACK_WAIT_S, DEADLINE_S, Bench, open_bench, reached
from tests.end_to_end.suite import Suite, types, until
from tests.nats_process import NatsServer
from treadle.scripted_model import Block, ScriptedModel, Turn

KEY = "sk-ant-made-up-0123456789"
BACK_WITHIN_S = 40.0
"""On a machine that does other things too; `make bench-agent` holds it to 5. Without the journal it would be 60."""
LATER_S = 30.0
"""What a busy machine adds to `ack_wait`, which is a minute where nobody shortens it."""
POLITE_WITHIN_S = 40.0
"""The model is silent for ever, and `ack_wait` is no part of it."""

WRITES = [Block(tool="Write", input={"file_path": "one.txt", "content": "one\n"})]
COPIES = [Block(tool="Bash", input={"command": "cat one.txt > two.txt", "description": "copy"})]
APPENDS = [Block(tool="Bash", input={"command": "cat two.txt two.txt > three.txt", "description": "double"})]
SAYS = [Block(text="One, two and three are written.")]


def one_task() -> Plan:
    task = {"code": "T1", "name": "Write", "description": "Write files.", "timeout_minutes": 2, "budget_usd": 5}
    return {"name": "One task", "tasks": [task]}


@pytest.fixture
def model() -> Iterator[ScriptedModel]:
    """Falls silent after two calls of tools, until `speak_again`."""
    with Model({"T1": [WRITES, COPIES, Turn(fault="hang")]}, api_key=KEY) as serving:
        yield serving


def speak_again(model: ScriptedModel) -> None:
    model.scripts["T1"] = [WRITES, COPIES, APPENDS, SAYS]


def asked(model: ScriptedModel) -> list[dict[str, Any]]:
    """What the agent itself has asked of the model; the CLI's own small questions have no tools."""
    posts = [request.body for request in model.requests if request.path == "/v1/messages"]
    return [body for body in posts if body.get("tools")]


def is_silent(model: ScriptedModel) -> bool:
    """Whether the agent waits for the answer that does not come."""
    return any(len(answers(body)) == 2 for body in asked(model))


def assert_went_on(model: ScriptedModel) -> None:
    """The conversation was begun once, and whoever went on with it knew what had been said."""
    begun = [body for body in asked(model) if not answers(body)]
    assert len(begun) == 1, "the conversation began anew"
    last = asked(model)[-1]
    told = json.dumps(last["messages"])
    assert "You were interrupted" in told
    for call in ("one.txt", "cat one.txt > two.txt", "cat two.txt two.txt > three.txt"):
        assert call in json.dumps(answers(last)), f"{call} is forgotten"


def assert_has_files(repo: Path, made: str) -> None:
    arrived = files(repo, f"treadle/{made}")
    assert (arrived["one.txt"], arrived["two.txt"], arrived["three.txt"]) == ("one", "one", "one\none")


# The same runner ------------------------------------------------------------------------------------------------------


@pytest.fixture
def claude_suite(model: ScriptedModel, tmp_path: Path) -> Iterator[Suite]:
    made = Suite(tmp_path / "suite")
    made.environment |= {"ANTHROPIC_API_KEY": KEY, "ANTHROPIC_BASE_URL": model.base_url}
    made.up("--runners", "1", "--slots", "2")
    try:
        yield made
    finally:
        made.down()


def test_a_runner_that_is_killed_and_comes_back_goes_on_within_seconds(
    claude_suite: Suite, model: ScriptedModel, repo: Path
) -> None:
    made = claude_suite.submit(one_task(), repo)
    until(lambda: is_silent(model), "the agent waits for its model")
    speak_again(model)
    killed_s = time.monotonic()
    claude_suite.kill(claude_suite.pid("runner"))
    claude_suite.event(made, "started", "T1", lease=2)
    took_s = time.monotonic() - killed_s
    claude_suite.standing(made, "completed")
    events = claude_suite.events(made)
    assert types(events, "T1") == [
        "planned", "dispatched", "started", "released", "dispatched", "started", "completed",
    ]  # fmt: skip
    released = next(event for event in events if event["type"] == "released")
    second = [event for event in events if (event["task"], event["type"]) == ("T1", "started")][1]
    assert second["resumes"] == 1
    assert 0 < released["usage"]["cost_usd"] < 5, "charged is what it has told, not all that it might have spent"
    assert_went_on(model)
    assert_has_files(repo, made)
    assert claude_suite.tasks(made)["T1"]["attempt"] == 1
    assert took_s < BACK_WITHIN_S
    until(lambda: not list((claude_suite.data / "work").glob("*/T1-*")), "the workspaces are gone")


# Another one ----------------------------------------------------------------------------------------------------------


@pytest.fixture
async def bench(tmp_path: Path, repo: Path, own_nats: NatsServer) -> AsyncIterator[Bench]:
    async with open_bench(tmp_path, repo, own_nats) as made:
        yield made


def saved(repo: Path, made: str) -> bool:
    """Whether the first lease's files, as they are when the model falls silent, were pushed."""
    ref = f"refs/treadle/{made}/T1/1-wip"
    return bool(git(repo, "for-each-ref", ref)) and {"one.txt", "two.txt"} <= set(files(repo, ref))


async def starts(bench: Bench, made: str) -> list[Recorded]:
    return [record for record in await bench.store.read(made, "T1") if record.type == "started"]


async def test_another_runner_goes_on_with_the_conversation_and_the_files_of_one_that_is_gone(
    bench: Bench, model: ScriptedModel, repo: Path
) -> None:
    secrets = {"anthropic_api_key": KEY, "anthropic_base_url": model.base_url}
    first = bench.service("first", **secrets)
    made = await bench.submit(one_task())
    await reached(lambda: is_silent(model) and saved(repo, made), "the agent waits for its model, and is saved")
    bench.service("second", **secrets)
    await reached(lambda: bench.is_ready("second"), "the second runner takes work")
    speak_again(model)
    killed_s = time.monotonic()
    first.kill()
    second = (await bench.event(made, "started", "T1", 2)).event
    took_s = time.monotonic() - killed_s
    assert isinstance(second, TaskStarted)
    assert (second.runner, second.supersedes, second.resumes) == ("second", 1, 1)
    assert 0 < second.charged.cost_usd < 5
    await bench.event(made, "completed", PLAN)
    assert_went_on(model)
    assert_has_files(repo, made)
    assert took_s < ACK_WAIT_S + LATER_S


async def test_a_runner_that_is_told_to_stop_hands_over_all_that_there_is(
    bench: Bench, model: ScriptedModel, repo: Path
) -> None:
    secrets = {"anthropic_api_key": KEY, "anthropic_base_url": model.base_url}
    first = bench.service("first", **secrets)
    made = await bench.submit(one_task())
    await reached(lambda: is_silent(model), "the agent waits for its model")
    speak_again(model)
    stopped_s = time.monotonic()
    first.terminate()
    released = (await bench.event(made, "released", "T1")).event
    took_s = time.monotonic() - stopped_s
    assert isinstance(released, TaskReleased)
    assert not released.lost and 0 < released.usage.cost_usd < 5
    assert took_s < POLITE_WITHIN_S
    bench.service("second", **secrets)
    await bench.event(made, "completed", PLAN)
    assert_went_on(model)
    assert_has_files(repo, made)


@pytest.mark.parametrize("missing", ["conversation", "files"])
async def test_where_something_is_missing_the_work_begins_afresh_and_says_so(
    bench: Bench, model: ScriptedModel, repo: Path, missing: str
) -> None:
    secrets = {"anthropic_api_key": KEY, "anthropic_base_url": model.base_url}
    first = bench.service("first", **secrets)
    made = await bench.submit(one_task())
    await reached(lambda: is_silent(model) and saved(repo, made), "the agent waits for its model, and is saved")
    first.kill()
    first.wait(DEADLINE_S)
    if missing == "conversation":
        await bench.nc.jetstream().purge_stream(SESSIONS, subject=conversation(made, "T1", 1))
    else:
        git(repo, "update-ref", "-d", f"refs/treadle/{made}/T1/1-wip")
        git(repo, "prune", "--expire=now")
    speak_again(model)
    bench.service("second", **secrets)
    await bench.event(made, "completed", PLAN)
    assert_has_files(repo, made)
    assert len([body for body in asked(model) if not answers(body)]) == 2, "it did not begin anew"
    subscription = await bench.nc.jetstream().subscribe("treadle.log.>", stream=TRANSCRIPTS, ordered_consumer=True)
    told = ""
    while "afresh" not in told:
        told = (await subscription.next_msg(timeout=DEADLINE_S)).data.decode()
    assert "lease 1" in told
