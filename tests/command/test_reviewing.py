"""Reviews and people's own tasks, as they are shown: pure functions."""

from __future__ import annotations

from typing import Any

import pytest

from tests.command.test_showing import HOSTILE, drawn, task
from treadle.lines import event_line
from treadle.plan_commands import about_task
from treadle.reviewing import FINDINGS_SHOWN_MAX, finding_lines, verdict
from treadle.task_commands import refreshed_lines

UNSAFE = ("\x1b", "\x07", "\x9b", "\u202e", "\r", "\n")


def finding(severity: str, message: str = "wrong", **more: Any) -> dict[str, Any]:
    return {"severity": severity, "message": message, **more}


def test_a_verdict_counts_what_was_found_and_begins_with_the_worst() -> None:
    review = {
        "approve": False,
        "round": 2,
        "findings": [finding("note"), finding("blocker", "lost data"), finding("note")],
    }
    assert verdict(review) == "wants changes (round 2), 1 blocker, 2 note: lost data"
    assert verdict({"approve": True}) == "approves"


def test_findings_stand_one_on_a_line_with_their_place() -> None:
    lines = finding_lines({"approve": False, "findings": [finding("minor", file="a.py", line=3), finding("major")]})
    assert lines == ["  major   wrong", "  minor   a.py:3: wrong"]


def test_of_many_findings_some_are_shown_and_the_others_counted() -> None:
    found = [finding("note")] * 50
    assert len(finding_lines({"approve": False, "findings": found})) == FINDINGS_SHOWN_MAX + 1
    told = finding_lines({"approve": False, "findings": found, "findings_count": 190})
    assert told[-1] == f"  … and {190 - FINDINGS_SHOWN_MAX} more"


def test_nothing_that_a_reviewer_wrote_steers_the_terminal() -> None:
    review = {"approve": False, "findings": [finding("major", HOSTILE * 100, file=HOSTILE, line=1)]}
    told = [verdict(review), *finding_lines(review)]
    assert not [line for line in told if any(ch in line for ch in UNSAFE)]
    assert max(map(len, told)) < 500


def test_a_finished_review_shows_its_verdict_in_table_and_log() -> None:
    review = {"approve": False, "findings": [finding("major", "lost data")]}
    assert "wants changes, 1 major: lost data" in drawn([task("R", "completed", review=review, summary="s")])
    event = {"time": "2026-01-01T00:00:00Z", "plan": "p", "task": "R", "seq": 1, "type": "completed"}
    line = event_line({**event, "result": {"task_code": "R", "summary": "s", "review": review}})
    assert line is not None and "completed: wants changes, 1 major: lost data" in line


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"status": "readied"}, "treadle task prompt T1, then dispatch"),
        ({"status": "running", "deadline": "2026-01-01T10:00:00Z"}, "is with its person until 2026-01-01"),
        ({"status": "queued"}, "is with its person"),
        ({"status": "running", "watch_fault": "no \x1bhost"}, "its result can't be looked for: no \ufffdhost"),
    ],
)
def test_a_persons_task_says_what_it_waits_for(fields: dict[str, Any], words: str) -> None:
    assert words in drawn([task("T1", dispatch_mode="manual", **fields)])


@pytest.mark.parametrize(
    ("looked", "words"),
    [
        ({"path": "a\x1bb", "blob": ""}, "a\ufffdb is not there"),
        ({"path": "treadle/p/T1/result.json", "blob": "ab" * 20}, "treadle/p/T1/result.json is there (abababababab)"),
        ({"path": "treadle/p/T1/result.json", "blob": ""}, "is not there"),
    ],
)
def test_a_look_at_the_repository_says_what_was_found(looked: dict[str, Any], words: str) -> None:
    assert words in refreshed_lines(looked, task("T1", "readied"))[0]


def test_status_says_of_each_task_what_its_row_can_not_hold() -> None:
    review = {"approve": False, "findings": [finding("major", "lost\x1b data", file="a.py")]}
    assert about_task("p", task("R", "completed", review=review))[2] == "  major   a.py: lost\ufffd data"
    ready = "\n".join(about_task("p", task("T1", "readied", dispatch_mode="manual")))
    assert "treadle task prompt T1 --plan p" in ready and "treadle task dispatch T1 --plan p" in ready
    place = {"result_path": "treadle/p/T1/result.json", "result_repo_url": "/r", "watch_fault": "no host"}
    (_, line) = about_task("p", task("T1", "running", dispatch_mode="manual", **place))
    assert line.endswith("can't be looked for: no host; its result: treadle/p/T1/result.json in /r")
    assert about_task("p", task("T2", "running")) == []


def test_a_task_that_needs_attention_names_the_commands_that_settle_it() -> None:
    failed = task("T1", "needs_attention", message="it broke")
    assert about_task("p", failed)[-1] == "  treadle task redispatch|complete|abandon T1 --plan p"
    assert about_task("p", {**failed, "code": "_deliver"})[-1] == "  treadle task redispatch _deliver --plan p"
    assert about_task("p", failed, is_imported=True) == ["", "T1: it broke"]
