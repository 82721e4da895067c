"""Tells the stream `TREADLE_TRANSCRIPTS` what an agent does while it works.

For people to watch and read, never for deciding: during an outage it drops the oldest and says how many.
"""

import asyncio
from collections import deque
from typing import Any, TypeVar

import msgspec
from nats.aio.client import Client
from nats.errors import Error as NatsError

from services.runner.agents import ACTIVITY_BEYOND_BYTES, ACTIVITY_MAX_BYTES, Activity, Finished, cut
from services.runner.agents.leaves import leaves_changed
from services.runner.lease import Completion, Key, Parked
from services.runner.redaction import REDACTED, Redactor
from shared.subjects import transcript

WAITING_MAX = 2_000
PUBLISH_TIMEOUT_S = 5.0
AGAIN_S = 0.5
_WORTH_BYTES = 64

Ending = TypeVar("Ending", bound=Finished | Completion | Parked | None)

NO_SECRETS = Redactor()
"""Knows none by name; what looks like a credential goes all the same."""


def published(activity: Activity, redactor: Redactor) -> Activity:
    """The activity as everybody may see it: without secrets, and then of at most `ACTIVITY_MAX_BYTES`."""
    text = redactor(activity.text)
    if len(activity.text.encode(errors="replace")) > ACTIVITY_MAX_BYTES:
        # It may have been cut already, and through a secret, whose beginning is then in its last part.
        kept_bytes = len(text.encode(errors="replace")) - ACTIVITY_BEYOND_BYTES
        text = cut(text, min(ACTIVITY_MAX_BYTES, kept_bytes)) if kept_bytes > _WORTH_BYTES else f"{REDACTED} … [cut]"
    return msgspec.structs.replace(activity, text=cut(text, ACTIVITY_MAX_BYTES))


def without_secrets(ending: Ending, redactor: Redactor) -> Ending:
    """How an attempt ended, with words that may go into the log."""
    match ending:
        case Finished():
            faults = tuple(msgspec.structs.replace(each, message=redactor(each.message)) for each in ending.faults)
            message, summary = redactor(ending.message), redactor(ending.summary)
            return msgspec.structs.replace(ending, message=message, summary=summary, faults=faults)
        case Completion():
            # The answer, and what was made of it, came through the redactor before they were checked.
            result = msgspec.structs.replace(ending.result, summary=redactor(ending.result.summary))
            return msgspec.structs.replace(ending, result=result)
        case Parked():
            return msgspec.structs.replace(ending, why=redactor(ending.why), input=_input(ending, redactor))
    return ending


def _input(parked: Parked, redactor: Redactor) -> dict[str, Any]:
    """A call is asked about only where this changes nothing; one that it changes after all is never run."""
    if parked.kind != "result":
        changed: dict[str, Any] = leaves_changed(parked.input, redactor)
        return changed
    # Its commits and its files' names are no words, and must stay what they are.
    return {name: redactor(value) if name == "summary" else value for name, value in parked.input.items()}


class Transcripts:
    """One writer for all leases of a runner."""

    def __init__(self, nc: Client) -> None:
        self._js = nc.jetstream(timeout=PUBLISH_TIMEOUT_S)
        self._waiting: deque[tuple[str, bytes]] = deque()
        self._arrived = asyncio.Event()
        self._dropped = 0

    def tell(self, key: Key, activity: Activity, redactor: Redactor = NO_SECRETS) -> None:
        """Queues an activity without its secrets; returns at once."""
        if len(self._waiting) >= WAITING_MAX:
            self._waiting.popleft()
            self._dropped += 1
        self._waiting.append(
            (transcript(key.plan, key.task, key.lease), msgspec.json.encode(published(activity, redactor)))
        )
        self._arrived.set()

    async def run(self) -> None:
        """Publishes for ever."""
        while True:
            await self._arrived.wait()
            await self.flush()

    async def flush(self) -> None:
        """Publishes what waits."""
        self._arrived.clear()
        while self._waiting:
            subject, body = self._waiting[0]
            try:
                await self._js.publish(subject, body, headers=self._headers())
            except (NatsError, TimeoutError):
                await asyncio.sleep(AGAIN_S)
                continue
            self._dropped = 0
            if self._waiting and self._waiting[0] == (subject, body):
                self._waiting.popleft()

    def _headers(self) -> dict[str, str] | None:
        return {"Treadle-Dropped": str(self._dropped)} if self._dropped else None
