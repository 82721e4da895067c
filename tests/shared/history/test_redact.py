"""What is private does not survive, and what is left still replays."""

from __future__ import annotations

import functools
import types
import typing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared import commands as c
from shared import events as e
from shared import given as said
from shared import plan, task_decisions
from shared.history import redact
from shared.history.archive import Archive
from shared.history.event_file import EventFile, HistoryDamaged
from shared.history.history import History
from shared.history.redact import Redactor
from shared.history.verify import verify
from shared.spec import AgentSpec, PlanSpec, TaskSpec, digest
from shared.store import MemoryStore, Meta, Recorded, recorded
from shared.subjects import PLAN, Address
from shared.task import INITIAL, TaskState, evolve
from shared.transact import to_plan, to_task
from tests.shared.history.archives import PLAN_ID, record
from tests.shared.history.worlds import simulated, written
from tests.shared.strategies import plan_events, task_events
from tests.shared.test_events import MEANT

CANARY = "CANARY ünï secret"
SALT = b"s" * 32
HISTORIES = Path(__file__).parents[2] / "histories"
NOW = datetime(2026, 1, 1, tzinfo=UTC)
OVER_BUDGET = (
    "the plan's budget is 1 USD, 0.50 are spent and {} may cost 1: resume it with a larger budget, or lower the task's"
)


def filled(annotation: Any, text: str) -> Any:
    """A value of that type, with the text wherever it can stand."""
    origin, args = get_origin(annotation), get_args(annotation)
    if annotation is str:
        return text
    if origin is Literal:
        return args[0]
    if origin in (typing.Union, types.UnionType):
        return filled(next(arg for arg in args if arg is not type(None)), text)
    if origin is tuple:
        return (filled(args[0], text),)
    if origin is dict:
        return {filled(args[0], text): filled(args[1], text)}
    if isinstance(annotation, type) and issubclass(annotation, msgspec.Struct):
        return annotation(**{f.name: filled(f.type, text) for f in msgspec.structs.fields(annotation)})
    simple = {int: 1, float: 1.5, bool: True, datetime: NOW}
    return simple[annotation]


def encoded(kind: type[msgspec.Struct]) -> str:
    return msgspec.json.encode(filled(kind, CANARY)).decode()


WITH_TEXT = sorted(name for name, kind in e.REGISTRY.items() if CANARY in encoded(kind))
SAYING_TEXT = sorted(name for name, kind in said.COMMANDS.items() if CANARY in encoded(kind))


def test_only_what_has_no_text_is_not_looked_at() -> None:
    assert {*e.REGISTRY} - {*WITH_TEXT} == {"plan.cancelled", "plan.resumed", "task.cancelled", "task.watch_restored"}
    assert {*said.COMMANDS} - {*SAYING_TEXT} == {"ConfirmCancelled", "Resume", "RestoreWatch"}


# Nothing survives ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WITH_TEXT)
def test_no_text_of_any_event_survives(name: str) -> None:
    event = filled(e.REGISTRY[name], CANARY)
    entity = PLAN if name.startswith("plan.") else "T1"
    hidden = Redactor(SALT).record(record(7, event, entity, actor=f"user:{CANARY}", correlation=CANARY))
    written = msgspec.json.encode(hidden).decode() + hidden.body.decode()
    assert hidden.event is not None
    assert "CANARY" not in written and "secret" not in written


@pytest.mark.parametrize("name", SAYING_TEXT)
def test_no_text_that_a_command_said_survives(name: str) -> None:
    told = encoded(said.COMMANDS[name])
    hidden = Redactor(SALT).record(record(7, e.PlanPaused(), command=name, command_id=CANARY, given=told))
    assert hidden.meta.command == name
    assert "CANARY" not in str(hidden) and "secret" not in str(hidden)
    assert set(msgspec.json.decode(hidden.meta.given)) == set(msgspec.json.decode(told))


@pytest.mark.parametrize("given", ["CANARY", '{"CANARY": 1}', '{"reason": ["CANARY"]}', "[" * 100_000])
def test_what_a_command_is_not_known_to_say_goes(given: str) -> None:
    hidden = Redactor(SALT).record(record(7, e.PlanPaused(), command="Pause", given=given))
    assert hidden.meta.given in ("", "{}")


@pytest.mark.parametrize("actor", ["user:CANARY", "runner:CANARY", "CANARY", "CANARY:x", "user:a:CANARY"])
def test_nobodys_name_survives(actor: str) -> None:
    meta = Redactor(SALT).record(record(7, e.PlanPaused(), actor=actor, command="CANARY", command_id="CANARY")).meta
    assert "CANARY" not in str(meta)
    assert meta.actor.partition(":")[0] in ("user", "runner") or "text-" in meta.actor


