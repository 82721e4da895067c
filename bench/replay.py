"""Replay: how fast a history is folded from JetStream, how soon any moment of a long one is there, in what memory."""

import asyncio
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig

from bench.figures import Figure, Goal, Series
from bench.long_plan import PLAN_ID, headers, records, subject_of
from shared.board import Board
from shared.bus import BusSettings, connect
from shared.events import REGISTRY
from shared.history.event_file import EventFile
from shared.history.history import History
from shared.jetstream import JetStreamStore
from shared.skipped import take
from shared.store import Recorded
from shared.streams import EVENTS, declare_streams
from shared.subjects import parse_event_subject, plan_filter
from tests.nats_process import NatsServer

LOG_TASKS, LOG_TAKINGS = 1_000, 9
"""What is folded from JetStream: 28,005 events. Storing them takes longest: each is on disk before the next pages."""
LONG_TASKS, LONG_TAKINGS = 5_264, 6
"""100,021 events."""
HUGE_TASKS, HUGE_TAKINGS = 20_000, 17
"""1,040,005 events of the largest plan that there may be."""
PAGE_MESSAGES = 500
MOMENTS = 40
"""Random ones, in each round."""


async def measure(directory: Path, rounds: int) -> Figure:
    """Folds in turn with reading barely, `rounds` times; then looks at long histories, each in a process of its own."""
    folded: list[float] = []
    fetched: list[float] = []
    pushed: list[float] = []
    server = NatsServer(directory / "nats")
    server.start()
    try:
        nc = await connect(BusSettings(server.url, server.user, server.password), "bench")
        await declare_streams(nc.jetstream())
        events = await _store(nc)
        await _fold(nc, events)  # warms everything up
        for _ in range(rounds):
            fetched.append(await _fetch(nc.jetstream(), events))
            folded.append(await _fold(nc, events))
            pushed.append(await _listen(nc.jetstream(), events))
        await nc.close()
    finally:
        server.close()
    long = [_look_back(directory / f"long-{n}", LONG_TASKS, LONG_TAKINGS) for n in range(rounds)]
    huge = _look_back(directory / "huge", HUGE_TASKS, HUGE_TAKINGS)
    fold = Series(f"JetStream → Board, {events:,} events", "events/s", folded)
    bare = Series("bare nats-py: fetch(500), msgspec decoding", "events/s", fetched)
    push = Series("bare nats-py: ordered consumer's callback, msgspec decoding", "events/s", pushed)
    return Figure(
        "Replay",
        [
            fold,
            bare,
            push,
            Series(f"board at a random one of {long[0].events:,} events, median", "ms", [one.board_ms for one in long]),
            Series(f"all that is shown of it ({LONG_TASKS:,} tasks), median", "ms", [one.moment_ms for one in long]),
            Series("file → History, the first time", "events/s", [one.events / one.fold_s for one in long]),
        ],
        [
            Goal("bare fetch / fold (1.67: 0.6 of its speed)", bare.median / fold.median, "×", at_most=1 / 0.6),
            Goal("bare ordered consumer / fold", push.median / fold.median, "×"),
            Goal("board at a random event, slowest", max(one.board_max_ms for one in long), "ms", at_most=100.0),
            Goal("all that is shown of it, slowest", max(one.moment_max_ms for one in long), "ms", at_most=100.0),
            Goal(f"{huge.events:,} events, {HUGE_TASKS:,} tasks: peak memory", huge.peak_mb, "MB", at_most=500.0),
            Goal("  of it: the process before the first event", huge.start_mb, "MB"),
            Goal("  the same with a tenth of the events", _tenth(directory).peak_mb, "MB"),
        ],
    )


async def _store(nc: Client) -> int:
    """Stores a plan's events as they are; how many."""
    js, count = nc.jetstream(timeout=60), 0
    for count, record in enumerate(records(LOG_TASKS, LOG_TAKINGS), start=1):
        subject = subject_of(record)
        if count % PAGE_MESSAGES:
            await nc.publish(subject, record.body, headers=headers(record))
        else:
            await js.publish(subject, record.body, headers=headers(record))
    async with asyncio.timeout(60):
        while (await js.stream_info(EVENTS)).state.messages < count:  # noqa: ASYNC110 - another process stores them
            await asyncio.sleep(0.1)
    return count


async def _fold(nc: Client, events: int) -> float:
    """Events a second from the log into a board."""
    board, count = Board(), 0
    began = time.perf_counter()
    async for batch in JetStreamStore(nc).follow(filters=(plan_filter(PLAN_ID),)):
        for record in batch.events:
            take(board, record)
        count += len(batch.events)
        if count >= events:
            break
    if board.fault or board.plan.status != "paused":
        raise RuntimeError(f"the plan was not folded: {board.fault or board.plan.status}")
    return events / (time.perf_counter() - began)


