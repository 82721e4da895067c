"""An event that nobody can read stops one plan, which a dispatcher goes on with once it was skipped."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from shared import commands as c
from shared.spec import DELIVER
from shared.store import Recorded
from shared.subjects import PLAN, plan_filter
from shared.transact import UnreadableEntity, to_plan, to_task
from tests.damage import KINDS, Kind, store_unreadable
from tests.dispatcher.loom import ANN, DEADLINE_S, Loom, loom, of_type, spec
from tests.nats_process import NatsServer

DIAMOND = {"A": (), "L": ("A",), "R": ("A",), "J": ("L", "R")}


@pytest.fixture
async def bus(own_nats: NatsServer) -> AsyncIterator[Loom]:
    async with loom(own_nats) as made:
        yield made


async def heard(bus: Loom, plan: str, type_: str, entity: str = PLAN, after: int = 0) -> Recorded:
    """Waits for an event of the plan."""
    async with asyncio.timeout(DEADLINE_S):
        async for batch in bus.store.follow(after=after, filters=(plan_filter(plan),)):
            for record in batch.events:
                if (record.type, record.entity) == (type_, entity):
                    return record
    raise AssertionError("following a log does not end")


async def skip(bus: Loom, plan: str, entity: str, seq: int) -> None:
    word = c.Skip(seq=seq, reason="nobody can read it")
    if entity == PLAN:
        await to_plan(bus.store, plan, word, ANN)
    else:
        await to_task(bus.store, plan, entity, word, ANN)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("entity", ["A", "J", PLAN])
async def test_a_plan_stands_still_others_go_on_and_so_does_it_when_the_event_is_skipped(
    bus: Loom, entity: str, kind: Kind
) -> None:
    bus.start_dispatcher()
    plan = await bus.submit(spec(DIAMOND))
    await heard(bus, plan, "dispatched", "A")
    seq = await store_unreadable(bus.nc, plan, entity, kind)
    if entity == PLAN:
        with pytest.raises(UnreadableEntity):
            await to_plan(bus.store, plan, c.Pause(), ANN)
    bus.start_runner()
    other = await bus.submit(spec({"X": ()}))
    await heard(bus, other, "completed")
    dispatched = [r.entity for r in await bus.records(plan) if r.type == "dispatched"]
    assert dispatched == ["A"], "nothing is decided on half a state"
    await skip(bus, plan, entity, seq)
    bus.start_runner()  # which looks at everything from the beginning, as one that is offered it again
    await heard(bus, plan, "completed")
    dispatched = [r.entity for r in await bus.records(plan) if r.type == "dispatched"]
    assert sorted(dispatched) == sorted([*DIAMOND, DELIVER]), "each once"


@pytest.mark.parametrize("entity", ["A", PLAN])
async def test_a_dispatcher_that_starts_after_the_skip_finds_the_plan_as_one_that_was_there(
    bus: Loom, entity: str
) -> None:
    first = bus.start_dispatcher()
    plan = await bus.submit(spec(DIAMOND))
    await heard(bus, plan, "dispatched", "A")
    seq = await store_unreadable(bus.nc, plan, entity, "unknown name")
    await bus.stop(first)
    await skip(bus, plan, entity, seq)
    bus.start_dispatcher()
    bus.start_runner()
    await heard(bus, plan, "completed")
    assert len(of_type(await bus.records(plan), "dispatched")) == len(DIAMOND) + 1


async def test_what_stands_on_no_name_that_there_can_be_stops_nobody(bus: Loom) -> None:
    bus.start_dispatcher()
    plan = await bus.submit(spec({"A": ()}))
    await heard(bus, plan, "dispatched", "A")
    subject = plan_filter(plan).removesuffix(">") + "_nobody.started"
    await bus.nc.jetstream().publish(subject, b'{"lease":1}')
    bus.start_runner()
    await heard(bus, plan, "completed")
