"""What a reset of a pool's consumer passes over: pure functions."""

from __future__ import annotations

from typing import Any

import pytest

from treadle.bad_input import BadInput
from treadle.operation_commands import _passed_over, _place


def pool(position: int = 40, pending: int = 0, unacknowledged: int = 0, kind: str = "pool") -> dict[str, Any]:
    of = {"position": position, "pending": pending, "unacknowledged": unacknowledged}
    return {"name": "pool_command", "kind": kind, **of}


def test_what_is_no_place_of_the_log_is_refused_first() -> None:
    for rubbish in ("rubbish", "", "-1", "2026-13-01"):
        with pytest.raises(BadInput, match="give start, end, a sequence"):
            _place(rubbish)
    assert [_place(to) for to in ("start", "end", "17")] == ["start", "end", "17"]
    assert _place("2026-01-31T12:00:00+00:00").startswith("2026-01-31T")


@pytest.mark.parametrize("to", ["end", "41", "2026-01-31T12:00:00+00:00"])
def test_with_nothing_to_come_and_nothing_in_hand_nothing_is_passed_over(to: str) -> None:
    assert _passed_over(pool(), to) == ""
    assert "of the 3 dispatches that are to come" in _passed_over(pool(pending=3), to)
    held = _passed_over(pool(unacknowledged=2), to)
    assert "the 2 that runners have in their hands" in held and "to come" not in held


def test_back_is_never_forward_and_what_the_gateway_refuses_is_its_to_say() -> None:
    busy = pool(pending=3, unacknowledged=1)
    assert [_passed_over(busy, to) for to in ("start", "1", "40")] == ["", "", ""]
    assert _passed_over(busy, "41")
    assert _passed_over(None, "end") == "" and _passed_over({**busy, "kind": "follower"}, "end") == ""