@pytest.mark.parametrize(("version", "name"), [(9, "paused"), (1, "exploded"), (1, "drafted")])
def test_an_event_that_can_not_be_read_loses_its_body_and_stays_unreadable(version: int, name: str) -> None:
    body = b'{"reason":"CANARY"}'
    old = recorded(7, NOW, Address(PLAN_ID, PLAN, name), version, body, Meta(actor="user:a", given='{"x":"CANARY"}'))
    hidden = Redactor(SALT).record(old)
    assert (hidden.event, hidden.seq, hidden.type, hidden.version) == (None, 7, name, version)
    assert hidden.fault and "CANARY" not in str(hidden)


def test_a_field_that_nobody_has_thought_of_is_replaced() -> None:
    class PlanPraised(e.Event, frozen=True, kw_only=True):
        name = "plan.praised"
        by: str
        words: tuple[dict[str, str], ...]
        stars: Literal["one", "two"]
        digest: str

    hidden = Redactor(SALT)._struct(
        PlanPraised(by="CANARY", words=({"CANARY": "CANARY"},), stars="two", digest="CANARY")
    )
    assert "CANARY" not in str(hidden) and hidden.stars == "two"


def test_every_field_that_is_treated_specially_is_there() -> None:
    kinds = {kind.__name__: kind for kind in [*said.COMMANDS.values(), *_structs()]}
    for field in redact._roles():
        kind, _, name = field.partition(".")
        assert name in kinds[kind].__struct_fields__, field


@functools.cache
def _structs() -> frozenset[type[msgspec.Struct]]:
    found: set[type[msgspec.Struct]] = set()

    def look(annotation: Any) -> None:
        if isinstance(annotation, type) and issubclass(annotation, msgspec.Struct) and annotation not in found:
            found.add(annotation)
            for field in msgspec.structs.fields(annotation):
                look(field.type)
        for part in get_args(annotation):
            look(part)

    for kind in [*e.REGISTRY.values(), *said.COMMANDS.values()]:
        look(kind)
    return frozenset(found)


# What stays ------------------------------------------------------------------------------------------------------


def test_codes_statuses_numbers_and_times_stay() -> None:
    old = record(7, MEANT["task.failed"], "T1")
    hidden = Redactor(SALT).record(old)
    assert (hidden.seq, hidden.time, hidden.entity, hidden.type) == (old.seq, old.time, old.entity, old.type)
    event = hidden.event
    assert isinstance(event, e.TaskFailed) and isinstance(old.event, e.TaskFailed)
    assert event == msgspec.structs.replace(old.event, message=event.message)
    dispatched = Redactor(SALT).record(record(8, MEANT["task.dispatched"], "T2")).event
    assert isinstance(dispatched, e.TaskDispatched)
    assert [head.task for head in dispatched.heads] == ["T1"]
    assert (dispatched.abandoned, dispatched.timeout_s) == (("T0",), 600.0)


def test_a_commits_id_becomes_the_same_other_one_everywhere() -> None:
    redactor = Redactor(SALT)
    original = MEANT["task.completed"]
    assert isinstance(original, e.TaskCompleted)
    done = redactor.record(record(7, original, "T1")).event
    ended = redactor.record(record(8, e.PlanCompleted(head_commit=original.commit))).event
    assert isinstance(done, e.TaskCompleted) and isinstance(ended, e.PlanCompleted)
    assert done.commit == ended.head_commit != original.commit
    assert len(done.commit) == 40 and int(done.commit, 16)
    assert len(redactor.word("a" * 64, "commit")) == 64


@pytest.mark.parametrize(
    ("event", "actor"),
    [
        (e.PlanPaused(reason="T1 is to run again first"), "user:ann"),
        (e.PlanPaused(reason=OVER_BUDGET.format("T1")), "user:ann"),
        (e.PlanPaused(reason=OVER_BUDGET.format("JohnDoe")), "dispatcher"),
        (e.PlanPaused(reason="nobody answered in time"), "dispatcher"),
        (e.TaskReleased(reason="JohnDoe, T1 is to run again first"), "dispatcher"),
        (e.TaskAbandoned(note="T1 is to run again first"), "user:ann"),
        (e.TaskAbandoned(note="the plan is paused"), "user:ann"),
        (e.TaskApprovalDenied(approval="a" * 64, note="Make the plan's branch"), "user:ann"),
    ],
)  # fmt: skip
def test_what_deciders_say_is_replaced_where_they_do_not_say_it(event: e.Event, actor: str) -> None:
    redactor = Redactor(SALT)
    redactor.record(record(1, e.PlanDrafted(candidate="1", spec=SPEC, repo_url="", base_commit="1" * 40)))
    entity = PLAN if isinstance(event, e.PlanPaused) else "T1"
    hidden = redactor.record(record(2, event, entity, actor=actor)).event
    assert "text-" in str(hidden)


