"""Each delivery reaches a real receiver, or is given up where people see it; nobody waits for anybody else's."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from sqlalchemy import update

from services.gateway.credentials.keyring import Keyring
from services.gateway.database.engine import Database
from services.gateway.database.tables import Delivery, User, Webhook
from services.gateway.notifications.outbox import encoded
from services.gateway.notifications.sender import BACKOFF_S, CLAIM_S, JITTER, KEPT, Sender
from services.gateway.notifications.words import NotedPlan, Notice
from shared.clock import new_id
from tests.gateway.notifications.receiver import Answer, Receiver
from tests.gateway.notifications.world import SECRET, START, SetClock, add, deliveries, user, webhook
from tests.gateway.projection.histories import running, until

Outcome = tuple[str, int, int | None]


def sender_of(db: Database, keyring: Keyring, clock: SetClock, *, allow_private: bool = True) -> Sender:
    return Sender(
        db, keyring, allow_private=allow_private, registry=CollectorRegistry(), clock=clock, chance=lambda: 1.0
    )


async def delivery(db: Database, hook: str, **fields: object) -> str:
    plan = NotedPlan(id="paaaaaaaaaaaa", name="Shop", project="Web", project_id="f" * 24)
    notice = Notice(event="needs_attention", time=START, plan=plan, task=None, reason="it broke")
    columns = {"event": "needs_attention", "status": "waiting", "due_at": START, "created_at": START} | fields
    return str((await add(db, Delivery(id=new_id(), webhook_id=hook, notice=encoded(notice), **columns))).id)


async def state(db: Database, delivery_id: str) -> Delivery:
    return next(row for row in await deliveries(db) if row.id == delivery_id)


async def tried(db: Database, sender: Sender, delivery_id: str) -> Delivery:
    await sender.try_now(delivery_id)
    return await state(db, delivery_id)


async def ended(db: Database) -> bool:
    return all(row.status != "waiting" for row in await deliveries(db))


async def test_a_delivery_is_signed_so_that_its_receiver_can_tell_who_sent_it(
    db: Database, keyring: Keyring, receiver: Receiver
) -> None:
    hook = await webhook(db, await user(db, "ann"), keyring, receiver.url)
    id_ = await delivery(db, hook)
    row = await tried(db, sender_of(db, keyring, SetClock()), id_)
    assert (row.status, row.attempts, row.response_status, row.error) == ("delivered", 1, 200, "")
    [heard] = receiver.heard
    assert (heard.path, heard.headers["treadle-event"], heard.delivery) == ("/hook", "needs_attention", id_)
    assert heard.headers["content-type"].startswith("application/json")
    # What a receiver does about it, in its own words.
    parts = dict(part.split("=", 1) for part in heard.headers["treadle-signature"].split(","))
    wanted = hmac.new(SECRET.encode(), parts["t"].encode() + b"." + heard.body, hashlib.sha256).hexdigest()
    assert hmac.compare_digest(wanted, parts["v1"])
    assert int(parts["t"]) == int(START.timestamp())
    assert heard.json["reason"] == "it broke"


async def test_a_receiver_that_fails_is_tried_ten_times_within_a_day_with_growing_pauses(
    db: Database, keyring: Keyring, receiver: Receiver
) -> None:
    clock = SetClock()
    receiver.always = Answer(500, body=b"\x1b[31mbroken")
    id_ = await delivery(db, await webhook(db, await user(db, "ann"), keyring, receiver.url))
    sender = sender_of(db, keyring, clock)
    for number, pause_s in enumerate(BACKOFF_S, 1):
        row = await tried(db, sender, id_)
        assert (row.status, row.attempts, row.response_status) == ("waiting", number, 500)
        assert row.error == "the receiver answered HTTP 500: [31mbroken"
        assert (row.due_at - clock.now).total_seconds() == pytest.approx(pause_s * (1 + JITTER))
        clock.go_on(pause_s)
        assert (await tried(db, sender, id_)).attempts == number, "not before its time"
        clock.go_on(pause_s * JITTER)
    row = await tried(db, sender, id_)
    assert (row.status, row.attempts) == ("given_up", len(BACKOFF_S) + 1)
    assert sum(BACKOFF_S) < 24 * 3600
    clock.go_on(10 * 24 * 3600)
    await sender.try_now(id_)
    assert len(receiver.heard) == len(BACKOFF_S) + 1
    assert len({heard.delivery for heard in receiver.heard}) == 1
    assert len({heard.body for heard in receiver.heard}) == 1


async def test_a_receiver_that_says_when_to_come_again_is_left_alone_until_then(
    db: Database, keyring: Keyring, receiver: Receiver
) -> None:
    clock = SetClock()
    receiver.answers = [Answer(429, (("Retry-After", "90"),)), Answer(503, (("Retry-After", "999999"),))]
    id_ = await delivery(db, await webhook(db, await user(db, "ann"), keyring, receiver.url))
    sender = sender_of(db, keyring, clock)
    assert ((await tried(db, sender, id_)).due_at - clock.now).total_seconds() == 90
    clock.go_on(90)
    assert ((await tried(db, sender, id_)).due_at - clock.now).total_seconds() == 3600
    clock.go_on(3600)
    assert (await tried(db, sender, id_)).status == "delivered"


async def test_a_redirect_is_not_followed(db: Database, keyring: Keyring, receiver: Receiver) -> None:
    receiver.answers = [Answer(307, (("Location", receiver.url + "/elsewhere"),))]
    id_ = await delivery(db, await webhook(db, await user(db, "ann"), keyring, receiver.url))
    row = await tried(db, sender_of(db, keyring, SetClock()), id_)
    assert (row.status, row.response_status) == ("waiting", 307)
    assert "redirect" in row.error
    assert [heard.path for heard in receiver.heard] == ["/hook"]


async def test_an_endless_answer_is_not_read(db: Database, keyring: Keyring, receiver: Receiver) -> None:
    receiver.answers = [Answer(500, body=b"x" * 50_000_000)]
    id_ = await delivery(db, await webhook(db, await user(db, "ann"), keyring, receiver.url))
    row = await tried(db, sender_of(db, keyring, SetClock()), id_)
    assert row.response_status == 500
    assert len(row.error) < 300


async def test_feishu_says_no_with_a_code_in_a_good_answer(db: Database, keyring: Keyring, receiver: Receiver) -> None:
    receiver.answers = [
        Answer(200, body=b'{"code":19021,"msg":"sign match fail or timestamp is not within one hour"}'),
        Answer(200, body=b'{"StatusCode":0,"StatusMessage":"success","code":0,"data":{},"msg":"success"}'),
    ]
    hook = await webhook(db, await user(db, "ann"), keyring, receiver.url, preset="feishu")
    clock = SetClock()
    sender, id_ = sender_of(db, keyring, clock), await delivery(db, hook)
    row = await tried(db, sender, id_)
    assert row.status == "waiting"
    assert "sign match fail" in row.error
    clock.go_on(3600)
    assert (await tried(db, sender, id_)).status == "delivered"


async def test_a_private_address_is_not_connected_to_where_that_is_not_allowed(
    db: Database, keyring: Keyring, receiver: Receiver
) -> None:
    """The address was allowed when it was set, or its name has come to point elsewhere."""
    hook = await webhook(db, await user(db, "ann"), keyring, receiver.url)
    row = await tried(db, sender_of(db, keyring, SetClock(), allow_private=False), await delivery(db, hook))
    assert (row.status, row.response_status) == ("waiting", None)
    assert "private" in row.error
    assert receiver.heard == []


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/", "http://nobody.invalid/", "https://127.0.0.1:{port}/"])
async def test_a_receiver_that_cannot_be_reached_is_said_to_be_so(
    db: Database, keyring: Keyring, receiver: Receiver, url: str
) -> None:
    port = receiver.url.rpartition(":")[2].removesuffix("/hook")
    hook = await webhook(db, await user(db, "ann"), keyring, url.replace("{port}", port))
    row = await tried(db, sender_of(db, keyring, SetClock()), await delivery(db, hook))
    assert (row.status, row.response_status) == ("waiting", None)
    assert "127.0.0.1" in row.error or "nobody.invalid" in row.error


async def test_of_several_gateways_each_delivery_is_sent_by_one(
    db: Database, keyring: Keyring, receiver: Receiver
) -> None:
    owner = await user(db, "ann")
    hooks = [await webhook(db, owner, keyring, receiver.url) for _ in range(3)]
    ids = [await delivery(db, hook) for hook in hooks for _ in range(10)]
    senders = [sender_of(db, keyring, SetClock()) for _ in range(3)]
    async with running(*(sender.run() for sender in senders)):
        await until(lambda: ended(db))
    assert sorted(heard.delivery for heard in receiver.heard) == sorted(ids)


async def test_a_try_whose_gateway_died_is_made_again_once_its_claim_has_ended(
    db: Database, keyring: Keyring, receiver: Receiver
) -> None:
    clock = SetClock()
    id_ = await delivery(db, await webhook(db, await user(db, "ann"), keyring, receiver.url))
    receiver.may_answer.clear()
    dead = asyncio.create_task(sender_of(db, keyring, clock).try_now(id_))
    await until(_has_heard(receiver, 1))
    dead.cancel()
    with suppress(asyncio.CancelledError):
        await dead
    receiver.may_answer.set()
    other = sender_of(db, keyring, clock)
    await other.try_now(id_)
    assert len(receiver.heard) == 1, "whoever has claimed it may still be at it"
    clock.go_on(CLAIM_S)
    row = await tried(db, other, id_)
    assert (row.status, row.attempts) == ("delivered", 2)
    assert [heard.delivery for heard in receiver.heard] == [id_, id_]


async def test_who_was_taken_for_dead_does_not_say_what_came_of_it(
    db: Database, keyring: Keyring, receiver: Receiver
) -> None:
    clock = SetClock()
    id_ = await delivery(db, await webhook(db, await user(db, "ann"), keyring, receiver.url))
    receiver.answers = [Answer(500), Answer(200)]
    receiver.may_answer.clear()
    slow = asyncio.create_task(sender_of(db, keyring, clock).try_now(id_))
    await until(_has_heard(receiver, 1))
    clock.go_on(CLAIM_S)
    other = asyncio.create_task(sender_of(db, keyring, clock).try_now(id_))
    await until(_has_heard(receiver, 2))
    receiver.may_answer.set()
    await asyncio.gather(slow, other)
    row = await state(db, id_)
    assert (row.status, row.attempts, row.response_status) == ("delivered", 2, 200)


async def test_a_receiver_that_does_not_answer_delays_nobody_elses(
    db: Database, keyring: Keyring, receiver: Receiver
) -> None:
    with Receiver() as stuck:
        stuck.may_answer.clear()
        slow = await user(db, "slow")
        for _ in range(12):
            await delivery(db, await webhook(db, slow, keyring, stuck.url))
        good = await webhook(db, await user(db, "ann"), keyring, receiver.url)
        for _ in range(5):
            await delivery(db, good, due_at=START)
        clock = SetClock()
        async with running(sender_of(db, keyring, clock).run()):
            await until(_has_heard(receiver, 5))
            assert len(stuck.heard) <= 8, "an account has so many tries at once"


async def test_what_cannot_be_delivered_any_more_is_given_up_and_says_why(
    db: Database, keyring: Keyring, receiver: Receiver
) -> None:
    owner, frozen = await user(db, "ann"), await user(db, "frida")
    cases = {
        "turned off": await webhook(db, owner, keyring, receiver.url, is_active=False),
        "frozen": await webhook(db, frozen, keyring, receiver.url),
        "no address": await webhook(db, owner),
    }
    async with db.write() as session:
        await session.execute(update(User).where(User.id == frozen).values(is_frozen=True))
    sender = sender_of(db, keyring, SetClock())
    for words, hook in cases.items():
        row = await tried(db, sender, await delivery(db, hook))
        assert row.status == "given_up" and words in row.error, words
    assert receiver.heard == []


async def test_a_preset_that_is_changed_holds_for_what_waits(
    db: Database, keyring: Keyring, receiver: Receiver
) -> None:
    hook = await webhook(db, await user(db, "ann"), keyring, receiver.url, secret="")
    id_ = await delivery(db, hook, more=3)
    async with db.write() as session:
        await session.execute(update(Webhook).where(Webhook.id == hook).values(preset="slack"))
    await sender_of(db, keyring, SetClock()).try_now(id_)
    [heard] = receiver.heard
    assert heard.json == {"text": "Treadle: plan Shop (Web) tells of more: 3 more of its tasks need attention"}


async def test_old_deliveries_go_and_those_that_wait_stay(db: Database, keyring: Keyring) -> None:
    hook, clock = await webhook(db, await user(db, "ann")), SetClock()
    later = START + KEPT * 2
    old = [await delivery(db, hook, status=status, due_at=later) for status in ("waiting", "delivered", "given_up")]
    clock.go_on(KEPT.total_seconds() + 1)
    new = await delivery(db, hook, status="delivered", created_at=clock.now)
    async with running(sender_of(db, keyring, clock).run()):
        await until(_are(db, {old[0], new}))


async def test_tries_are_counted_by_what_came_of_them(db: Database, keyring: Keyring, receiver: Receiver) -> None:
    registry = CollectorRegistry()
    sender = Sender(db, keyring, allow_private=True, registry=registry, clock=SetClock())
    hook = await webhook(db, await user(db, "ann"), keyring, receiver.url)
    receiver.answers = [Answer(500), Answer(500)]
    await sender.try_now(await delivery(db, hook))
    await sender.try_now(await delivery(db, hook, event="test"))
    await sender.try_now(await delivery(db, hook))
    told = generate_latest(registry).decode()
    for outcome in ("failed", "given_up", "delivered"):
        assert f'treadle_notification_tries_total{{outcome="{outcome}"}} 1.0' in told


def _has_heard(receiver: Receiver, count: int) -> Callable[[], Awaitable[bool]]:
    async def look() -> bool:
        return len(receiver.heard) >= count

    return look


def _are(db: Database, ids: set[str]) -> Callable[[], Awaitable[bool]]:
    async def look() -> bool:
        return {row.id for row in await deliveries(db)} == ids

    return look
