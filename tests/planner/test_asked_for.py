"""What is to be done for a candidate, in the states that no runner brings about at will."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from services.planner.asked_for import AskedPlan
from shared import commands as c
from shared import events as e
from shared.spec import TaskSpec
from shared.store import Meta, Recorded
from shared.subjects import PLAN
from tests.planner.drafts import PLANNER, WANTED

NOW = datetime(2026, 1, 1, tzinfo=UTC)
REQUESTED = e.PlanRequested(
    candidates=("1",),
    **{name: getattr(WANTED, name) for name in WANTED.__struct_fields__ if name != "count"},
)
PLANNED = e.TaskPlanned(
    digest="", index=0, spec=TaskSpec(code="_draft-1", name="x", assignee="planner"), agent=PLANNER
)  # fmt: skip
STARTED = e.TaskStarted(lease=1, runner="r", execution="x")
DISPATCHED = e.TaskDispatched(
    dispatch=1, attempt=1, prompt="", agent=PLANNER, repo_url="u", base_commit="b", heads=(), plan_name="",
    task_name="", timeout_s=1.0, budget_usd=1.0,
)  # fmt: skip
ASKS = e.TaskApprovalRequested(lease=1, approval="a", kind="tool", why="why", expires_at=NOW + timedelta(hours=1))


def asked_plan(*events: e.Event | None) -> AskedPlan:
    first = record(1, PLAN, REQUESTED)
    asked = AskedPlan("p", first)
    asked.apply(first)
    for seq, event in enumerate(events, start=2):
        asked.apply(record(seq, "_draft-1", event))
    return asked


def record(seq: int, entity: str, event: e.Event | None) -> Recorded:
    return Recorded(
        seq=seq, time=NOW, plan="p", entity=entity, type="x", event=event, meta=Meta(actor="t"), fault="written later"
    )


def test_a_record_that_cannot_be_read_fails_the_candidate_and_says_so() -> None:
    step = asked_plan(PLANNED, None).next_step("1", NOW, looking=False)
    assert isinstance(step, c.FailDraft)
    assert step.message.startswith("the record of its making can't be read (event 3: written later)")
    odd = asked_plan(PLANNED, e.PlanPaused()).next_step("1", NOW, looking=False)
    assert isinstance(odd, c.FailDraft)


def test_a_question_that_nobody_answers_in_time_is_denied() -> None:
    asked = asked_plan(PLANNED, DISPATCHED, STARTED, ASKS)
    assert asked.next_step("1", NOW, looking=True) is None
    step = asked.next_step("1", ASKS.expires_at, looking=True)
    assert step == c.Deny(approval="a", now=ASKS.expires_at)


def test_what_was_handed_back_waits_for_the_next_look() -> None:
    asked = asked_plan(PLANNED, DISPATCHED, e.TaskReleased(reason="the runner stops"))
    assert asked.next_step("1", NOW, looking=False) is None
    assert isinstance(asked.next_step("1", NOW, looking=True), c.Dispatch)


def test_what_waits_for_its_time_is_left_alone_until_then() -> None:
    later = NOW + timedelta(minutes=1)
    failed = e.TaskFailed(lease=1, kind="unavailable", message="overloaded", retry_at=later)
    asked = asked_plan(PLANNED, DISPATCHED, STARTED, failed)
    assert asked.next_step("1", NOW, looking=True) is None
    assert isinstance(asked.next_step("1", later, looking=True), c.Dispatch)


@pytest.mark.parametrize(
    ("event", "message"),
    [
        (e.TaskAbandoned(note="too dear"), "given up by a person: too dear; ask for another candidate"),
        (e.TaskCancelled(), "cancelled; ask for another candidate if you still want one"),
        (
            e.TaskCancelRequested(reason="not now"),
            "cancelled: not now; ask for another candidate if you still want one",
        ),
        (e.TaskFailed(lease=1, kind="timeout", message="it took too long"), "it took too long"),
    ],
)
def test_every_end_without_a_plan_is_told_in_words(event: e.Event, message: str) -> None:
    step = asked_plan(PLANNED, DISPATCHED, event).next_step("1", NOW, looking=False)
    assert isinstance(step, c.FailDraft)
    assert step.message == message


@pytest.mark.parametrize("event", [e.PlanCancelRequested(), e.PlanFinalizing(candidate="x", digest="d", count=2)])
def test_a_plan_that_takes_no_candidates_any_more_ends_their_making(event: e.Event) -> None:
    asked = asked_plan(PLANNED, DISPATCHED)
    asked.apply(record(9, PLAN, event))
    step = asked.next_step("1", NOW, looking=False)
    assert isinstance(step, c.CancelTask)
    assert step.phase == "cancelling"
    asked.apply(record(10, "_draft-1", e.TaskCancelled()))
    assert asked.next_step("1", NOW, looking=True) is None
    assert asked.done


def test_what_is_being_done_is_not_begun_twice() -> None:
    asked = asked_plan()
    assert isinstance(asked.next_step("1", NOW, looking=False), c.PlanTask)
    asked.makings["1"].busy = True
    assert asked.next_step("1", NOW, looking=True) is None
    assert not asked.done


def test_of_many_candidates_the_first_are_made_and_the_others_wait_for_their_turn() -> None:
    names = tuple(str(number) for number in range(1, 13))
    first = record(1, PLAN, msgspec.structs.replace(REQUESTED, candidates=names[:2]))
    asked = AskedPlan("p", first)
    asked.apply(first)
    asked.apply(record(2, PLAN, msgspec.structs.replace(REQUESTED, candidates=names[2:])))

    def begun() -> list[str]:
        return [name for name in names if isinstance(asked.next_step(name, NOW, looking=True), c.PlanTask)]

    assert begun() == ["1", "2", "3", "4", "5"]
    asked.apply(record(3, "_draft-1", PLANNED))
    asked.apply(record(4, "_draft-1", DISPATCHED))
    assert begun() == ["2", "3", "4", "5"]
    asked.apply(record(5, PLAN, e.PlanFailed(candidate="3", message="x")))
    assert begun() == ["2", "4", "5", "6"]
    assert not asked.done


def test_a_request_with_limits_hands_them_on() -> None:
    step = asked_plan().next_step("1", NOW, looking=False)
    assert isinstance(step, c.PlanTask)
    assert (step.spec.budget_usd, step.spec.timeout_minutes, step.spec.allow_no_change) == (2.0, 10.0, True)
    bare = msgspec.structs.replace(REQUESTED, budget_usd=0.0, timeout_s=0.0)
    asked = AskedPlan("p", record(1, PLAN, bare))
    asked.apply(record(1, PLAN, bare))
    step = asked.next_step("1", NOW, looking=False)
    assert isinstance(step, c.PlanTask)
    assert (step.spec.budget_usd, step.spec.timeout_minutes) == (5.0, None)
