"""A review's verdict and what it found, in words. Pure functions; nothing in them steers a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from shared.events import Severity
from treadle.plain_text import one_line

Review = Mapping[str, Any]

FINDINGS_SHOWN_MAX = 20
FINDING_CHARS = 300
PLACE_CHARS = 80
WORST_CHARS = 100
NO_VERDICT = (
    "it is a review: `task redispatch` has the work looked at again, `task abandon` leaves it out; `task complete` "
    "gives no verdict, and its decision then needs a person"
)
_SEVERITIES: tuple[str, ...] = get_args(Severity)
"""The worst one first."""


def verdict(review: Review) -> str:
    """What a review comes to, on one line: its word, and how much it found."""
    word = "approves" if review["approve"] else "wants changes"
    number = review.get("round", 1)
    round_ = f" (round {number})" if number > 1 else ""
    found = findings(review)
    if not found:
        return f"{word}{round_}"
    counts = [(sum(one["severity"] == severity for one in found), severity) for severity in _SEVERITIES]
    told = ", ".join(f"{count} {severity}" for count, severity in counts if count)
    first = f": {one_line(found[0]['message'], WORST_CHARS)}"
    return f"{word}{round_}, {told}{first}"


def findings(review: Review) -> list[Mapping[str, Any]]:
    """What was found, the worst first."""
    return sorted(review.get("findings") or (), key=lambda one: _SEVERITIES.index(one["severity"]))


def finding_lines(review: Review) -> list[str]:
    """Each thing that was found on a line of its own, with its place; of many the worst ones."""
    found = findings(review)
    lines = [f"  {one['severity']:<7} {_place(one)}{one_line(one['message'], FINDING_CHARS)}" for one in found]
    shown = lines[:FINDINGS_SHOWN_MAX]
    hidden = review.get("findings_count", len(lines)) - len(shown)
    return [*shown, f"  … and {hidden} more"] if hidden > 0 else shown


def _place(finding: Mapping[str, Any]) -> str:
    if not finding.get("file"):
        return ""
    line = f":{finding['line']}" if finding.get("line") else ""
    return f"{one_line(finding['file'], PLACE_CHARS)}{line}: "
