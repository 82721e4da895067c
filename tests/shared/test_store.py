"""One suite for every event store: the one in memory earns its trust by passing what JetStream passes."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from shared.bus import BusSettings, connect
from shared.clock import new_plan_id, utc_now
from shared.events import PlanPaused, PlanResumed, TaskAbandoned, TaskMarkedComplete
from shared.history.archive import Archive, ArchiveWriter
from shared.history.archive_format import EVENTS, About
from shared.history.archive_store import ArchiveStore
from shared.history.event_file import line_of
from shared.jetstream import JetStreamStore
from shared.store import Batch, Conflict, EventStore, EventTooLarge, MemoryStore, Meta, Recorded, StoreUnavailable
from shared.streams import declare_streams
from shared.subjects import PLAN, entity_filter, plan_filter
from tests.nats_process import NatsServer

META = Meta(actor="user:test", command="Pause", command_id="c1", causation=7, correlation="r1", seen=9)


class Archived(MemoryStore):
    """What was appended in memory is read from an archive of it: every read is one of a file that was just opened."""

    async def read(
        self, plan: str, entity: str | None = None, *, after: int = 0, limit: int | None = None
    ) -> list[Recorded]:
        with self._archive_of(plan) as store:
            return await store.read(plan, entity, after=after, limit=limit)

    async def last_seq(self, plan: str, entity: str) -> int:
        with self._archive_of(plan) as store:
            return await store.last_seq(plan, entity)

    @contextmanager
    def _archive_of(self, plan: str) -> Iterator[ArchiveStore]:
        writer = ArchiveWriter(About(plan=plan, treadle="0.1.0", exported_at=utc_now()))
        writer.add(EVENTS, b"".join(line_of(record) for _, record in self._log if record.plan == plan))
        writer.close()
        with tempfile.TemporaryDirectory() as made:
            path = Path(made) / "x.treadle"
            path.write_bytes(writer.taken())
            with Archive.open(path) as archive, archive.event_file(Path(made)) as events:
                yield ArchiveStore(events)


@pytest.fixture(params=["memory", "jetstream", "jetstream with a key", "archive"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[EventStore]:
    if request.param in ("memory", "archive"):
        yield MemoryStore() if request.param == "memory" else Archived()
        return
    server: NatsServer = request.getfixturevalue("nats_url")
    nc = await connect(BusSettings(server.url, server.user, server.password), "test")
    await declare_streams(nc.jetstream())
    yield JetStreamStore(nc, None if request.param == "jetstream" else b"k" * 32)
    await nc.close()


async def gather(store: EventStore, count: int, *, after: int, filters: tuple[str, ...]) -> list[Batch]:
    batches = []
    async with asyncio.timeout(60):
        async for batch in store.follow(after=after, filters=filters):
            batches.append(batch)
            if sum(len(b.events) for b in batches) >= count:
                break
    return batches


async def test_an_event_is_read_back_as_it_was_stored(store: EventStore) -> None:
    plan = new_plan_id()
    seq = await store.append(plan, PLAN, PlanPaused(reason="lunch"), META, expected=0)
    [record] = await store.read(plan, PLAN)
    assert (record.seq, record.plan, record.entity, record.type) == (seq, plan, PLAN, "paused")
    assert record.event == PlanPaused(reason="lunch")
    assert record.meta == META
    assert record.time.tzinfo is not None


async def test_a_writer_that_saw_an_older_state_loses(store: EventStore) -> None:
    plan = new_plan_id()
    seq = await store.append(plan, PLAN, PlanPaused(), META, expected=0)
    with pytest.raises(Conflict):
        await store.append(plan, PLAN, PlanResumed(), META, expected=0)
    await store.append(plan, PLAN, PlanResumed(), META, expected=seq)
    assert [r.type for r in await store.read(plan, PLAN)] == ["paused", "resumed"]


async def test_of_many_writers_that_saw_the_same_state_exactly_one_wins(store: EventStore) -> None:
    plan = new_plan_id()
    outcomes = await asyncio.gather(
        *(store.append(plan, "T1", TaskAbandoned(note=str(i)), META, expected=0) for i in range(20)),
        return_exceptions=True,
    )
    assert sum(isinstance(o, int) for o in outcomes) == 1
    assert sum(isinstance(o, Conflict) for o in outcomes) == 19
    assert len(await store.read(plan, "T1")) == 1


async def test_entities_do_not_contend_even_where_one_name_begins_with_the_other(store: EventStore) -> None:
    plan = new_plan_id()
    for code in ("T1", "T11", "T1-a"):
        await store.append(plan, code, TaskAbandoned(), META, expected=0)
    assert [len(await store.read(plan, code)) for code in ("T1", "T11", "T1-a")] == [1, 1, 1]
    assert await store.last_seq(plan, "T1") == (await store.read(plan, "T1"))[0].seq
    assert await store.last_seq(plan, "T2") == 0


async def test_a_long_history_is_read_whole_and_from_any_place(store: EventStore) -> None:
    plan, seq, seqs = new_plan_id(), 0, []
    for i in range(1200):
        seq = await store.append(plan, "T1", TaskMarkedComplete(note=str(i)), META, expected=seq)
        seqs.append(seq)
    assert [r.seq for r in await store.read(plan, "T1")] == seqs
    assert [r.seq for r in await store.read(plan, "T1", after=seqs[1099])] == seqs[1100:]
    assert [r.seq for r in await store.read(plan, limit=700)] == seqs[:700]


async def test_following_gives_what_is_there_and_then_what_comes_once_and_in_order(store: EventStore) -> None:
    plan = new_plan_id()
    first = await store.append(plan, PLAN, PlanPaused(), META, expected=0)
    follower = asyncio.create_task(gather(store, 4, after=first - 1, filters=(plan_filter(plan),)))
    last = first
    for event in (PlanResumed(), PlanPaused(), PlanResumed()):
        last = await store.append(plan, PLAN, event, META, expected=last)
    batches = await follower
    seqs = [r.seq for b in batches for r in b.events]
    assert seqs == sorted(set(seqs)) and len(seqs) == 4
    assert batches[-1].caught_up


async def test_following_an_empty_subject_says_at_once_that_there_is_nothing(store: EventStore) -> None:
    [batch] = await gather(store, 0, after=0, filters=(entity_filter(new_plan_id(), "T1"),))
    assert batch == Batch((), caught_up=True)


async def test_following_heeds_its_filters(store: EventStore) -> None:
    plan = new_plan_id()
    await store.append(plan, PLAN, PlanPaused(), META, expected=0)
    seq = await store.append(plan, "T1", TaskAbandoned(), META, expected=0)
    batches = await gather(store, 1, after=0, filters=(entity_filter(plan, "T1"),))
    assert [r.seq for b in batches for r in b.events] == [seq]


async def test_an_event_over_the_servers_limit_is_refused_clearly(nats_url: NatsServer) -> None:
    nc = await connect(BusSettings(nats_url.url, nats_url.user, nats_url.password), "test")
    await declare_streams(nc.jetstream())
    with pytest.raises(EventTooLarge, match="limit"):
        await JetStreamStore(nc).append(
            new_plan_id(), PLAN, PlanPaused(reason="x" * (9 * 1024 * 1024)), META, expected=0
        )
    await nc.close()


async def test_a_follower_survives_kill_9_of_the_server_and_misses_nothing(own_nats: NatsServer) -> None:
    nc = await connect(BusSettings(own_nats.url, own_nats.user, own_nats.password), "test")
    await declare_streams(nc.jetstream())
    store, plan = JetStreamStore(nc), new_plan_id()
    seqs = [await store.append(plan, f"T{i}", TaskAbandoned(), META, expected=0) for i in range(5)]
    arrived = asyncio.Event()
    seen: list[int] = []

    async def follow() -> None:
        async for batch in store.follow():
            seen.extend(r.seq for r in batch.events)
            arrived.set()

    follower = asyncio.create_task(follow())
    await asyncio.wait_for(arrived.wait(), 60)
    own_nats.kill()
    with pytest.raises(StoreUnavailable):
        await store.append(plan, "T9", TaskAbandoned(), META, expected=0)
    own_nats.start()
    async with asyncio.timeout(90):
        for code in ("A", "B"):
            while True:
                try:
                    seqs.append(await store.append(plan, code, TaskAbandoned(), META, expected=0))
                    break
                except StoreUnavailable:
                    await asyncio.sleep(0.05)
                except Conflict:  # the append whose answer was lost had been stored
                    seqs.append(await store.last_seq(plan, code))
                    break
        while seen[-1:] != seqs[-1:]:
            arrived.clear()
            await arrived.wait()
    assert sorted(set(seen)) == seen
    assert set(seqs) <= set(seen)
    follower.cancel()
    await nc.close()
