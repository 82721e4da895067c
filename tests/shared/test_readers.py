"""What stands in the log's way must not stop its readers: foreign messages, unreadable events, a lagging view."""

import asyncio

from shared import board
from shared.bus import BusSettings, connect
from shared.clock import new_plan_id
from shared.commands import Draft
from shared.jetstream import JetStreamStore
from shared.spec import AgentSpec, PlanSpec, TaskSpec
from shared.store import Meta, Recorded
from shared.streams import declare_streams
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
    async with asyncio.timeout(10):
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
