"""Trying an agent type's credentials out, against an API made for each test and the scripted model."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web

from services.runner.agents import Trial, claude_trial, try_out
from shared.requests import AgentCredentials
from shared.spec import DEFAULT_MODEL
from tests.agents.test_proxy import api
from treadle.scripted_model import ScriptedModel

KEY = "sk-canary-0123456789"

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


def refusing(status: int, kind: str, message: str) -> Answer:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.json_response({"type": "error", "error": {"type": kind, "message": message}}, status=status)

    return answer


async def tried(base_url: str | None, key: str = KEY, model: str = "") -> Trial:
    trial = await try_out("claude", AgentCredentials(api_key=key, base_url=base_url), model)
    assert key not in trial.message
    return trial


async def test_a_good_key_costs_one_token() -> None:
    seen: list[tuple[str, Any, str | None]] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        seen.append((request.path, await request.json(), request.headers.get("x-api-key")))
        return web.json_response({"type": "message", "content": []})

    async with api(answer) as url:
        assert (await tried(f"{url}/base/")).code == "ok"
        assert (await tried(url, model="claude-opus-5-5")).code == "ok"
    path, body, key = seen[0]
    assert (path, body["model"], body["max_tokens"], key) == ("/base/v1/messages", DEFAULT_MODEL, 1, KEY)
    assert seen[1][1]["model"] == "claude-opus-5-5"


async def test_the_scripted_model_takes_its_own_key_only() -> None:
    async with ScriptedModel(api_key=KEY) as model:
        assert (await tried(model.base_url)).code == "ok"
        wrong = await tried(model.base_url, "sk-wrong")
    assert wrong.code == "wrong_key"
    assert "Put a valid key" in wrong.message


@pytest.mark.parametrize(
    ("status", "kind", "words", "code"),
    [
        (401, "authentication_error", f"invalid x-api-key {KEY}", "wrong_key"),
        (403, "permission_error", "not allowed", "wrong_key"),
        (404, "not_found_error", "model: x", "unknown_model"),
        (404, "other_error", "nothing here", "refused"),
        (400, "invalid_request_error", f"{DEFAULT_MODEL} is not a model", "unknown_model"),
        (400, "invalid_request_error", "credit balance is too low", "refused"),
        (429, "rate_limit_error", "slow down", "refused"),
        (529, "overloaded_error", "busy\x1b[31m", "refused"),
    ],
)
async def test_each_refusal_has_its_code_and_the_apis_words(status: int, kind: str, words: str, code: str) -> None:
    async with api(refusing(status, kind, words)) as url:
        trial = await tried(url)
    assert trial.code == code
    assert words.replace(KEY, "[key]").removesuffix("\x1b[31m") in trial.message
    assert "\x1b" not in trial.message


async def test_a_page_in_place_of_an_answer_is_no_success() -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(text="<h1>Sign in</h1>" * 1000, content_type="text/html")

    async with api(answer) as url:
        trial = await tried(url)
    assert trial.code == "refused"
    assert "status 200, but not as the API does" in trial.message


@pytest.mark.parametrize("status", [200, 400, 401, 403, 404, 429, 500])
@pytest.mark.parametrize(
    "body",
    [
        "AccessKeyId: inner-canary",
        '{"AccessKeyId": "inner-canary"}',
        '"inner-canary"',
        '{"type": "error", "error": "inner-canary"}',
        '{"type": "error", "error": {"code": "inner-canary"}}',
        '{"error": {"type": "x", "message": "inner-canary"}}',
        '{"type": "message", "content": "inner-canary"}',
    ],
)
async def test_what_is_not_the_apis_own_error_is_never_shown(status: int, body: str) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(text=body, status=status)

    async with api(answer) as url:
        trial = await tried(url)
    assert "canary" not in trial.message
    assert (str(status) in trial.message) == (trial.code != "ok") or status == 429


async def test_what_speaks_no_http_is_not_quoted(unused_tcp_port: int) -> None:
    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-inner-canary\r\n\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(speak, "127.0.0.1", unused_tcp_port):
        trial = await tried(f"http://127.0.0.1:{unused_tcp_port}")
    assert trial.code == "no_route"
    assert "canary" not in trial.message


async def test_the_apis_words_are_cut_to_a_line() -> None:
    async with api(refusing(500, "api_error", "far\ntoo\u202e long " * 100)) as url:
        trial = await tried(url)
    said = trial.message.partition("status 500: ")[2]
    assert said.startswith("far too") and len(said) <= 200 and said.isprintable()


async def test_a_redirect_does_not_take_the_key_along() -> None:
    elsewhere: list[web.Request] = []

    async def other(request: web.Request) -> web.StreamResponse:
        elsewhere.append(request)
        return web.json_response({"type": "message"})

    async with api(other) as other_url:

        async def answer(request: web.Request) -> web.StreamResponse:
            raise web.HTTPTemporaryRedirect(f"{other_url}/v1/messages")

        async with api(answer) as url:
            assert (await tried(url)).code == "refused"
    assert elsewhere == []


async def test_what_can_not_be_reached_is_no_route(unused_tcp_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (await tried(f"http://127.0.0.1:{unused_tcp_port}")).code == "no_route"
    assert (await tried("http://nowhere.invalid")).code == "no_route"
    assert (await tried("ftp://127.0.0.1")).code == "no_route"
    async with api(refusing(401, "x", "y")) as url:
        assert (await tried(url.replace("http://", "https://"))).code == "no_route"  # it speaks no TLS

    async def never(request: web.Request) -> web.StreamResponse:
        await asyncio.Event().wait()
        raise AssertionError("it never ends by itself")

    monkeypatch.setattr(claude_trial, "ANSWER_WITHIN_S", 0.2)
    async with api(never) as url:
        silent = await tried(url)
    assert (silent.code, "did not answer" in silent.message) == ("no_route", True)


async def test_no_key_and_no_possible_key_are_wrong_keys() -> None:
    assert (await try_out("claude", None, "")).code == "wrong_key"
    async with api(refusing(500, "x", "y")) as url:
        assert (await tried(url, "sk-\nx: y")).code == "wrong_key"


async def test_a_command_has_nothing_to_try() -> None:
    trial = await try_out("command", None, "")
    assert trial.code == "ok" and "nothing to try" in trial.message
