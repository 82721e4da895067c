"""Why `treadle diff` has nothing to show, in words that fit however the task stands."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from shared.task import TaskStatus
from tests.command.test_showing import HOSTILE, task
from treadle.no_commit import without_commit


@pytest.mark.parametrize(
    ("status", "more", "words"),
    [
        (
            "needs_attention",
            {},
            "task docs has no commit: it needs attention; see `treadle logs docs --plan p`, or "
            "`treadle task redispatch docs --plan p`",
        ),
        ("completed", {}, "task docs has no commit: it was completed by hand, without a commit"),
        ("completed", {"review": {"approve": True}}, "task docs has no commit: it is a review, which changes nothing"),
        ("completed", {"is_decision": True}, "task docs has no commit: it is a decision, which changes nothing"),
        ("completed", {"inherited": {"plan": "q"}}, "has no commit: plan q completed it, without a commit"),
        ("running", {}, "task docs has no commit yet: it is running"),
        ("pending", {"waiting_for": ["a", "b"]}, "has no commit yet: it waits for a, b"),
        ("abandoned", {}, "task docs has no commit: it was given up"),
    ],
)
def test_a_task_without_a_commit_says_why_and_what_to_do(status: str, more: dict[str, Any], words: str) -> None:
    assert without_commit("p", task("docs", status, **more)).endswith(words)


def test_an_imported_plans_task_is_not_to_be_acted_on() -> None:
    for status in get_args(TaskStatus):
        assert "`treadle" not in without_commit("p", task("docs", status), is_imported=True)


def test_no_status_is_told_by_its_name() -> None:
    for status in get_args(TaskStatus):
        told = without_commit("p", task("docs", status))
        assert "_" not in told and (status in ("absent", "running", "cancelled") or f"it is {status}" not in told)


def test_hostile_words_stay_harmless_and_the_files_of_a_failed_attempt_are_named() -> None:
    failed = task("docs", "needs_attention", message=f"{HOSTILE} refs/treadle/p/docs/2-wip")
    told = without_commit("p", failed)
    assert "`git show --stat refs/treadle/p/docs/2-wip`" in told and "\x1b" not in told
