"""The sandbox's way to the network: real servers on loopback stand for hosts that are listed by their address."""

from __future__ import annotations

import asyncio
import gc
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from ipaddress import ip_address

import pytest
from aiohttp import web

from services.runner import network
from services.runner.network import NetworkProxy, open_network
from services.runner.sandbox import BadHost
from shared.host_pattern import parse_host_pattern

WITHIN_S = 60.0


@asynccontextmanager
async def server(answer: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> AsyncIterator[int]:
    """A web server; yields its port."""
    app = web.Application(client_max_size=1 << 30)
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


@asynccontextmanager
async def proxy(*allowed: str) -> AsyncIterator[tuple[NetworkProxy, int]]:
    """A network proxy that serves; yields its port too."""
    async with open_network(allowed) as opened:
        listening = socket.create_server(("127.0.0.1", 0))
        listening.setblocking(False)
        serving = asyncio.create_task(opened.serve(listening))
        try:
            yield opened, listening.getsockname()[1]
        finally:
            serving.cancel()
            await asyncio.wait((serving,))


async def say(port: int, request: bytes) -> bytes:
    """The whole answer to a request."""
    async with asyncio.timeout(WITHIN_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request)
        answer = await reader.read()
        writer.close()
        return answer


async def echo(request: web.Request) -> web.Response:
    headers = {name.lower(): value for name, value in request.headers.items()}
    return web.json_response({"path": request.path_qs, "headers": headers, "body": (await request.read()).decode()})


async def test_a_listed_host_is_reached_by_plain_http() -> None:
    async with server(echo) as there, proxy(f"127.0.0.1:{there}") as (opened, port):
        host = f"127.0.0.1:{there}"
        answer = await say(
            port,
            f"POST http://{host}/a?b=c HTTP/1.1\r\nHost: elsewhere.example\r\nProxy-Authorization: Basic x\r\n"
            f"Content-Length: 4\r\nX-Own: 1\r\n\r\nbody".encode(),
        )
        assert b" 200 OK\r\n" in answer
        said = answer.partition(b"\r\n\r\n")[2].decode()
        assert '"path": "/a?b=c"' in said
        assert '"body": "body"' in said
        assert f'"host": "{host}"' in said
        assert '"x-own": "1"' in said
        assert "proxy-authorization" not in said
        assert opened.refused_hosts() == ()
        assert opened.passed_bytes >= len(answer)


async def test_bytes_are_counted_as_they_pass() -> None:
    may_finish = asyncio.Event()

    async def slow(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"x" * 1000)
        await may_finish.wait()
        return response

    async with server(slow) as there, proxy(f"127.0.0.1:{there}") as (opened, port), asyncio.timeout(WITHIN_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"GET http://127.0.0.1:{there}/ HTTP/1.1\r\n\r\n".encode())
        await reader.readuntil(b"x" * 1000)
        assert opened.passed_bytes > 1000
        may_finish.set()
        await reader.read()
        writer.close()


async def test_a_listed_host_is_reached_by_a_tunnel() -> None:
    async with server(echo) as there, proxy(f"127.0.0.1:{there}") as (_, port):
        tunnel = f"CONNECT 127.0.0.1:{there} HTTP/1.1\r\n\r\n".encode()
        answer = await say(port, tunnel + b"GET /inside HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200 Connection established\r\n\r\nHTTP/1.1 200 OK\r\n")
        assert b'"path": "/inside"' in answer


async def test_a_second_request_on_a_connection_goes_nowhere() -> None:
    paths: list[str] = []

    async def note(request: web.Request) -> web.Response:
        paths.append(request.path)
        return web.Response(text="noted")

    async with server(note) as there, proxy(f"127.0.0.1:{there}") as (_, port):
        one = f"GET http://127.0.0.1:{there}/one HTTP/1.1\r\n\r\n"
        two = f"GET http://127.0.0.1:{there}/two HTTP/1.1\r\nHost: sly.example\r\n\r\n"
        assert (await say(port, (one + two).encode())).count(b"200 OK") == 1
    assert paths == ["/one"]


@pytest.mark.parametrize(
    "target",
    ["example.com:443", "example.com:80", "sub.example.com:443", "127.0.0.1:1", "localhost:80", "[::1]:80", "127.1:80"],
)
async def test_what_is_not_listed_is_refused_and_remembered(target: str) -> None:
    async with proxy("example.org", "*.example.net", "localhost:5432") as (opened, port):
        for _ in range(2):
            answer = await say(port, f"CONNECT {target} HTTP/1.1\r\n\r\n".encode())
            assert answer.startswith(b"HTTP/1.1 403 Forbidden\r\n")
            assert f"{target} is not among the hosts".encode() in answer
        assert opened.refused_hosts() == (target,)


@pytest.mark.parametrize(
    "request_line",
    [
        "GET / HTTP/1.1",
        "GET ftp://example.org/ HTTP/1.1",
        "CONNECT example.org HTTP/1.1",
        "CONNECT example.org:0 HTTP/1.1",
        "CONNECT example.org:99999 HTTP/1.1",
        "CONNECT user@example.org:443 HTTP/1.1",
        "CONNECT [::1%25eth0]:443 HTTP/1.1",
        "GET http://user:word@example.org/ HTTP/1.1",
        "GET http://exa mple.org/ HTTP/1.1",
        "GET http://example.org/ HTTP/2",
        "get http://example.org/ HTTP/1.1",
        "GET http://example.org/ HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked",
        "GET http://example.org/ HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2",
        "GET http://example.org/ HTTP/1.1\r\nContent-Length: -1",
        "GET http://example.org/ HTTP/1.1\r\n folded: header",
        "GET http://example.org/ HTTP/1.1\r\nbare: a\nb: c",
        "\x00\xff",
    ],
)
async def test_what_can_be_read_in_two_ways_is_not_read_at_all(request_line: str) -> None:
    async with proxy("example.org") as (opened, port):
        answer = await say(port, f"{request_line}\r\n\r\n".encode("latin-1"))
        assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
        assert opened.refused_hosts() == ()


@pytest.mark.parametrize(
    ("allowed", "host", "address", "may"),
    [
        ("example.com", "example.com", "93.184.215.14", True),
        ("*.example.com", "a.example.com", "2606:2800:21f:cb07::1", True),
        ("git.example.com", "git.example.com", "10.1.2.3", True),
        ("git.example.com", "git.example.com", "fd12::1", True),
        ("*.example.com", "a.example.com", "10.1.2.3", False),
        ("example.com", "example.com", "127.0.0.1", False),
        ("example.com", "example.com", "::1", False),
        ("example.com", "example.com", "::ffff:127.0.0.1", False),
        ("example.com", "example.com", "64:ff9b::7f00:1", False),
        ("example.com", "example.com", "2002:7f00:1::", False),
        ("example.com", "example.com", "169.254.169.254", False),
        ("example.com", "example.com", "fd00:ec2::254", False),
        ("example.com", "example.com", "100.100.100.200", False),
        ("example.com", "example.com", "fe80::1", False),
        ("example.com", "example.com", "0.0.0.0", False),  # noqa: S104 - an answer, nothing binds to it
        ("example.com", "example.com", "224.0.0.1", False),
        ("git.example.com", "git.example.com", "::ffff:0:169.254.169.254", False),
        ("git.example.com", "git.example.com", "::ffff:0:10.1.2.3", False),
        ("*.example.com", "a.example.com", "::ffff:0:169.254.169.254", False),
        ("*.example.com", "a.example.com", "64:ff9b:1::a9fe:a9fe", False),
        ("git.example.com", "git.example.com", "64:ff9b:1::7f00:1", False),
        ("*.example.com", "a.example.com", "fec0::1", False),
        ("git.example.com", "git.example.com", "fec0::1", False),
        ("git.example.com", "git.example.com", "192.0.0.192", False),
        ("*.example.com", "a.example.com", "168.63.129.16", False),
        ("*.example.com", "a.example.com", "64:ff9b::a83f:8110", False),
        ("*.example.com", "a.example.com", "2002:a83f:8110::1", False),
        ("*.example.com", "a.example.com", "2001:0:a83f:8110::1", False),
        ("*.example.com", "a.example.com", "2606:2800:21f:cb07:0:5efe:a00:1", False),
        ("*.example.com", "a.example.com", "2606:2800:21f:cb07:200:5efe:a9fe:a9fe", False),
        ("*.example.com", "a.example.com", "100.64.0.1", False),
        ("git.example.com", "git.example.com", "100.64.0.1", False),
        ("localhost", "localhost", "127.0.0.1", True),
        ("localhost", "localhost", "10.1.2.3", False),
    ],
)
async def test_a_name_leads_where_its_project_may_want_it_to(allowed: str, host: str, address: str, may: bool) -> None:
    assert parse_host_pattern(allowed).fits(host, 443)
    assert network._may_lead(host, not allowed.startswith("*"), ip_address(address)) is may


async def test_an_internal_address_is_reached_where_it_is_listed_itself() -> None:
    async with server(echo) as there, proxy(f"localhost:{there}") as (_, port):
        answer = await say(port, f"GET http://localhost:{there}/ HTTP/1.1\r\n\r\n".encode())
        assert b" 200 OK\r\n" in answer


async def test_a_name_that_leads_to_this_machine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The name's owner answers with loopback: only what looks names up is replaced, there is no such name here."""
    asked: list[str] = []

    def lookup(host: str, port: int, **_: object) -> Sequence[object]:
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    async with server(echo) as there, proxy(f"rebound.example:{there}") as (opened, port):
        monkeypatch.setattr(socket, "getaddrinfo", lookup)
        answer = await say(port, f"CONNECT rebound.example:{there} HTTP/1.1\r\n\r\n".encode())
        assert answer.startswith(b"HTTP/1.1 403 Forbidden\r\n")
        assert opened.refused_hosts() == (f"rebound.example:{there}",)
    assert asked == ["rebound.example"]


async def test_a_slow_reader_slows_the_sender_down() -> None:
    sent = 0

    async def endless(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b"x" * 65536)
            sent += 65536

    async with server(endless) as there, proxy(f"127.0.0.1:{there}") as (_, port):
        _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1)
        writer.write(f"GET http://127.0.0.1:{there}/ HTTP/1.1\r\n\r\n".encode())
        before, deadline = -1, asyncio.get_running_loop().time() + WITHIN_S
        while before != sent or not sent:
            before = sent
            async with asyncio.timeout_at(deadline):
                await asyncio.sleep(0.3)  # not for a condition to come, but for none to change
        assert sent < 64 << 20
        writer.transport.abort()


