"""What leases leave to one another, on a real nats-server, as the runner's own NATS user."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import nats
import pytest
from nats.aio.client import Client

from services.runner import checkpoint
from services.runner.checkpoint import Checkpoints, Fenced, LeaseMemory
from services.runner.lease import Key
from services.runner.stored_session import MORE, NUMBER, StoredSession
from shared import events as e
from shared.bus import RUNNER, inbox_prefix
from shared.clock import new_plan_id
from shared.jetstream import JetStreamStore
from shared.spec import AgentSpec, TaskSpec
from shared.store import Meta
from shared.streams import SESSIONS, declare_streams
from shared.subjects import checkpoint as checkpoint_subject
from shared.subjects import conversation, session_filter
from tests.nats_process import NatsServer

AGENT = AgentSpec(sdk_type="claude")
META = Meta(actor="test")
USAGE = e.Usage(input_tokens=7, cost_usd=0.25)

Entry = dict[str, Any]


def entries(*words: str) -> list[Entry]:
    return [{"uuid": f"u-{word}", "type": "user", "text": word} for word in words]


def words(conversation: list[Entry]) -> list[str]:
    return [entry["text"] for entry in conversation]


class Bench:
    """One task's log and sessions, and leases that come and go."""

    def __init__(self, server: NatsServer, runner: Client, operator: Client) -> None:
        self.server = server
        self.runner = runner
        self.operator = operator
        self.plan = new_plan_id()
        self.checkpoints = Checkpoints(runner)
        self._memories: list[LeaseMemory] = []

    def key(self, lease: int) -> Key:
        return Key(self.plan, "T1", lease)

    async def open(self, lease: int, resumes: int = 0, attempt: int = 1, by: Client | None = None) -> LeaseMemory:
        """What a runner does with a lease that the log has given to it."""
        made = await Checkpoints(by or self.runner).open(self.key(lease), resumes, attempt)
        self._memories.append(made)
        return made

    async def log(self, *resumes: int) -> None:
        """Has as many leases started, the first of them under the number 1."""
        store = JetStreamStore(self.operator)
        planned = e.TaskPlanned(digest="d", index=0, spec=TaskSpec(code="T1", name="A task", assignee="a"), agent=AGENT)
        seq = await store.append(self.plan, "T1", planned, META, expected=0)
        for lease, left_by in enumerate(resumes, 1):
            started = e.TaskStarted(lease=lease, runner="r1", execution=f"e{lease}", resumes=left_by)
            seq = await store.append(self.plan, "T1", started, META, expected=seq)

    async def messages(self) -> int:
        info = await self.operator.jetstream().stream_info(SESSIONS, subjects_filter=">")
        return info.state.messages

    async def close(self) -> None:
        for memory in self._memories:
            await memory.close()


async def log_in(server: NatsServer, denied: list[str]) -> Client:
    """As a runner. What the server forbids is noted."""

    async def note(error: Exception) -> None:
        if "permissions violation" in str(error).lower():
            denied.append(str(error))

    access = server.access_of(RUNNER)
    return await nats.connect(
        access.url,
        user=RUNNER,
        password=access.password,
        inbox_prefix=inbox_prefix(RUNNER),
        error_cb=note,
        max_reconnect_attempts=-1,
        reconnect_time_wait=0.1,
        pending_size=64 * 1024 * 1024,
    )


@pytest.fixture
async def bench(own_nats: NatsServer) -> AsyncIterator[Bench]:
    denied: list[str] = []
    operator = await nats.connect(
        own_nats.url, user=own_nats.user, password=own_nats.password, max_reconnect_attempts=-1, reconnect_time_wait=0.1
    )
    await declare_streams(operator.jetstream())
    runner = await log_in(own_nats, denied)
    made = Bench(own_nats, runner, operator)
    try:
        yield made
        await runner.jetstream().account_info()  # whatever was forbidden has been told by then
        assert denied == []
    finally:
        await made.close()
        await runner.close()
        await operator.close()


async def test_the_next_lease_goes_on_with_the_conversation_and_the_files(bench: Bench) -> None:
    first = await bench.open(1)
    assert (first.resumes, first.former, first.why_afresh) == (False, None, "")
    await first.append(entries("hello", "world"))
    await first.save("base", "head", "wip", USAGE, 1)
    await first.append(entries("more"))

    second = await bench.open(2, resumes=1)
    assert second.resumes and second.why_afresh == ""
    assert second.session_id == first.session_id
    assert words(await second.load()) == ["hello", "world", "more"]
    former = second.former
    assert former is not None
    assert (former.base, former.head, former.wip, former.verify_round) == ("base", "head", "wip", 1)
    assert second.usage == e.Usage(), "usage is of the lease alone"
    await second.append(entries("again"))
    assert words(await second.load()) == ["hello", "world", "more", "again"]


