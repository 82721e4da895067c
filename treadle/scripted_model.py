"""A model that plays scripts: the Messages API on loopback, for the demo without a key and for the tests.

The conversation alone decides what is said: the first user message carries a script in a ```script fence, or a line
`# Task <CODE>: …` whose code names one of the scripts given here, or it asks for a plan (`PLANNING` names the script
for that); the turn to play is the number of assistant messages so far. So the server may be restarted at any time, and
parallel conversations never mix. (The one exception is a fault with `times`, which is counted.)

A script is a list of turns. A turn is a list of blocks, or an object (see `Turn`):

    [[{"text": "I write it."}, {"tool": "Write", "input": {"file_path": "a.txt", "content": "hello"}}],
     {"fault": 529, "times": 1, "blocks": [{"text": "Written."}]}]

The CLI's tools want absolute paths: a relative `file_path` is taken from the working directory that the prompt
names last.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import signal
from collections import Counter
from collections.abc import Mapping, Sequence
from hashlib import sha256
from itertools import takewhile
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeAlias

import msgspec
from aiohttp import web

Fault: TypeAlias = int | Literal["reset", "hang", "stall", "broken"]
"""An HTTP status; or no answer but a closed connection; or no answer at all; or half an answer, and then silence or
what is no JSON. (Only a streamed answer has halves: asked without a stream, the whole one is given.)"""

Script: TypeAlias = Sequence["Turn | list[Block]"]

REQUEST_MAX_BYTES = 64 * 1024 * 1024

_NO_ANSWER = "No response requested."
"""What the CLI puts in the place of an answer that never came, when it resumes a conversation that was interrupted."""

PLANNING = "_draft"
"""The script for whoever is asked for a plan."""

_PLANNING_LINE = re.compile(r"^# Plan the work towards a goal$", re.MULTILINE)
_TASK_LINE = re.compile(r"^# Task ([A-Za-z0-9_][A-Za-z0-9_-]{0,62})\b", re.MULTILINE)
_FENCE = re.compile(r"^```script\n(.*?)^```", re.MULTILINE | re.DOTALL)
_WORKING_DIRECTORY = re.compile(r"working directory: (/[^\n]*)", re.IGNORECASE)

_ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    529: "overloaded_error",
}


class Block(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One piece of an answer: a text, or the call of a tool."""

    text: str = ""
    tool: str = ""
    input: dict[str, Any] = {}


