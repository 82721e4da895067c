"""Every history that was ever recorded is decided today as it was then, and comes to the same end.

A file in tests/histories/ is never changed or removed. Where one does not verify any more, today's code is wrong, or
can't say what it must; where an end has another digest, what people see of their plans has changed.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from textwrap import dedent
from typing import Any

import msgspec
import pytest

from shared import board, conflicts, openings, reviews, task_decisions
from shared.board import Board
from shared.events import TaskCancelRequested, Usage
from shared.history.archive import Archive
from shared.history.event_file import EventFile
from shared.history.history import History
from shared.history.moment import Moment
from shared.history.policy import Policy
from shared.history.schedule import rehearse
from shared.history.verify import verify
from tests.histories.record import archive, told
from tests.histories.stories import STORIES
from treadle.verifying import verified_lines

RECORDED = Path(__file__).parent / "histories"
THOUSAND_MAX_BYTES = 400_000

# name: (decisions checked at least, choices of the dispatcher at least, digest of how it ended)
ENDS = {
    "diamond": (24, 12, "d178fdd909f3f458"),
    "retry": (29, 12, "5e8e4af3103e928b"),
    "lease_lost": (17, 8, "5ecc752584346f24"),
    "conflict": (29, 13, "a4e4af37398f9737"),
    "approval": (25, 10, "7b270e28e3142765"),
    "manual_late": (20, 8, "958c354d7efdb3e2"),
    "cancel": (18, 7, "1db9dd990829f197"),
    "fork": (18, 10, "1e23592c49128ea5"),
    "thousand": (4008, 2004, "38f175f1d18b9c28"),
    "lost_often": (21, 8, "11c9a840d6138a4a"),
    "limits": (22, 10, "88bb6f5493942072"),
    "paused_start": (20, 9, "72320e12a4ef8b9a"),
    "reopened": (23, 10, "0a2629bab38ddcb2"),
    "failed_cancel": (17, 7, "6c4de9351040346c"),
    "bounded": (36, 18, "913f4eaa20a95f82"),
    "budget": (37, 19, "19e2cba1affa7f53"),
    "abandoned": (34, 17, "0a9b7fcb1ea73d9b"),
    "rounds": (54, 29, "fe446bc166463560"),
    "merged_often": (108, 55, "a82328e3655c4261"),
    "reported": (52, 25, "96d014c11aa0c2fe"),
}
NOT_REHEARSED = {"reopened", "failed_cancel"}
"""What a person does to one task while it is under way, and who is faster then, is not told once more."""


@contextmanager
def recorded(name: str, directory: Path) -> Iterator[EventFile]:
    with Archive.open(RECORDED / f"{name}.treadle") as opened, opened.event_file(directory) as file:
        yield file


def digest(moment: Moment) -> str:
    """Of what must stay as it is; a moment may come to say more."""
    tasks = [(t.code, t.status, t.attempt, t.lease, t.commit, t.cost_usd, t.inherited) for t in moment.tasks]
    said = (moment.plan, moment.seq, moment.status, moment.standing, moment.head_commit, moment.cost_usd, tasks)
    return sha256(msgspec.json.encode(said)).hexdigest()[:16]


def test_every_recorded_history_is_looked_at() -> None:
    assert {path.stem for path in RECORDED.glob("*.treadle")} == set(ENDS)


@pytest.mark.parametrize("name", ENDS)
def test_a_recorded_history_is_decided_as_it_was(name: str, tmp_path: Path) -> None:
    checked, choices, _ = ENDS[name]
    with recorded(name, tmp_path) as file:
        result = verify(file)
    assert result.differences == 0, result.first
    assert result.checked >= checked and result.choices >= choices, result
    assert result.unknown == () and result.events == result.checked
    assert result.verdict == "same"


@pytest.mark.parametrize("name", ENDS)
def test_a_recorded_history_ends_as_it_did(name: str, tmp_path: Path) -> None:
    with recorded(name, tmp_path) as file:
        assert digest(History(file).moment(file.last_seq)) == ENDS[name][2]


@pytest.mark.parametrize("name", [name for name in ENDS if name not in NOT_REHEARSED])
def test_a_recorded_history_keeps_its_schedule_under_its_own_settings(name: str, tmp_path: Path) -> None:
    with recorded(name, tmp_path) as file:
        result = rehearse(file, Policy())
    assert not result.differs, [task for task in result.tasks if task.reason]
    assert result.policy.standing == result.recorded.standing
    assert result.policy.dispatched_most == result.recorded.dispatched_most
    assert result.policy.length_s == pytest.approx(result.recorded.length_s, abs=0.1)
    assert result.policy.cost_usd == pytest.approx(result.recorded.cost_usd, abs=0.01)


@pytest.mark.parametrize("name", [name for name in STORIES if name != "thousand"])
def test_a_story_told_today_verifies_and_can_be_archived(name: str, tmp_path: Path) -> None:
    path = tmp_path / "today.treadle"
    path.write_bytes(archive(told(name)))
    with Archive.open(path) as opened, opened.event_file(tmp_path) as file:
        result = verify(file)
    assert (result.differences, result.unknown) == (0, ()), result.first


def test_a_thousand_tasks_take_little_room() -> None:
    assert (RECORDED / "thousand.treadle").stat().st_size < THOUSAND_MAX_BYTES


# That it can fail -------------------------------------------------------------------------------------------------


# owner, function, what is written there, what could be written there by mistake, the story that finds it
MISTAKES = {
    "a lost lease costs nothing": (
        task_decisions, "_start", "charged=charged,\n        seal_to", "charged=Usage(),\n        seal_to",
        "lease_lost",
    ),
    "one lost runner fewer": (
        task_decisions, "_lost_too_often", "if state.lost + 1 <", "if state.lost + 2 <", "lost_often",
    ),
    "one lost runner more": (task_decisions, "_lost_too_often", "if state.lost + 1 <", "if state.lost <", "lost_often"),
    "a usage limit spends an attempt": (
        task_decisions, "_fail", "spent=not (limit_resets and retry_at is not None)", "spent=True", "limits",
    ),
    "nothing requires an approval": (
        task_decisions, "_rules", "requires_approval=spec.requires_approval", "requires_approval=False", "limits",
    ),
    "a server's word is not believed": (
        task_decisions, "_backoff_s", "return max(spread_s, _retry_after_s(command))", "return spread_s", "retry",
    ),
    "a task starts on an abandoning that is none any more": (
        task_decisions, "_start", "if command.reopened:", "if False:", "reopened",
    ),
    "a task starts while the plan is paused": (
        task_decisions, "_start", 'if command.phase == "paused" and not state.is_manual:', "if False:", "paused_start",
    ),
    "what is being cancelled is tried again": (
        task_decisions, "_fail", 'if state.status == "running" and', 'if state.status in ("running", "cancelling") and',
        "failed_cancel",
    ),
    "no lease goes on with another one's work": (
        task_decisions, "_start", "resumes=state.left_by", "resumes=0", "lease_lost",
    ),
    "an approval has no end": (
        task_decisions, "_answer", 'note="nobody answered in time", expired=True', "note=command.note", "approval",
    ),
    "a kept commit is looked for in the wrong plan": (
        Board, "heads", ", self.tasks[c].inherited)", ")", "fork",
    ),
    "what is merged already is merged again": (Board, "heads", " if not contained >> index & 1", "", "conflict"),
    "one task too many": (Board, "free_slots", "return limit -", "return limit + 1 -", "bounded"),
    "no bound": (Board, "free_slots", "return limit -", "return limit + 1000 -", "bounded"),
    "no bound at all": (Board, "free_slots", "return limit -", "return limit + 1000 -", "thousand"),
    "who was given up stands for nothing before them": (
        Board, "_is_clear", "return state.satisfied and (bool(state.commit) or self._missing[code] == 0)",
        "return state.satisfied", "abandoned",
    ),
    "no task is added for a conflict": (
        conflicts, "next_step", "if len(merges) >= MERGES_MAX or", "if True or", "conflict",
    ),
    "a merge starts from nothing": (
        conflicts, "_merge_task", "depends_on=state.spec.depends_on", "depends_on=()", "conflict",
    ),
    "a merge is for another task": (conflicts, "_merge_task", "resolves=code", 'resolves="T1"', "conflict"),
    "a merge may change nothing": (
        conflicts, "_merge_task", "allow_no_change=True", "allow_no_change=False", "conflict",
    ),
    "a merge has another's money": (
        conflicts, "_merge_task", "budget_usd=state.spec.budget_usd or", "budget_usd=7.0 or", "conflict",
    ),
    "a merge's number is left out": (
        conflicts, "_free_code", 'else f"{stem}-{number}"', 'else f"{stem}-{number + 1}"', "merged_often",
    ),
    "what was merged is not tried again": (
        conflicts, "next_step", 'if newest.status == "completed" else None', "if False else None", "conflict",
    ),
    "one merge too many": (
        conflicts, "next_step", "len(merges) >= MERGES_MAX", "len(merges) > MERGES_MAX", "merged_often",
    ),
    "one merge too few": (
        conflicts, "next_step", "len(merges) >= MERGES_MAX", "len(merges) + 1 >= MERGES_MAX", "merged_often",
    ),
    "a conflict is merged that was to be reported": (
        conflicts, "next_step", 'settings.on_conflict != "agent"', 'settings.on_conflict == "never"', "reported",
    ),
    "one round too many": (reviews, "weigh", "if number >= (spec", "if number > (spec", "rounds"),
    "one round too few": (reviews, "weigh", "if number >= (spec", "if number + 1 >= (spec", "rounds"),
    "a person's round is not granted": (reviews, "weigh", "+ state.rounds_granted", "", "rounds"),
    "no round at all": (reviews, "weigh", "if not against:", "if True:", "rounds"),
    "one of two is enough": (reviews, "weigh", "if not against:", "if len(against) < len(counted):", "rounds"),
    "nobody is ever content": (reviews, "_objection", "if review.approve:", "if False:", "rounds"),
    "the first reviews count for ever": (
        reviews, "_newest", "(newest or decision.depends_on)", "decision.depends_on", "rounds",
    ),
    "who mends waits for no review": (reviews, "_round", "depends_on=tuple(reviews)", "depends_on=()", "rounds"),
    "somebody else mends": (reviews, "_round", "decision.fixer or work.assignee", "work.assignee", "rounds"),
    "what was mended is not checked": (reviews, "_round", "verify=work.verify", "verify=()", "rounds"),
    "the unmended work is reviewed again": (reviews, "_round", "reviews=fix.code", "reviews=work.code", "rounds"),
    "another one's project": (openings, "opening", "project=chosen.project", 'project=""', "diamond"),
    "a dispatch with another name": (openings, "opening", "plan_name=chosen.spec.name", "plan_name=code", "diamond"),
    "an answer is waited for in minutes": (
        openings, "opening", "settings.approval_timeout_minutes * 60", "settings.approval_timeout_minutes", "approval",
    ),
    "checked never": (openings, "opening", "verify_rounds=settings.verify_rounds", "verify_rounds=0", "diamond"),
    "another way of delivery": (openings, "opening", "kind=settings.delivery,", 'kind="merge",', "diamond"),
    "dispatched to nobody": (
        openings, "opening", "agent=state.agent,\n        project", "agent=None,\n        project", "diamond",
    ),
    "a result is looked for elsewhere": (
        openings, "place_of_result", "{code}/result.json", "result.json", "manual_late",
    ),
    "a plan's money has no end": (
        board, "_committed_usd", "return state.usage.cost_usd + reserved_usd", "return 0.0", "budget",
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_todays_code_is_found(mistake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, function, right, wrong, story = MISTAKES[mistake]
    source = dedent(inspect.getsource(getattr(owner, function)))
    assert source.count(right) == 1, f"{function} is written otherwise now: mend this mistake"
    made: dict[str, Any] = {}
    names = {**vars(inspect.getmodule(owner)), "Usage": Usage}
    exec(compile(source.replace(right, wrong), function, "exec"), names, made)  # noqa: S102 - it is our own source
    monkeypatch.setattr(owner, function, made[function])
    with recorded(story, tmp_path) as file:
        result = verify(file)
    assert result.verdict == "different"
    assert len(verified_lines(result)) > 3


def test_another_wait_before_a_retry_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_decisions, "UNSPENT_WAIT_MIN_S", 6.0)  # no history rests on it
    with recorded("retry", tmp_path) as file:
        assert verify(file).differences == 0
        monkeypatch.setattr(task_decisions, "BACKOFF_MAX_S", 4.5)
        result = verify(file)
    assert result.differences >= 1 and result.first is not None
    assert result.first.type == "failed" and "retry_at" in result.first.message
    assert result.first.recorded["retry_at"] != result.first.decided["retry_at"]
    assert result.first.before["status"] == '"running"' and result.first.command[""] == "Fail"


def test_one_more_attempt_for_what_is_nobodys_fault_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_decisions, "TRANSIENT_ATTEMPTS", 2)
    with recorded("retry", tmp_path) as file:
        result = verify(file)
    assert result.first is not None and result.first.decided.get("retry_at") is None


def test_a_decider_that_refuses_or_decides_another_event_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_decisions, "_start", lambda *_: TaskCancelRequested())
    with recorded("lease_lost", tmp_path) as file:
        result = verify(file)
    assert result.first is not None
    assert result.first.message == "recorded task.started, decided task.cancel_requested"


def test_a_dispatcher_that_may_have_fewer_tasks_at_once_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.spec.MAX_PARALLEL", 1)
    with recorded("diamond", tmp_path) as file:
        result = verify(file)
    assert result.first is not None and result.differences == 1
    assert (result.first.entity, result.first.type) == ("T3", "dispatched"), result.first
