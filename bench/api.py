"""API: reading a plan's tasks beside a bare Litestar handler, and a command beside a bare JetStream append."""

import asyncio
import http.client
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import msgspec
from nats.aio.client import Client
from nats.js.api import StorageType, StreamConfig

from bench import bare_api
from bench.figures import Figure, Goal, Series
from bench.shapes import chain, noop_plan
from bench.suite import COMMIT
from services.dispatcher.finalize import complete_finalize
from shared.board import Board
from shared.bus import BusSettings, connect
from shared.clock import new_plan_id
from shared.commands import Draft, Finalize
from shared.jetstream import JetStreamStore
from shared.store import Meta
from shared.streams import declare_streams
from shared.transact import to_plan
from tests.gateway.gateway_process import GatewayProcess
from tests.nats_process import NatsServer
from treadle.supervision.ports import LOOPBACK, ReservedPort
from treadle.supervision.processes import die_with_parent

TASKS = 1_000
"""`_deliver` included."""
READS = 200
COMMANDS = 150
START_TIMEOUT_S = 20.0
REPOSITORY = "https://example.org/app.git"
META = Meta(actor="user:bench")
DIRECT_STREAM = "BENCH_DIRECT"


class Api:
    """Requests over one kept connection: the standard library's client, which costs least."""

    def __init__(self, port: int, token: str = "") -> None:
        self._connection = http.client.HTTPConnection(LOOPBACK, port, timeout=60)
        self._headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})

    def ask(self, method: str, path: str, body: object = None) -> bytes:
        """The body of a good answer."""
        content = None if body is None else json.dumps(body)
        self._connection.request(method, path, content, self._headers)
        answer = self._connection.getresponse()
        text = answer.read()
        if answer.status >= 400:
            raise RuntimeError(f"{method} {path} answered {answer.status}: {text[:500]!r}")
        return text


async def measure(directory: Path, rounds: int) -> Figure:
    """Runs all of them in turn, `rounds` times, each against a plan of its own."""
    nats = NatsServer(directory / "nats")
    nats.start()
    nc = await connect(BusSettings(nats.url, nats.user, nats.password), "bench")
    await declare_streams(nc.jetstream())
    await nc.jetstream().add_stream(
        StreamConfig(name=DIRECT_STREAM, subjects=["bench.direct.>"], storage=StorageType.FILE)
    )
    reads: list[float] = []
    bare_reads: list[float] = []
    commands: list[float] = []
    bare_commands: list[float] = []
    appends: list[float] = []
    try:
        with GatewayProcess(directory, nats, f"sqlite:///{directory}/bench.sqlite") as gateway:
            api = Api(int(gateway.url.rpartition(":")[2]), gateway.token_of("admin"))
            project = json.loads(
                api.ask("POST", "/api/projects", {"name": "bench", "mode": "auto", "code_repo_url": REPOSITORY})
            )["id"]
            plans = [await _plan(nc, project) for _ in range(rounds)]
            path = f"/api/plans/{plans[0]}/tasks?limit={TASKS}"
            answer = await asyncio.to_thread(_settled, api, plans, path)
            with _bare(directory, nats, answer) as bare:
                for number, plan in enumerate(plans):
                    one, other = await asyncio.to_thread(_reads, api, bare, plan)
                    reads.append(one)
                    bare_reads.append(other)
                    one, other = await asyncio.to_thread(_commands, api, bare, plan)
                    commands.append(one)
                    bare_commands.append(other)
                    appends.append(await _appends(nc, number))
    finally:
        await nc.close()
        nats.close()
    list_series, bare_list = (
        Series(f"gateway: a plan's {TASKS} tasks, p50", "ms", reads),
        Series("bare Litestar handler: the same bytes, p50", "ms", bare_reads),
    )
    command, bare_command = (
        Series("gateway: command → answered with its event's sequence, p50", "ms", commands),
        Series("bare Litestar handler around a bare append, p50", "ms", bare_commands),
    )
    append = Series("bare JetStream append, p50", "ms", appends)
    return Figure(
        f"API, over one connection (answers of {len(answer):,} bytes; SQLite; sync_interval: always)",
        [list_series, bare_list, command, bare_command, append],
        [
            Goal("list / bare handler", list_series.median / bare_list.median, "×", at_most=3.0),
            Goal("command / bare handler around a bare append", command.median / bare_command.median, "×", at_most=3.0),
            Goal("command / bare append alone", command.median / append.median, "×"),
        ],
    )


