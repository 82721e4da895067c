"""Events and their stored form. What lies in `stored/` was written by some version of Treadle: never edit it."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared import events as e
from shared.spec import AgentSpec, CollabRules, PlanSpec, ProjectAgent, Retry, TaskSpec
from tests.shared.strategies import plan_events, task_events

STORED = Path(__file__).parent / "stored"

BASE, COMMIT = "1" * 40, "2" * 40
REPO = "https://example.org/app.git"
USAGE = e.Usage(100, 20, 3000, 400, 0.25)
CODER = AgentSpec(sdk_type="claude", model="claude-sonnet-4-5-20250929")
SH = AgentSpec(sdk_type="command", command=("sh", "-c", "cat"))
T1 = TaskSpec(
    code="T1",
    name="Session model",
    assignee="coder",
    description="Write it.",
    expected_output="src/session.py",
    timeout_minutes=10.0,
    verify=("pytest -q",),
    retry=Retry(max_attempts=2, backoff_s=1.5),
    budget_usd=2.0,
)
PLAN = PlanSpec(
    name="Add login",
    goal="People can log in",
    max_parallel=8,
    setup=("pip install -e .",),
    env_allow=("CI",),
    agents={"coder": CODER, "sh": SH},
    tasks=(T1, TaskSpec(code="T2", name="Form", assignee="sh", depends_on=("T1",))),
)
KEPT = e.Kept(
    task="T1",
    plan="pzyxwvutsrqpo",
    seq=12,
    base_commit=BASE,
    commit=COMMIT,
    result=e.Result(task_code="T1", summary="written", artifacts=("src/session.py",)),
    usage=USAGE,
)

MEANT: dict[str, e.Event] = {
    "plan.drafted": e.PlanDrafted(candidate="c1", spec=PLAN, repo_url=REPO, base_commit=BASE),
    "plan.requested": e.PlanRequested(
        candidates=("1", "2"),
        goal="Add a login",
        project="0123456789abcdef01234567",
        planning_mode="quality",
        agents=(ProjectAgent(slug="coder", name="Coder", type_name="Claude", spec=CODER, capabilities="Python"),),
        repo_url=REPO,
        base_commit=BASE,
        planner=CODER,
        budget_usd=5.0,
        timeout_s=1800.0,
        auto_finalize=True,
        collab=CollabRules(repo_url=REPO, directory="results", poll_interval_s=60.0),
    ),
    "plan.failed": e.PlanFailed(
        candidate="2",
        message="Three rounds did not make it valid.",
        faults=(e.PlanFault(message="T2 depends on T9, which is not there", task="T2", field="depends_on", line=7),),
        origin=e.DraftOrigin(draft="_draft-2", model="claude-sonnet-5-5", usage=USAGE, duration_s=12.5),
    ),
    "plan.finalizing": e.PlanFinalizing(candidate="c1", digest="d1", count=3),
    "plan.finalized": e.PlanFinalized(digest="d1"),
    "plan.extended": e.PlanExtended(
        tasks=(TaskSpec(code="merge-T2", name="Merge", assignee="coder", depends_on=("T1",), resolves="T2"),),
        before="T2",
        reason="T2 starts from work that can't be merged by itself",
    ),
    "plan.paused": e.PlanPaused(reason="lunch"),
    "plan.resumed": e.PlanResumed(),
    "plan.cancel_requested": e.PlanCancelRequested(reason="wrong goal"),
    "plan.cancelled": e.PlanCancelled(),
    "plan.completed": e.PlanCompleted(head_commit=COMMIT),
    "plan.forked": e.PlanForked(plan="pabcdefghijkl", seq=41),
    "plan.skipped": e.PlanSkipped(seq=17, reason="written by a newer version that was taken back"),
    "task.planned": e.TaskPlanned(digest="d1", index=0, spec=T1, agent=CODER),
    "task.inherited": e.TaskInherited(digest="d1", index=0, spec=T1, agent=CODER, kept=KEPT),
    "task.skipped": e.TaskSkipped(seq=18, reason="a damaged disk"),
    "task.dispatched": e.TaskDispatched(
        dispatch=2,
        attempt=1,
        prompt="# Task T2: Form",
        agent=SH,
        repo_url=REPO,
        base_commit=BASE,
        heads=(e.Head("T1", COMMIT),),
        abandoned=("T0",),
        plan_name="Add login",
        task_name="Form",
        setup=("pip install -e .",),
        verify=("pytest -q",),
        env_allow=("CI",),
        timeout_s=600.0,
        budget_usd=2.0,
    ),
    "task.readied": e.TaskReadied(
        dispatch=2,
        attempt=1,
        prompt="# Task T2: Form",
        agent=AgentSpec(sdk_type=None, agent_id="a1", agent_type_id="t1"),
        base_commit=BASE,
        heads=(e.Head("T1", COMMIT),),
        abandoned=("T0",),
    ),
    "task.edited": e.TaskEdited(spec=T1, agent=CODER),
    "task.started": e.TaskStarted(lease=2, runner="r1", execution="0123456789abcdef01234567", supersedes=1),
    "task.released": e.TaskReleased(lease=2, reason="runner r1 was stopped", lost=True),
    "task.completed": e.TaskCompleted(
        lease=2,
        base_commit=BASE,
        commit=COMMIT,
        result=e.Result(task_code="T2", summary="Made the form", artifacts=("src/form.py",)),
        usage=USAGE,
    ),
    "task.failed": e.TaskFailed(
        lease=2,
        kind="usage_limit",
        message="The limit resets at noon.",
        retry_at=datetime(2025, 1, 1, 12, tzinfo=UTC),
        spent=False,
        usage=USAGE,
    ),
    "task.watch_failed": e.TaskWatchFailed(
        lease=2, reason="git.example.org does not answer", since=datetime(2025, 1, 1, 12, tzinfo=UTC)
    ),
    "task.watch_restored": e.TaskWatchRestored(lease=2, deadline=datetime(2025, 1, 1, 13, tzinfo=UTC)),
    "task.decided": e.TaskDecided(approved=True, round=2, reason="approved by review-a, review-b in round 2"),
    "task.approval_requested": e.TaskApprovalRequested(
        lease=2,
        approval="ab" * 32,
        kind="tool",
        tool="Bash",
        input='{"command":"git push"}',
        why="Bash git push is not allowed beforehand",
        expires_at=datetime(2025, 1, 1, 12, tzinfo=UTC),
        usage=USAGE,
    ),
    "task.approval_granted": e.TaskApprovalGranted(approval="ab" * 32, note="go on"),
    "task.approval_denied": e.TaskApprovalDenied(approval="ab" * 32, note="nobody answered in time", expired=True),
    "task.approval_used": e.TaskApprovalUsed(approval="ab" * 32, lease=3),
    "task.cancel_requested": e.TaskCancelRequested(reason="too dear"),
    "task.cancelled": e.TaskCancelled(lease=2, usage=USAGE),
    "task.marked_complete": e.TaskMarkedComplete(note="did it by hand"),
    "task.abandoned": e.TaskAbandoned(note="not needed"),
    "task.redispatch_requested": e.TaskRedispatchRequested(note="again, please"),
}
"""What the bodies of the first version mean today."""


def stored_bodies() -> list[Any]:
    return [
        pytest.param(int(path.parent.name.removeprefix("v")), path, id=f"{path.parent.name}/{path.stem}")
        for path in sorted(STORED.glob("v*/*.json"))
    ]


@given(plan_events | task_events)
def test_every_event_is_read_back_as_it_was_written(event: e.Event) -> None:
    assert e.decode(event.name, event.version, e.encode(event)) == event


def test_every_kind_of_event_is_in_the_registry_under_its_own_name() -> None:
    kinds = {kind for kind in e.Event.__subclasses__() if kind.__module__ == e.__name__}
    assert set(e.REGISTRY.values()) == kinds
    assert all(e.REGISTRY[kind.name] is kind for kind in kinds)
    assert all(name.partition(".")[0] in ("plan", "task") for name in e.REGISTRY)


@pytest.mark.parametrize(("version", "path"), stored_bodies())
def test_what_an_older_treadle_stored_is_read_and_means_the_same(version: int, path: Path) -> None:
    event = e.decode(path.stem, version, path.read_bytes())
    if version == 1:
        assert event == MEANT[path.stem]


def test_a_body_of_every_version_of_every_event_is_kept() -> None:
    kept = {(path.stem, int(path.parent.name.removeprefix("v"))) for path in STORED.glob("v*/*.json")}
    assert kept == {(name, v) for name, kind in e.REGISTRY.items() for v in range(1, kind.version + 1)}


def test_every_older_version_has_its_step_to_the_next() -> None:
    assert set(e.UPCASTS) == {(name, v) for name, kind in e.REGISTRY.items() for v in range(1, kind.version)}


@pytest.mark.parametrize("name", sorted(e.REGISTRY))
def test_fields_that_an_older_body_lacks_get_their_defaults(name: str) -> None:
    """New fields need a default, or an upcast: a body with nothing but what version 1 always wrote is still read."""
    whole = msgspec.json.decode((STORED / "v1" / f"{name}.json").read_bytes())
    required = {f.encode_name for f in msgspec.structs.fields(e.REGISTRY[name]) if f.required}
    body = msgspec.json.encode({field: value for field, value in whole.items() if field in required})
    assert isinstance(e.decode(name, 1, body), e.REGISTRY[name])


def test_an_event_of_an_unknown_name_is_told_from_damage() -> None:
    with pytest.raises(e.UndecodableEvent, match=r"unknown event 'task\.exploded'.*newer Treadle"):
        e.decode("task.exploded", 1, b"{}")


@pytest.mark.parametrize("name", sorted(e.REGISTRY))
def test_a_newer_version_than_ours_is_not_guessed_at(name: str) -> None:
    body = (STORED / "v1" / f"{name}.json").read_bytes()
    with pytest.raises(e.UndecodableEvent, match="newer Treadle"):
        e.decode(name, e.REGISTRY[name].version + 1, body)


@given(st.sampled_from(sorted(e.REGISTRY)), st.binary(max_size=40) | st.text(max_size=40).map(str.encode))
def test_a_damaged_body_never_raises_anything_else(name: str, body: bytes) -> None:
    for version in (-1, 0, 1, 2, 10**30):
        try:
            e.decode(name, version, body)
        except e.UndecodableEvent as error:
            assert name in str(error)


@pytest.mark.parametrize(
    "body", [b"[" * 100_000, b'{"reason": "r", "x": ' + b"[" * 100_000], ids=["bare", "in a field"]
)
def test_a_body_nested_without_end_is_unreadable(body: bytes) -> None:
    with pytest.raises(e.UndecodableEvent):
        e.decode("task.released", 1, body)


@given(st.sampled_from(sorted(MEANT)), st.data())
def test_a_body_cut_short_is_unreadable(name: str, data: st.DataObject) -> None:
    body = e.encode(MEANT[name])
    with pytest.raises(e.UndecodableEvent, match=name):
        e.decode(name, 1, body[: data.draw(st.integers(0, len(body) - 1))])


class Renamed(e.Event, frozen=True, kw_only=True):
    name: ClassVar[str] = "task.abandoned"
    version: ClassVar[int] = 3
    why: str


UP: dict[tuple[str, int], Callable[[dict[str, Any]], dict[str, Any]]] = {
    ("task.abandoned", 1): lambda body: {"remark": body.get("note", "")},
    ("task.abandoned", 2): lambda body: {"why": body["remark"].upper()},
}


def test_an_old_body_goes_through_every_step_up_to_todays_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(e.REGISTRY, "task.abandoned", Renamed)
    for key, step in UP.items():
        monkeypatch.setitem(e.UPCASTS, key, step)
    assert e.decode("task.abandoned", 1, b'{"note": "no"}') == Renamed(why="NO")
    assert e.decode("task.abandoned", 2, b'{"remark": "no"}') == Renamed(why="NO")
    for damaged in (b"[]", b"7", b'{"remark": 5}', b"{}", b"null"):
        with pytest.raises(e.UndecodableEvent):
            e.decode("task.abandoned", 2, damaged)
    with pytest.raises(e.UndecodableEvent):
        e.decode("task.abandoned", 0, b"{}")
