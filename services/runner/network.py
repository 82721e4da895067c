"""A sandbox's way to the network: an HTTP proxy that reaches the hosts a project allows, and no others.

Knows CONNECT and plain `http://` requests. A name's addresses are looked up here, checked, and the checked one is
connected to, so what the name's owner answers the next time doesn't matter. An internal address is reached only
where the project names it:

| listed | may lead to |
|---|---|
| `*.example.com` | public addresses |
| `git.example.com` | public addresses and private networks (a company's own), but never to this machine or the link's |
| `localhost` | this machine |
| `10.0.0.5`, `127.0.0.1:5432` | that address |
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import msgspec

from shared.host_pattern import HOST_MAX_CHARS, HostPattern, parse_host_pattern

CONNECTIONS_MAX = 128
"""Of one lease at a time."""
HEAD_MAX_BYTES = 32 * 1024
HEAD_WITHIN_S = 20.0
CONNECT_WITHIN_S = 10.0
IDLE_MAX_S = 600.0
"""A connection on which nothing moves for so long is closed."""
LINGER_MAX_S = 60.0
"""The same, once one side has said all it had to say."""
REFUSED_MAX = 100
"""Hosts that are remembered as refused."""

_BODY_WITHIN_S = 2.0
_PIECE_BYTES = 64 * 1024
_ADDRESSES_TRIED = 4
_LOOKUPS_AT_ONCE = 4

_METHOD = re.compile(r"[A-Z][A-Z_-]{0,31}")
_NAME = re.compile(r"[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?")
_URL = re.compile(r"(?i:http)://([^/?#]+)([/?][^#]*)?(?:#.*)?")
_HEADER = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\r\n\0]*)")
_DROPPED = {"connection", "host", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection"}
_DROPPED |= {"te", "upgrade"}

_HOLDS_IPV4 = tuple(map(ip_network, ("64:ff9b::/96", "::/96")))
"""With an IPv4 address at their end: NAT64 (RFC 6052), IPv4-compatible (RFC 4291)."""

_NOWHERE = tuple(map(ip_network, ("64:ff9b:1::/48", "fec0::/10", "192.0.0.0/24", "::ffff:0:0:0/96", "5f00::/16")))
"""Reached under no name. A network's own NAT64 (RFC 8215), in which an IPv4 address may stand at several places; old
site-local addresses (RFC 3879); addresses for protocols, where a cloud has its metadata; SIIT
(RFC 2765); segment routing."""

_SECRETS = ("169.254.169.254", "100.100.100.200", "168.63.129.16", "fd00:ec2::254", "fd20:ce::254")
_METADATA = {ip_address(text) for text in _SECRETS}

Address = IPv4Address | IPv6Address


class _Refused(Exception):
    """An answer of our own."""

    def __init__(self, status: str, words: str) -> None:
        super().__init__(words)
        self.status = status


class _Request(msgspec.Struct, frozen=True):
    host: str
    port: int
    head: bytes
    """What the other side is to get first; nothing for CONNECT."""
    body_bytes: int | None
    """What of the client's bytes belongs to it; None: all."""


