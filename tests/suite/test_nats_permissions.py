"""What each user may say and hear, on a real server with the suite's own configuration."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack

import nats
import nats.errors
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import ConsumerConfig

from shared.bus import DISPATCHER, GATEWAY, OPERATOR, PLANNER, READER, RUNNER, SERVICES, USERS, inbox_prefix
from shared.streams import (
    EVENTS,
    RUNNER_POOLS,
    RUNNERS,
    await_pool,
    declare_pool,
    declare_streams,
    pool_consumer_name,
)
from shared.subjects import (
    CREDENTIALS,
    PLANNER_CHECK,
    PLANNER_COMPARE,
    PLANNER_IMPORT,
    PLANNER_OFFER,
    PLANNER_PROMPT,
    PLANNER_RENDER,
    RUNNER_INTRODUCE,
    WATCH_CREDENTIALS,
    WATCH_LOOK,
    checkpoint,
    entity_filter,
    plan_filter,
    pool_filter,
    runner_holds,
    runner_test,
    timer,
    transcript,
)
from tests.nats_process import NatsServer
from tests.suite.conditions import until

PLAN = "paaaaaaaaaaaa"
T1 = plan_filter(PLAN).removesuffix(">") + "T1"
OF_PLAN = plan_filter(PLAN).removesuffix(">") + "_plan"


class Connected:
    """A client of one user, and what the server denied it."""

    def __init__(self, user: str) -> None:
        self.user = user
        self.denied: list[str] = []
        self.nc: Client

    async def note(self, error: Exception) -> None:
        self.denied.append(str(error).lower())

    async def is_denied(self, attempt: Awaitable[object]) -> bool:
        """Whether the server forbids it."""
        before = len(self.denied)
        await attempt
        await self.arrived()
        news = self.denied[before:]
        assert all("permissions violation" in line for line in news), news
        return bool(news)

    async def arrived(self) -> None:
        """Returns once the server has dealt with everything said so far. nats-py's `flush` may overtake a publish."""
        await self.nc.jetstream(timeout=60).account_info()


As = Callable[[str], Awaitable[Connected]]


@pytest.fixture
async def log_in(own_nats: NatsServer) -> AsyncIterator[As]:
    """Connects as a user, with the inbox that `shared.bus` chooses."""
    async with AsyncExitStack() as held:

        async def connect(user: str) -> Connected:
            made = Connected(user)
            access = own_nats.access_of(user)
            made.nc = await nats.connect(
                access.url, user=user, password=access.password, inbox_prefix=inbox_prefix(user), error_cb=made.note
            )
            held.push_async_callback(made.nc.close)
            return made

        yield connect


async def ignore(_: Msg) -> None:
    """What is heard does not matter."""


async def test_only_a_runner_asks_for_credentials_and_only_a_gateway_answers(log_in: As) -> None:
    gateway, runner = await log_in(GATEWAY), await log_in(RUNNER)

    async def answer(message: Msg) -> None:
        await message.respond(b"sealed")

    await gateway.nc.subscribe(CREDENTIALS, cb=answer)
    await gateway.arrived()
    assert (await runner.nc.request(CREDENTIALS, b"", timeout=60)).data == b"sealed"
    for user in SERVICES:
        other = await log_in(user)
        assert await other.is_denied(other.nc.publish(CREDENTIALS, b"")) == (user != RUNNER), user
        assert await other.is_denied(other.nc.subscribe(CREDENTIALS, cb=ignore)) == (user != GATEWAY), user


async def test_only_a_gateway_asks_runners_to_test_credentials_and_only_runners_hear_it(log_in: As) -> None:
    for user in SERVICES:
        one = await log_in(user)
        for subject in (RUNNER_INTRODUCE, runner_test("runner-1")):
            assert await one.is_denied(one.nc.publish(subject, b"")) == (user != GATEWAY), (user, subject)
            assert await one.is_denied(one.nc.subscribe(subject, cb=ignore)) == (user != RUNNER), (user, subject)


async def test_nobody_hears_the_answers_to_another_ones_requests(log_in: As) -> None:
    for user in (*SERVICES, READER):
        one = await log_in(user)
        heard = [f"{inbox_prefix(other)}.>" for other in (*USERS, None) if other != user]
        for subject in (*heard, ">", "*.>", "$JS.>", "treadle.>"):
            assert await one.is_denied(one.nc.subscribe(subject, cb=ignore)), (user, subject)
        assert not await one.is_denied(one.nc.subscribe(one.nc.new_inbox(), cb=ignore))


async def test_an_answer_goes_to_whoever_asked_and_to_no_inbox_otherwise(log_in: As) -> None:
    gateway, planner, dispatcher = await log_in(GATEWAY), await log_in(PLANNER), await log_in(DISPATCHER)

    async def answer(message: Msg) -> None:
        await message.respond(b"valid")

    await planner.nc.subscribe(PLANNER_IMPORT, cb=answer)
    await planner.arrived()
    assert (await gateway.nc.request(PLANNER_IMPORT, b"", timeout=60)).data == b"valid"
    assert await planner.is_denied(planner.nc.publish(gateway.nc.new_inbox(), b"forged"))
    assert await dispatcher.is_denied(dispatcher.nc.publish(PLANNER_IMPORT, b""))


