"""Brings deliveries to their receivers, in the background of every gateway.

    waiting, due ──claim──▶ waiting, due when the claim ends ──▶ delivered
        ▲                            │                     └──▶ given_up   the tries are used up
        └─────────── backoff ────────┴ nobody said what came of it: the gateway died

A claim is one statement, so of several gateways one has it. Whoever dies between the receiver's answer and its being
noted leaves a delivery that is tried again: a receiver may hear the same id twice, never of an event not at all.

Of each webhook a gateway has one delivery at work at a time, and of each account a few: whose receivers are slow or
dead waits for itself. For one another gateways do not wait, or a webhook would stand still until a dead one's claim
ends: so a receiver may hear as many deliveries at once as there are gateways, and not in their order.
"""

import asyncio
import contextlib
import logging
import secrets
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from random import random

import msgspec
import prometheus_client
from sqlalchemy import delete, func, select, update
from sqlalchemy.exc import SQLAlchemyError

from services.gateway.credentials import stored
from services.gateway.credentials.keyring import CredentialUnreadable, Keyring
from services.gateway.database.engine import Database
from services.gateway.database.tables import Delivery, User, Webhook
from services.gateway.notifications.post import TRY_TIMEOUT_S, Outcome, make_tls, post
from services.gateway.notifications.target import BadTarget, checked_target
from services.gateway.notifications.words import Notice, Preset, body, counted, headers
from shared.clock import Clock, utc_now

log = logging.getLogger("treadle.gateway.notifications")

BACKOFF_S = (5, 30, 120, 600, 1_800, 3_600, 10_800, 21_600, 43_200)
"""Between one try and the next: ten tries within a day."""
JITTER = 0.2
"""Each wait is longer by up to this share: what failed together does not come again together."""
CLAIM_S = 2 * TRY_TIMEOUT_S
"""A gateway that has not said what came of it by then is taken for dead."""
LOOK_EVERY_S = 1.0
STOP_S = 2.0
TRIES_AT_ONCE_MAX = 64
TRIES_AT_ONCE_PER_OWNER_MAX = 8
KEPT = timedelta(days=30)
CLEAN_EVERY = timedelta(hours=1)
CLEANED_ROWS = 500
_ERROR_MAX_CHARS = 500


class Secrets(msgspec.Struct, frozen=True, kw_only=True):
    """What is stored encrypted of a webhook."""

    url: str
    secret: str = ""

    def __repr__(self) -> str:
        return "Secrets(…)"


class _Letter(msgspec.Struct, frozen=True, kw_only=True):
    """What one try needs."""

    url: str
    secret: str
    preset: Preset
    notice: Notice


class _Undeliverable(Exception):
    """No further try could help; the message says why."""


