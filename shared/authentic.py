"""Which events of the log are ours: what a runner may not say carries a code that no runner can make.

A nats-server does not look at who may publish where when it sends an answer: whoever may read the log can have a stored
message sent to any subject, and so stored there once more. The subject alone is therefore no proof of who wrote an
event. Gateway, planner and dispatcher share a key; runners have none.
"""

import hmac
from collections.abc import Awaitable, Callable, Mapping

from shared.nats_permissions import LEASE_EVENTS
from shared.subjects import PLAN, entity_filter, parse_event_subject

MAC = "Treadle-Mac"
EXPECTED = "Nats-Expected-Last-Subject-Sequence"

_ENTITY_TOKENS = 5

FindNext = Callable[[str, int], Awaitable[int]]
"""The sequence of the first message on a subject after a sequence; 0 for none."""


def is_authored(subject: str) -> bool:
    """Whether only the holders of the key may say it. Raises `ValueError` for a subject that is not an event's."""
    address = parse_event_subject(subject)
    return address.entity == PLAN or address.type not in LEASE_EVENTS


def mac(key: bytes, subject: str, headers: Mapping[str, str], body: bytes) -> str:
    """The code of a message: over its subject, its condition, Treadle's headers and its body."""
    # What a client does to the blanks of a header on its way must not matter.
    said = sorted((name, " ".join(v.split())) for name, v in headers.items() if name.startswith("Treadle-"))
    texts = [subject, headers.get(EXPECTED, "")]
    for name, value in said:
        if name != MAC:
            texts += [name, value]
    digest = hmac.new(key, digestmod="sha256")
    for part in (str(len(texts)).encode(), *(text.encode() for text in texts), body):
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()


def fault(key: bytes, subject: str, headers: Mapping[str, str], body: bytes) -> str:
    """Why a message on the log's subjects is not ours; empty where it is, unless it is a copy (`Guard`)."""
    try:
        address = parse_event_subject(subject)
        place = entity_filter(address.plan, address.entity).removesuffix(">")
    except ValueError as error:
        return str(error)
    if not subject.startswith(place):
        return f"{subject} is not where events of {address.plan} are stored"
    if not is_authored(subject):
        return ""
    shown = headers.get(MAC, "")
    if hmac.compare_digest(shown.encode(), mac(key, subject, headers, body).encode()):
        return ""
    return f"{subject} does not come from a holder of the log's key: its code is {'wrong' if shown else 'missing'}"


class Guard:
    """Tells our events from others along one reading of the log, in its order.

    A copy of an event of ours, stored again, has a right code. But its condition named the entity's newest message of
    its time, and since then there is the event itself: so what an event names must be the message right before it. The
    server's own look at the condition is not relied on, since a copy may have headers twice, of which the server heeds
    the one and we the other.
    """

    def __init__(self, key: bytes, find_next: FindNext, *, after: int, sees_all: bool) -> None:
        """`sees_all`: every message of an entity after the sequence `after` is shown to this guard."""
        self._key = key
        self._find_next = find_next
        self._from_start = sees_all and after == 0
        self._newest: dict[str, int] | None = {} if sees_all else None

    async def fault(self, seq: int, subject: str, headers: Mapping[str, str], body: bytes) -> str:
        """Why the message is not ours; empty where it is. May be asked again after `find_next` failed."""
        found = fault(self._key, subject, headers, body)
        entity = ".".join(subject.split(".")[:_ENTITY_TOKENS])
        if not found and is_authored(subject) and not await self._is_first(seq, entity, int(headers[EXPECTED])):
            found = f"{subject} is a copy of an older event"
        if self._newest is not None:
            self._newest[entity] = seq
        return found

    async def _is_first(self, seq: int, entity: str, expected: int) -> bool:
        before = self._newest.get(entity) if self._newest is not None else None
        if before is None and self._from_start:
            before = 0
        if before is not None:
            return before == expected
        return await self._find_next(f"{entity}.>", expected) == seq
