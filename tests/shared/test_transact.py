"""Where a decision meets the log: lost races, lost answers, outages, unreadable histories."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from shared import commands as c
from shared import events as e
from shared.spec import TaskSpec
from shared.store import Batch, MemoryStore, Meta, Recorded, StoreUnavailable
from shared.subjects import PLAN
from shared.task import INITIAL
from shared.transact import (
    CONFLICTS_MAX,
    Contended,
    Loaded,
    UnreadableEntity,
    load_plan,
    load_task,
    patiently,
    to_plan,
    to_task,
)
from tests.shared.strategies import NOW, SH, SPECS
from tests.simulation.virtual_time import run_in_virtual_time

ID = "paaaaaaaaaaaa"
META = Meta(actor="user:ann", causation=3, correlation="c")
PLANNED = c.PlanTask(digest="d", index=0, spec=TaskSpec(code="T1", name="T1", assignee="sh"), agent=SH)


class Wire:
    """A store whose calls a test may spoil. `before` and `after` run around each append."""

    def __init__(self) -> None:
        self.log = MemoryStore()
        self.before: Callable[[], Awaitable[None]] | None = None
        self.after: Callable[[], Awaitable[None]] | None = None
        self.broken_reads = 0
        self.reads = self.appends = 0
        self.appended = asyncio.Event()
        """Something was stored, answered or not."""

    async def append(self, plan: str, entity: str, event: e.Event, meta: Meta, *, expected: int) -> int:
        self.appends += 1
        if self.before:
            await self.before()
        seq = await self.log.append(plan, entity, event, meta, expected=expected)
        self.appended.set()
        if self.after:
            await self.after()
        return seq

    async def read(
        self, plan: str, entity: str | None = None, *, after: int = 0, limit: int | None = None
    ) -> list[Recorded]:
        self.reads += 1
        if self.broken_reads:
            self.broken_reads -= 1
            raise StoreUnavailable("no answer")
        return await self.log.read(plan, entity, after=after, limit=limit)

    async def last_seq(self, plan: str, entity: str) -> int:
        return await self.log.last_seq(plan, entity)

    def follow(self, *, after: int = 0, filters: tuple[str, ...] = ()) -> AsyncIterator[Batch]:
        return self.log.follow(after=after, filters=filters)


async def active_plan(wire: Wire) -> None:
    draft = c.Draft(candidate="c", spec=SPECS[0], repo_url="u", base_commit="b")
    for command in (draft, c.Finalize(candidate="c")):
        await to_plan(wire.log, ID, command, META)
    digest = (await load_plan(wire.log, ID)).state.digest
    await to_plan(wire.log, ID, c.ConfirmFinalized(digest=digest), META)


async def types(wire: Wire, entity: str = PLAN) -> list[str]:
    return [r.type for r in await wire.log.read(ID, entity)]


def spoil(times: int) -> Callable[[], Awaitable[None]]:
    """Raises that often, then no more."""
    left = [times]

    async def fault() -> None:
        if left[0] > 0:
            left[0] -= 1
            raise StoreUnavailable("no answer")

    return fault


def run(test: Callable[[Wire], Awaitable[None]]) -> None:
    async def main() -> None:
        await test(Wire())

    run_in_virtual_time(main())


def test_whoever_loses_the_race_decides_again_on_what_the_other_did() -> None:
    async def test(wire: Wire) -> None:
        await active_plan(wire)

        async def somebody_else() -> None:
            wire.before = None
            await to_plan(wire.log, ID, c.Pause(reason="theirs"), META)

        wire.before = somebody_else
        decided = await to_plan(wire, ID, c.Pause(reason="ours"), META)
        assert decided.event is None
        assert (decided.state.status, decided.state.reason) == ("paused", "theirs")
        assert (await types(wire))[-2:] == ["finalized", "paused"]

    run(test)


def test_a_lost_race_may_end_in_a_refusal() -> None:
    async def test(wire: Wire) -> None:
        await active_plan(wire)

        async def somebody_else() -> None:
            wire.before = None
            await to_plan(wire.log, ID, c.CancelPlan(), META)

        wire.before = somebody_else
        with pytest.raises(c.Refused, match="cancelling"):
            await to_plan(wire, ID, c.Pause(), META)

    run(test)


def test_an_entity_that_changes_under_every_try_is_given_up() -> None:
    async def test(wire: Wire) -> None:
        await active_plan(wire)

        async def somebody_else() -> None:
            for command in (c.Pause(), c.Resume()):
                await to_plan(wire.log, ID, command, META)

        wire.before = somebody_else
        with pytest.raises(Contended, match=f"_plan of plan {ID} changed"):
            await to_plan(wire, ID, c.Pause(), META)
        assert wire.appends == CONFLICTS_MAX + 1

    run(test)


def test_what_the_caller_has_folded_saves_a_read_and_may_be_old() -> None:
    async def test(wire: Wire) -> None:
        await to_task(wire, ID, "T1", PLANNED, META, known=Loaded(INITIAL, 0))
        assert (wire.reads, wire.appends) == (0, 1)
        again = await to_task(wire, ID, "T1", PLANNED, META, known=Loaded(INITIAL, 0))
        assert (again.event, again.seq, again.state.status) == (None, 1, "pending")
        assert await types(wire, "T1") == ["planned"]

    run(test)


def test_an_outage_is_waited_out() -> None:
    async def test(wire: Wire) -> None:
        await active_plan(wire)
        wire.before, wire.broken_reads = spoil(7), 5
        decided = await to_plan(wire, ID, c.Pause(), META)
        assert decided.event == e.PlanPaused()
        assert (await types(wire)).count("paused") == 1

    run(test)


async def test_an_outage_longer_than_the_callers_patience_is_reported_in_time() -> None:
    wire = Wire()
    await active_plan(wire)
    wire.before = spoil(10**6)
    async with asyncio.timeout(60):
        with pytest.raises(StoreUnavailable):
            await to_plan(wire, ID, c.Pause(), META, patience_s=0.2)
    assert await types(wire) == ["drafted", "finalizing", "finalized"]


def test_reading_patiently_outlasts_an_outage() -> None:
    async def test(wire: Wire) -> None:
        await active_plan(wire)
        wire.broken_reads = 20
        loaded = await patiently(lambda: load_plan(wire, ID))
        assert loaded.state.status == "active"

    run(test)


def test_an_append_whose_answer_was_lost_leads_to_no_second_event() -> None:
    async def test(wire: Wire) -> None:
        await active_plan(wire)
        wire.after = spoil(1)
        decided = await to_plan(wire, ID, c.Pause(reason="lunch"), META)
        assert decided.event == e.PlanPaused(reason="lunch")
        assert decided.seq == (await wire.log.last_seq(ID, PLAN))
        assert (await types(wire)).count("paused") == 1

    run(test)


def test_nor_where_somebody_undid_it_before_we_asked_again() -> None:
    async def test(wire: Wire) -> None:
        await active_plan(wire)
        wire.after = spoil(1)
        ours = asyncio.create_task(to_plan(wire, ID, c.Pause(), META))
        await wire.appended.wait()
        await to_plan(wire.log, ID, c.Resume(), META)
        decided = await ours
        assert decided.state.status == "paused", "the state is the one that our event led to"
        assert (await types(wire))[-2:] == ["paused", "resumed"]

    run(test)


def test_a_start_whose_answer_was_lost_knows_its_own_lease_and_not_its_successors() -> None:
    async def test(wire: Wire) -> None:
        for command in (PLANNED, DISPATCH):
            await to_task(wire.log, ID, "T1", command, META)
        wire.after = spoil(1)
        ours = asyncio.create_task(to_task(wire, ID, "T1", start("x1", None), META))
        await wire.appended.wait()
        await to_task(wire.log, ID, "T1", start("x2", 1), META)
        decided = await ours
        assert (decided.state.lease, decided.state.execution) == (1, "x1")
        assert (await load_task(wire.log, ID, "T1")).state.lease == 2

    run(test)


def test_an_append_that_was_not_stored_is_made_again_under_the_same_command_id() -> None:
    async def test(wire: Wire) -> None:
        await active_plan(wire)
        wire.before = spoil(1)
        await to_plan(wire, ID, c.Pause(), Meta(actor="user:ann", command_id="k1"))
        record = (await wire.log.read(ID, PLAN))[-1]
        assert (record.type, record.meta.command, record.meta.command_id) == ("paused", "Pause", "k1")

    run(test)


def test_nothing_is_decided_on_a_history_that_can_not_be_read() -> None:
    async def test(wire: Wire) -> None:
        await active_plan(wire)
        unreadable(wire, PLAN, "task.exploded")
        with pytest.raises(UnreadableEntity, match=r"event 3 of paaaaaaaaaaaa _plan can't be read: .*newer Treadle"):
            await to_plan(wire, ID, c.Pause(), META)
        assert wire.appends == 0

    run(test)


def unreadable(wire: Wire, entity: str, name: str) -> None:
    """Makes the entity's newest event one that a newer Treadle wrote."""
    place = max(i for i, (_, r) in enumerate(wire.log._log) if r.entity == entity)
    subject, record = wire.log._log[place]
    fault = f"unknown event {name!r}: it was written by a newer Treadle"
    spoiled = Recorded(
        seq=record.seq,
        time=record.time,
        plan=record.plan,
        entity=entity,
        type=record.type,
        event=None,
        meta=record.meta,
        fault=fault,
    )
    wire.log._log[place] = (subject, spoiled)


DISPATCH = c.Dispatch(
    now=NOW,
    prompt="p",
    revision=0,
    agent=SH,
    project="",
    repo_url="u",
    base_commit="b",
    heads=(),
    abandoned=(),
    plan_name="n",
    setup=(),
    env_allow=(),
)


def start(execution: str, supersede_lease: int | None) -> c.Start:
    return c.Start(phase="open", dispatch=1, runner="r", execution=execution, supersede_lease=supersede_lease)
