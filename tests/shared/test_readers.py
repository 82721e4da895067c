"""What stands in the log's way must not stop its readers: foreign messages, unreadable events, a lagging view."""

import asyncio
import contextlib

from shared import board
from shared.bus import BusSettings, connect
from shared.clock import new_plan_id
from shared.commands import Draft
from shared.jetstream import JetStreamStore
from shared.spec import AgentSpec, PlanSpec, TaskSpec
from shared.store import Meta, Recorded
from shared.streams import TRANSCRIPTS, declare_streams
from shared.subjects import MANY_TRANSCRIPTS, transcript
from shared.tail import PULL_MAX_BYTES, follow_messages
from shared.transact import to_plan
from tests.nats_process import NatsServer

META = Meta(actor="user:test")
SPEC = PlanSpec(
    name="plan",
    tasks=(TaskSpec(code="T1", name="one", assignee="sh"),),
    agents={"sh": AgentSpec(sdk_type="command", command=("true",))},
)
DRAFT = Draft(candidate="1", spec=SPEC, repo_url="/repo", base_commit="0" * 40)


async def test_a_message_that_is_no_event_does_not_stop_those_who_follow_the_log(own_nats: NatsServer) -> None:
    nc = await connect(BusSettings(own_nats.url, own_nats.user, own_nats.password), "test")
    js, store, plan = nc.jetstream(), JetStreamStore(nc), new_plan_id()
    await declare_streams(js)
    await js.publish("treadle.evt.oops", b"?")
    await js.publish(
        f"treadle.evt.00.{plan}._plan.paused", b"{}", headers={"Treadle-Version": "x", "Treadle-Seen": "y"}
    )
    other = new_plan_id()
    last = (await to_plan(store, other, DRAFT, META)).seq
    seen: list[Recorded] = []
    async with asyncio.timeout(60):
        async for batch in store.follow():
            seen += batch.events
            if seen and seen[-1].seq == last:
                break
    assert [(r.plan, r.event is None) for r in seen] == [(plan, True), (other, False)]
    await nc.close()


def test_a_plan_with_an_event_that_cannot_be_read_needs_a_person() -> None:
    plan = board.Board()
    plan.fault = "event 7 can't be read"
    assert plan.standing() == "needs_attention"


async def test_many_large_messages_are_followed_by_one_consumer_that_is_never_cut_off(own_nats: NatsServer) -> None:
    nc = await connect(BusSettings(own_nats.url, own_nats.user, own_nats.password), "test")
    try:
        js = nc.jetstream(timeout=30)
        await declare_streams(js)
        large, count = b"x" * 1024 * 1024, 3 * PULL_MAX_BYTES // 1024**2
        for lease in range(1, count + 1):
            await js.publish(transcript(new_plan_id(), "T1", lease), large)
        sequences: list[int] = []
        consumers: set[str] = set()
        async with (
            asyncio.timeout(60),
            contextlib.aclosing(follow_messages(nc, TRANSCRIPTS, after=0, filters=(MANY_TRANSCRIPTS,))) as following,
        ):
            async for arrived in following:
                sequences += [message.metadata.sequence.stream for message in arrived.messages]
                consumers |= {message.metadata.consumer for message in arrived.messages}
                if len(sequences) >= count:
                    break
        assert sequences == list(range(1, count + 1))
        assert len(consumers) == 1 and nc.stats["reconnects"] == 0
    finally:
        await nc.close()