@pytest.mark.parametrize(
    ("event", "actor"),
    [
        (e.PlanPaused(reason=OVER_BUDGET.format("T1")), "dispatcher"),
        (e.TaskReleased(reason="T1 is to run again first"), "dispatcher"),
        (e.TaskReleased(reason="the plan is paused"), "runner:r1"),
    ],
)  # fmt: skip
def test_what_deciders_say_stays_where_they_say_it(event: e.Event, actor: str) -> None:
    redactor = Redactor(SALT)
    redactor.record(record(1, e.PlanDrafted(candidate="1", spec=SPEC, repo_url="", base_commit="1" * 40)))
    entity = PLAN if isinstance(event, e.PlanPaused) else "T1"
    assert redactor.record(record(2, event, entity, actor=actor)).event == event


@given(plan_events | task_events)
def test_what_is_redacted_is_an_event_of_the_same_kind_in_the_same_way_each_time(event: e.Event) -> None:
    entity = PLAN if event.name.startswith("plan.") else "T1"
    hidden = Redactor(SALT).record(record(7, event, entity))
    assert type(hidden.event) is type(event)
    assert hidden == Redactor(SALT).record(record(7, event, entity))


@given(st.text(min_size=1), st.text(min_size=1))
def test_the_same_text_becomes_the_same_word_and_another_one_another(one: str, other: str) -> None:
    redactor = Redactor(SALT)
    assert (redactor.word(one) == redactor.word(other)) == (one == other)
    assert redactor.word(one) != Redactor(b"t" * 32).word(one)
    assert redactor.word(one).partition("-")[2] == redactor.word(one, "agent").partition("-")[2]
    assert redactor.word("") == ""


@pytest.mark.parametrize("model", ["claude-sonnet-4-5-20250929", "claude-opus-4-1", "claude-3-5-haiku-20241022"])
def test_a_model_that_everybody_can_have_is_still_named(model: str) -> None:
    assert Redactor(SALT).word(model, "model") == model
    assert Redactor(SALT).word(f"{model}:acme", "model").startswith("model-")


def test_a_transcript_keeps_when_and_of_what_kind() -> None:
    line = (
        b'{"seq":5,"time":"2026-01-01T00:00:00Z","task":"T1","lease":2,"activity":'
        b'{"kind":"tool","text":"CANARY","CANARY":["CANARY"],"usage":{"input_tokens":7}}}'
    )
    hidden = msgspec.json.decode(Redactor(SALT).transcript_line(line))
    assert {**hidden, "activity": None} == {
        "seq": 5, "time": "2026-01-01T00:00:00Z", "task": "T1", "lease": 2, "activity": None
    }  # fmt: skip
    assert (hidden["activity"]["kind"], hidden["activity"]["usage"]) == ("tool", {"input_tokens": 7})
    assert "CANARY" not in str(hidden)
    assert "CANARY" not in str(Redactor(SALT).transcript_line(b'{"kind":"CANARY","time":"CANARY","task":"CANA RY"}'))
    for damaged in (b"CANARY", b"\xff", b"[" * 100_000):
        with pytest.raises(HistoryDamaged):
            Redactor(SALT).transcript_line(damaged)


def test_a_transcript_keeps_nothing_of_what_a_tool_was_given_though_it_looks_like_treadles_own() -> None:
    put = {
        "task": "AliceSmith",
        "time": "1980-05-17",
        "port": 5432,
        "phone": 4915112345678,
        "usage": {"cost_usd": 4915},
    }
    line = {"seq": 1, "lease": 1, "activity": {"kind": "tool", "input": put, "list": ["AliceSmith", 4915112345678]}}
    for told in (line, {"task": ["AliceSmith"], "seq": "AliceSmith", "time": {"time": "1980-05-17"}, "card": 4915}):
        hidden = Redactor(SALT).transcript_line(msgspec.json.encode(told)).decode()
        assert not any(word in hidden for word in ("AliceSmith", "1980", "5432", "4915", "phone", "card")), hidden


# It still replays ------------------------------------------------------------------------------------------------

