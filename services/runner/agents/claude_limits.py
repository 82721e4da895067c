"""How patient runs of Claude are; apart from what needs the SDK, whose import takes longer than a runner's start."""

import msgspec


class Limits(msgspec.Struct, frozen=True):
    """How patient the CLI is with the API."""

    retries_max: int = 7
    """After a failed call; the waits between double from half a second, a random part added to each."""
    api_timeout_s: float = 180.0
    """Until an answer begins."""
    stream_idle_s: float = 90.0
    """For how long an answer may pause; at least 10."""
