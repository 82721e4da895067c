"""The key proxy, between a plain client and an API made for each test."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from services.runner.api_address import BadAddress
from services.runner.proxy import OPEN_CALLS_MAX, Access, KeyProxy, NoKey
from shared.requests import AgentCredentials
from tests.agents.probes import eventually

KEY = "sk-canary-0123456789"
MESSAGES = "/v1/messages"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def api(handler: Handler) -> AsyncIterator[str]:
    """A server that answers everything with `handler`."""
    app = web.Application(client_max_size=1 << 30)
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def leased(
    handler: Handler, *, path: str = "", budget_usd: float = 1.0
) -> AsyncIterator[tuple[Access, aiohttp.ClientSession]]:
    """A lease on a proxy in front of the handler, and a client that holds its token."""
    async with api(handler) as url, KeyProxy(KEY, url + path) as proxy:
        with proxy.lease(budget_usd) as access:
            async with aiohttp.ClientSession(access.base_url, headers={"x-api-key": access.token}) as client:
                yield access, client


def event(**fields: Any) -> bytes:
    return f"event: {fields['type']}\ndata: {json.dumps(fields)}\n\n".encode()


HEAD = event(
    type="message_start",
    message={"model": "claude-sonnet-5-5", "usage": {"input_tokens": 1000, "output_tokens": 1}},
)
END = event(type="message_delta", delta={}, usage={"output_tokens": 500})


async def stream(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-type": "text/event-stream; charset=utf-8"})
    await response.prepare(request)
    return response


async def test_first_byte_arrives_and_is_counted_before_the_answer_is_finished() -> None:
    may_finish = asyncio.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        response = await stream(request)
        await response.write(HEAD)
        await may_finish.wait()
        await response.write(END)
        return response

    async with leased(answer) as (access, client), client.post(MESSAGES, json={}) as got:
        assert await asyncio.wait_for(got.content.readexactly(len(HEAD)), 60) == HEAD
        assert (access.usage.input_tokens, access.usage.output_tokens) == (1000, 1)
        may_finish.set()
        assert await got.read() == END
        assert (access.usage.input_tokens, access.usage.output_tokens) == (1000, 500)
        assert access.usage.cost_usd == pytest.approx((1000 * 2 + 500 * 10) / 1e6)


async def test_answer_waits_for_a_slow_reader() -> None:
    total_bytes, written = 100_000_000, 0
    finished = asyncio.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        nonlocal written
        response = await stream(request)
        for _ in range(total_bytes // 100_000):
            await response.write(b"x" * 99_999 + b"\n")
            written += 100_000
        finished.set()
        return response

    async with leased(answer) as (_, client), client.post(MESSAGES, json={}) as got:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(finished.wait(), 1.0)
        assert written < total_bytes / 4
        assert len(await got.read()) == total_bytes


async def test_request_arrives_whole_with_the_key_and_without_the_token() -> None:
    seen: list[tuple[str, dict[str, str], bytes]] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        headers = {name.lower(): value for name, value in request.headers.items()}
        seen.append((request.path_qs, headers, await request.read()))
        return web.json_response({})

    body = {"model": "claude-sonnet-5-5", "messages": [{"role": "user", "content": "y" * 20_000_000}]}
    async with leased(answer, path="/gateway", budget_usd=100.0) as (access, client):
        sent = {"connection": "x-app", "x-app": "1", "cookie": "c=1", "te": "trailers", "x-stainless-lang": "js"}
        sent |= {"anthropic-beta": "effort-2025-11-24, mcp-client-2025-11-20,files-api-2025-04-14", "x-other": "1"}
        await client.post(f"{MESSAGES}?beta=true&other=1", json=body, headers=sent)
        async with aiohttp.ClientSession(access.base_url) as other:
            await other.post(MESSAGES, json={}, headers={"authorization": f"Bearer {access.token}"})
    path, headers, arrived = seen[0]
    assert path == "/gateway/v1/messages?beta=true"
    assert json.loads(arrived) == body
    assert headers["content-length"] == str(len(arrived))
    assert headers["anthropic-beta"] == "effort-2025-11-24"
    assert headers["x-stainless-lang"] == "js"
    assert not {"x-app", "x-other", "cookie", "te", "authorization"} & headers.keys()
    assert [headers["x-api-key"] for _, headers, _ in seen] == [KEY, KEY]
    assert access.token not in repr(seen)


URL_SOURCE = {"type": "url", "url": "https://elsewhere.example/?secret"}


def said(*blocks: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(blocks)}]}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"tools": [{"type": "web_fetch_20250910", "name": "web_fetch"}]}, "web_fetch_20250910"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "run by the provider"),
        ({"tools": [{"name": "a"}, {"type": "code_execution_20250825", "name": "c"}]}, "code_execution"),
        ({"tools": [{"type": "mcp_toolset", "mcp_server_name": "x"}]}, "mcp_toolset"),
        ({"tools": [{"type": ["custom"]}]}, "run by the provider"),
        ({"tools": ["web_fetch"]}, "tools can't be understood"),
        ({"mcp_servers": [{"type": "url", "url": "https://elsewhere.example"}]}, "mcp_servers"),
        ({"container": "c"}, "container"),
        ({"speed": "fast"}, "speed"),
        (said({"type": "image", "source": URL_SOURCE}), "network_allow"),
        (said({"type": "document", "source": {"type": "file", "file_id": "f"}}), "'file'"),
        (said({"type": "document"}), "network_allow"),
        (said({"type": "container_upload", "file_id": "f"}), "container_upload"),
        (said({"type": "tool_result", "content": [{"type": "image", "source": URL_SOURCE}]}), "'url'"),
        (
            said({"type": "document", "source": {"type": "content", "content": [{"type": "image", "source": None}]}}),
            "network_allow",
        ),
        (
            said({"type": "tool_addition", "tool": {"type": "tool_definition", "definition": {"type": "web_fetch_1"}}}),
            "web_fetch_1",
        ),
        ({"system": [{"type": "image", "source": URL_SOURCE}]}, "'url'"),
        ([], "no JSON object"),
        (b"{", "can't be read"),
        (b"[" * 100_000, "can't be read"),
    ],
)
@pytest.mark.parametrize("path", [MESSAGES, "/v1/messages/count_tokens"])
async def test_what_would_make_the_provider_reach_out_is_refused(path: str, body: Any, words: str) -> None:
    calls = 0

    async def answer(request: web.Request) -> web.StreamResponse:
        nonlocal calls
        calls += 1
        return web.json_response({})

    async with leased(answer) as (access, client):
        got = await client.post(path, data=body if isinstance(body, bytes) else json.dumps(body))
        error = (await got.json())["error"]
        assert (got.status, got.headers["x-should-retry"], error["type"]) == (400, "false", "invalid_request_error")
        assert words in error["message"]
        assert (calls, access.usage.cost_usd) == (0, 0.0)


async def test_of_a_field_that_stands_twice_only_the_checked_one_is_passed_on() -> None:
    seen: list[bytes] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        seen.append(await request.read())
        return web.json_response({})

    async with leased(answer) as (_, client):
        twice = b'{"tools": [{"type": "web_fetch_20250910"}], "tools": [{"name": "own"}]}'
        assert (await client.post(MESSAGES, data=twice)).status == 200
    assert b"web_fetch" not in seen[0]


async def test_what_the_agent_does_itself_is_passed_on() -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.json_response({})

    like_a_url = {"type": "tool_use", "id": "1", "name": "x", "input": {"type": "url", "source": URL_SOURCE}}
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "A" * 3_000_000}}
    body = said({"type": "text", "text": "hi"}, like_a_url, {"type": "tool_result", "content": [image]})
    body["tools"] = [{"name": "x"}, {"type": "custom", "name": "y"}, {"type": "bash_20250124", "name": "bash"}]
    async with leased(answer) as (access, client):
        assert (await client.post(MESSAGES, json=body)).status == 200
        assert 5000 <= access.usage.input_tokens < 6000


async def test_request_past_the_apis_own_limit_is_refused() -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.json_response({})

    async with leased(answer) as (_, client):
        got = await client.post(MESSAGES, data=b" " * (32 * 1024 * 1024 + 1))
        assert (got.status, (await got.json())["error"]["type"]) == (413, "request_too_large")


def counted(access: Access, output_tokens: int) -> bool:
    return access.meter.told.output_tokens == output_tokens


async def test_calls_that_are_dropped_before_their_answer_spend_the_budget() -> None:
    begun: asyncio.Queue[None] = asyncio.Queue()

    async def answer(request: web.Request) -> web.StreamResponse:
        begun.put_nowait(None)
        await asyncio.Event().wait()
        raise AssertionError("nobody waits for it")

    body = {"model": "claude-sonnet-5-5", "max_tokens": 20_000}
    async with leased(answer, budget_usd=0.3) as (access, client):
        for so_far in (1, 2):
            calling = asyncio.create_task(client.post(MESSAGES, json=body))
            await begun.get()
            calling.cancel()
            await eventually(partial(counted, access, so_far * 20_000))
        assert (await client.post(MESSAGES, json=body)).status == 400
        assert begun.empty()


async def test_stream_that_is_dropped_before_its_counts_spends_the_budget() -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = await stream(request)
        text = {"type": "text_delta", "text": "word " * 6000}
        await response.write(HEAD + event(type="content_block_delta", delta=text))
        await asyncio.Event().wait()
        return response

    async with leased(answer, budget_usd=0.1) as (access, client):
        async with client.post(MESSAGES, json={"stream": True}) as got:
            await got.content.readuntil(b"\n\n")
            await got.content.readuntil(b"\n\n")
            got.close()
        await eventually(lambda: access.meter.told.output_tokens == 10_000)
        assert (await client.post(MESSAGES, json={})).status == 400


async def test_call_waits_where_open_ones_may_have_spent_the_budget() -> None:
    """And goes on when it turns out that they have not."""
    may_finish = asyncio.Event()
    calls = 0

    async def answer(request: web.Request) -> web.StreamResponse:
        nonlocal calls
        calls += 1
        await may_finish.wait()
        return web.json_response({"model": "claude-sonnet-5-5", "usage": {"output_tokens": 1}})

    body = {"model": "claude-sonnet-5-5", **said({"type": "text", "text": "x" * 300_000})}
    async with leased(answer, budget_usd=0.1) as (access, client):
        first = asyncio.create_task(client.post(MESSAGES, json=body))
        await eventually(lambda: calls == 1)
        assert (access.may_be_spent, access.is_budget_spent) == (True, False)
        second = asyncio.create_task(client.post(MESSAGES, json=body))
        done, _ = await asyncio.wait((second,), timeout=0.5)  # not for a condition to come, but for none to change
        assert (done, calls) == (set(), 1)
        may_finish.set()
        assert [(await call).status for call in (first, second)] == [200, 200]


async def test_end_of_the_lease_ends_its_calls_and_those_that_wait() -> None:
    calls = 0

    async def answer(request: web.Request) -> web.StreamResponse:
        nonlocal calls
        calls += 1
        response = await stream(request)
        await response.write(HEAD)
        await asyncio.Event().wait()
        return response

    async with api(answer) as url, KeyProxy(KEY, url) as proxy:
        with proxy.lease(1.0) as access:
            client = aiohttp.ClientSession(access.base_url, headers={"x-api-key": access.token})
            asked = [asyncio.create_task(client.post(MESSAGES, json={"stream": True})) for _ in range(OPEN_CALLS_MAX)]
            open_calls = [await call for call in asked]
            waiting = asyncio.create_task(client.post(MESSAGES, json={}))
            await eventually(lambda: len(access._calls) == OPEN_CALLS_MAX + 1)
        async with client, asyncio.timeout(60):
            assert (await waiting).status == 401
            for got in open_calls:
                with pytest.raises(aiohttp.ClientError):
                    await got.read()
    assert calls == OPEN_CALLS_MAX


async def test_unknown_and_revoked_tokens_are_refused() -> None:
    calls = 0

    async def answer(request: web.Request) -> web.StreamResponse:
        nonlocal calls
        calls += 1
        return web.json_response({})

    async with api(answer) as url, KeyProxy(KEY, url) as proxy:
        with proxy.lease(1.0) as access, proxy.lease(1.0) as other:
            assert access.token != other.token
        with proxy.lease(1.0) as current:
            async with aiohttp.ClientSession(current.base_url) as client:
                for token, status in ((access.token, 401), ("", 401), ("ü", 401), (KEY, 401), (current.token, 200)):
                    got = await client.post(MESSAGES, json={}, headers={"x-api-key": token})
                    assert (got.status, token) == (status, token)
                    assert status == 200 or (await got.json())["error"]["type"] == "authentication_error"
    assert calls == 1


async def test_each_lease_has_its_own_key_and_address() -> None:
    seen: list[tuple[str, str]] = []

    def answering(name: str) -> Handler:
        async def answer(request: web.Request) -> web.StreamResponse:
            key = request.headers["x-api-key"]
            seen.append((name, key))
            return web.json_response({"error": {"type": "x", "message": f"{key} {KEY}"}}, status=400)

        return answer

    other_key = "sk-other-0123456789"
    async with api(answering("own")) as own, api(answering("other")) as other, KeyProxy(KEY, own) as proxy:
        others = AgentCredentials(api_key=other_key, base_url=f"{other}/base")
        with proxy.lease(1.0) as first, proxy.lease(1.0, others) as second:
            for access, expected in ((first, "[key] [key]"), (second, f"[key] {KEY}"), (first, "[key] [key]")):
                async with aiohttp.ClientSession(access.base_url, headers={"x-api-key": access.token}) as client:
                    told = (await (await client.post(MESSAGES, json={})).json())["error"]["message"]
                assert told == expected
                assert access.refusal is not None and access.refusal.message == expected
            assert other_key not in repr(second) + repr(second.upstream) + repr(proxy)
    assert seen == [("own", KEY), ("other", other_key), ("own", KEY)]


async def test_a_lease_without_credentials_needs_the_process_to_have_a_key() -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.json_response({"key": request.headers["x-api-key"]})

    async with api(answer) as url, KeyProxy(None) as proxy:
        with pytest.raises(NoKey), proxy.lease(1.0):
            pass
        with proxy.lease(1.0, AgentCredentials(api_key="sk-its-own", base_url=url)) as access:
            async with aiohttp.ClientSession(access.base_url, headers={"x-api-key": access.token}) as client:
                assert (await (await client.post(MESSAGES, json={})).json()) == {"key": "sk-its-own"}
        bad = AgentCredentials(api_key=KEY, base_url="file:///etc")
        with pytest.raises(BadAddress), proxy.lease(1.0, bad):
            pass


async def test_only_two_calls_are_passed_on() -> None:
    seen: list[str] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        seen.append(request.path)
        return web.json_response({})

    async with leased(answer) as (_, client):
        refused = ["/v1/messages/batches", "/v1/files", "/", "/v1/messages/../files", "/v1/messages/"]
        assert [(await client.post(path, json={})).status for path in refused] == [404] * len(refused)
        assert (await client.get(MESSAGES)).status == 404
        assert (await client.post("/v1/messages/count_tokens", json={})).status == 200
    assert seen == ["/v1/messages/count_tokens"]


async def test_error_is_passed_on_and_remembered_without_the_key() -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        error = {"type": "rate_limit_error", "message": f"{request.headers['x-api-key']} is too fast"}
        headers = {"retry-after": "30", "x-echo": f"key {KEY}"}
        return web.json_response({"type": "error", "error": error}, status=429, headers=headers)

    async with leased(answer) as (access, client):
        got = await client.post(MESSAGES, json={})
        assert (got.status, got.headers["retry-after"]) == (429, "30")
        assert "x-should-retry" not in got.headers
        assert KEY not in await got.text() + repr(got.headers) + repr(access.refusal)
        assert access.refusal is not None
        assert (access.refusal.status, access.refusal.kind) == (429, "rate_limit_error")
        assert access.refusal.message == "[key] is too fast"
        assert access.refusal.retry_after_s == 30


async def test_long_wait_is_not_waited_for_by_trying_again() -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.json_response({}, status=429, headers={"retry-after": "3600"})

    async with leased(answer) as (access, client):
        assert (await client.post(MESSAGES, json={})).headers["x-should-retry"] == "false"
        assert access.refusal is not None
        assert access.refusal.retry_after_s == 3600


async def test_bytes_that_pass_are_counted_as_they_pass() -> None:
    may_finish = asyncio.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        response = await stream(request)
        await response.write(b": ping\n\n")
        await may_finish.wait()
        return response

    async with leased(answer) as (access, client), client.post(MESSAGES, json={}) as got:
        assert await asyncio.wait_for(got.content.readexactly(8), 60)
        assert access.passed_bytes == 8
        may_finish.set()


async def test_page_in_place_of_an_error_is_remembered_by_its_beginning() -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(status=503, text="<h1>gateway down</h1>" * 10_000, content_type="text/html")

    async with leased(answer) as (access, client):
        assert (await client.post(MESSAGES, json={})).status == 503
        assert access.refusal is not None
        assert access.refusal.message.startswith("<h1>gateway down")
        assert len(access.refusal.message) <= 500


async def test_redirect_does_not_take_the_key_along() -> None:
    elsewhere: list[web.Request] = []

    async def other(request: web.Request) -> web.StreamResponse:
        elsewhere.append(request)
        return web.json_response({})

    async with api(other) as other_url:

        async def answer(request: web.Request) -> web.StreamResponse:
            raise web.HTTPTemporaryRedirect(other_url)

        async with leased(answer) as (_, client):
            assert (await client.post(MESSAGES, json={}, allow_redirects=False)).status == 307
    assert not elsewhere


async def test_unreachable_api_is_an_error_that_is_not_tried_again(
    unused_tcp_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with KeyProxy(KEY, f"http://127.0.0.1:{unused_tcp_port}") as proxy:
        with proxy.lease(1.0) as access:
            async with aiohttp.ClientSession(access.base_url, headers={"x-api-key": access.token}) as client:
                got = await client.post(MESSAGES, json={})
                body = await got.json()
        assert (got.status, got.headers["x-should-retry"]) == (502, "false")
        assert (body["type"], body["error"]["type"]) == ("error", "api_error")
        assert str(unused_tcp_port) in body["error"]["message"]
        assert KEY not in caplog.text + repr(body) + repr(proxy) + repr(access)


async def test_api_that_answered_before_may_be_tried_again() -> None:
    calls = 0

    async def answer(request: web.Request) -> web.StreamResponse:
        nonlocal calls
        calls += 1
        if calls == 2 and request.transport is not None:
            request.transport.abort()
        return web.json_response({})

    async with leased(answer) as (_, client):
        statuses = [(await client.post(MESSAGES, json={})) for _ in range(3)]
        assert [got.status for got in statuses] == [200, 502, 200]
        assert "x-should-retry" not in statuses[1].headers


async def test_client_that_goes_away_ends_the_call() -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        raise AssertionError("it never ends by itself")

    async with leased(answer) as (_, client):
        calling = asyncio.create_task(client.post(MESSAGES, json={}))
        await asyncio.wait_for(begun.wait(), 60)
        calling.cancel()
        await asyncio.wait_for(ended.wait(), 60)


async def test_half_an_answer_does_not_look_whole() -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = await stream(request)
        await response.write(HEAD)
        assert request.transport is not None
        request.transport.abort()
        return response

    async with leased(answer) as (access, client):
        with pytest.raises(aiohttp.ClientError):
            await (await client.post(MESSAGES, json={})).read()
        assert access.usage.input_tokens == 1000


async def test_compressed_answer_is_readable_and_counted() -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        usage = {"input_tokens": 7, "output_tokens": 3}
        response = web.json_response({"model": "claude-sonnet-5-5", "usage": usage})
        response.enable_compression(web.ContentCoding.gzip)
        response._compression_force = web.ContentCoding.gzip  # although the proxy asked for none
        return response

    async with leased(answer) as (access, client):
        got = await client.post(MESSAGES, json={})
        assert (await got.json())["usage"]["input_tokens"] == 7
        assert (access.usage.input_tokens, access.usage.output_tokens) == (7, 3)


async def test_spent_budget_closes_the_access() -> None:
    calls = 0

    async def answer(request: web.Request) -> web.StreamResponse:
        nonlocal calls
        calls += 1
        return web.json_response({"model": "claude-sonnet-5-5", "usage": {"output_tokens": 60_000}})

    async with leased(answer, budget_usd=1.0) as (access, client):
        statuses = [(await client.post(MESSAGES, json={})).status for _ in range(4)]
        assert (statuses, calls) == ([200, 200, 400, 400], 2)
        assert access.is_budget_spent
        assert access.usage.cost_usd == pytest.approx(1.2)


@pytest.mark.parametrize("upstream", ["", "api.anthropic.com", "file:///etc/passwd", "https://"])
def test_address_that_is_none_is_refused(upstream: str) -> None:
    with pytest.raises(ValueError, match="address"):
        KeyProxy(KEY, upstream)
