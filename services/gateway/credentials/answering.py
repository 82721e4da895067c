"""Answers questions for credentials: several gateways share them, and each answers some at once.

What is wrong is answered as `refused`, in words. What may pass (the log or the database is away) is not answered at
all: a runner must not end anything for it, and asks again.
"""

import asyncio
import contextlib
import logging
from abc import ABC, abstractmethod
from typing import ClassVar, Generic, TypeVar

import msgspec
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import Error as NatsError
from sqlalchemy.exc import SQLAlchemyError

from services.gateway.credentials.keyring import CredentialUnreadable
from shared.commands import Refused
from shared.requests import CredentialsReply
from shared.store import StoreUnavailable

log = logging.getLogger("treadle.gateway.credentials")

QUEUE = "gateway"
AT_ONCE_MAX = 32
ANSWER_MAX_S = 10.0

Question = TypeVar("Question", bound=msgspec.Struct)


class Answering(ABC, Generic[Question]):
    """One gateway's ear on one subject."""

    subject: ClassVar[str]
    question: type[Question]

    def __init__(self, nc: Client) -> None:
        self._nc = nc
        self._free = asyncio.Semaphore(AT_ONCE_MAX)
        self._answering: set[asyncio.Task[None]] = set()
        self._subscription: Subscription | None = None

    @abstractmethod
    async def lend(self, question: Question) -> CredentialsReply:
        """What is lent, sealed. Raises `Refused`, `CredentialUnreadable` or ValueError, whose text is the answer."""

    @abstractmethod
    def named(self, question: Question) -> str:
        """What the credentials are wanted for, for a log line; the names come from outside."""

    async def start(self) -> None:
        """Answers from now on."""
        self._subscription = await self._nc.subscribe(self.subject, queue=QUEUE, cb=self._take)
        await self._nc.flush()

    async def stop(self) -> None:
        """Takes no more questions, and finishes the answers at hand."""
        if self._subscription is not None:
            with contextlib.suppress(NatsError):  # a connection that is gone has no subscriptions left to end
                await self._subscription.unsubscribe()
            self._subscription = None
        if self._answering:
            await asyncio.wait(self._answering, timeout=ANSWER_MAX_S)

    async def _take(self, message: Msg) -> None:
        # The client calls this for one message after another: what takes time goes into a task of its own.
        await self._free.acquire()
        answering = asyncio.create_task(self._answer(message))
        self._answering.add(answering)
        answering.add_done_callback(self._done)

    async def _answer(self, message: Msg) -> None:
        if message.reply and (reply := await self._reply(message.data)):
            await message.respond(msgspec.json.encode(reply))

    async def _reply(self, data: bytes) -> CredentialsReply | None:
        """None: it has to wait."""
        try:
            question = msgspec.json.decode(data, type=self.question)
        except (msgspec.MsgspecError, RecursionError, UnicodeError):
            return CredentialsReply(refused="this is no request for credentials")
        try:
            async with asyncio.timeout(ANSWER_MAX_S):
                return await self.lend(question)
        except (Refused, CredentialUnreadable, ValueError) as error:
            log.warning("credentials %s are refused: %s", self.named(question), error)
            return CredentialsReply(refused=str(error))
        except (StoreUnavailable, SQLAlchemyError, OSError, TimeoutError) as error:
            # By its kind alone: a database's message may quote the statement with its values.
            log.error("credentials %s wait: %s", self.named(question), type(error).__name__)
            return None

    def _done(self, answering: asyncio.Task[None]) -> None:
        self._answering.discard(answering)
        self._free.release()
        if not answering.cancelled() and (fault := answering.exception()):
            log.error("a request for credentials was not answered", exc_info=fault)
