"""What is said of runners that keep nobody in, or take nothing."""

from __future__ import annotations

from typing import Any

import pytest

from treadle.standstill import said_of_sandboxes, why_queued

QUEUED = [{"status": "queued"}, {"status": "completed"}]


def runner(**fields: Any) -> dict[str, Any]:
    return {"runner": "runner-1", "pools": ["claude", "command"], "slots": 2, "busy": 0, "full": "", **fields}


@pytest.mark.parametrize(
    ("sandboxes", "is_said"),
    [([], False), (["none"], True), (["none", "none"], True), (["none", "bubblewrap 0.8.0"], False), ([""], False)],
)
def test_it_is_said_when_no_runner_has_a_sandbox(sandboxes: list[str], is_said: bool) -> None:
    words = said_of_sandboxes([runner(sandbox=sandbox) for sandbox in sandboxes])
    assert bool(words) == is_said
    assert ("treadle doctor" in words) == is_said


@pytest.mark.parametrize(
    ("runners", "words"),
    [
        ([], "no runner is there"),
        ([runner(full="5 MiB are free")], "runner-1: 5 MiB are free"),
        ([runner(full="5 MiB are free"), runner()], ""),
        ([runner(without_key=True)], "set ANTHROPIC_API_KEY"),
        ([runner(without_key=True, busy=2)], ""),
        ([runner(without_key=True), runner()], ""),
    ],
)
def test_what_is_queued_and_taken_by_nobody_has_a_reason(runners: list[dict[str, Any]], words: str) -> None:
    told = why_queued(runners, QUEUED)
    assert words in told
    assert bool(told) == bool(words)


def test_nothing_is_said_where_nothing_is_queued() -> None:
    assert why_queued([], [{"status": "running"}]) == ""