SPEC = PlanSpec(
    name="Acme",
    tasks=(TaskSpec(code="T1", name="One", assignee="sh", verify=("make check",), expected_output="a/b.py"),),
    agents={"sh": AgentSpec(sdk_type="command", command=("sh", "-c", "acme"))},
)


async def _history() -> list[Recorded]:
    store, meta = MemoryStore(lambda: NOW), Meta(actor="user:ann", command_id="c1")
    draft = c.Draft(candidate="1", spec=SPEC, repo_url="https://git.acme.com/x.git", base_commit="1" * 40)
    await to_plan(store, PLAN_ID, draft, meta)
    await to_plan(store, PLAN_ID, c.Finalize(candidate="1", digest=digest(SPEC)), meta)
    planned = c.PlanTask(digest=digest(SPEC), index=0, spec=SPEC.tasks[0], agent=SPEC.agents["sh"])
    await to_task(store, PLAN_ID, "T1", planned, meta)
    dispatch = c.Dispatch(
        now=NOW, revision=0, prompt="Do it", agent=SPEC.agents["sh"], project="", repo_url=draft.repo_url,
        base_commit="1" * 40, heads=(), abandoned=(), plan_name="Acme", setup=(), env_allow=(),
    )  # fmt: skip
    for lease in range(3):
        await to_task(store, PLAN_ID, "T1", msgspec.structs.replace(dispatch), meta)
        start = c.Start(phase="open", dispatch=lease + 1, runner=f"acme-{lease}", execution=str(lease))
        await to_task(store, PLAN_ID, "T1", start, meta)
        await to_task(store, PLAN_ID, "T1", c.Release(lease=lease + 1, reason="gone", lost=True), meta)
    return await store.read(PLAN_ID)


async def test_what_deciders_said_is_decided_again_in_the_same_words() -> None:
    redactor = Redactor(SALT)
    hidden = [redactor.record(one) for one in await _history()]
    assert "acme" not in str(hidden).lower()
    state: TaskState = INITIAL
    chosen = plan.INITIAL
    for one in hidden:
        assert one.event is not None
        command = said.rebuilt(one.meta.command, one.event, one.meta.given)
        if one.entity == PLAN:
            assert plan.decide(chosen, command) == one.event  # type: ignore[arg-type]  # a plan's, as its entity says
            chosen = plan.evolve(chosen, one.event)
        else:
            assert task_decisions.decide(state, command) == one.event  # type: ignore[arg-type]  # a task's, likewise
            state = evolve(state, one.event)
    assert state.status == "needs_attention" and "3 runners were lost" in state.message and "runner-" in state.message


@pytest.mark.parametrize("seed", range(8))
def test_whole_plans_verify_and_stand_as_before(seed: int, tmp_path: Path) -> None:
    for plan_id, records in simulated(seed).items():
        redactor = Redactor(SALT)
        with (
            written(records, tmp_path / plan_id) as before,
            written([redactor.record(one) for one in records], tmp_path / f"{plan_id}-redacted") as after,
        ):
            found = verify(before)
            assert found.first is None and found.checked
            assert verify(after) == found
            assert _standing(after) == _standing(before)


@pytest.mark.parametrize("path", sorted(HISTORIES.glob("*.treadle")), ids=lambda path: path.stem)
def test_a_recorded_history_verifies_when_it_is_redacted(path: Path, tmp_path: Path) -> None:
    redactor = Redactor(SALT)
    with (
        Archive.open(path) as archive,
        archive.event_file(tmp_path) as before,
        written([redactor.record(one) for one in before.read()], tmp_path / "redacted") as after,
    ):
        found = verify(before)
        assert found.first is None and found.checked
        assert verify(after) == found


def _standing(file: EventFile) -> list[tuple[str, object]]:
    """How the plan and its tasks stand at each event."""
    moments = (History(file).moment(one.seq) for one in file.read())
    return [
        (one.status, [(task.code, task.status, task.attempt, task.lease, bool(task.commit)) for task in one.tasks])
        for one in moments
    ]


async def test_a_plans_digest_is_that_of_the_replaced_plan() -> None:
    redactor = Redactor(SALT)
    hidden = [redactor.record(one).event for one in await _history()]
    drafted, finalizing, planned = hidden[:3]
    assert isinstance(drafted, e.PlanDrafted) and isinstance(finalizing, e.PlanFinalizing)
    assert isinstance(planned, e.TaskPlanned)
    assert digest(drafted.spec) == finalizing.digest == planned.digest != digest(SPEC)
    assert planned.spec == drafted.spec.tasks[0]
