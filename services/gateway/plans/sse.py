"""Server-sent events (WHATWG HTML, section 9.2): how a message is written, and who may go on reading."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from litestar.datastructures import State
from litestar.openapi.datastructures import ResponseSpec
from litestar.response import Stream
from nats.errors import Error as NatsError
from sqlalchemy.exc import SQLAlchemyError

from services.gateway.accounts.access import AccountWatch, Caller
from services.gateway.plans.lookup import find_plan
from services.gateway.problems import ProblemError
from shared.store import StoreUnavailable

log = logging.getLogger("treadle.gateway")

KEEP_ALIVE_S = 15.0
ALIVE = b": alive\n\n"
MEDIA_TYPE = "text/event-stream"
_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


def message(event: str, json: bytes, id_: int | None = None) -> bytes:
    """One message. `json` has no line ends in it, as no JSON of ours has."""
    head = f"id: {id_}\nevent: {event}\ndata: " if id_ is not None else f"event: {event}\ndata: "
    return b"".join((head.encode(), json, b"\n\n"))


def event_stream(messages: AsyncIterator[bytes]) -> Stream:
    """The answer that sends the messages as they come."""
    return Stream(messages, media_type=MEDIA_TYPE, headers=_HEADERS)


def documented_stream(description: str) -> dict[int, ResponseSpec]:
    """The answer 200 of a stream, for its `responses`."""
    return {200: ResponseSpec(str, generate_examples=False, description=description, media_type=MEDIA_TYPE)}


class Reader:
    """Whoever reads a plan's stream: let in when it began, and asked again while it lasts."""

    def __init__(self, state: State, caller: Caller, plan: str) -> None:
        self._state = state
        self._caller = caller
        self._plan = plan

    @asynccontextmanager
    async def watched(self, end: Callable[[], None]) -> AsyncIterator[None]:
        """Calls `end` as soon as the account may not read on."""
        watch: AccountWatch = self._state.watch
        async with watch.following(self._caller) as ended:
            waiting = asyncio.ensure_future(ended.wait())
            waiting.add_done_callback(lambda done: None if done.cancelled() else end())
            try:
                yield
            finally:
                waiting.cancel()

    async def may_read_on(self) -> bool:
        """To be asked at each keep-alive: that an account is frozen or a project gone may have been told to nobody."""
        try:
            await find_plan(self._state, self._caller, self._plan)
            return bool(await self._state.watch.still_active(self._caller))
        except ProblemError:
            return False
        except (SQLAlchemyError, StoreUnavailable, NatsError, OSError) as error:
            log.warning("a stream of plan %s ends, since nobody can say who may read it: %r", self._plan, error)
            return False