class Sender:
    """This gateway's share in the sending."""

    def __init__(
        self,
        db: Database,
        keyring: Keyring,
        *,
        allow_private: bool,
        registry: prometheus_client.CollectorRegistry,
        clock: Clock = utc_now,
        chance: Callable[[], float] = random,
    ) -> None:
        """`allow_private` lets receivers be on loopback and private hosts; `chance` gives numbers from 0 to 1."""
        self._db = db
        self._keyring = keyring
        self._allow_private = allow_private
        self._clock = clock
        self._chance = chance
        self._tls = make_tls()
        self._at_work: dict[str, asyncio.Task[None]] = {}
        """By webhook."""
        self._owners: Counter[str] = Counter()
        self._woken = asyncio.Event()
        self._clean_at = clock()
        self._tries = prometheus_client.Counter(
            "treadle_notification_tries",
            "Tries to notify somebody",
            ["outcome"],
            registry=registry,
        )

    def wake(self) -> None:
        """Something is due."""
        self._woken.set()

    async def run(self) -> None:
        """Works for ever; outages of the database are waited out."""
        try:
            while True:
                self._woken.clear()
                try:
                    await self._begin_due()
                    await self._clean()
                except (SQLAlchemyError, OSError, TimeoutError) as error:
                    log.warning("notifications can't be looked for now; trying again: %r", error)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_EVERY_S):
                        await self._woken.wait()
        finally:
            await self._end_tries()

    async def _end_tries(self) -> None:
        """Lets what is at work come to its end where that is near: what is broken off has to be sent again."""
        tasks = list(self._at_work.values())
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=STOP_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def _begin_due(self) -> None:
        """Starts as many tries as may be at work."""
        for webhook_id, owner_id in await self._due():
            if len(self._at_work) >= TRIES_AT_ONCE_MAX:
                return
            if self._owners[owner_id] >= TRIES_AT_ONCE_PER_OWNER_MAX:
                continue
            self._owners[owner_id] += 1
            task = self._at_work[webhook_id] = asyncio.create_task(self._try_next(webhook_id))
            task.add_done_callback(partial(self._ended, webhook_id, owner_id))

    def _ended(self, webhook_id: str, owner_id: str, task: "asyncio.Task[None]") -> None:
        del self._at_work[webhook_id]
        self._owners[owner_id] -= 1
        if not self._owners[owner_id]:
            del self._owners[owner_id]
        if task.cancelled():
            return
        if error := task.exception():
            log.error("a notification of webhook %s was not sent; it is tried again", webhook_id, exc_info=error)
        else:
            self.wake()  # it may have more

    async def _due(self) -> list[tuple[str, str]]:
        """Webhooks and their owners that something is due for, those that have waited longest first."""
        full = [owner for owner, count in self._owners.items() if count >= TRIES_AT_ONCE_PER_OWNER_MAX]
        query = (
            select(Webhook.id, Webhook.owner_id)
            .join(Delivery, Delivery.webhook_id == Webhook.id)
            .where(
                Delivery.status == "waiting",
                Delivery.due_at <= self._clock(),
                Webhook.id.not_in(list(self._at_work)),
                Webhook.owner_id.not_in(full),
            )
            .group_by(Webhook.id, Webhook.owner_id)
            .order_by(func.min(Delivery.due_at))
            .limit(TRIES_AT_ONCE_MAX)
        )
        async with self._db.look() as connection:
            return [(webhook_id, owner_id) for webhook_id, owner_id in await connection.execute(query)]

    async def _try_next(self, webhook_id: str) -> None:
        due = (Delivery.webhook_id == webhook_id, Delivery.status == "waiting", Delivery.due_at <= self._clock())
        first = select(Delivery.id).where(*due).order_by(Delivery.due_at, Delivery.seq, Delivery.id).limit(1)
        async with self._db.look() as connection:
            delivery_id = await connection.scalar(first)
        if delivery_id is not None:
            await self.try_now(delivery_id)

    async def try_now(self, delivery_id: str) -> None:
        """One try of a delivery that is due; nothing where somebody else has it at work."""
        claim = secrets.token_hex(16)
        claimed = await self._claim(delivery_id, claim)
        if claimed is None:
            return
        webhook_id, attempts, event = claimed
        try:
            letter = await self._letter(delivery_id, webhook_id)
        except _Undeliverable as error:
            await self._note(delivery_id, claim, Outcome(error=str(error)), None)
            return
        outcome = await self._send(delivery_id, letter)
        tries_max = 1 if event == "test" else len(BACKOFF_S) + 1
        wait_s = self._wait_s(attempts, outcome) if attempts < tries_max else None
        await self._note(delivery_id, claim, outcome, wait_s)

    async def _claim(self, delivery_id: str, claim: str) -> tuple[str, int, str] | None:
        """Its webhook, which try this is, and its event; None: it is not due (any more)."""
        now = self._clock()
        mine = (
            update(Delivery)
            .where(Delivery.id == delivery_id, Delivery.status == "waiting", Delivery.due_at <= now)
            .values(claim=claim, attempts=Delivery.attempts + 1, tried_at=now, due_at=now + timedelta(seconds=CLAIM_S))
            .returning(Delivery.webhook_id, Delivery.attempts, Delivery.event)
        )
        async with self._db.write() as session:
            row = (await session.execute(mine)).one_or_none()
        return (row.webhook_id, row.attempts, row.event) if row is not None else None

    async def _letter(self, delivery_id: str, webhook_id: str) -> _Letter:
        """Raises `_Undeliverable`."""
        async with self._db.read() as session:
            delivery = await session.get(Delivery, delivery_id)
            webhook = await session.get(Webhook, webhook_id)
            if delivery is None or webhook is None:
                raise _Undeliverable("the webhook is gone")
            owner = await session.get_one(User, webhook.owner_id)
            if owner.is_frozen:
                raise _Undeliverable("the account that it belongs to is frozen")
            if not webhook.is_active and delivery.event != "test":
                raise _Undeliverable("the webhook was turned off before it could be sent")
            try:
                plaintext = await stored.read_webhook_secrets(session, self._keyring, webhook_id)
            except CredentialUnreadable as error:
                raise _Undeliverable(str(error)) from error
        if plaintext is None:
            raise _Undeliverable("the webhook has no address any more: set its url anew")
        kept = msgspec.json.decode(plaintext, type=Secrets)
        notice = counted(msgspec.json.decode(delivery.notice, type=Notice), delivery.more)
        preset = msgspec.convert(webhook.preset, Preset)
        return _Letter(url=kept.url, secret=kept.secret, preset=preset, notice=notice)

    async def _send(self, delivery_id: str, letter: _Letter) -> Outcome:
        now = self._clock()
        try:
            target = checked_target(letter.url, allow_private=self._allow_private)
        except BadTarget as error:
            return Outcome(error=f"its address can't be used: {error}")
        content = body(letter.preset, letter.notice, letter.secret, now)
        sent = headers(letter.preset, letter.notice.event, delivery_id, letter.secret, content, now)
        return await post(
            target, letter.preset, content, sent, tls=self._tls, allow_private=self._allow_private, now=now
        )

    def _wait_s(self, attempts: int, outcome: Outcome) -> float:
        backoff_s = BACKOFF_S[attempts - 1] * (1 + JITTER * self._chance())
        return max(backoff_s, outcome.retry_after_s)

    async def _note(self, delivery_id: str, claim: str, outcome: Outcome, wait_s: float | None) -> None:
        """What came of our try; nothing where we were taken for dead. `wait_s` None: no further one."""
        now = self._clock()
        told = "delivered" if not outcome.error else "given_up" if wait_s is None else "failed"
        ending = {"status": "given_up" if told == "given_up" else "delivered", "ended_at": now}
        again = {"due_at": now + timedelta(seconds=wait_s or 0.0)}
        changes = {
            "claim": "",
            "response_status": outcome.response_status,
            "error": outcome.error[:_ERROR_MAX_CHARS],
            **(again if told == "failed" else ending),
        }
        async with self._db.write() as session:
            mine = Delivery.id == delivery_id, Delivery.claim == claim
            await session.execute(update(Delivery).where(*mine).values(changes))
        self._tries.labels(told).inc()

    async def _clean(self) -> None:
        """Removes what has ended long ago, some at a time."""
        now = self._clock()
        if now < self._clean_at:
            return
        old = select(Delivery.id).where(Delivery.status != "waiting", Delivery.created_at < now - KEPT)
        async with self._db.write() as session:
            ids = list(await session.scalars(old.limit(CLEANED_ROWS)))
            if ids:
                await session.execute(delete(Delivery).where(Delivery.id.in_(ids)))
        if len(ids) < CLEANED_ROWS:
            self._clean_at = now + CLEAN_EVERY
