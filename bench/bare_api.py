"""What the gateway is measured against, in a process of its own: a bare Litestar handler, and a bare append.

`GET /tasks` answers the bytes of a file; `POST /append` appends one message with a condition, as every command must.
Neither asks who is there, looks anything up or decides.
"""

import argparse
import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import uvicorn
from litestar import Litestar, Response, get, post
from nats.js.api import RetentionPolicy, StorageType, StreamConfig

from shared.bus import bus_settings_from_environment, connect

STREAM = "BENCH_API"
SUBJECTS = "bench.api.>"
EXPECTED = "Nats-Expected-Last-Subject-Sequence"
EVENT = b'{"note":"measured"}'


def subject(number: int) -> str:
    """One entity's."""
    return f"bench.api.{number}"


async def serve(port: int, answer: bytes) -> None:
    """Until it is told to stop."""
    nc = await connect(bus_settings_from_environment(), "bench-api")
    js = nc.jetstream()
    await js.add_stream(
        StreamConfig(name=STREAM, subjects=[SUBJECTS], storage=StorageType.FILE, retention=RetentionPolicy.LIMITS)
    )
    appended = 0

    @get("/tasks")
    async def tasks() -> Response[bytes]:
        return Response(answer, media_type="application/json")

    @post("/append", status_code=202)
    async def append(data: dict[str, str]) -> dict[str, int]:
        nonlocal appended
        appended += 1
        stored = await js.publish(subject(appended), EVENT, headers={EXPECTED: "0"})
        return {"seq": stored.seq}

    @asynccontextmanager
    async def lifespan(_: Litestar) -> AsyncIterator[None]:
        yield
        await nc.close()

    app = Litestar([tasks, append], lifespan=[lifespan], openapi_config=None, logging_config=None)
    config = uvicorn.Config(app, host="127.0.0.1", port=port, log_config=None, access_log=False)
    await uvicorn.Server(config).serve()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--answer", type=Path, required=True)
    options = parser.parse_args()
    asyncio.run(serve(options.port, options.answer.read_bytes()))
