"""What the API shows of what an agent did."""

from datetime import datetime
from typing import Any

import msgspec


class TranscriptEntry(msgspec.Struct, frozen=True):
    """One thing that an agent did. The text is the agent's: strip control characters before showing it."""

    seq: int
    time: datetime
    task: str
    lease: int
    activity: dict[str, Any]


class TranscriptPage(msgspec.Struct, frozen=True):
    """Some entries, the oldest first; `next_after` continues, null at the end."""

    items: list[TranscriptEntry]
    next_after: int | None
