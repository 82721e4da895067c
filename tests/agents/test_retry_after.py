"""How long the API wants us to wait."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from multidict import CIMultiDict

from services.runner.retry_after import retry_after_s

LIMIT = "Anthropic-RateLimit-"


Header = str | Callable[[], str]


def at(in_s: float) -> Callable[[], str]:
    """That time when the test runs."""
    return lambda: (datetime.now(UTC) + timedelta(seconds=in_s)).isoformat().replace("+00:00", "Z")


@pytest.mark.parametrize(
    ("status", "headers", "wait_s"),
    [
        (429, {"Retry-After": "120"}, 120),
        (529, {"Retry-After": "1.5"}, 1.5),
        (429, {"Retry-After": "7", f"{LIMIT}tokens-reset": at(600)}, 7),
        (429, {f"{LIMIT}tokens-reset": at(600)}, 600),
        (429, {f"{LIMIT}unified-5h-reset": lambda: str(int(time.time()) + 3600)}, 3600),
        (429, {f"{LIMIT}a-reset": at(60), f"{LIMIT}a-remaining": "0", f"{LIMIT}b-reset": at(9000)}, 60),
        (429, {f"{LIMIT}a-reset": at(60), f"{LIMIT}a-status": "rejected", f"{LIMIT}b-reset": at(9000)}, 60),
        (429, {f"{LIMIT}a-reset": at(60), f"{LIMIT}b-reset": at(900)}, 900),
        (429, {f"{LIMIT}tokens-reset": at(-600)}, 0),
        (429, {}, None),
        (500, {f"{LIMIT}tokens-reset": at(600)}, None),
        *[(429, {"Retry-After": odd}, None) for odd in ("", "soon", "-1", "nan", "inf", "1e999")],
        *[(429, {f"{LIMIT}tokens-reset": odd}, None) for odd in ("", "soon", "9" * 400, "2026-99-99")],
    ],
)
def test_wait_is_read_from_the_answer(status: int, headers: dict[str, Header], wait_s: float | None) -> None:
    values = {name: value if isinstance(value, str) else value() for name, value in headers.items()}
    found = retry_after_s(status, CIMultiDict(values))
    assert found == (wait_s if wait_s is None else pytest.approx(wait_s, abs=10))