async def _fetch(js: JetStreamContext, events: int) -> float:
    """Events a second by nats-py's pull consumer, of which only the bodies are decoded."""
    decode = _Decoding()
    began = time.perf_counter()
    config = ConsumerConfig(ack_policy=AckPolicy.NONE)
    subscription = await js.pull_subscribe(plan_filter(PLAN_ID), stream=EVENTS, config=config)
    while decode.count < events:
        for message in await subscription.fetch(PAGE_MESSAGES, timeout=30):
            decode(message)
    seconds = time.perf_counter() - began
    await subscription.unsubscribe()
    return events / seconds


async def _listen(js: JetStreamContext, events: int) -> float:
    """The same by nats-py's ordered consumer, which is pushed everything as fast as it can go."""
    decode, done = _Decoding(), asyncio.Event()

    async def heard(message: Msg) -> None:
        decode(message)
        if decode.count == events:
            done.set()

    began = time.perf_counter()
    subscription = await js.subscribe(
        plan_filter(PLAN_ID), stream=EVENTS, ordered_consumer=True, cb=heard, pending_msgs_limit=-1,
        pending_bytes_limit=-1,
    )  # fmt: skip
    await done.wait()
    seconds = time.perf_counter() - began
    await subscription.unsubscribe()
    return events / seconds


class _Decoding:
    """What anybody does who reads events: the body into its type."""

    def __init__(self) -> None:
        self.count = 0
        self._decoders = {name: msgspec.json.Decoder(kind) for name, kind in REGISTRY.items()}

    def __call__(self, message: Msg) -> None:
        self._decoders[parse_event_subject(message.subject).event_name].decode(message.data)
        self.count += 1


# Looking back, in a process of its own -------------------------------------------------------------------------------


class Looked(msgspec.Struct, frozen=True, kw_only=True):
    """What a process says that looked at a history."""

    events: int
    fold_s: float
    board_ms: float
    board_max_ms: float
    moment_ms: float
    moment_max_ms: float
    start_mb: float
    peak_mb: float


def _look_back(path: Path, tasks: int, takings: int) -> Looked:
    with EventFile.create(path, PLAN_ID) as file:
        for record in records(tasks, takings):
            file.append(record)
    return _looked(path)


def _tenth(directory: Path) -> Looked:
    """The same plan with as many tasks, of which fewer were taken so often."""
    path = directory / "tenth"
    with EventFile.create(path, PLAN_ID) as file:
        for record in _first(records(HUGE_TASKS, HUGE_TAKINGS), 100_000):
            file.append(record)
    return _looked(path)


def _first(all_: Iterator[Recorded], count: int) -> Iterator[Recorded]:
    return (record for record, _ in zip(all_, range(count), strict=False))


def _looked(path: Path) -> Looked:
    done = subprocess.run([sys.executable, "-m", "bench.replay", path], capture_output=True, check=True)
    path.unlink()
    return msgspec.json.decode(done.stdout, type=Looked)


def look(path: Path) -> Looked:
    """Opens a file, folds it, and asks for random moments of it."""
    start_mb = _memory_mb("VmRSS")
    with EventFile.open(path) as file:
        history = History(file)
        began = time.perf_counter()
        history.extend()
        fold_s = time.perf_counter() - began
        rng = random.Random(7)  # noqa: S311 - the same moments each time
        boards: list[float] = []
        moments: list[float] = []
        for _ in range(MOMENTS):
            boards.append(_ms(lambda: history.board_at(rng.randrange(file.first_seq, file.last_seq + 1))))
            moments.append(_ms(lambda: history.moment(rng.randrange(file.first_seq, file.last_seq + 1))))
        return Looked(
            events=len(file), fold_s=fold_s,
            board_ms=sorted(boards)[MOMENTS // 2], board_max_ms=max(boards),
            moment_ms=sorted(moments)[MOMENTS // 2], moment_max_ms=max(moments),
            start_mb=start_mb, peak_mb=_memory_mb("VmHWM"),
        )  # fmt: skip


def _ms(ask: Callable[[], object]) -> float:
    began = time.perf_counter()
    ask()
    return 1e3 * (time.perf_counter() - began)


def _memory_mb(what: str) -> float:
    """Resident memory of this process (Linux only: from /proc)."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith(f"{what}:")).split()[1]) / 1024


if __name__ == "__main__":
    sys.stdout.write(msgspec.json.encode(look(Path(sys.argv[1]))).decode())