async def test_a_zombies_append_and_save_are_refused_and_its_part_of_the_conversation_stays_as_it_was(
    bench: Bench, own_nats: NatsServer
) -> None:
    zombie = await bench.open(1)
    told = asyncio.Event()
    zombie.on_fenced = told.set
    await zombie.append(entries("before"))
    elsewhere = await log_in(own_nats, [])
    try:
        second = await bench.open(2, resumes=1, by=elsewhere)
        stored = await bench.messages()
        with pytest.raises(Fenced):
            await zombie.append(entries("after"))
        with pytest.raises(Fenced):
            await zombie.save("base", "", "stolen", USAGE, 0)
        with pytest.raises(Fenced):
            await zombie.append(entries("later"))
        zombie.turn_ended(USAGE)
        assert told.is_set()
        assert await bench.messages() == stored
        assert words(await second.load()) == ["before"]
        await second.append(entries("mine"))
        await second.save("base", "", "wip", USAGE, 0)
        third = await bench.open(3, resumes=2)
        assert words(await third.load()) == ["before", "mine"]
        assert third.former is not None and third.former.wip == "wip"
        await second.close()
    finally:
        await elsewhere.close()


async def test_a_lease_that_is_over_can_not_claim_what_its_successor_has(bench: Bench) -> None:
    await bench.open(3)
    with pytest.raises(Fenced, match="lease 3"):
        await bench.open(2, resumes=1)


async def test_of_two_leases_that_claim_at_once_the_newer_one_has_it(bench: Bench) -> None:
    for number in range(1, 20, 2):
        claims = await asyncio.gather(bench.open(number), bench.open(number + 1), return_exceptions=True)
        newer = claims[1]
        assert isinstance(newer, LeaseMemory)
        await newer.append(entries("mine"))
        if isinstance(claims[0], LeaseMemory):
            with pytest.raises(Fenced):
                await claims[0].append(entries("late"))


async def test_a_lease_that_came_to_nothing_loses_nothing_of_what_it_was_left(bench: Bench) -> None:
    await bench.log(0, 1, 2, 3, 4)
    first = await bench.open(1)
    await first.append(entries("one"))
    await first.save("base", "head", "wip", USAGE, 2)
    second = await bench.open(2, resumes=1)
    await second.append(entries("two"))
    await bench.open(3, resumes=2)  # killed at once; and lease 4 was killed before it had claimed anything
    fifth = await bench.open(5, resumes=4)
    assert words(await fifth.load()) == ["one", "two"]
    assert fifth.session_id == first.session_id
    assert fifth.former is not None
    assert (fifth.former.wip, fifth.former.head, fifth.former.verify_round) == ("wip", "head", 2)


async def test_what_a_lease_did_not_want_to_go_on_with_does_not_come_back_with_its_successor(bench: Bench) -> None:
    await bench.log(0, 0, 2)
    first = await bench.open(1)
    await first.append(entries("old"))
    # Lease 2 began afresh (the task had been edited), and was killed before it had claimed anything.
    third = await bench.open(3, resumes=2)
    assert (third.former, third.resumes) == (None, False)
    assert third.why_afresh == "lease 2 left nothing"
    assert third.session_id != first.session_id and await third.load() == []


async def test_another_attempt_begins_afresh_without_a_word(bench: Bench) -> None:
    first = await bench.open(1)
    await first.append(entries("old"))
    second = await bench.open(2, attempt=2)
    assert (second.former, second.why_afresh, second.resumes) == (None, "", False)
    assert second.session_id != first.session_id and await second.load() == []


async def test_an_entry_that_is_stored_twice_is_there_once(bench: Bench) -> None:
    first = await bench.open(1)
    await first.append(entries("a", "b"))
    await first.append([*entries("b", "c"), {"type": "mode", "text": "no uuid"}])
    second = await bench.open(2, resumes=1)
    await second.append([*entries("a", "b", "c", "d"), {"type": "mode", "text": "no uuid"}])
    assert words(await second.load()) == ["a", "b", "c", "no uuid", "d", "no uuid"]


async def test_an_append_larger_than_a_message_is_cut_and_put_together_again(bench: Bench) -> None:
    first = await bench.open(1)
    large = [{"uuid": "u1", "text": "é" * 5_000_000}, {"uuid": "u2", "text": "x" * 9_000_000}]
    await first.append(large)
    await first.append(entries("small"))
    second = await bench.open(2, resumes=1)
    assert await second.load() == [*large, *entries("small")]


