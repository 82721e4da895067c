"""A person's edit of one task: the rules of a plan, and nothing changes that was not named."""

from __future__ import annotations

import msgspec
import pytest

from services.planner.edit import edit_task
from shared.requests import EditRequest
from shared.spec import AgentSpec, Retry, TaskSpec
from tests.planner.test_team import CODER, PAULA, TEAM, TESTER

TASK = TaskSpec(
    code="T2",
    name="Second",
    assignee="coder",
    description="Do it.",
    depends_on=("T1",),
    expected_output="a/b",
    timeout_minutes=5.0,
    verify=("make",),
    retry=Retry(max_attempts=4),
    budget_usd=2.0,
    verify_rounds=4,
    requires_approval=True,
    allow_no_change=True,
    resolves="T0",
)
MINE = AgentSpec(sdk_type="command", command=("y",))
REQUEST = EditRequest(
    task=TASK,
    agent=CODER.spec,
    changes={},
    mode="auto",
    agents=TEAM.agents,
    declared={"coder": CODER.spec, "mine": MINE},
)

KNOWN = (
    '"code", "name", "assignee", "description", "depends_on", "expected_output", "timeout_minutes", "verify", '
    '"retry", "verify_rounds", "requires_approval", "allow_no_change", "reviews", "max_review_rounds", '
    '"fixer", "budget_usd"'
)


def edited(**changes: object) -> EditRequest:
    return msgspec.structs.replace(REQUEST, changes=changes)


def test_an_edit_of_nothing_changes_nothing() -> None:
    reply = edit_task(REQUEST)
    assert (reply.task, reply.agent, reply.faults) == (TASK, CODER.spec, ())


def test_null_clears_to_the_default() -> None:
    fields = ("description", "expected_output", "timeout_minutes", "verify", "retry", "budget_usd")
    words = ("verify_rounds", "requires_approval", "allow_no_change")
    reply = edit_task(edited(**dict.fromkeys((*fields, *words))))
    assert reply.task == TaskSpec(code="T2", name="Second", assignee="coder", depends_on=("T1",), resolves="T0")


@pytest.mark.parametrize(
    ("assignee", "name", "spec"),
    [("Bob", "tester", TESTER.spec), ("mine", "mine", MINE), ("CODER", "coder", CODER.spec)],
)
def test_another_agent_comes_with_its_spec(assignee: str, name: str, spec: AgentSpec) -> None:
    reply = edit_task(edited(assignee=assignee))
    assert reply.task is not None
    assert (reply.task.assignee, reply.agent) == (name, spec)


def test_whoever_has_the_task_keeps_it_even_if_they_could_not_get_it_now() -> None:
    gone = msgspec.structs.replace(edited(name="New"), agents=(), declared={"coder": CODER.spec})
    reply = edit_task(gone)
    assert (reply.task, reply.agent) == (msgspec.structs.replace(TASK, name="New"), CODER.spec)
    manual = msgspec.structs.replace(edited(name="New"), mode="manual", agent=PAULA.spec)
    assert edit_task(manual).agent == PAULA.spec


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"code": "T3"}, "task T2, code: can't be changed: plan it otherwise in a new plan"),
        ({"depends_on": []}, "task T2, depends_on: can't be changed: plan it otherwise in a new plan"),
        ({"depends_on": None}, "task T2, depends_on: can't be changed: plan it otherwise in a new plan"),
        ({"nme": "x"}, 'task T2, nme: unknown field; did you mean "name"?'),
        ({"assignee": "nobody"}, 'task T2, assignee: "nobody" is not an agent of this project; it has "mine", "coder", '
         '"tester", "shell"'),
        ({"timeout_minutes": 5000}, "task T2, timeout_minutes: 5000 is out of range: 0.01 to 1440 minutes"),
        ({"retry": {"x": 1}}, 'task T2, retry.x: unknown field; known are "max_attempts", "backoff_s"'),
        ({"requires_approval": 1}, "task T2, requires_approval: expected true or false, found the number 1"),
        ({"verify_rounds": 11}, "task T2, verify_rounds: 11 is out of range: 0 to 10 rounds"),
        ({"resolves": "T1"}, "task T2, resolves: only Treadle itself sets it: leave it out"),
        ({"expected_output": "../x"}, 'task T2, expected_output: "../x" is not a path inside the repository: '
         'it has ".."'),
        ({"verify": "make"}, 'task T2, verify: expected a list of commands, found the text "make"; '
         'write it as ["make"]'),
        ({"name": "a\x1b"}, 'task T2, name: holds the control character U+001B: "a\\u{1b}"'),
    ],
)  # fmt: skip
def test_each_fault_is_told_as_in_a_plan(changes: dict[str, object], fault: str) -> None:
    reply = edit_task(edited(**changes))
    assert (reply.task, [found.message for found in reply.faults]) == (None, [fault])
    assert reply.faults[0].task == "T2"


def test_what_did_not_change_may_be_sent_along() -> None:
    assert edit_task(edited(code="T2", depends_on=["T1"], assignee="coder")).task == TASK
