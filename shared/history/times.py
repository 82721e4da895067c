"""A time as a person gives it, for a moment of a plan."""

import re
from datetime import UTC, datetime

_FRACTION = re.compile(r"\d[.,]\d")


def has_fraction(text: str) -> bool:
    """Whether the time says more than its second."""
    return _FRACTION.search(text) is not None


def begin_of(text: str) -> datetime:
    """The time itself (RFC 3339; without a zone it is UTC). Raises `ValueError`."""
    time = datetime.fromisoformat(text)
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def end_of(text: str) -> datetime:
    """The last instant that it names: without a fraction it is the whole second, with one it is exact.

    Screens cut fractions: who copies a time from one means what is shown with it. Raises `ValueError`.
    """
    time = begin_of(text)
    return time if has_fraction(text) else time.replace(microsecond=999_999)