async def test_an_append_whose_writer_was_killed_over_it_is_left_out(bench: Bench) -> None:
    first = await bench.open(1)
    await first.append(entries("whole"))
    torn = StoredSession(bench.runner, bench.plan, "T1")
    await torn.look()
    await torn.write(conversation(bench.plan, "T1", 1), b'[{"uuid": "u9"', {NUMBER: "2", MORE: "1"})
    second = await bench.open(2, resumes=1)
    assert words(await second.load()) == ["whole"]
    await second.append(entries("on"))
    third = await bench.open(3, resumes=2)
    assert words(await third.load()) == ["whole", "on"]


@pytest.mark.parametrize(
    ("what", "why"),
    [
        ("all", "nothing is stored any more of what lease 1 left"),
        ("part", "the conversation of lease 1 is not there as a whole"),
        ("checkpoint", "nothing is stored any more"),
    ],
)
async def test_what_is_missing_means_to_begin_afresh_and_says_so(bench: Bench, what: str, why: str) -> None:
    first = await bench.open(1)
    await first.append(entries("one"))
    await first.append(entries("two"))
    await first.append(entries("three"))
    await first.save("base", "", "wip", USAGE, 0)
    js = bench.operator.jetstream()
    subject = {
        "all": session_filter(bench.plan, "T1"),
        "part": conversation(bench.plan, "T1", 1),
        "checkpoint": checkpoint_subject(bench.plan, "T1"),
    }[what]
    await js.purge_stream(SESSIONS, subject=subject, keep=1 if what == "part" else None)
    second = await bench.open(2, resumes=1)
    assert (second.resumes, second.former) == (False, None)
    assert second.why_afresh.startswith(why)
    assert second.session_id != first.session_id
    assert await second.load() == []
    await second.append(entries("afresh"))
    third = await bench.open(3, resumes=2)
    assert words(await third.load()) == ["afresh"]


async def test_a_lease_whose_files_are_not_to_be_had_leaves_the_conversation_behind_too(bench: Bench) -> None:
    first = await bench.open(1)
    await first.append(entries("old"))
    await first.save("base", "", "wip", USAGE, 1)
    second = await bench.open(2, resumes=1)
    await second.start_afresh("the saved work is gone")
    assert (second.resumes, second.former, second.why_afresh) == (False, None, "the saved work is gone")
    assert second.session_id != first.session_id and await second.load() == []
    await second.append(entries("new"))
    third = await bench.open(3, resumes=2)
    assert words(await third.load()) == ["new"] and third.session_id == second.session_id
    assert third.former is not None and third.former.wip == ""


async def test_own_messages_that_grew_too_old_are_no_successor(bench: Bench) -> None:
    first = await bench.open(1)
    await first.append(entries("one"))
    await bench.operator.jetstream().purge_stream(SESSIONS)
    await first.append(entries("two"))
    await first.save("base", "", "wip", USAGE, 0)
    assert await bench.checkpoints.usage_of(bench.key(1)) == USAGE


class LosesAnswers:
    """A JetStream context whose answers to publishes get lost, `times` times; the publishes arrive."""

    def __init__(self, inner: Any, times: int) -> None:
        self._inner = inner
        self._times = times

    async def publish(self, *args: Any, **more: Any) -> Any:
        answer = await self._inner.publish(*args, **more)
        if self._times:
            self._times -= 1
            raise nats.errors.TimeoutError
        return answer


async def test_an_own_write_whose_answer_was_lost_is_no_conflict(bench: Bench) -> None:
    first = await bench.open(1)
    first._session._js = LosesAnswers(first._session._js, 3)  # type: ignore[assignment] # the fault to test
    await first.append(entries("one"))
    await first.append(entries("two"))
    await first.save("base", "", "wip", USAGE, 0)
    assert await bench.messages() == 4, "stored twice"
    second = await bench.open(2, resumes=1)
    assert words(await second.load()) == ["one", "two"]


async def test_a_zombie_whose_answer_was_lost_does_not_take_its_successors_write_for_its_own(bench: Bench) -> None:
    zombie = await bench.open(1)
    real = zombie._session._js

    class Overtaken:
        async def publish(self, *args: Any, **more: Any) -> Any:
            await real.publish(*args, **more)
            zombie._session._js = real
            await bench.open(2, resumes=1)
            raise nats.errors.TimeoutError

    zombie._session._js = Overtaken()  # type: ignore[assignment] # the fault to test
    with pytest.raises(Fenced):
        await zombie.append(entries("stored"))
    third = await bench.open(3, resumes=2)
    assert words(await third.load()) == ["stored"], "it was stored before the claim, so the claim must have seen it"