async def test_a_runner_tells_how_a_lease_went_and_neither_dispatches_nor_speaks_for_the_plan(log_in: As) -> None:
    runner = await log_in(RUNNER)
    for type_ in ("started", "released", "completed", "failed", "cancelled", "watch_failed", "watch_restored"):
        assert not await runner.is_denied(runner.nc.publish(f"{T1}.{type_}", b"")), type_
    for subject in (
        *(f"{T1}.{type_}" for type_ in ("dispatched.claude", "planned", "marked_complete", "edited", "abandoned")),
        *(f"{T1}.{type_}" for type_ in ("decided", "readied")),
        *(f"{OF_PLAN}.{type_}" for type_ in ("completed", "cancelled", "drafted", "finalizing", "failed", "requested")),
        "treadle.timer.set.p.T1",
        f"treadle.project.{'0' * 24}.deleted",
    ):
        assert await runner.is_denied(runner.nc.publish(subject, b"")), subject
    assert not await runner.is_denied(runner.nc.publish(runner_holds("runner-2"), b""))


async def test_a_planner_speaks_for_plans_and_for_no_task(log_in: As) -> None:
    planner = await log_in(PLANNER)
    assert not await planner.is_denied(planner.nc.publish(f"{OF_PLAN}.drafted", b""))
    assert await planner.is_denied(planner.nc.publish(f"{T1}.completed", b""))
    assert await planner.is_denied(planner.nc.publish(f"{T1}.dispatched.claude", b""))
    draft = entity_filter(PLAN, "_draft-99").removesuffix(">")
    assert not await planner.is_denied(planner.nc.publish(f"{draft}dispatched.claude", b""))


async def test_whoever_watches_repositories_asks_the_planner_and_gateways_and_answers_them(log_in: As) -> None:
    runner, gateway = await log_in(RUNNER), await log_in(GATEWAY)
    for subject in (PLANNER_CHECK, PLANNER_OFFER, WATCH_CREDENTIALS):
        assert not await runner.is_denied(runner.nc.publish(subject, b"")), subject
    for subject in (PLANNER_PROMPT, PLANNER_COMPARE, PLANNER_RENDER, WATCH_LOOK):
        assert not await gateway.is_denied(gateway.nc.publish(subject, b"")), subject
        assert await runner.is_denied(runner.nc.publish(subject, b"")), subject
    for one, subject in ((runner, WATCH_LOOK), (gateway, WATCH_CREDENTIALS)):
        assert not await one.is_denied(one.nc.subscribe(subject, cb=ignore)), subject
    assert await runner.is_denied(runner.nc.subscribe(WATCH_CREDENTIALS, cb=ignore))


async def test_nobody_purges_the_log_and_nobody_ends_a_pool(log_in: As, own_nats: NatsServer) -> None:
    operator = await log_in("operator")
    await declare_streams(operator.nc.jetstream())
    await declare_pool(operator.nc.jetstream(), "claude")
    for user in (*SERVICES, READER):
        one = await log_in(user)
        for subject in (
            f"$JS.API.STREAM.PURGE.{EVENTS}",
            f"$JS.API.STREAM.DELETE.{EVENTS}",
            f"$JS.API.STREAM.UPDATE.{EVENTS}",
            f"$JS.API.STREAM.MSG.DELETE.{EVENTS}",
            f"$JS.API.CONSUMER.DELETE.{EVENTS}.pool_claude",
        ):
            assert await one.is_denied(one.nc.publish(subject, b"")), (user, subject)


async def test_a_runner_pulls_from_the_pool_that_a_dispatcher_made_and_acknowledges(log_in: As) -> None:
    dispatcher, runner = await log_in(DISPATCHER), await log_in(RUNNER)
    await declare_streams(runner.nc.jetstream())
    await declare_pool(dispatcher.nc.jetstream(), "command")
    await await_pool(runner.nc.jetstream(), "command", patience_s=0)
    await dispatcher.nc.jetstream().publish(f"{T1}.dispatched.command", b"work")
    pulling = await runner.nc.jetstream().pull_subscribe_bind("pool_command", EVENTS)
    (message,) = await pulling.fetch(1, timeout=60)
    assert message.subject == f"{T1}.dispatched.command" and pool_filter("command")
    await message.in_progress()
    await message.ack_sync(timeout=60)
    assert (dispatcher.denied, runner.denied) == ([], [])


async def test_a_runner_waits_for_its_pool_and_says_who_makes_it(log_in: As) -> None:
    dispatcher, runner = await log_in(DISPATCHER), await log_in(RUNNER)
    await declare_streams(runner.nc.jetstream())
    with pytest.raises(TimeoutError, match=r"pool_command.*dispatcher"):
        await await_pool(runner.nc.jetstream(), "command", patience_s=0)
    waiting = asyncio.create_task(await_pool(runner.nc.jetstream(), "command", patience_s=60))
    await declare_pool(dispatcher.nc.jetstream(), "command")
    await waiting