class NetworkProxy:
    """`async with open_network(patterns) as network:`; serves any number of listening sockets."""

    def __init__(self, allowed: Sequence[HostPattern], lookups: ThreadPoolExecutor) -> None:
        self._allowed = allowed
        self._lookups = lookups
        self._refused: dict[str, None] = {}
        self._open: set[asyncio.Task[None]] = set()
        self.passed_bytes = 0
        """In both directions, so far: as long as this grows, something is at work."""

    def refused_hosts(self) -> Sequence[str]:
        """`host:port` of what was asked for and is not allowed, each once; the first `REFUSED_MAX`."""
        return tuple(self._refused)

    def names(self, host: str) -> bool:
        """Whether a host is listed as such, on any port."""
        return any(pattern.host == host and not pattern.below for pattern in self._allowed)

    async def serve(self, listening: socket.socket) -> None:
        """Serves a listening socket until it is cancelled; then nothing of it stays open."""
        mine: set[asyncio.Task[None]] = set()

        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.create_task(self._converse(reader, writer))
            for tasks in (mine, self._open):
                tasks.add(task)
                task.add_done_callback(tasks.discard)

        server = await asyncio.start_server(connected, sock=listening, limit=HEAD_MAX_BYTES)
        try:
            await asyncio.Event().wait()
        finally:
            server.close()
            for task in mine:
                task.cancel()
            await asyncio.gather(*mine, return_exceptions=True)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection: one request."""
        async with _closing(writer):
            if len(self._open) > 2 * CONNECTIONS_MAX:
                return
            try:
                async with asyncio.timeout(HEAD_WITHIN_S):
                    head = await reader.readuntil(b"\r\n\r\n")
                if len(self._open) > CONNECTIONS_MAX:
                    raise _Refused("503 Too Many Connections", f"at most {CONNECTIONS_MAX} connections at a time")
                request = _read(head)
                there_reader, there = await self._reach(request.host, request.port)
            except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, TimeoutError, OSError):
                return  # no request came
            except _Refused as refused:
                # What is still to come of its body is read, or else the answer would be lost with it.
                with contextlib.suppress(TimeoutError, OSError):  # the client may have left
                    writer.write(_answer(refused))
                    writer.write_eof()
                    async with asyncio.timeout(_BODY_WITHIN_S):
                        while await reader.read(_PIECE_BYTES):
                            pass
                return
            async with _closing(there):
                if request.head:
                    there.write(request.head)
                else:
                    writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
                with contextlib.suppress(OSError, TimeoutError):  # one side broke off, or both have fallen silent
                    await _both_ways(self._count, (reader, there, request.body_bytes), (there_reader, writer, None))

    async def _reach(self, host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connects to a host, if that is allowed. Raises _Refused."""
        shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        fitting = [pattern for pattern in self._allowed if pattern.fits(host, port)]
        if not fitting:
            self._note(shown)
            raise _Refused("403 Forbidden", f"{shown} is not among the hosts that the plan allows (network_allow)")
        is_named = any(not pattern.below for pattern in fitting)
        found = await self._addresses(host, port, shown)
        allowed = [address for address in found if _may_lead(host, is_named, address)]
        if not allowed:
            self._note(shown)
            words = f"{shown} leads to {found[0]}, an internal address; network_allow must name that address itself"
            raise _Refused("403 Forbidden", words)
        for address in allowed[:_ADDRESSES_TRIED]:
            with contextlib.suppress(OSError, TimeoutError):  # the next address may answer
                async with asyncio.timeout(CONNECT_WITHIN_S):
                    return await asyncio.open_connection(str(address), port, limit=_PIECE_BYTES)
        raise _Refused("502 Bad Gateway", f"{shown} does not answer")

    async def _addresses(self, host: str, port: int, shown: str) -> list[Address]:
        with contextlib.suppress(ValueError):
            return [ip_address(host)]
        # In threads of our own: names that an agent chooses must not keep the runner's others waiting.
        looking = asyncio.get_running_loop().run_in_executor(
            self._lookups, lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        )
        try:
            async with asyncio.timeout(CONNECT_WITHIN_S):
                found = await looking
        except (OSError, UnicodeError, TimeoutError):
            raise _Refused("502 Bad Gateway", f"the address of {shown} can't be found") from None
        return [ip_address(str(where[0])) for *_, where in found if "%" not in str(where[0])] or _nothing(shown)

    def _count(self, piece: bytes) -> None:
        self.passed_bytes += len(piece)

    def _note(self, shown: str) -> None:
        if len(self._refused) < REFUSED_MAX:
            self._refused[shown] = None


@asynccontextmanager
async def open_network(allowed: Sequence[str]) -> AsyncIterator[NetworkProxy]:
    """The proxy of one lease. Raises `shared.host_pattern.BadHostPattern`."""
    lookups = ThreadPoolExecutor(_LOOKUPS_AT_ONCE, thread_name_prefix="lookup")
    try:
        yield NetworkProxy([parse_host_pattern(text) for text in allowed], lookups)
    finally:
        lookups.shutdown(wait=False, cancel_futures=True)


def _nothing(shown: str) -> list[Address]:
    raise _Refused("502 Bad Gateway", f"{shown} has no address")


def _may_lead(host: str, is_named: bool, address: Address) -> bool:
    """Whether an allowed host may lead there."""
    if host == "localhost":
        return address.is_loopback
    if str(address) == host:
        return True
    inner = _within(address)
    if any(each in network for each in inner for network in _NOWHERE):
        return False
    if all(each.is_global and not each.is_multicast and each not in _METADATA for each in inner):
        return True
    return is_named and all(_is_private(each) for each in inner)


def _is_private(address: Address) -> bool:
    """In a network of somebody's own; not this machine, the link, or what tells a cloud's machines their secrets."""
    nowhere = address.is_loopback or address.is_link_local or address.is_multicast or address.is_unspecified
    return address.is_private and not nowhere and not address.is_reserved and address not in _METADATA


def _within(address: Address) -> list[Address]:
    """The address, and those that it stands for."""
    found: list[Address] = [address]
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return [address.ipv4_mapped]
        found += [inner for inner in (address.sixtofour, *(address.teredo or ())) if inner is not None]
        if any(address in network for network in _HOLDS_IPV4):
            found.append(IPv4Address(int(address) & 0xFFFFFFFF))
        # ISATAP (RFC 5214): behind any prefix.
        if int(address) >> 32 & 0xFCFFFFFF == 0x5EFE:
            found.append(IPv4Address(int(address) & 0xFFFFFFFF))
    return found


