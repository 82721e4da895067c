"""Whether an agent can work now: a subscription has limits that reset, and an end."""

from datetime import datetime, timedelta
from typing import Literal

import msgspec

from services.gateway.database.tables import Agent

Limit = Literal["short", "long"]


class Availability(msgspec.Struct, frozen=True, kw_only=True):
    """What an agent's limits say at one moment."""

    state: Literal["available", "resetting", "expired"]
    until: datetime | None = None
    """When it is available again; only while resetting."""
    limit: Limit | None = None
    """The limit that ends then; only while resetting."""


def availability(agent: Agent, now: datetime) -> Availability:
    """Expired is for good, so it counts before any reset; of two resets the later one does."""
    if agent.expires_at is not None and agent.expires_at <= now:
        return Availability(state="expired")
    resets: list[tuple[datetime, Limit]] = []
    if agent.short_resets_at is not None and agent.short_resets_at > now:
        resets.append((agent.short_resets_at, "short"))
    if agent.long_resets_at is not None and agent.long_resets_at > now:
        resets.append((agent.long_resets_at, "long"))
    if not resets:
        return Availability(state="available")
    until, limit = max(resets)
    return Availability(state="resetting", until=until, limit=limit)


def reset_time(agent: Agent, limit: Limit, resets_at: datetime | None, now: datetime) -> datetime | None:
    """When a limit that was hit ends: at the time given, else after its whole window; None where neither is known."""
    if resets_at is not None:
        return resets_at
    hours = agent.short_window_hours if limit == "short" else agent.long_window_hours
    return now + timedelta(hours=hours) if hours is not None else None
