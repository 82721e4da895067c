"""The plan's decider, given anything."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared import commands as c
from shared import events as e
from shared.plan import ENDED, INITIAL, PlanState, decide, evolve
from shared.spec import PlanSpec, digest
from tests.shared.strategies import SPECS, plan_commands, plan_events, plan_specs

ORDER = (
    "absent",
    "requested",
    "failed",
    "drafted",
    "finalizing",
    "active",
    "paused",
    "cancelling",
    "cancelled",
    "completed",
)


@st.composite
def lives(draw: st.DrawFn) -> list[tuple[PlanState, c.PlanCommand, e.Event, PlanState]]:
    """Any commands in any order; what led to an event, with the state before and after it."""
    state, steps = INITIAL, []
    opening: list[c.PlanCommand] = []
    if draw(st.booleans()):
        draft = c.Draft(candidate="c1", spec=SPECS[0], repo_url="u", base_commit="b")
        first: tuple[c.PlanCommand, ...] = (draft, c.Finalize(candidate="c1"), c.ConfirmFinalized(digest=""))
        opening = list(first)[: draw(st.integers(1, 3))]
    for command in opening + draw(st.lists(plan_commands, max_size=20)):
        if isinstance(command, c.ConfirmFinalized) and len(command.digest) != 1:
            command = c.ConfirmFinalized(digest=state.digest)
        try:
            event = decide(state, command)
        except c.Refused:
            continue
        if event is not None:
            after = evolve(state, event)
            steps.append((state, command, event, after))
            state = after
    return steps


Life = list[tuple[PlanState, c.PlanCommand, e.Event, PlanState]]


@given(lives())
def test_the_same_command_again_changes_nothing(life: Life) -> None:
    for _, command, _, after in life:
        if isinstance(command, c.Request) and not command.by_hand:
            continue  # asks for more
        assert decide(after, command) is None


@given(lives())
def test_deciding_is_deterministic_and_leaves_the_state_alone(life: Life) -> None:
    for before, command, event, _ in life:
        body = msgspec.json.encode(before)
        assert decide(before, command) == event
        assert msgspec.json.encode(before) == body


@given(lives())
def test_what_is_decided_survives_the_log(life: Life) -> None:
    for before, _, event, after in life:
        assert evolve(before, e.decode(event.name, event.version, e.encode(event))) == after


@given(st.lists(plan_events, max_size=12), plan_commands)
def test_after_any_history_deciding_gives_an_event_nothing_or_a_refusal(
    events: list[e.Event], command: c.PlanCommand
) -> None:
    state = INITIAL
    for event in events:
        state = evolve(state, event)
    try:
        decided = decide(state, command)
    except c.Refused as refusal:
        assert str(refusal)
        return
    if decided is not None:
        evolve(state, decided)


@given(lives())
def test_a_plan_that_ended_stays_ended(life: Life) -> None:
    for before, command, event, after in life:
        if before.status in ENDED:
            assert isinstance(event, e.PlanForked | e.PlanSkipped), f"{command} led to {event}"
            assert after.status == before.status


@given(lives())
def test_a_plan_only_goes_forward_but_for_pause_and_resume(life: Life) -> None:
    for before, _, _, after in life:
        back = (before.status, after.status) in (("paused", "active"), ("failed", "requested"))
        assert ORDER.index(after.status) >= ORDER.index(before.status) or back


@given(lives())
def test_the_choice_of_a_candidate_is_final(life: Life) -> None:
    for before, _, event, after in life:
        if before.chosen is None or after.chosen is None:
            continue
        assert after.digest == before.digest
        assert after.count == before.count + (len(event.tasks) if isinstance(event, e.PlanExtended) else 0)
        if isinstance(event, e.PlanResumed) and event.budget_usd is not None:
            spec = msgspec.structs.replace(before.chosen.spec, budget_usd=event.budget_usd)
            assert after.chosen == msgspec.structs.replace(before.chosen, spec=spec)
        else:
            assert after.chosen == before.chosen


@given(lives())
def test_tasks_are_added_once_and_only_while_the_plan_runs(life: Life) -> None:
    for before, _, event, after in life:
        if not isinstance(event, e.PlanExtended):
            assert (after.added, after.also_before) == (before.added, before.also_before)
            continue
        assert before.status in ("active", "paused")
        codes = [task.code for task in (*(before.chosen.spec.tasks if before.chosen else ()), *after.added)]
        assert len(set(codes)) == len(codes)
        waits = after.also_before.get(event.before, ()) if event.before else ()
        assert not event.before or waits[-len(event.tasks) :] == tuple(task.code for task in event.tasks)


@given(lives())
def test_tasks_may_start_only_in_an_active_plan_and_end_for_good_only_in_one_that_ends(life: Life) -> None:
    for _, _, _, after in life:
        assert (after.phase == "open") == (after.status == "active")
        assert (after.phase == "cancelling") == (after.status in ("cancelling", "cancelled", "completed"))


@given(plan_specs())
def test_the_count_that_finalizing_fixes_includes_the_delivery(spec: PlanSpec) -> None:
    state = INITIAL
    for command in (
        c.Draft(candidate="c", spec=spec, repo_url="u", base_commit="b"),
        c.Finalize(candidate="c"),
    ):
        event = decide(state, command)
        assert event is not None
        state = evolve(state, event)
    assert state.count == len(spec.tasks) + 1
    assert decide(state, c.ConfirmFinalized(digest="another")) is None
    assert decide(state, c.ConfirmFinalized(digest=state.digest)) == e.PlanFinalized(digest=state.digest)


def test_another_plan_under_a_known_candidates_name_is_refused() -> None:
    state = evolve(INITIAL, e.PlanDrafted(candidate="c", spec=SPECS[0], repo_url="u", base_commit="b"))
    with pytest.raises(c.Refused, match="is another plan"):
        decide(state, c.Draft(candidate="c", spec=SPECS[1], repo_url="u", base_commit="b"))


@pytest.mark.parametrize("command", [c.Finalize(candidate="c"), c.Pause(), c.Resume(), c.CancelPlan()])
def test_a_plan_that_does_not_exist_says_so(command: c.PlanCommand) -> None:
    with pytest.raises(c.Refused, match="no such plan"):
        decide(INITIAL, command)


def test_finalizing_again_with_the_digest_of_another_text_does_not_look_like_success() -> None:
    draft = c.Draft(candidate="c1", spec=SPECS[0], repo_url="u", base_commit="b")
    drafted = evolve(INITIAL, ok(decide(INITIAL, draft)))
    finalizing = evolve(drafted, ok(decide(drafted, c.Finalize(candidate="c1", digest=digest(SPECS[0])))))
    assert decide(finalizing, c.Finalize(candidate="c1")) is None
    assert decide(finalizing, c.Finalize(candidate="c1", digest=digest(SPECS[0]))) is None
    with pytest.raises(c.Changed):
        decide(finalizing, c.Finalize(candidate="c1", digest=digest(SPECS[1])))


def test_a_candidate_is_replaced_only_by_whoever_saw_what_it_is_now() -> None:
    first = c.Draft(candidate="c1", spec=SPECS[0], repo_url="u", base_commit="b", project="p")
    drafted = evolve(INITIAL, ok(decide(INITIAL, first)))
    anew = msgspec.structs.replace(first, spec=SPECS[1], replaces=digest(SPECS[0]))
    with pytest.raises(c.Changed):
        decide(drafted, msgspec.structs.replace(anew, replaces="of something else"))
    with pytest.raises(c.Refused, match="another project"):
        decide(drafted, msgspec.structs.replace(anew, project="q"))
    replaced = evolve(drafted, ok(decide(drafted, anew)))
    assert replaced.candidates["c1"].spec == SPECS[1]
    assert decide(replaced, anew) is None


def ok(event: e.Event | None) -> e.Event:
    assert event is not None
    return event
