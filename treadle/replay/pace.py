"""How long a replay waits between two events."""

from __future__ import annotations

from datetime import timedelta

from treadle.lines import duration

PAUSE_MAX_S = 3.0
"""A longer wait says nothing: what happens next is shown after this, with a word about it."""


def pause_s(between: timedelta, speed: float) -> tuple[float, str]:
    """How long to wait, and the word about a pause that was cut short; empty for others."""
    recorded_s = max(0.0, between.total_seconds())  # the log's times rise, but for a clock that was set back
    wanted_s = recorded_s / speed
    if wanted_s <= PAUSE_MAX_S:
        return wanted_s, ""
    return PAUSE_MAX_S, f"nothing happens for {duration(recorded_s)}: shown as {PAUSE_MAX_S:g}s"
