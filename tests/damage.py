"""Events that nobody can read, put into a real log as a newer Treadle or a fault would have."""

from __future__ import annotations

from typing import Literal

from nats.aio.client import Client

from shared.authentic import EXPECTED, MAC, mac
from shared.jetstream import JetStreamStore
from shared.subjects import entity_filter

Kind = Literal["unknown name", "newer version", "damaged body", "no text"]
_SHAPES: dict[Kind, tuple[str, str, bytes]] = {
    "unknown name": ("exploded", "1", b'{"far":"too loud"}'),
    "newer version": ("watch_restored", "99", b'{"deadline":"in a while"}'),
    "damaged body": ("watch_failed", "1", b'{"reason": "half an ev'),
    "no text": ("watch_failed", "1", b"\xff\xfe\x00\x1b[31m"),
}
KINDS = tuple(_SHAPES)


async def store_unreadable(nc: Client, plan: str, entity: str, kind: Kind, key: bytes | None = None) -> int:
    """Stores such an event behind the entity's newest one, with everything in its headers that one of ours has."""
    type_, version, body = _SHAPES[kind]
    place = entity_filter(plan, entity).removesuffix(">")
    headers = {
        "Treadle-Version": version,
        "Treadle-Actor": "dispatcher",
        "Treadle-Command": "Explode",
        EXPECTED: str(await JetStreamStore(nc, key).last_seq(plan, entity)),
        f"{EXPECTED}-Subject": f"{place}>",
    }
    if key is not None:
        headers[MAC] = mac(key, f"{place}{type_}", headers, body)
    return (await nc.jetstream().publish(f"{place}{type_}", body, headers=headers)).seq
