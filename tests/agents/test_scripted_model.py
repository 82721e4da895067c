"""The scripted model, asked directly; the tests of the agent `claude` ask it through the CLI."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.agents.hostile_scripts import large_write
from tests.agents.probes import eventually
from treadle.scripted_model import Block, ScriptedModel, Turn


async def ask(base_url: str, prompt: str, *answers: str, stream: bool = False, tools: bool = True) -> tuple[int, bytes]:
    """Status and body of the model's answer to a conversation with so many answers behind it."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": [{"type": "text", "text": prompt}]}]
    for answer in answers:
        messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": "and?"}]
    body = {"model": "m", "messages": messages, "stream": stream, "tools": [{"name": "Write"}] if tools else []}
    async with aiohttp.ClientSession() as client, client.post(f"{base_url}/v1/messages", json=body) as got:
        return got.status, await got.read()


def content(answer: tuple[int, bytes]) -> list[dict[str, Any]]:
    status, body = answer
    assert status == 200, body
    found: list[dict[str, Any]] = json.loads(body)["content"]
    return found


async def test_number_of_answers_so_far_chooses_the_turn() -> None:
    script = [[Block(text="first"), Block(tool="Bash", input={"command": "ls"})], [Block(text="second")]]
    async with ScriptedModel({"T1": script}) as model:
        first = content(await ask(model.base_url, "intro\n# Task T1: a name"))
        assert [block["type"] for block in first] == ["text", "tool_use"]
        assert content(await ask(model.base_url, "# Task T1: a name", "x"))[0]["text"] == "second"
        assert content(await ask(model.base_url, "# Task T1: a name", "x", "y"))[0]["text"] == "Done."


async def test_unknown_task_writes_a_file_of_its_name_in_the_working_directory() -> None:
    async with ScriptedModel() as model:
        prompt = "# Task fix-7: a name\nPrimary working directory: /some/where"
        write = content(await ask(model.base_url, prompt))[0]
        assert (write["name"], write["input"]["file_path"]) == ("Write", "/some/where/fix-7.txt")
        assert content(await ask(model.base_url, prompt, "x")) == [{"type": "text", "text": "I wrote fix-7.txt."}]


async def test_questions_without_tools_get_no_script() -> None:
    async with ScriptedModel() as model:
        assert content(await ask(model.base_url, "# Task T1: a name", tools=False))[0]["text"] == "ok"


async def test_script_in_the_prompt_comes_first() -> None:
    async with ScriptedModel({"T1": [[Block(text="no")]]}) as model:
        prompt = '# Task T1: a name\n```script\n[[{"text": "yes"}]]\n```\n'
        assert content(await ask(model.base_url, prompt))[0]["text"] == "yes"


async def test_stream_says_the_same_as_the_whole_answer() -> None:
    usage = {"output_tokens": 42}
    turn = Turn(blocks=[Block(text="word"), Block(tool="Write", input={"file_path": "a", "content": "ü"})], usage=usage)
    async with ScriptedModel({"T1": [turn]}) as model:
        whole = content(await ask(model.base_url, "# Task T1: x"))
        status, body = await ask(model.base_url, "# Task T1: x", stream=True)
    assert status == 200
    events = [json.loads(line[6:]) for line in body.decode().splitlines() if line.startswith("data: ")]
    assert [events[0]["type"], events[1]["type"], events[-1]["type"]] == ["message_start", "ping", "message_stop"]
    deltas = [event["delta"] for event in events if event["type"] == "content_block_delta"]
    assert "".join(delta.get("text", "") for delta in deltas) == whole[0]["text"]
    assert json.loads("".join(delta.get("partial_json", "") for delta in deltas)) == whole[1]["input"]
    assert events[-2]["usage"] == usage


async def test_fault_with_times_passes() -> None:
    async with ScriptedModel({"T1": [Turn(fault=529, times=2, blocks=[Block(text="now")])]}) as model:
        statuses = [(await ask(model.base_url, "# Task T1: x"))[0] for _ in range(3)]
        assert statuses == [529, 529, 200]
        assert (await ask(model.base_url, "# Task T1: another"))[0] == 529


@pytest.mark.parametrize("status", [401, 403, 404, 429, 500, 529])
async def test_refusal_has_its_status_its_kind_its_words_and_its_headers(status: int) -> None:
    turn = Turn(fault=status, message="because", headers={"retry-after": "60"})
    async with ScriptedModel({"T1": [turn]}) as model, aiohttp.ClientSession() as client:
        body = {"messages": [{"role": "user", "content": "# Task T1: x"}], "tools": [{"name": "Write"}], "stream": True}
        async with client.post(f"{model.base_url}/v1/messages", json=body) as got:
            told = await got.json()
    assert (got.status, got.headers["retry-after"], told["error"]["message"]) == (status, "60", "because")
    kinds = {401: "authentication", 403: "permission", 404: "not_found", 429: "rate_limit", 529: "overloaded"}
    assert told["error"]["type"] == f"{kinds.get(status, 'api')}_error"


