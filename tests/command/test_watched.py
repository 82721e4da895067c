"""When a plan is not watched any longer: pure folding of the stream's messages."""

from __future__ import annotations

import json
from typing import Any

import pytest
from httpx_sse import ServerSentEvent

from treadle.watch import JsonView, Watched


def watched(*messages: tuple[str, dict[str, Any]]) -> Watched:
    made = Watched("p")
    for name, body in messages:
        made.take(ServerSentEvent(event=name, data=json.dumps(body)), JsonView())
    return made


def plan(standing: str, *, is_busy: bool = False) -> tuple[str, dict[str, Any]]:
    return "plan", {"standing": standing, "is_busy": is_busy, "reason": "why"}


def log(type_: str, actor: str, task: str | None = None) -> tuple[str, dict[str, Any]]:
    return "log", {"seq": 1, "task": task, "type": type_, "actor": actor}


LIVE: tuple[str, dict[str, Any]] = ("live", {})
BY_DISPATCHER, BY_PERSON = log("paused", "dispatcher"), log("paused", "user:ann")


def test_plan_that_the_dispatcher_paused_is_left_once_nothing_of_it_runs() -> None:
    assert watched(BY_DISPATCHER, plan("paused", is_busy=True), LIVE).outcome is None
    assert watched(BY_DISPATCHER, plan("paused", is_busy=True), LIVE, plan("paused")).outcome == "paused"
    after = log("completed", "runner-1", "T1")
    assert watched(LIVE, BY_DISPATCHER, after, plan("paused")).outcome == "paused"


def test_plan_that_a_person_paused_is_watched_on() -> None:
    assert watched(BY_PERSON, plan("paused"), LIVE).outcome is None
    resumed = log("resumed", "user:ann")
    assert watched(BY_DISPATCHER, resumed, BY_PERSON, plan("paused"), LIVE).outcome is None
    assert watched(BY_DISPATCHER, plan("paused"), resumed, plan("running"), LIVE).outcome is None


@pytest.mark.parametrize("standing", ["completed", "cancelled", "needs_attention"])
def test_end_counts_only_once_the_whole_story_was_told(standing: str) -> None:
    assert watched(plan(standing)).outcome is None
    assert watched(plan(standing), LIVE).outcome == standing