async def _plan(nc: Client, project: str) -> str:
    """A finalized plan that nothing dispatches."""
    store, plan = JetStreamStore(nc), new_plan_id()
    spec = noop_plan("bench", chain(TASKS - 1))
    draft = Draft(candidate="1", spec=spec, repo_url=REPOSITORY, base_commit=COMMIT, project=project)
    await to_plan(store, plan, draft, META)
    decided = await to_plan(store, plan, Finalize(candidate="1"), META)
    board = Board()
    board.plan = decided.state
    await complete_finalize(store, plan, board, META)
    return plan


def _settled(api: Api, plans: list[str], path: str) -> bytes:
    """The tasks' answer, once all plans are in the database whole."""
    deadline = time.monotonic() + START_TIMEOUT_S * len(plans)
    for plan in plans:
        while (shown := json.loads(api.ask("GET", f"/api/plans/{plan}")))["status"] != "active":
            if time.monotonic() > deadline:
                raise TimeoutError(f"plan {plan} is {shown['status']}, not active")
            time.sleep(0.05)
    answer = api.ask("GET", path)
    if (count := len(msgspec.json.decode(answer)["items"])) != TASKS:
        raise RuntimeError(f"{count} tasks were answered, not {TASKS}")
    return answer


def _reads(api: Api, bare: Api, plan: str) -> tuple[float, float]:
    def ours(_: int) -> object:
        return api.ask("GET", f"/api/plans/{plan}/tasks?limit={TASKS}")

    return _in_turn(READS, ours, lambda _: bare.ask("GET", "/tasks"))


def _commands(api: Api, bare: Api, plan: str) -> tuple[float, float]:
    def ours(number: int) -> object:
        return api.ask("POST", f"/api/plans/{plan}/tasks/T{number}/abandon", {"note": "m"})

    return _in_turn(COMMANDS, ours, lambda _: bare.ask("POST", "/append", {"note": "m"}))


def _in_turn(count: int, one: Callable[[int], object], other: Callable[[int], object]) -> tuple[float, float]:
    """Medians of both in milliseconds, measured alternately, so that the machine's moods meet both."""
    took: tuple[list[float], list[float]] = ([], [])
    for number in range(count):
        for series, call in zip(took, (one, other), strict=True):
            began = time.perf_counter()
            call(number)
            series.append((time.perf_counter() - began) * 1e3)
    return median(took[0]), median(took[1])


async def _appends(nc: Client, number: int) -> float:
    js = nc.jetstream()
    took: list[float] = []
    for i in range(COMMANDS):
        began = time.perf_counter()
        await js.publish(f"bench.direct.{number}.{i}", bare_api.EVENT, headers={bare_api.EXPECTED: "0"})
        took.append((time.perf_counter() - began) * 1e3)
    return median(took)


@contextmanager
def _bare(directory: Path, nats: NatsServer, answer: bytes) -> Iterator[Api]:
    """The bare process, once it answers."""
    file = directory / "answer.json"
    file.write_bytes(answer)
    port = ReservedPort()
    argv = [sys.executable, "-m", "bench.bare_api", "--port", str(port.number), "--answer", str(file)]
    environment = os.environ | {
        "TREADLE_NATS_URL": nats.url,
        "TREADLE_NATS_USER": nats.user,
        "TREADLE_NATS_PASSWORD_FILE": str(nats.password_file),
    }
    process = subprocess.Popen(argv, env=environment, preexec_fn=die_with_parent())
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                bare = Api(port.number)
                bare.ask("GET", "/tasks")
                break
            except OSError:
                if time.monotonic() > deadline or process.poll() is not None:
                    raise
                time.sleep(0.05)
        yield bare
    finally:
        process.terminate()
        process.wait(10)
        port.release()
