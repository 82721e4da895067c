"""Server-sent events (WHATWG HTML, section 9.2): how a message is written, and who may go on reading."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from time import monotonic

from litestar.datastructures import State
from litestar.openapi.datastructures import ResponseSpec
from litestar.response import Stream
from nats.errors import Error as NatsError
from sqlalchemy.exc import SQLAlchemyError

from services.gateway.accounts.access import AccountWatch, Caller
from services.gateway.plans.lookup import find_plan
from services.gateway.problems import ProblemError
from shared.clock import utc_now
from shared.store import StoreUnavailable

log = logging.getLogger("treadle.gateway")

KEEP_ALIVE_S = 15.0
"""At least so often something is sent, and whether the reader may read on is asked."""
ALIVE = b": alive\n\n"
UNAVAILABLE_NOW = b": this stream ends, since the event log or the database does not answer; open it again\n\n"
UNAVAILABLE = (StoreUnavailable, SQLAlchemyError, NatsError, OSError)
"""TimeoutError is an OSError."""
MEDIA_TYPE = "text/event-stream"
_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


def message(event: str, json: bytes, id_: int | None = None) -> bytes:
    """One message. `json` has no line ends in it, as no JSON of ours has."""
    head = f"id: {id_}\nevent: {event}\ndata: " if id_ is not None else f"event: {event}\ndata: "
    return b"".join((head.encode(), json, b"\n\n"))


def event_stream(messages: AsyncGenerator[bytes]) -> Stream:
    """The answer that sends the messages as they come. It ends where the log or the database goes away."""
    return Stream(ending_in_words(messages), media_type=MEDIA_TYPE, headers=_HEADERS)


async def ending_in_words(messages: AsyncGenerator[bytes]) -> AsyncIterator[bytes]:
    """The messages; the status was sent, so that an outage can only be told as a comment behind them."""
    async with aclosing(messages):
        try:
            async for chunk in messages:
                yield chunk
        except UNAVAILABLE as error:
            log.warning("a stream ends: %r", error)
            yield UNAVAILABLE_NOW


def documented_stream(description: str) -> dict[int, ResponseSpec]:
    """The answer 200 of a stream, for its `responses`."""
    return {200: ResponseSpec(str, generate_examples=False, description=description, media_type=MEDIA_TYPE)}


class Reader:
    """Whoever reads a plan's stream: let in when it began, and asked again while it lasts."""

    def __init__(self, state: State, caller: Caller, plan: str) -> None:
        self._state = state
        self._caller = caller
        self._plan = plan
        self._asked_s = monotonic()

    @property
    def ask_in_s(self) -> float:
        """When `may_read_on` is to be asked again, however much there is to tell until then."""
        return max(0.0, self._asked_s + KEEP_ALIVE_S - monotonic())

    @asynccontextmanager
    async def watched(self, end: Callable[[], None]) -> AsyncIterator[None]:
        """Calls `end` as soon as the account may not read on, or what it was let in by expires."""
        watch: AccountWatch = self._state.watch
        async with watch.following(self._caller) as ended:
            waiting = asyncio.ensure_future(ended.wait())
            waiting.add_done_callback(lambda done: None if done.cancelled() else end())
            expires_at = self._caller.expires_at
            expiry = None
            if expires_at is not None:
                left_s = max(0.0, (expires_at - utc_now()).total_seconds())
                expiry = asyncio.get_running_loop().call_later(left_s, end)
            try:
                yield
            finally:
                waiting.cancel()
                if expiry is not None:
                    expiry.cancel()

    async def may_read_on(self) -> bool:
        """To be asked every `ask_in_s`: that an account is frozen or a project gone may have been told to nobody."""
        self._asked_s = monotonic()
        try:
            await find_plan(self._state, self._caller, self._plan)
            return bool(await self._state.watch.still_active(self._caller))
        except ProblemError:
            return False
        except (SQLAlchemyError, StoreUnavailable, NatsError, OSError) as error:
            log.warning("a stream of plan %s ends, since nobody can say who may read it: %r", self._plan, error)
            return False