def _read(head: bytes) -> _Request:
    """Understands a request's head. Raises _Refused."""
    line, *lines = head.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
    method, _, rest = line.partition(" ")
    target, _, version = rest.partition(" ")
    if not _METHOD.fullmatch(method) or version not in ("HTTP/1.1", "HTTP/1.0") or not target.isascii():
        raise _Refused("400 Bad Request", "this is no request of HTTP/1")
    if method == "CONNECT":
        host, port = _authority(target, None)
        return _Request(host, port, b"", None)
    url = _URL.fullmatch(target)
    if url is None or any(ch <= " " or ch == "\x7f" for ch in target):
        raise _Refused("400 Bad Request", "this proxy knows CONNECT and http://… requests")
    host, port = _authority(url[1], 80)
    headers = []
    for each in lines:
        header = _HEADER.fullmatch(each)
        if header is None:
            raise _Refused("400 Bad Request", "a header can't be read")
        headers.append((header[1], header[2]))
    path = url[2] or "/"
    path = path if path.startswith("/") else f"/{path}"
    # One request for each connection: a second one could be meant for a host that is not allowed.
    sent = [f"{method} {path} HTTP/1.1", f"Host: {url[1]}", "Connection: close"]
    sent += [f"{name}: {value}" for name, value in headers if name.lower() not in _DROPPED]
    return _Request(host, port, "\r\n".join((*sent, "", "")).encode("latin-1"), _body_bytes(headers))


def _body_bytes(headers: Sequence[tuple[str, str]]) -> int | None:
    lengths = {value.strip() for name, value in headers if name.lower() == "content-length"}
    if any(name.lower() == "transfer-encoding" for name, _ in headers):
        if lengths:
            raise _Refused("400 Bad Request", "its length is told in two ways")
        return None
    if not lengths:
        return 0
    if len(lengths) > 1 or not re.fullmatch(r"[0-9]{1,15}", length := lengths.pop()):
        raise _Refused("400 Bad Request", "its length is no number")
    return int(length)


def _authority(text: str, default_port: int | None) -> tuple[str, int]:
    """Host and port, the host as patterns have it. Raises _Refused."""
    parts = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([^:@\[\]]+))(?::([0-9]{1,5}))?", text)
    port = int(parts[3]) if parts and parts[3] else default_port
    if parts is None or port is None or not 1 <= port <= 65_535:
        raise _Refused("400 Bad Request", "this names no host and port")
    if parts[1] is not None:
        try:
            return str(IPv6Address(parts[1])), port
        except ValueError:
            raise _Refused("400 Bad Request", "this is no IPv6 address") from None
    host = parts[2].lower().removesuffix(".")
    if len(host) > HOST_MAX_CHARS or not _NAME.fullmatch(host):
        raise _Refused("400 Bad Request", "this is no name of a host")
    return host, port


def _answer(refused: _Refused) -> bytes:
    body = f"Treadle: {refused}.\n"
    head = f"HTTP/1.1 {refused.status}\r\nContent-Type: text/plain\r\nContent-Length: {len(body)}\r\n"
    return f"{head}Connection: close\r\n\r\n{body}".encode("latin-1", errors="replace")


@asynccontextmanager
async def _closing(writer: asyncio.StreamWriter) -> AsyncIterator[None]:
    """Closes it at the end of the block; at once where that was broken off."""
    try:
        yield
        with contextlib.suppress(OSError):  # the other side may have closed it first
            writer.close()
            await asyncio.wait_for(writer.wait_closed(), HEAD_WITHIN_S)
    finally:
        writer.transport.abort()


_Way = tuple[asyncio.StreamReader, asyncio.StreamWriter, int | None]


async def _both_ways(count: Callable[[bytes], None], *ways: _Way) -> None:
    """Passes bytes on, in both directions, at the pace of the slower side. Raises OSError and TimeoutError."""
    loop = asyncio.get_running_loop()
    patience_s = IDLE_MAX_S

    async with asyncio.timeout(patience_s) as silence:

        async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, most: int | None) -> None:
            nonlocal patience_s
            while most is None or most > 0:
                piece = await reader.read(_PIECE_BYTES if most is None else min(most, _PIECE_BYTES))
                if not piece:
                    break
                count(piece)
                most = None if most is None else most - len(piece)
                writer.write(piece)
                await writer.drain()
                silence.reschedule(loop.time() + patience_s)
            if most is not None:
                return  # its body is complete: the connection stays open for the answer
            writer.write_eof()
            patience_s = LINGER_MAX_S
            silence.reschedule(loop.time() + patience_s)

        tasks = [asyncio.create_task(pass_on(*way)) for way in ways]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
