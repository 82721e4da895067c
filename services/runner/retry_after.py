"""When an API that refused may be asked again. Decides, from an answer's headers: in so many seconds, or unknown."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping
from datetime import datetime

_RESET = re.compile(r"(anthropic-ratelimit-[a-z0-9_-]+)-reset", re.IGNORECASE)


def retry_after_s(status: int, headers: Mapping[str, str]) -> float | None:
    """`retry-after`, in seconds; without it, for status 429, until the limits that are used up are reset.

    `headers` must take names in any case.
    """
    wait_s = _number(headers.get("retry-after", ""))
    if wait_s is None and status == 429:
        return _reset_after_s(headers)
    return wait_s


def _reset_after_s(headers: Mapping[str, str]) -> float | None:
    """The last reset of those used up; of all, where none is said to be."""
    found = {match[1]: _time_s(value) for name, value in headers.items() if (match := _RESET.fullmatch(name))}
    known = {limit: time_s for limit, time_s in found.items() if time_s is not None}
    times_s = [time_s for limit, time_s in known.items() if _is_used_up(headers, limit)] or list(known.values())
    return max(0.0, max(times_s) - time.time()) if times_s else None


def _is_used_up(headers: Mapping[str, str], limit: str) -> bool:
    return headers.get(f"{limit}-remaining") == "0" or headers.get(f"{limit}-status") == "rejected"


def _time_s(text: str) -> float | None:
    """A time in ISO 8601, or in seconds since 1970."""
    if (seconds := _number(text)) is not None:
        return seconds
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError):
        return None


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if number >= 0 and math.isfinite(number) else None