async def test_connections_end_with_their_socket() -> None:
    waiting = asyncio.Event()

    async def hang(_: web.Request) -> web.Response:
        waiting.set()
        await asyncio.Event().wait()
        raise AssertionError

    async with server(hang) as there:
        async with proxy(f"127.0.0.1:{there}") as (_, port):
            asking = asyncio.create_task(say(port, f"GET http://127.0.0.1:{there}/ HTTP/1.1\r\n\r\n".encode()))
            async with asyncio.timeout(WITHIN_S):
                await waiting.wait()
        (answer,) = await asyncio.gather(asking, return_exceptions=True)
        assert answer == b"" or isinstance(answer, ConnectionResetError)


async def test_too_many_connections_are_turned_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "CONNECTIONS_MAX", 2)
    async with proxy("example.org") as (_, port):
        held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
        answer = await say(port, b"CONNECT example.com:443 HTTP/1.1\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 503 ")
        for _, writer in held:
            writer.close()


async def test_silence_ends_a_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "HEAD_WITHIN_S", 0.1)
    async with proxy("example.org") as (_, port):
        assert await say(port, b"CONNECT exam") == b""


async def test_a_host_that_does_not_answer_is_said_to_be_so() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        there = closed.getsockname()[1]
    async with proxy(f"127.0.0.1:{there}") as (_, port):
        answer = await say(port, f"CONNECT 127.0.0.1:{there} HTTP/1.1\r\n\r\n".encode())
        assert answer.startswith(b"HTTP/1.1 502 Bad Gateway\r\n")


async def test_a_wrong_entry_is_refused_at_once() -> None:
    with pytest.raises(BadHost):
        async with open_network(["http://example.com"]):
            pass


async def test_a_client_that_leaves_before_its_refusal_is_no_fault(caplog: pytest.LogCaptureFixture) -> None:
    async with proxy("example.org") as (opened, port):
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", port)) as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # leaves by a reset
                client.sendall(b"CONNECT example.com:443 HTTP/1.1\r\n\r\n")
        answer = await say(port, b"CONNECT example.com:443 HTTP/1.1\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 403")
        assert opened.refused_hosts() == ("example.com:443",)
    gc.collect()  # a task whose exception nobody asked for says so when it goes
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
