"""A reader of server-sent events that costs next to nothing, so that a test may have a thousand."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import urlsplit

import msgspec

DEADLINE_S = 60.0


@dataclass(frozen=True)
class Event:
    name: str
    data: Any
    id: int | None


class Ended(Exception):
    """The server ended the stream."""


class SseClient:
    """One connection. `async with await SseClient.open(...)`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._body = b""

    @classmethod
    async def open(cls, base_url: str, path: str, token: str, headers: dict[str, str] | None = None) -> Self:
        """Asks, and returns once a stream was promised."""
        address = urlsplit(base_url)
        assert address.hostname and address.port
        reader, writer = await asyncio.open_connection(address.hostname, address.port, limit=8 * 1024**2)
        client = cls(reader, writer)
        lines = [f"GET {path} HTTP/1.1", f"Host: {address.netloc}", f"Authorization: Bearer {token}"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
        async with asyncio.timeout(DEADLINE_S):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
        assert head.split()[1] == "200", head + (await reader.read()).decode()
        assert "text/event-stream" in head
        assert "transfer-encoding: chunked" in head.lower()
        return client

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()

    async def next(self) -> Event:
        """The next message. Raises `Ended`."""
        while True:
            try:
                async with asyncio.timeout(DEADLINE_S):
                    block = await self._block()
            except (asyncio.IncompleteReadError, ConnectionError) as error:
                raise Ended from error
            fields = dict(line.split(": ", 1) for line in block.strip().split("\n") if not line.startswith(":"))
            if fields:
                id_ = int(fields["id"]) if "id" in fields else None
                return Event(fields["event"], msgspec.json.decode(fields["data"]), id_)

    async def _block(self) -> str:
        while b"\n\n" not in self._body:
            size = int((await self._reader.readuntil(b"\r\n")), 16)
            if size == 0:
                raise Ended
            self._body += (await self._reader.readexactly(size + 2))[:-2]
        block, _, self._body = self._body.partition(b"\n\n")
        return block.decode()

    async def until(self, name: str) -> list[Event]:
        """Every message up to the first of that name."""
        found: list[Event] = []
        while not found or found[-1].name != name:
            found.append(await self.next())
        return found

    async def until_log(self, seq: int) -> list[Event]:
        """Every message up to the log's event of that sequence."""
        found: list[Event] = []
        while not (found and found[-1].name == "log" and found[-1].id == seq):
            found.append(await self.next())
        return found