async def test_a_lost_lease_is_charged_what_it_told_last(bench: Bench) -> None:
    usage_of = bench.checkpoints.usage_of
    assert await usage_of(bench.key(1)) is None
    first = await bench.open(1)
    assert await usage_of(bench.key(1)) == e.Usage()
    turns: list[bool] = []
    first.on_turn_ended = lambda: turns.append(True)
    for cost_usd in (0.1, 0.2, 0.3):
        first.turn_ended(e.Usage(cost_usd=cost_usd))
    await first.append(entries("flushed"))
    assert await usage_of(bench.key(1)) == e.Usage(cost_usd=0.3) == first.usage
    assert len(turns) == 3
    # The one after it never came so far as to claim anything: it has consumed nothing.
    assert await usage_of(bench.key(2)) == e.Usage()
    await bench.open(3, resumes=1)
    assert await usage_of(bench.key(1)) is None


async def test_a_runner_that_comes_back_saves_for_its_former_lifes_lease_as_long_as_nobody_took_over(
    bench: Bench,
) -> None:
    first = await bench.open(1)
    await first.append(entries("one"))
    await first.save("base", "", "", USAGE, 0)
    await first.close()
    back = await bench.checkpoints.reopen(bench.key(1))
    assert back is not None and back.usage == USAGE
    await back.save("base", "head", "late", back.usage, 0)
    second = await bench.open(2, resumes=1)
    assert second.former is not None and second.former.wip == "late"
    assert words(await second.load()) == ["one"]
    with pytest.raises(Fenced):
        await back.save("base", "head", "later", back.usage, 0)
    await back.close()
    assert await bench.checkpoints.reopen(bench.key(1)) is None


async def test_an_outage_holds_up_nobody_and_what_came_meanwhile_is_stored_in_its_order(
    bench: Bench, own_nats: NatsServer
) -> None:
    first = await bench.open(1)
    await first.append(entries("before"))
    await asyncio.to_thread(own_nats.kill)
    begun_s = time.monotonic()
    for number in range(50):
        await first.append(entries(f"meanwhile {number}"))
    took_s = time.monotonic() - begun_s
    assert took_s < checkpoint.APPEND_PATIENCE_S + 15, f"fifty appends took {took_s:.1f} s"
    saving = asyncio.create_task(first.save("base", "", "wip", USAGE, 0))
    loading = asyncio.create_task(first.load())
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await asyncio.shield(saving)
    assert not loading.done()
    await asyncio.to_thread(own_nats.start)
    async with asyncio.timeout(60):
        await saving
        await loading
    second = await bench.open(2, resumes=1)
    assert words(await second.load()) == ["before", *(f"meanwhile {number}" for number in range(50))]


async def test_an_outage_too_long_for_the_memory_leaves_a_true_beginning(
    bench: Bench, own_nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "WAITING_MAX_BYTES", 500_000)
    first = await bench.open(1)
    await asyncio.to_thread(own_nats.kill)
    for number in range(10):
        await first.append([{"uuid": f"u{number}", "text": f"{number}", "much": "x" * 100_000}])
    await first.append(entries("small enough, but with a hole before it"))
    await asyncio.to_thread(own_nats.start)
    async with asyncio.timeout(60):
        await first.save("base", "", "wip", USAGE, 0)
    await first.append(entries("afterwards"))
    second = await bench.open(2, resumes=1)
    assert words(await second.load()) == ["0", "1", "2", "3"]


async def test_a_claim_that_nobody_answers_waits_and_can_be_cancelled(bench: Bench, own_nats: NatsServer) -> None:
    await asyncio.to_thread(own_nats.kill)
    claiming = asyncio.create_task(bench.open(1))
    given_up = asyncio.create_task(bench.open(2))
    await asyncio.sleep(0)
    given_up.cancel()
    with pytest.raises(asyncio.CancelledError):
        async with asyncio.timeout(60):
            await given_up
    await asyncio.to_thread(own_nats.start)
    async with asyncio.timeout(60):
        assert (await claiming).session_id


async def test_a_checkpoint_of_another_treadle_is_no_reason_to_stop(bench: Bench) -> None:
    await bench.operator.jetstream().publish(checkpoint_subject(bench.plan, "T1"), b'{"shape": "new"}')
    second = await bench.open(2, resumes=1)
    assert second.former is None and second.why_afresh


async def test_half_a_character_of_a_conversation_is_replaced_and_the_rest_is_kept(bench: Bench) -> None:
    await bench.log(0)
    memory = await bench.open(1)
    await memory.append([{"uuid": "u-1", "text": "whole", "input": {"\ud83d": ["a\udc00b", 1, None]}}])
    assert await memory.load() == [{"uuid": "u-1", "text": "whole", "input": {"?": ["a?b", 1, None]}}]