async def test_reset_closes_the_connection_without_an_answer() -> None:
    async with ScriptedModel({"T1": [Turn(fault="reset")]}) as model:
        with pytest.raises(aiohttp.ClientConnectionError):
            await ask(model.base_url, "# Task T1: x")


async def test_hang_sends_no_headers_for_as_long_as_anybody_waits() -> None:
    async with ScriptedModel({"T1": [Turn(fault="hang")]}) as model:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(ask(model.base_url, "# Task T1: x"), 0.5)
        assert content(await ask(model.base_url, "# Task T2: x"))


async def test_stall_sends_the_beginning_and_then_nothing() -> None:
    async with ScriptedModel({"T1": [Turn(fault="stall", blocks=[Block(text="word")])]}) as model:
        body = {"messages": [{"role": "user", "content": "# Task T1: x"}], "tools": [{"name": "Write"}], "stream": True}
        async with aiohttp.ClientSession() as client, client.post(f"{model.base_url}/v1/messages", json=body) as got:
            beginning = await got.content.readuntil(b"content_block_start")
            with pytest.raises(TimeoutError):
                while True:
                    beginning += await asyncio.wait_for(got.content.readany(), 0.5)
    assert b"message_start" in beginning and b"content_block_start" in beginning
    assert b"word" not in beginning and b"message_stop" not in beginning


async def test_broken_stream_breaks_off_inside_an_event_and_is_whole_when_asked_without_a_stream() -> None:
    async with ScriptedModel({"T1": [Turn(fault="broken", blocks=[Block(text="words")])]}) as model:
        status, body = await ask(model.base_url, "# Task T1: x", stream=True)
        whole = content(await ask(model.base_url, "# Task T1: x"))
    assert status == 200 and whole[0]["text"] == "words"
    *good, broken = [line[6:] for line in body.decode().splitlines() if line.startswith("data: ")]
    assert [json.loads(event)["type"] for event in good] == ["message_start", "ping", "content_block_start"]
    with pytest.raises(json.JSONDecodeError):
        json.loads(broken)


async def test_slow_model_sends_piece_by_piece() -> None:
    turn = Turn(piece_delay_s=0.05, blocks=[Block(text="word")])
    async with ScriptedModel({"T1": [turn]}) as model:
        body = {"messages": [{"role": "user", "content": "# Task T1: x"}], "tools": [{"name": "Write"}], "stream": True}
        pieces: list[bytes] = []
        async with aiohttp.ClientSession() as client, client.post(f"{model.base_url}/v1/messages", json=body) as got:
            async for piece in got.content.iter_any():
                pieces.append(piece)
    assert len(pieces) >= 5
    assert b"".join(pieces).endswith(b'{"type": "message_stop"}\n\n')


async def test_large_write_arrives_whole() -> None:
    (write, *_), _ = turns = large_write()
    async with ScriptedModel({"T1": turns}) as model:
        _, body = await ask(model.base_url, "# Task T1: x", stream=True)
    events = [json.loads(line[6:]) for line in body.decode().splitlines() if line.startswith("data: ")]
    written = "".join(event.get("delta", {}).get("partial_json", "") for event in events)
    assert json.loads(written) == write.input


async def test_it_runs_as_a_process(tmp_path: Path) -> None:
    port_file, scripts = tmp_path / "port", tmp_path / "scripts.json"
    scripts.write_text('{"T1": [[{"text": "from the file"}], {"fault": 500, "delay_s": 0.01}]}')
    command = [sys.executable, "-m", "treadle.scripted_model", "--port-file", str(port_file), "--scripts", str(scripts)]
    process = await asyncio.create_subprocess_exec(*command)
    try:
        await eventually(port_file.exists)
        base_url = f"http://127.0.0.1:{port_file.read_text()}"
        assert content(await ask(base_url, "# Task T1: x"))[0]["text"] == "from the file"
        assert (await ask(base_url, "# Task T1: x", "y"))[0] == 500
    finally:
        process.terminate()
        assert await asyncio.wait_for(process.wait(), 60) == 0


@pytest.mark.parametrize("text", ["{", '{"T1": [[{"txt": "a"}]]}', '{"T1": [{"fault": "fire"}]}'])
async def test_file_that_holds_no_scripts_is_refused_in_words(tmp_path: Path, text: str) -> None:
    scripts = tmp_path / "scripts.json"
    scripts.write_text(text)
    command = [sys.executable, "-m", "treadle.scripted_model", "--port-file", "p", "--scripts", str(scripts)]
    process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE, cwd=tmp_path)
    _, stderr = await process.communicate()
    assert process.returncode == 2
    assert str(scripts) in stderr.decode()
    assert "Traceback" not in stderr.decode()
