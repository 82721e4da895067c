"""Hop: how soon a finished task's successor reaches a runner, beside a bare publish → pull-consume hop."""

import asyncio
import time
from pathlib import Path
from statistics import median

from nats.aio.client import Client
from nats.errors import NoRespondersError

from bench import bare_hop
from bench.figures import Figure, Goal, Series, ratio
from bench.shapes import chain
from bench.suite import PlanRun, Suite, unix_ns
from shared.events import TaskDispatched, encode
from shared.store import Recorded

HOPS = 200
START_TIMEOUT_S = 10.0
ARRIVAL_TIMEOUT_S = 10.0


async def measure(directory: Path, rounds: int) -> Figure:
    """Runs both in turn, `rounds` times."""
    bare: list[float] = []
    bare_stored: list[float] = []
    hops: list[float] = []
    deciding: list[float] = []
    delivering: list[float] = []
    async with Suite(directory) as suite:
        suite.start("bare_hop", "bench.bare_hop")
        await _until_it_waits(suite.nc)
        body = await _usual_dispatch(suite)
        for _ in range(rounds):
            published, stored = await _bare_round(suite.nc, body)
            bare.append(published)
            bare_stored.append(stored)
            hop, decided, delivered = await _treadle_round(suite)
            hops.append(hop)
            deciding.append(decided)
            delivering.append(delivered)
    treadle = Series("Treadle: completed stored → successor delivered, p50", "ms", hops)
    bare_hops = Series("bare NATS: publish → fetched, p50", "ms", bare)
    return Figure(
        f"Hop, in a chain of {HOPS} (messages of {len(body)} bytes, sync_interval: always)",
        [
            treadle,
            Series("  of it: completed stored → dispatched stored", "ms", deciding),
            Series("  of it: dispatched stored → delivered", "ms", delivering),
            bare_hops,
            Series("  of it: stored → fetched", "ms", bare_stored),
        ],
        [Goal("Treadle's hop / bare hop", ratio(treadle, bare_hops).value, "×", at_most=4.0)],
    )


async def _until_it_waits(nc: Client) -> None:
    async with asyncio.timeout(START_TIMEOUT_S):
        while True:
            try:
                await nc.request(bare_hop.WAITING, timeout=START_TIMEOUT_S)
                return
            except NoRespondersError:
                await asyncio.sleep(0.05)


async def _usual_dispatch(suite: Suite) -> bytes:
    """The body of a dispatch from a plan that warms everything up; the bare hop carries the same."""
    events = await suite.events(await suite.run_plan(chain(20)))
    await suite.deliveries()
    return [encode(e.event) for e in events if isinstance(e.event, TaskDispatched)][10]


async def _bare_round(nc: Client, body: bytes) -> tuple[float, float]:
    """Medians from the publish, and from the server's time, to the arrival; in milliseconds."""
    js = nc.jetstream()
    arrivals = await nc.subscribe(bare_hop.ARRIVED)
    from_publish: list[float] = []
    from_stored: list[float] = []
    for _ in range(HOPS):
        published_ns = time.time_ns()
        await js.publish(bare_hop.SUBJECT, body)
        answer = await arrivals.next_msg(timeout=ARRIVAL_TIMEOUT_S)
        arrived_ns, stored_ns = (int(word) for word in answer.data.split())
        from_publish.append((arrived_ns - published_ns) / 1e6)
        from_stored.append((arrived_ns - stored_ns) / 1e6)
    await arrivals.unsubscribe()
    return median(from_publish), median(from_stored)


async def _treadle_round(suite: Suite) -> tuple[float, float, float]:
    """Medians of the hop and of its two parts, in milliseconds."""
    run = await suite.run_plan(chain(HOPS))
    arrived_ns = await suite.deliveries()
    stored = await _stored(suite, run)
    hops: list[float] = []
    deciding: list[float] = []
    delivering: list[float] = []
    for i in range(HOPS - 1):
        completed_ns = unix_ns(stored[f"T{i}", "completed"])
        dispatched = stored[f"T{i + 1}", "dispatched"]
        hops.append((arrived_ns[dispatched.seq] - completed_ns) / 1e6)
        deciding.append((unix_ns(dispatched) - completed_ns) / 1e6)
        delivering.append((arrived_ns[dispatched.seq] - unix_ns(dispatched)) / 1e6)
    return median(hops), median(deciding), median(delivering)


async def _stored(suite: Suite, run: PlanRun) -> dict[tuple[str, str], Recorded]:
    return {(record.entity, record.type): record for record in await suite.events(run)}