async def test_only_a_dispatcher_makes_or_changes_a_pool(log_in: As) -> None:
    operator = await log_in(OPERATOR)
    await declare_streams(operator.nc.jetstream())
    await declare_pool(operator.nc.jetstream(), "claude")
    for user in (*SERVICES, READER):
        one = await log_in(user)
        for subject in (
            f"$JS.API.CONSUMER.DURABLE.CREATE.{EVENTS}.pool_claude",
            f"$JS.API.CONSUMER.CREATE.{EVENTS}.pool_claude",
            f"$JS.API.CONSUMER.CREATE.{EVENTS}.pool_claude.{pool_filter('claude')}",
        ):
            assert await one.is_denied(one.nc.publish(subject, b"")) == (user != DISPATCHER), (user, subject)


async def test_nobody_but_a_runner_takes_from_a_pool(log_in: As) -> None:
    operator = await log_in(OPERATOR)
    await declare_streams(operator.nc.jetstream())
    for pool in RUNNER_POOLS:
        await declare_pool(operator.nc.jetstream(), pool)
    await operator.nc.jetstream().publish(f"{T1}.dispatched.claude", b"work")
    for user in (*(user for user in SERVICES if user != RUNNER), READER):
        one = await log_in(user)
        for pool in RUNNER_POOLS:
            subject = f"$JS.API.CONSUMER.MSG.NEXT.{EVENTS}.{pool_consumer_name(pool)}"
            wish = one.nc.publish(subject, b'{"batch":10,"no_wait":true}', reply=one.nc.new_inbox())
            assert await one.is_denied(wish), (user, pool)
    runner = await log_in(RUNNER)
    (taken,) = await (await runner.nc.jetstream().pull_subscribe_bind("pool_claude", EVENTS)).fetch(1, timeout=60)
    assert (taken.data, taken.metadata.num_delivered) == (b"work", 1)


async def test_a_reader_of_the_log_makes_no_consumer_and_touches_nobody_elses(log_in: As) -> None:
    operator, gateway, reader = await log_in(OPERATOR), await log_in(GATEWAY), await log_in(READER)
    await declare_streams(operator.nc.jetstream())
    config = ConsumerConfig(name="follow_others", mem_storage=True, inactive_threshold=600)
    await gateway.nc.jetstream().add_consumer(EVENTS, config)
    for verb in ("CREATE", "DURABLE.CREATE", "MSG.NEXT", "DELETE", "RESET", "PAUSE", "UNPIN", "LEADER.STEPDOWN"):
        for name in ("follow_others", "follow_reader_1", "pool_claude"):
            subject = f"$JS.API.CONSUMER.{verb}.{EVENTS}.{name}"
            assert await reader.is_denied(reader.nc.publish(subject, b"")), subject
    subject = f"$JS.API.CONSUMER.CREATE.{EVENTS}.follow_reader_1.{pool_filter('claude')}"
    assert await reader.is_denied(reader.nc.publish(subject, b""))
    (left,) = await operator.nc.jetstream().consumers_info(EVENTS)
    assert left.name == "follow_others"


async def test_a_reader_of_the_log_reads_it_and_stores_nothing_anywhere(log_in: As) -> None:
    operator, reader = await log_in(OPERATOR), await log_in(READER)
    await declare_streams(operator.nc.jetstream())
    await operator.nc.jetstream().publish(f"{T1}.completed", b"{}")
    message = await reader.nc.request(f"$JS.API.DIRECT.GET.{EVENTS}", b'{"seq": 1}', timeout=60)
    assert message.data == b"{}"
    for subject in (
        *(f"{T1}.{type_}" for type_ in ("started", "completed", "failed", "dispatched.claude", "skipped")),
        *(f"{OF_PLAN}.{type_}" for type_ in ("drafted", "paused", "skipped")),
        transcript(PLAN, "T1", 1),
        checkpoint(PLAN, "T1"),
        timer(PLAN, "T1"),
        f"treadle.project.{'0' * 24}.deleted",
        f"$KV.{RUNNERS}.runner-1",
        CREDENTIALS,
        PLANNER_IMPORT,
        runner_holds("runner-1"),
        f"$JS.API.STREAM.CREATE.{EVENTS}",
    ):
        assert await reader.is_denied(reader.nc.publish(subject, b"")), subject
    assert (await operator.nc.jetstream().stream_info(EVENTS)).state.messages == 1


async def test_an_unknown_user_of_a_server_that_was_given_keeps_the_usual_inbox() -> None:
    assert [inbox_prefix(user) for user in (None, "me", "gateway")] == ["_INBOX", "_INBOX", "_INBOX_gateway"]


async def test_a_wrong_password_is_refused(own_nats: NatsServer) -> None:
    seen: list[Exception] = []

    async def note(error: Exception) -> None:
        seen.append(error)

    with pytest.raises(nats.errors.Error, match=r"(?i)authorization"):
        await nats.connect(
            own_nats.url,
            user=GATEWAY,
            password=own_nats.access_of(RUNNER).password,
            allow_reconnect=False,
            error_cb=note,
        )
    await until(lambda: seen)
