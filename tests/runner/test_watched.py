"""What is waited for is a fold of the log, and agrees with the deciders about it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from services.runner.watch.watched import FILTERS, Repository, Watched
from shared import commands as c
from shared import events as e
from shared import task
from shared.clock import new_plan_id
from shared.spec import AgentSpec, CollabRules, ResultPlace, TaskSpec
from shared.store import matches
from shared.subjects import PLAN, event_subject, parse_event_subject
from shared.task_decisions import decide

NOW = datetime(2030, 1, 1, tzinfo=UTC)
ANN = AgentSpec(sdk_type=None)
P = new_plan_id()
SPEC = TaskSpec(code="T1", name="One", assignee="ann")
REPO = Repository("shop", "https://h/r.git")


def place(url: str = REPO.repo_url, interval_s: float = 30.0) -> ResultPlace:
    return ResultPlace(repo_url=url, path="treadle/p/T1/result.json", poll_interval_s=interval_s, blob="old")


def dispatched(number: int = 1, **more: Any) -> e.TaskDispatched:
    fields: dict[str, Any] = {
        "dispatch": number, "attempt": 1, "prompt": "Do it", "agent": ANN, "project": REPO.project,
        "repo_url": "https://h/c.git", "base_commit": "0" * 40, "heads": (), "plan_name": "P", "task_name": "T",
        "place": place(), "timeout_s": 60, "budget_usd": 0, **more,
    }  # fmt: skip
    return e.TaskDispatched(**fields)


def folded(*events: e.Event, entity: str = "T1") -> Watched:
    watched = Watched()
    for seq, event in enumerate(events, 1):
        address = parse_event_subject(event_subject(P, entity, event))
        if watched.concerns(P, entity, address.type):
            watched.apply(P, entity, event, seq)
    return watched


STARTED = e.TaskStarted(lease=1, runner="watch", execution="manual-1")


def failed(**more: Any) -> e.TaskFailed:
    return e.TaskFailed(**{"lease": 1, "kind": "invalid_result", "message": "no", **more})


def test_a_task_is_handed_out_then_runs_and_is_gone_when_it_ends() -> None:
    watched = folded(dispatched())
    (waiting,) = watched.handed_out()
    assert (waiting.status, waiting.dispatch.prompt, waiting.repository) == ("handed_out", "", REPO)
    assert waiting.usage_path == "treadle/p/T1/usage.json"
    assert [waiting.is_new(blob) for blob in ("", "old", "new")] == [False, False, True]
    watched = folded(dispatched(), STARTED)
    assert not watched.handed_out() and watched.tasks(REPO)[0].lease == 1
    done = e.TaskCompleted(lease=1, base_commit="", commit="", result=e.Result(task_code="T1", summary="s"))
    for end in (
        done, e.TaskCancelled(), e.TaskMarkedComplete(), e.TaskAbandoned(), e.TaskReleased(reason="r"),
        e.TaskCancelRequested(), e.TaskRedispatchRequested(), failed(kind="cancelled"), failed(retry_at=NOW),
    ):  # fmt: skip
        assert not folded(dispatched(), STARTED, end).repositories


def test_what_is_late_or_was_invalid_is_waited_for_and_the_same_blob_is_not_looked_at_twice() -> None:
    (late,) = folded(dispatched(), STARTED, failed(kind="timeout")).tasks(REPO)
    assert (late.status, late.is_new("new")) == ("late", True)
    (invalid,) = folded(dispatched(), STARTED, failed(blob="bad")).tasks(REPO)
    assert (invalid.is_new("bad"), invalid.is_new("new")) == (False, True)
    (again,) = folded(dispatched(), STARTED, failed(blob="bad"), dispatched(2)).tasks(REPO)
    assert (again.status, again.lease, again.is_new("bad")) == ("handed_out", 0, True)


def test_a_runners_tasks_and_plans_of_agents_are_none_of_ours() -> None:
    claude = AgentSpec(sdk_type="claude")
    assert not folded(dispatched(agent=claude)).repositories
    assert not folded(dispatched(place=None)).repositories
    assert not folded(requested(by_hand=False), entity=PLAN).repositories
    assert not Watched().concerns(P, "T1", "completed")


def requested(**more: Any) -> e.PlanRequested:
    fields: dict[str, Any] = {
        "candidates": ("1",), "by_hand": True, "goal": "G", "project": REPO.project, "repo_url": REPO.repo_url,
        "base_commit": "", "collab": CollabRules(directory="d/e", poll_interval_s=7.0), **more,
    }  # fmt: skip
    return e.PlanRequested(**fields)


def test_a_plan_is_waited_for_until_there_is_a_candidate_or_it_is_ended() -> None:
    (file,) = folded(requested(), entity=PLAN).plan_files(REPO)
    assert (file.path, file.poll_interval_s, file.blob, file.seq) == (f"d/e/plan-{P}.json", 7.0, "", 1)
    fault = e.PlanFailed(candidate="1", message="no", origin=e.DraftOrigin(blob="bad"))
    (file,) = folded(requested(), fault, entity=PLAN).plan_files(REPO)
    assert (file.blob, file.seq) == ("bad", 2)
    other = Repository(REPO.project, "https://h/other.git")
    rules = CollabRules(repo_url=other.repo_url, directory="f")
    moved = folded(requested(), requested(collab=rules), entity=PLAN)
    assert list(moved.repositories) == [other]
    for end in (e.PlanCancelRequested(), e.PlanFinalizing(candidate="2", digest="d", count=1), e.PlanCancelled()):
        assert not folded(requested(), end, entity=PLAN).repositories


def test_a_repository_is_looked_into_as_often_as_the_most_impatient_wants() -> None:
    watched = Watched()
    for number, interval_s in enumerate((60.0, 20.0, 45.0), 1):
        watched.apply(P, f"T{number}", dispatched(place=place(interval_s=interval_s)), number)
    assert watched.poll_interval_s(REPO) == 20
    watched.apply(P, "T2", e.TaskAbandoned(), 4)
    assert watched.poll_interval_s(REPO) == 45
    assert len(watched.tasks(REPO)) == 2


COMMANDS = st.sampled_from(
    [
        *("ready", "hand_out", "start", "complete", "invalid", "timeout", "cancel", "end", "release"),
        *("mark", "abandon", "redispatch", "fail_watch", "restore", "edit"),
    ]
)


@given(st.lists(COMMANDS, max_size=40))
def test_exactly_what_the_decider_lets_complete_is_waited_for(names: list[str]) -> None:
    state, watched, readied = task.INITIAL, Watched(), None
    for seq, name in enumerate(["plan", "ready", "hand_out", "start", *names], 1):
        try:
            event = decide(state, command(name, state, readied, seq))
        except c.Refused:
            continue
        if event is None:
            continue
        state = task.evolve(state, event)
        readied = event if isinstance(event, e.TaskReadied) else readied
        subject = event_subject(P, "T1", event)
        followed = matches(subject, FILTERS)
        if followed and watched.concerns(P, "T1", parse_event_subject(subject).type):
            watched.apply(P, "T1", event, seq)
        waiting = watched.task(P, "T1")
        assert (waiting is not None) == (state.is_by_hand or state.may_come_late)
        if waiting is not None:
            assert (waiting.status == "handed_out") == (state.status == "queued")
            assert waiting.status == "handed_out" or waiting.lease == state.lease
            assert waiting.fault_since == state.watch_fault_since
            assert waiting.place == state.place


def command(name: str, state: task.TaskState, readied: e.TaskReadied | None, seq: int) -> c.TaskCommand:
    later, lease = NOW + timedelta(seconds=seq), state.lease
    fail = c.Fail(now=later, phase="open", lease=lease, kind="timeout", message="m", usage=e.Usage())
    known = readied or e.TaskReadied(dispatch=1, attempt=1, prompt="", agent=ANN, base_commit="", heads=())
    commands: dict[str, c.TaskCommand] = {
        "plan": c.PlanTask(digest="d", index=0, spec=SPEC, agent=ANN),
        "ready": c.Ready(
            now=later, revision=state.revision, prompt="p", agent=ANN, base_commit="0" * 40, heads=(), abandoned=()
        ),
        "hand_out": c.HandOut(
            phase="open", readied=known, project="shop", repo_url="r", plan_name="P", place=place()
        ),
        "start": c.Start(
            phase="open", dispatch=state.dispatch, runner="watch", execution=f"manual-{state.dispatch}", deadline=later
        ),
        "complete": c.Complete(
            lease=lease, base_commit="", commit="", result=e.Result(task_code="T1", summary="s"), usage=e.Usage()
        ),
        "invalid": msgspec.structs.replace(fail, kind="invalid_result", blob=f"b{seq}"),
        "timeout": fail,
        "cancel": c.CancelTask(phase="open"),
        "end": c.CancelTask(phase="cancelling"),
        "release": c.Release(lease=None, reason="r"),
        "mark": c.MarkComplete(),
        "abandon": c.Abandon(),
        "redispatch": c.Redispatch(),
        "fail_watch": c.FailWatch(lease=lease, reason="r", since=later),
        "restore": c.RestoreWatch(now=later, lease=lease),
        "edit": c.Edit(spec=msgspec.structs.replace(SPEC, description=f"d{seq}"), agent=ANN),
    }  # fmt: skip
    return commands[name]
