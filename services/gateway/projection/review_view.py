"""What the API shows of a review."""

import msgspec

from shared.events import Finding, Review

FINDINGS_SHOWN_MAX = 50


class ReviewView(msgspec.Struct, frozen=True, kw_only=True):
    """A verdict on a task's work."""

    approve: bool
    round: int
    commit: str
    """What it looked at: a review of another commit than the work's own does not count."""
    findings: tuple[Finding, ...]
    """The first of them, in words of whoever reviewed: strip control characters before showing them."""
    findings_count: int
    """All of them; the log's `completed` has each."""


def review_view(review: Review) -> ReviewView:
    """The review as lists and streams show it."""
    return ReviewView(
        approve=review.approve,
        round=review.round,
        commit=review.commit,
        findings=review.findings[:FINDINGS_SHOWN_MAX],
        findings_count=len(review.findings),
    )
