"""What can't be decided again is counted as that, and a recorded choice of the dispatcher's is chosen again."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from shared import commands as c
from shared import events as e
from shared.events import decode, encode
from shared.history.archive import Archive
from shared.history.event_file import EventFile
from shared.history.verify import Verified, verify
from shared.plan import PlanState
from shared.spec import TaskSpec
from shared.store import Meta, Recorded
from shared.transact import to_plan
from tests.histories.stage import ANN, PLAN_ID, Stage, completes, fixed_ids
from tests.histories.stories import fails, judges, plan, task
from tests.simulation.virtual_time import run_in_virtual_time
from tests.simulation.world import World

RECORDED = Path(__file__).parents[2] / "histories"


@contextmanager
def records_of(name: str, directory: Path) -> Iterator[list[Recorded]]:
    with Archive.open(RECORDED / f"{name}.treadle") as archive, archive.event_file(directory) as file:
        yield list(file.read())


def judged(records: list[Recorded], directory: Path) -> Verified:
    """What comes of these, from a file of their own."""
    path = directory / "changed.jsonl"
    with EventFile.create(path, records[0].plan) as file:
        for record in records:
            file.append(record)
        return verify(file)


@pytest.fixture
def diamond(tmp_path: Path) -> list[Recorded]:
    with records_of("diamond", tmp_path) as records:
        return records


def place(records: list[Recorded], entity: str, type_: str) -> int:
    return next(i for i, r in enumerate(records) if (r.entity, r.type) == (entity, type_))


def changed(records: list[Recorded], entity: str, type_: str, **fields: Any) -> list[Recorded]:
    """The history, with other words in one of its events."""
    at = place(records, entity, type_)
    event = records[at].event
    assert event is not None
    other = replace(event, **fields)
    return [*records[:at], replace(records[at], event=other, body=encode(other)), *records[at + 1 :]]


def test_what_was_stored_before_commands_were_is_unknown_and_never_checked(
    diamond: list[Recorded], tmp_path: Path
) -> None:
    old = [replace(r, meta=Meta(actor=r.meta.actor, command=r.meta.command)) for r in diamond]
    result = judged(old, tmp_path)
    assert (result.differences, result.first) == (0, None)
    assert result.checked + sum(u.count for u in result.unknown if "dispatcher had read" not in u.reason) == 24
    assert any("Start" in u.reason for u in result.unknown) and result.checked < 24
    nameless = judged_anew([replace(r, meta=Meta(actor=r.meta.actor)) for r in diamond], tmp_path)
    assert nameless.checked == 0
    assert nameless.unknown[0].reason == "the event does not say which command led to it"
    assert (nameless.unknown[0].count, nameless.unknown[0].seq) == (24, 1)


def judged_anew(records: list[Recorded], directory: Path) -> Verified:
    (directory / "changed.jsonl").unlink()
    return judged(records, directory)


def test_an_old_denial_after_its_time_is_unknown_not_another_decision(tmp_path: Path) -> None:
    with records_of("approval", tmp_path) as records:
        old = [replace(r, meta=replace(r.meta, given="")) for r in records]
    assert judged(old, tmp_path).differences == 0


def test_what_follows_an_event_that_cant_be_read_is_unknown_for_its_task_alone(
    diamond: list[Recorded], tmp_path: Path
) -> None:
    at = place(diamond, "T2", "started")
    torn = [*diamond[:at], replace(diamond[at], event=None, body=b"{", fault="torn"), *diamond[at + 1 :]]
    result = judged(torn, tmp_path)
    assert result.differences == 0
    reasons = {u.reason: u.count for u in result.unknown}
    assert reasons[f"event {diamond[at].seq} before it can't be read"] == 1  # its completed
    assert reasons["the dispatcher's choice rests on an event that can't be read"] >= 1
    assert result.checked == 24 - 2


def test_an_event_that_an_operator_left_out_is_left_out(diamond: list[Recorded], tmp_path: Path) -> None:
    at = place(diamond, "T2", "started")
    torn = replace(diamond[at], event=None, body=b"{", fault="torn", seq=diamond[-1].seq + 1)
    skip = e.TaskSkipped(seq=torn.seq, reason="torn by a full disk")
    skipped = replace(
        diamond[-1],
        seq=torn.seq + 1,
        entity="T2",
        type="skipped",
        event=skip,
        body=encode(skip),
        meta=Meta(actor="user:ann", command="Skip", given="{}"),
    )
    result = judged([*diamond, torn, skipped], tmp_path)
    assert result.differences == 0
    assert [(u.reason, u.count) for u in result.unknown] == [("an operator has left the event out", 1)]
    assert result.checked == 25


@pytest.mark.parametrize(
    ("entity", "type_", "fields", "message"),
    [
        ("T4", "dispatched", {"heads": ()}, "T4 was dispatched with another heads"),
        ("T2", "dispatched", {"base_commit": "0" * 40}, "T2 was dispatched with another base_commit"),
        ("T2", "dispatched", {"abandoned": ("T1",)}, "T2 was dispatched with another abandoned"),
        ("_plan", "completed", {"head_commit": "0" * 40}, "the plan's head is not the commit of _deliver"),
        ("T3", "planned", {"index": 1}, "index 1 is the place of T2, not of T3"),
        ("T3", "planned", {"agent": None}, "T3 is given to another agent"),
        ("_plan", "finalizing", {"count": 4}, "plan.finalizing is decided with another count"),
        ("T2", "started", {"lease": 2}, "task.started is decided with another lease"),
    ],
)
def test_another_choice_or_decision_is_found(
    diamond: list[Recorded], tmp_path: Path, entity: str, type_: str, fields: dict[str, Any], message: str
) -> None:
    result = judged(changed(diamond, entity, type_, **fields), tmp_path)
    assert result.first is not None and result.first.message == message, result


def test_a_task_that_was_dispatched_before_it_was_ready_is_found(diamond: list[Recorded], tmp_path: Path) -> None:
    at = place(diamond, "T4", "dispatched")
    early = place(diamond, "T2", "completed")
    record = diamond[at]
    before = replace(record, meta=replace(record.meta, seen=diamond[early].seq - 1))
    result = judged([*diamond[:at], before, *diamond[at + 1 :]], tmp_path)
    assert result.first is not None
    assert result.first.message == "T4 was dispatched, but the task is not ready: it is pending"


# What a command says of the rest of the plan -----------------------------------------------------------------------


def says(records: list[Recorded], entity: str, type_: str, **said: Any) -> list[Recorded]:
    """The history, with other words in one of its headers."""
    at = place(records, entity, type_)
    given = msgspec.json.encode({**msgspec.json.decode(records[at].meta.given), **said}).decode()
    return [*records[:at], replace(records[at], meta=replace(records[at].meta, given=given)), *records[at + 1 :]]


def story(name: str, directory: Path) -> list[Recorded]:
    with records_of(name, directory) as records:
        return records


def test_a_start_in_a_plan_that_was_long_paused_is_found(tmp_path: Path) -> None:
    """Its own words agree with each other: it says that the plan was open."""
    records = story("paused_start", tmp_path)
    at = place(records, "T2", "released")
    start = e.TaskStarted(lease=1, runner="runner-1", execution="runner-1-T2-1")
    given = msgspec.json.encode({"phase": "open", "dispatch": 1}).decode()
    for seen, differs in ((0, False), (records[place(records, "_plan", "paused")].seq, True)):
        meta = replace(records[at].meta, given=given, seen=seen)
        forged = replace(records[at], type="started", event=start, body=encode(start), meta=meta)
        (tmp_path / "changed.jsonl").unlink(missing_ok=True)
        result = judged([*records[:at], forged], tmp_path)
        assert bool(result.differences) == differs, result.first  # the dispatch is from when it was open
    assert result.first is not None
    assert result.first.message == "the command Start says that the plan was open, but it was paused"
    assert result.first.decided["reason"] == '"the plan is paused"'


@pytest.mark.parametrize(
    ("name", "entity", "type_", "said", "message"),
    [
        ("diamond", "T2", "started", {"phase": "paused"}, "was paused, but it was open"),
        ("diamond", "T2", "started", {"phase": "cancelling"}, "was cancelling, but it was open"),
        ("retry", "T1", "failed", {"phase": "cancelling"}, "was cancelling, but it was open"),
        ("approval", "T1", "approval_requested", {"phase": "cancelling"}, "was cancelling, but it was open"),
        ("failed_cancel", "T1", "cancel_requested", {"phase": "cancelling"}, "was cancelling, but it was open"),
        ("manual_late", "M1", "dispatched", {"phase": "paused"}, "was paused, but it was open"),
        ("reopened", "T2", "started", {"reopened": ["T1"]}, "says that T1"),
        ("reopened", "T2", "released", {"reopened": []}, "recorded task.released, decided task.started"),
        ("diamond", "T2", "started", {"reopened": ["T1"]}, "says that T1"),
    ],
)  # fmt: skip
def test_a_word_about_the_plan_that_the_log_has_otherwise_is_found(
    tmp_path: Path, name: str, entity: str, type_: str, said: dict[str, Any], message: str
) -> None:
    records = story(name, tmp_path)
    result = judged(says(records, entity, type_, **said), tmp_path)
    assert result.first is not None and message in result.first.message, result.first
    assert result.first.seq == records[place(records, entity, type_)].seq


def test_a_start_that_was_decided_just_before_a_pause_may_come_just_after_it(
    diamond: list[Recorded], tmp_path: Path
) -> None:
    at = place(diamond, "T2", "started")
    records = [replace(r, seq=10 * r.seq, meta=replace(r.meta, seen=10 * r.meta.seen)) for r in diamond]
    for seq, type_, event, command in (
        (records[at].seq - 1, "paused", e.PlanPaused(reason="stop"), "Pause"),
        (records[at].seq + 1, "resumed", e.PlanResumed(), "Resume"),
    ):
        meta = Meta(actor="user:ann", command=command, given="{}")
        records.append(
            replace(records[at], seq=seq, entity="_plan", type=type_, event=event, body=encode(event), meta=meta)
        )
    records.sort(key=lambda r: r.seq)
    assert judged(records, tmp_path).verdict == "same"


# What people read -------------------------------------------------------------------------------------------------


def test_a_difference_shows_both_decisions_and_the_state_before_cut_to_what_can_be_read(
    diamond: list[Recorded], tmp_path: Path
) -> None:
    done = diamond[place(diamond, "T1", "completed")].event
    assert isinstance(done, e.TaskCompleted)
    long = replace(done.result, summary="x" * 100_000)
    result = judged(changed(diamond, "T1", "completed", result=long, lease=7), tmp_path)
    assert result.first is not None
    assert result.first.decided == {"": "refused: lease 7 is over: the task is running, its newest lease is 1"}
    assert result.first.before["status"] == '"running"'
    assert max(map(len, result.first.recorded.values())) < 400
    assert "characters" in result.first.recorded["result"]
    assert decode("task.completed", 1, msgspec.json.encode(done)) == done


@pytest.mark.parametrize("seed", range(200, 212))
def test_what_two_dispatchers_runners_and_people_did_on_a_bad_bus_is_decided_as_it_was(
    seed: int, tmp_path: Path
) -> None:
    world = World(seed)

    async def live() -> None:
        await world.live()

    run_in_virtual_time(live())
    for of_plan in world.specs:
        directory = tmp_path / of_plan
        directory.mkdir()
        if records := [r for r in world.records() if r.plan == of_plan]:
            result = judged(records, directory)
            assert (result.differences, result.unknown, result.checked) == (0, (), len(records)), result.first


# What the dispatcher added, and what it should have ----------------------------------------------------------------


def added(records: list[Recorded], **fields: Any) -> list[Recorded]:
    """The history, with another merge task in the plan's extension and in the task that it became."""
    extension = records[place(records, "_plan", "extended")].event
    assert isinstance(extension, e.PlanExtended)
    (spec,) = (replace(spec, **fields) for spec in extension.tasks)
    return changed(changed(records, "_plan", "extended", tasks=(spec,)), spec.code, "planned", spec=spec)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"depends_on": ("T1",)}, 'depends_on (["T1"], decided ["T1","T2"])'),
        ({"resolves": "T2"}, 'resolves ("T2", decided "T3")'),
        (
            {"budget_usd": 99.0, "timeout_minutes": 1.0},
            "timeout_minutes (1.0, decided 30.0), budget_usd (99.0, decided 1.0)",
        ),
    ],
)
def test_another_task_that_was_added_is_found(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    records = story("conflict", tmp_path)
    result = judged(added(records, **fields), tmp_path)
    assert result.first is not None
    assert result.first.message == f"T3: merge-T3 is added with another {message}"
    assert result.first.seq == records[place(records, "_plan", "extended")].seq
    assert result.first.recorded[""] == result.first.decided[""] == "plan.extended"
    assert result.first.before["status"] == '"needs_attention"' and "src/a.py" in result.first.before["conflict"]


def test_the_words_of_what_was_added_may_be_others(tmp_path: Path) -> None:
    records = added(story("conflict", tmp_path), description="Make one of both.")
    assert judged(changed(records, "_plan", "extended", reason="two wrote it"), tmp_path).differences == 0


def test_tasks_that_are_added_before_one_without_a_conflict_are_found(diamond: list[Recorded], tmp_path: Path) -> None:
    """Not only where the deciders refuse it: here they don't."""
    at = place(diamond, "T4", "dispatched")
    records = [replace(r, seq=10 * r.seq, meta=replace(r.meta, seen=10 * r.meta.seen)) for r in diamond]
    spec = replace(diamond[place(diamond, "T2", "planned")].event.spec, code="more")  # type: ignore[union-attr]  # it is `planned`
    event = e.PlanExtended(tasks=(spec,), before="T4", reason="why not")
    seq = records[at].seq - 1
    meta = Meta(actor="dispatcher", command="Extend", given="{}", seen=seq - 1)
    extended = replace(
        records[at], seq=seq, entity="_plan", type="extended", event=event, body=encode(event), meta=meta
    )
    result = judged([*records[:at], extended], tmp_path)
    assert result.first is not None and result.first.seq == seq
    assert result.first.message == "T4: recorded plan.extended by more, decided nothing"


@pytest.mark.parametrize(("approved", "round_"), [(True, 2), (False, 1)])
def test_another_decision_on_reviews_is_found(tmp_path: Path, approved: bool, round_: int) -> None:
    records = changed(story("rounds", tmp_path), "decide", "decided", approved=approved, round=round_)
    result = judged(records, tmp_path)
    words = f"{'approved' if approved else 'not approved'}, round {round_}"
    assert result.first is not None
    assert (
        result.first.message == f"decide: recorded task.decided ({words}), decided task.decided (not approved, round 2)"
    )


CONFLICT = e.Conflict(files=("src/a.py",), tasks=("T1", "T2"))


def chain(name: str) -> list[TaskSpec]:
    return [task(f"{name}1"), *(task(f"{name}{number}", f"{name}{number - 1}") for number in range(2, 9))]


async def merged_by_nobody(
    chains: str = "Q", *, work_s: float = 10.0, slow_s: float = 0.0, pause: bool = False
) -> Stage:
    """T3 meets a conflict and others go on, each task of a chain for `work_s`; then a person looks."""
    others = [t for name in chains for t in chain(name)]
    works = {t.code: [completes(work_s)] for t in others if not t.code.endswith("1")}
    stage = Stage({"T3": [fails("merge_conflict", 1.0, conflict=CONFLICT)], **works})
    stage.log.slow_s["Extend"] = slow_s
    async with stage.open():
        await stage.submit(plan(task("T1"), task("T2"), task("T3", "T1", "T2"), *others), on_conflict="agent")
        if pause:
            await stage.until("Q4", "running")
            await to_plan(stage.log, PLAN_ID, c.Pause(reason="let me look"), ANN)
            await stage.until("Q4", "completed")
            await to_plan(stage.log, PLAN_ID, c.Resume(), ANN)
        await stage.until(others[-1].code, "completed")
        if not slow_s:
            await stage.say("T3", c.MarkComplete(note="merged by hand"))
        await stage.until("_plan", "completed")
    return stage


def told_by(story_: Callable[[], Coroutine[Any, Any, Stage]]) -> list[Recorded]:
    with fixed_ids():
        return run_in_virtual_time(story_()).records()


def idle(story_: Callable[[], Coroutine[Any, Any, Stage]] = merged_by_nobody) -> list[Recorded]:
    """What a dispatcher stores that knows nothing of conflicts."""
    with pytest.MonkeyPatch.context() as broken:
        broken.setattr("services.dispatcher.dispatcher.next_step", lambda *_: None)
        return told_by(story_)


def until(records: list[Recorded], *codes: str) -> list[Recorded]:
    """The history up to the last of these tasks' dispatches."""
    return records[: 1 + max(place(records, code, "dispatched") for code in codes)]


def test_a_merge_that_was_due_and_never_came_is_found(tmp_path: Path) -> None:
    records = idle()
    result = judged(records, tmp_path)
    assert result.differences == 1 and result.first is not None
    assert result.first.entity != "T3" and "T3: today's code takes the next step before" in result.first.message
    assert result.first.recorded == {"": "no plan.extended for T3 by then"}
    assert "merge-T3" in result.first.decided["tasks"] and result.first.before["status"] == '"needs_attention"'
    failed = records[place(records, "T3", "failed")]
    assert (records[result.first.seq - 1].time - failed.time).total_seconds() >= 15


@pytest.mark.parametrize(("waited_s", "differences"), [(14.9, 0), (15.0, 1)])
def test_a_merge_is_missed_fifteen_seconds_after_it_was_first_due(
    waited_s: float, differences: int, tmp_path: Path
) -> None:
    """As Q3, Q4 and Q5 are dispatched: thrice."""
    records = until(idle(), "Q5")
    due = place(records, "Q3", "dispatched")
    ended = records[due].time + timedelta(seconds=waited_s)
    quick = [replace(r, time=records[due].time) for r in records[due:-1]]
    result = judged([*records[:due], *quick, replace(records[-1], time=ended)], tmp_path)
    assert result.differences == differences, result.first


@pytest.mark.parametrize(("last", "differences"), [("Q4", 0), ("Q5", 1)])
def test_a_merge_is_missed_once_the_dispatcher_acted_a_third_time_without_it(
    last: str, differences: int, tmp_path: Path
) -> None:
    """However long it all takes: a dispatcher may have died, and the next one been slow."""
    records = until(idle(partial(merged_by_nobody, work_s=60.0)), last)
    assert judged(records, tmp_path).differences == differences


@pytest.mark.parametrize(("last", "differences"), [(("P4", "Q4"), 0), (("P5", "Q5"), 1)])
def test_what_a_dispatcher_did_before_it_could_hear_of_the_last_is_the_same_delay(
    last: tuple[str, ...], differences: int, tmp_path: Path
) -> None:
    """The tasks of two chains end together, and what follows one is stored behind the end of the other."""
    records = until(idle(partial(merged_by_nobody, "PQ", work_s=20.0)), *last)
    first, second = sorted((records[place(records, code, "dispatched")] for code in ("P3", "Q3")), key=lambda r: r.seq)
    assert first.meta.seen < second.meta.seen < first.seq
    assert judged(records, tmp_path).differences == differences


@pytest.mark.parametrize(("last", "differences"), [("Q5", 0), ("Q6", 0), ("Q7", 1)])
def test_a_merge_that_waited_out_a_pause_is_waited_for_anew(last: str, differences: int, tmp_path: Path) -> None:
    """It was due as Q3 and Q4 were dispatched; then nothing was, for ten seconds."""
    records = until(idle(partial(merged_by_nobody, pause=True)), last)
    paused, resumed = (place(records, "_plan", type_) for type_ in ("paused", "resumed"))
    assert place(records, "Q4", "dispatched") < paused < resumed < place(records, "Q5", "dispatched")
    assert judged(records, tmp_path).differences == differences


async def reviewed_and_merged() -> Stage:
    decide = TaskSpec(
        code="decide", name="Decide", assignee="", depends_on=("look",), max_review_rounds=1, budget_usd=0.0
    )
    asked = [task("T1"), task("T2"), task("T3", "T1", "T2"), task("look", "T1", reviews="T1"), decide, *chain("Q")]
    works = {"T3": [fails("merge_conflict", 1.0, conflict=CONFLICT)], "look": [judges(True)]}
    async with Stage(works).open() as stage:
        await stage.submit(plan(*asked), on_conflict="agent")
        await stage.until("_plan", "completed")
    return stage


@pytest.mark.parametrize(
    ("code", "type_", "missed"),
    [("decide", "decided", "task.decided"), ("T3", "redispatch_requested", "task.redispatch_requested")],
)
def test_a_step_that_another_task_made_due_and_that_never_came_is_found(
    code: str, type_: str, missed: str, tmp_path: Path
) -> None:
    """A review that ended, or a merge."""
    records = until(told_by(reviewed_and_merged), "Q8")
    at = place(records, code, type_)
    assert judged(records, tmp_path).verdict == "same"
    result = judged_anew([*records[:at], *(r for r in records[at:] if r.entity != code)], tmp_path)
    assert result.first is not None and result.differences == 1
    assert result.first.recorded == {"": f"no {missed} for {code} by then"}


def test_a_merge_that_was_tried_at_once_and_stored_late_is_none_that_never_came(tmp_path: Path) -> None:
    records = told_by(partial(merged_by_nobody, slow_s=45.0))
    failed, extended = place(records, "T3", "failed"), place(records, "_plan", "extended")
    assert sum(r.type == "dispatched" for r in records[failed:extended]) > 3
    assert judged(records, tmp_path).verdict == "same"


# A start after a pause ----------------------------------------------------------------------------------------------


async def started_in_a_pause() -> Stage:
    async with Stage(slots=1).open() as stage:
        await stage.submit(plan(task("T1"), task("T2")))
        await stage.until("T1", "running")
        await to_plan(stage.log, PLAN_ID, c.Pause(reason="let me look"), ANN)
        await stage.until("T2", "completed")
    return stage


def test_a_start_is_wrong_where_its_runner_had_seen_the_pause(tmp_path: Path) -> None:
    """T2's dispatch is from before the pause, so that its runner may not have known; but it says that it did."""
    with pytest.MonkeyPatch.context() as broken:
        broken.setattr(PlanState, "phase", property(lambda _: "open"))
        records = told_by(started_in_a_pause)
    paused, at = records[place(records, "_plan", "paused")].seq, place(records, "T2", "started")
    assert records[place(records, "T2", "dispatched")].seq < paused <= records[at].meta.seen
    result = judged(records, tmp_path)
    assert result.first is not None and (result.first.seq, result.first.entity) == (records[at].seq, "T2")
    assert result.first.message == "the command Start says that the plan was open, but it was paused"
    before = replace(records[at], meta=replace(records[at].meta, seen=paused - 1))
    assert judged_anew([*records[:at], before, *records[at + 1 :]], tmp_path).verdict == "same"