class Turn(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One answer of the model, or a fault in its place."""

    blocks: list[Block] = []
    delay_s: float = 0.0
    """Wait before the first byte."""
    piece_delay_s: float = 0.0
    """Wait before each further piece of a streamed answer: the model is slow, and alive."""
    fault: Fault | None = None
    times: int | None = None
    """How often the fault happens before `blocks` are said; None: always."""
    message: str = ""
    """The words of a fault with a status."""
    headers: dict[str, str] = {}
    """Further headers of the answer, such as `retry-after`."""
    usage: dict[str, int] = {}
    """Token counts to report instead of the ones derived from the text's length."""


class Request(msgspec.Struct, frozen=True):
    """What arrived, for a test to look at."""

    method: str
    path: str
    headers: dict[str, str]
    """Names in lower case."""
    body: dict[str, Any]


class ScriptedModel:
    """`async with ScriptedModel({"T1": [...]}) as model:` serves on `model.base_url` until the block ends."""

    def __init__(self, scripts: Mapping[str, Script] | None = None, *, api_key: str | None = None, port: int = 0):
        """With `api_key`, a request with any other key is answered with 401."""
        self.scripts = dict(scripts or {})
        self.requests: list[Request] = []
        self._api_key = api_key
        self._port = port
        self._faults: Counter[str] = Counter()
        self._closing = asyncio.Event()

    async def __aenter__(self) -> ScriptedModel:
        app = web.Application(client_max_size=REQUEST_MAX_BYTES)
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self._port).start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        await self._runner.cleanup()

    @property
    def base_url(self) -> str:
        host, port = self._runner.addresses[0][:2]
        return f"http://{host}:{port}"

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        body = json.loads(raw) if raw else {}
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.requests.append(Request(request.method, request.path, headers, body))
        if request.method != "POST":
            return web.Response()
        if self._api_key is not None and headers.get("x-api-key") != self._api_key:
            return _error(Turn(fault=401, message="invalid x-api-key"))
        if request.path == "/v1/messages/count_tokens":
            return web.json_response({"input_tokens": len(raw) // 4})
        if request.path != "/v1/messages":
            return _error(Turn(fault=404, message=f"there is no {request.path}"))
        return await self._play(request, body, input_tokens=len(raw) // 4)

    async def _play(self, request: web.Request, body: dict[str, Any], *, input_tokens: int) -> web.StreamResponse:
        turn = turn_for(body, self.scripts)
        await self._wait(turn.delay_s)
        if turn.fault is not None and self._is_due(turn, body):
            if isinstance(turn.fault, int):
                return _error(turn)
            if turn.fault == "hang":
                await self._closing.wait()
            if turn.fault in ("reset", "hang"):
                _abort(request)
                return web.Response()
        else:
            turn = msgspec.structs.replace(turn, fault=None)
        message = _message(turn, body, input_tokens)
        if not body.get("stream"):
            return web.json_response(message, headers=turn.headers)
        return await self._stream(request, turn, [_sse(event) for event in _events(message)])

    async def _stream(self, request: web.Request, turn: Turn, pieces: Sequence[bytes]) -> web.StreamResponse:
        """Sends the answer piece by piece, as far as the turn's fault lets it come."""
        response = web.StreamResponse(headers={"content-type": "text/event-stream", **turn.headers})
        await response.prepare(request)
        if turn.fault is not None:
            await response.write(b"".join(pieces[:3]))
        if turn.fault == "stall":
            await self._closing.wait()
            _abort(request)
        elif turn.fault == "broken":
            await response.write(pieces[3][: len(pieces[3]) // 2] + b"\n\n")
        else:
            for number, piece in enumerate(pieces):
                await self._wait(turn.piece_delay_s if number else 0.0)
                await response.write(piece)
        return response

    def _is_due(self, turn: Turn, body: dict[str, Any]) -> bool:
        if turn.times is None:
            return True
        where = f"{sha256(_opening(body).encode()).hexdigest()}/{_answers_so_far(body)}"
        self._faults[where] += 1
        return self._faults[where] <= turn.times

    async def _wait(self, delay_s: float) -> None:
        """Waits, but not longer than the server lives."""
        if delay_s > 0:
            try:
                await asyncio.wait_for(self._closing.wait(), delay_s)
            except TimeoutError:
                return


def turn_for(body: dict[str, Any], scripts: Mapping[str, Script]) -> Turn:
    """The answer that a conversation asks for; past its script's end, or outside any, a few words."""
    opening = _opening(body)
    # The CLI asks small questions of its own (such as a title for the session), which quote the prompt without tools.
    script = _script_for(opening, scripts) if body.get("tools") else []
    number = _answers_so_far(body)
    if number >= len(script):
        return Turn(blocks=[Block(text="Done." if script else "ok")])
    turn = script[number]
    if isinstance(turn, list):
        turn = Turn(blocks=turn)
    directory = _working_directory(body)
    return msgspec.structs.replace(turn, blocks=[_in_directory(block, directory) for block in turn.blocks])


def _script_for(opening: str, scripts: Mapping[str, Script]) -> Script:
    if fence := _FENCE.search(opening):
        return parse_script(fence[1].encode())
    if _PLANNING_LINE.search(opening):
        return scripts.get(PLANNING, [])
    if (task := _TASK_LINE.search(opening)) is None:
        return []
    code = task[1]
    if code in scripts:
        return scripts[code]
    write = Block(tool="Write", input={"file_path": f"{code}.txt", "content": f"Written by task {code}.\n"})
    return [[write], [Block(text=f"I wrote {code}.txt.")]]


def parse_script(raw: bytes) -> Script:
    """Reads one script from JSON. Raises msgspec.DecodeError (or its ValidationError) where it is not one."""
    return msgspec.json.decode(raw, type=list[Turn | list[Block]])


def parse_scripts(raw: bytes) -> dict[str, Script]:
    """Reads an object of scripts by task code. Raises as `parse_script` does."""
    return dict(msgspec.json.decode(raw, type=dict[str, list[Turn | list[Block]]]))


def _texts(content: Any) -> list[str]:
    if isinstance(content, str):
        return [content]
    return [part.get("text", "") for part in content or [] if isinstance(part, dict)]


def _opening(body: dict[str, Any]) -> str:
    """Everything that stands before the first answer: the prompt, and what the CLI tells of its surroundings."""
    before = takewhile(lambda message: message.get("role") != "assistant", body.get("messages", ()))
    return "\n".join(text for message in before for text in _texts(message.get("content")))


def _answers_so_far(body: dict[str, Any]) -> int:
    answers = (message for message in body.get("messages", ()) if message.get("role") == "assistant")
    return sum(_texts(answer.get("content")) != [_NO_ANSWER] for answer in answers)


def _working_directory(body: dict[str, Any]) -> Path | None:
    """The one named last: a conversation that is taken up again may have moved."""
    asked = (message for message in body.get("messages", ()) if message.get("role") == "user")
    texts = (*_texts(body.get("system")), *(text for message in asked for text in _texts(message.get("content"))))
    found = [match for text in texts for match in _WORKING_DIRECTORY.findall(text)]
    return Path(found[-1].strip()) if found else None


def _in_directory(block: Block, directory: Path | None) -> Block:
    path = block.input.get("file_path")
    if directory is None or not isinstance(path, str):
        return block
    return msgspec.structs.replace(block, input={**block.input, "file_path": str(directory / path)})


def _message(turn: Turn, body: dict[str, Any], input_tokens: int) -> dict[str, Any]:
    number = _answers_so_far(body)
    content: list[dict[str, Any]] = []
    for index, block in enumerate(turn.blocks):
        if block.tool:
            call = {"type": "tool_use", "id": f"toolu_{number:04}_{index:04}", "name": block.tool, "input": block.input}
            content.append(call)
        else:
            content.append({"type": "text", "text": block.text})
    written = sum(len(block.text) + len(json.dumps(block.input)) for block in turn.blocks)
    usage = {
        "input_tokens": input_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "output_tokens": max(1, written // 4),
        **turn.usage,
    }
    return {
        "id": f"msg_{sha256(json.dumps(body.get('messages', [])).encode()).hexdigest()[:24]}",
        "type": "message",
        "role": "assistant",
        "model": body.get("model", "scripted"),
        "content": content,
        "stop_reason": "tool_use" if any(block.tool for block in turn.blocks) else "end_turn",
        "stop_sequence": None,
        "usage": usage,
    }


def _events(message: dict[str, Any]) -> list[dict[str, Any]]:
    """The message as the API streams it: the head, each block in pieces, the end with the true count of output."""
    head = {**message, "content": [], "stop_reason": None, "usage": {**message["usage"], "output_tokens": 1}}
    events: list[dict[str, Any]] = [{"type": "message_start", "message": head}, {"type": "ping"}]
    for index, block in enumerate(message["content"]):
        is_text = block["type"] == "text"
        empty = {**block, "text": ""} if is_text else {**block, "input": {}}
        whole = block["text"] if is_text else json.dumps(block["input"])
        kind, field = ("text_delta", "text") if is_text else ("input_json_delta", "partial_json")
        half = (len(whole) + 1) // 2
        events.append({"type": "content_block_start", "index": index, "content_block": empty})
        for piece in (whole[:half], whole[half:]):
            events.append({"type": "content_block_delta", "index": index, "delta": {"type": kind, field: piece}})
        events.append({"type": "content_block_stop", "index": index})
    end = {"stop_reason": message["stop_reason"], "stop_sequence": None}
    usage = {"output_tokens": message["usage"]["output_tokens"]}
    return [*events, {"type": "message_delta", "delta": end, "usage": usage}, {"type": "message_stop"}]


def _sse(event: dict[str, Any]) -> bytes:
    return f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode()


def _error(turn: Turn) -> web.Response:
    status = turn.fault if isinstance(turn.fault, int) else 500
    kind = _ERROR_TYPES.get(status, "api_error")
    error = {"type": kind, "message": turn.message or f"the script says {status}"}
    return web.json_response({"type": "error", "error": error}, status=status, headers=turn.headers)


def _abort(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()


async def _serve(port_file: Path, scripts: Mapping[str, Script]) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with ScriptedModel(scripts) as model:
        unfinished = port_file.with_name(f"{port_file.name}.new")
        unfinished.write_text(model.base_url.rpartition(":")[2])
        unfinished.replace(port_file)
        await stop.wait()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m treadle.scripted_model", description="A model that plays scripts.")
    parser.add_argument("--port-file", type=Path, required=True, help="where to write the port, once it serves")
    parser.add_argument("--scripts", type=Path, help="a JSON object: task code to script")
    arguments = parser.parse_args()
    try:
        scripts = parse_scripts(arguments.scripts.read_bytes()) if arguments.scripts else {}
    except (OSError, msgspec.DecodeError) as error:
        parser.error(f"can't read the scripts in {arguments.scripts}: {error}")
    asyncio.run(_serve(arguments.port_file, scripts))


if __name__ == "__main__":
    main()
