"""Whatever a decider decided can be decided again from what the log has of it."""

from datetime import UTC, datetime
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared import commands as c
from shared import events as e
from shared import plan, task
from shared.given import COMMANDS, GIVEN_MAX_CHARS, NotGiven, rebuilt
from shared.given import given as what_is_given
from shared.task_decisions import decide
from tests.shared.strategies import fitted, openings, plan_commands, task_wishes

NOW = datetime(2026, 1, 1, tzinfo=UTC)
DONE = e.TaskCompleted(lease=1, base_commit="b", commit="a", result=e.Result(task_code="T1", summary="s"))


@settings(max_examples=400)
@given(openings, st.lists(task_wishes, max_size=25))
def test_every_decision_about_a_task_is_made_again_from_its_event_and_what_was_given(
    opening: list[c.TaskCommand], wishes: list[c.TaskCommand]
) -> None:
    state, readied = task.INITIAL, None
    for wish in (*opening, *wishes):
        command = fitted(wish, state)
        try:
            event = decide(state, command)
        except c.Refused:
            continue
        if event is None:
            continue
        text = what_is_given(command, event)
        known = command.readied if isinstance(command, c.HandOut) else readied
        again = rebuilt(type(command).__name__, event, text, known)
        assert isinstance(again, type(command))
        if not isinstance(command, c.Dispatch):
            assert again == command
        assert decide(state, again) == event
        assert text.isascii()
        state = task.evolve(state, event)
        readied = event if isinstance(event, e.TaskReadied) else readied


@given(st.lists(plan_commands, max_size=25))
def test_every_decision_about_a_plan_is_made_again_likewise(wishes: list[c.PlanCommand]) -> None:
    state = plan.INITIAL
    for command in wishes:
        try:
            event = plan.decide(state, command)
        except c.Refused:
            continue
        if event is not None:
            again = rebuilt(type(command).__name__, event, what_is_given(command, event))
            assert again == command
            state = plan.evolve(state, event)


def test_every_command_has_its_name() -> None:
    assert set(COMMANDS.values()) == {*get_args(c.PlanCommand), *get_args(c.TaskCommand)}


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("", "", "no command without a name"),
        ("Teleport", "", "no command Teleport"),
        ("Fail", '{"now": 3', "can't be read"),
        ("Fail", '{"now": "yesterday"}', "can't be read"),
        ("Fail", "[]", "is not in the log"),
        ("HandOut", "", "is not in the log"),
    ],
)
def test_what_is_not_there_is_not_made_up(name: str, text: str, why: str) -> None:
    with pytest.raises(NotGiven, match=why):
        rebuilt(name, DONE, text)


def test_what_is_too_long_is_not_given_in_part() -> None:
    asked = c.RequestApproval(
        now=NOW, phase="cancelling", lease=1, approval="h",
        kind="tool", input="x" * GIVEN_MAX_CHARS, why="w", expires_at=NOW, usage=e.Usage(),
    )  # fmt: skip
    event = e.TaskCancelled(lease=1)
    assert what_is_given(asked, event) == ""
    with pytest.raises(NotGiven):
        rebuilt("RequestApproval", event, "")
