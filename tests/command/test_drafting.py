"""How the making of candidates is followed: pure folding of the stream's messages, and what is shown of it."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from httpx_sse import ServerSentEvent

from tests.command.test_showing import HOSTILE
from treadle.drafting import Drafting, DraftLines, making_line
from treadle.goal import candidate_line, drafted_text, failed_text, is_being_made, request_lines, what_next
from treadle.goal_commands import compared_lines
from treadle.lines import event_line
from treadle.watch import JsonView

TIME = "2026-01-01T10:00:00+00:00"
UNSAFE = ("\x1b", "\x07", "\x9b", "\u202e", "\r")
LIVE: tuple[str, dict[str, Any]] = ("live", {})
SPEC = {
    "name": "Greet",
    "tasks": [
        {"code": "T1", "name": "Write", "assignee": "claude"},
        {"code": "T2", "name": "Test", "assignee": "claude", "depends_on": ["T1"]},
    ],
    "agents": {"claude": {"sdk_type": "claude"}},
}
ORIGIN = {"draft": "_draft-1", "model": "claude-x", "usage": {"cost_usd": 0.25}, "duration_s": 65.0}


def log(type_: str, task: str | None = None, **fields: Any) -> tuple[str, dict[str, Any]]:
    event = {"seq": 1, "time": TIME, "plan": "pabc", "task": task, "type": type_, "actor": "planner"}
    return "log", {**event, **fields}


def plan(standing: str) -> tuple[str, dict[str, Any]]:
    return "plan", {"standing": standing, "is_busy": True, "reason": ""}


def activity(kind: str, text: str = "", task: str = "_draft-1", **more: Any) -> tuple[str, dict[str, Any]]:
    return "activity", {"task": task, "time": TIME, "activity": {"kind": kind, "text": text, **more}}


def asked(*names: str, **more: Any) -> tuple[str, dict[str, Any]]:
    return log("requested", candidates=names, goal="Greet people", **more)


def drafted(name: str = "1") -> tuple[str, dict[str, Any]]:
    return log("drafted", candidate=name, spec=SPEC, origin=ORIGIN)


def failed(name: str = "1", *faults: str) -> tuple[str, dict[str, Any]]:
    return log("failed", candidate=name, message="three rounds", faults=[{"message": fault} for fault in faults])


def watched(*messages: tuple[str, dict[str, Any]]) -> Drafting:
    made = Drafting("pabc")
    for name, body in messages:
        made.take(ServerSentEvent(event=name, data=json.dumps(body)), JsonView())
    return made


def test_a_plan_is_waited_for_until_every_candidate_has_come_or_failed() -> None:
    begun = [LIVE, asked("1", "2"), plan("drafting")]
    assert watched(*begun).outcome is None
    assert watched(*begun, drafted("2")).outcome is None
    done = watched(*begun, drafted("2"), failed("1", "T1: no such agent"))
    assert done.outcome == "drafted"
    assert [event["candidate"] for event in done.drafted] == ["2"]
    assert [event["candidate"] for event in done.failed] == ["1"]
    assert watched(*begun, failed("1"), failed("2")).outcome == "failed"


def test_an_end_counts_only_once_the_whole_story_was_told() -> None:
    assert watched(asked("1"), drafted(), plan("drafted")).outcome is None


def test_a_candidate_that_is_asked_for_again_is_waited_for_again() -> None:
    assert watched(LIVE, asked("1"), failed("1"), asked("2"), plan("drafting")).outcome is None


def test_what_a_person_makes_is_waited_for_although_what_came_first_was_no_plan() -> None:
    by_hand = asked("1", by_hand=True)
    assert watched(LIVE, by_hand, failed("1", "no tasks"), plan("drafting")).outcome is None
    assert watched(LIVE, by_hand, failed("1", "no tasks"), drafted(), plan("drafted")).outcome == "drafted"


def test_a_cancelled_or_finalized_plan_is_not_waited_for() -> None:
    assert watched(LIVE, asked("1"), plan("cancelled")).outcome == "cancelled"
    chosen = watched(LIVE, asked("1", "2"), drafted(), log("finalizing", candidate="1"), plan("running"))
    assert (chosen.outcome, chosen.chosen) == ("drafted", "1")


def test_a_live_line_tells_what_the_planner_does_and_what_it_cost_so_far() -> None:
    now = datetime(2026, 1, 1, 10, 1, 5, tzinfo=UTC)
    usage = {"input_tokens": 1_200, "cost_usd": 0.05}
    at_work = watched(
        asked("1"),
        log("started", "_draft-1", runner="r"),
        activity("usage", usage=usage),
        activity("tool", "Read a.py"),
    )
    line = making_line(at_work.makings["1"], now)
    for words in ("candidate 1", "at work 1m05s", "1.2k tokens", "$0.05", "Read a.py"):
        assert words in line
    queued = watched(asked("1"), log("dispatched", "_draft-1", attempt=1))
    assert "waits for a runner" in making_line(queued.makings["1"], now)
    assert list(queued.at_work) == [{"status": "queued"}] and not list(at_work.at_work)


def test_lines_tell_what_is_read_and_what_was_wrong_but_not_what_is_thought(
    capsys: pytest.CaptureFixture[str],
) -> None:
    made = Drafting("pabc")
    view = DraftLines(made)
    said = [activity("tool", "Read a.py"), activity("thinking", "hm"), activity("verify", f"not valid {HOSTILE}")]
    for name, body in [asked("1"), log("started", "_draft-1", runner="r"), *said, activity("tool", "x", task="T1")]:
        made.take(ServerSentEvent(event=name, data=json.dumps(body)), view)
    out, err = capsys.readouterr()
    assert out == "" and "Read a.py" in err and "not valid" in err and "hm" not in err
    assert len(err.splitlines()) == 4
    assert not [ch for ch in UNSAFE if ch in err]


def test_a_candidate_is_shown_as_validate_shows_a_plan() -> None:
    text = drafted_text(drafted()[1])
    for words in (
        "candidate 1: 2 tasks, by claude-x in 1m05s for $0.25",
        "step 2:",
        "after T1",
        "longest chain: T1 → T2",
    ):
        assert words in text


def test_every_fault_of_a_plan_that_failed_is_told() -> None:
    faults = [f"task T{n}, assignee: unknown{HOSTILE}" for n in range(30)]
    text = failed_text("pabc", failed("1", *faults)[1])
    assert text.count("assignee: unknown") == 30
    assert "treadle logs _draft-1 --plan pabc" in text
    assert not [ch for ch in UNSAFE if ch in text]


def test_what_to_do_next_names_the_commands() -> None:
    assert "`treadle choose pabc 1 --run`" in what_next("pabc", ["1"])
    assert "`treadle compare pabc 1 2`" in what_next("pabc", ["1", "2"])


REQUEST = {
    "candidate": "2", "by_hand": False, "state": "open", "goal": "x", "planning_mode": "balanced", "message": "",
    "faults": [], "draft": "_draft-2", "status": "running", "runner": "r", "model": "m", "cost_usd": 0.5,
    "budget_usd": 5, "path": "",
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "is being made, $0.50 so far"),
        ({"state": "failed", "message": HOSTILE, "faults": [{"message": "no tasks"}]}, "no tasks"),
        ({"by_hand": True, "draft": "", "path": "treadle/plan-pabc.json"}, "treadle/plan-pabc.json or by `treadle add"),
        ({"by_hand": True, "draft": "", "path": "p", "state": "failed", "message": "empty"}, "is no plan: empty"),
    ],
)
def test_what_was_asked_for_is_listed_with_how_it_stands(changes: dict[str, Any], words: str) -> None:
    view = {"plan": "pabc", "status": "drafted", "requests": [{**REQUEST, **changes}]}
    told = "\n".join(request_lines(view))
    assert words in told and not [ch for ch in UNSAFE if ch in told]


@pytest.mark.parametrize("status", ["requested", "failed", "drafted"])
def test_a_plan_without_tasks_is_watched_as_one_that_is_being_made(status: str) -> None:
    assert is_being_made({"plan": "pabc", "status": status, "requests": []})
    assert not is_being_made({"plan": "pabc", "status": "running", "requests": []})


def test_a_plan_whose_planning_has_ended_is_shown_at_once() -> None:
    made = watched(asked("1"), drafted(), ("live", {}))
    assert made.outcome == "drafted" and len(made.drafted) == 1


def test_a_candidate_is_listed_with_what_its_making_took() -> None:
    one = {"candidate": "1", "name": "Greet", "tasks": 2, "model": "claude-x", "cost_usd": 0.25, "duration_s": 65.0}
    assert candidate_line(one) == "1    Greet  (2 tasks, claude-x, $0.25, 1m05s)"
    assert candidate_line({"candidate": "2", "name": "\x1b", "tasks": 1}) == "2    \ufffd  (1 task)"


def test_a_comparison_says_what_differs_and_what_each_takes() -> None:
    estimates = [
        {
            "candidate": name,
            "tasks": 2,
            "critical_path": ["T1", "T2"],
            "minutes": 12.5,
            "cost_usd": 1,
            "from_past_runs": 0,
        }
        for name in ("1", "2")
    ]
    changed = [{"code": "T2", "fields": ["assignee", "verify"]}]
    told = compared_lines({"estimates": estimates, "added": ["T3"], "removed": ["T4"], "changed": changed})
    assert "candidate 1: 2 tasks, at most $1.00 and 12.5 minutes along T1 → T2" in told
    assert compared_lines({"estimates": [{**estimates[0], "tasks": 1}]})[0].startswith("candidate 1: 1 task, ")
    assert told[2:] == ["+ T3", "- T4", "~ T2: assignee, verify"]
    assert compared_lines({"estimates": estimates})[-1] == "their tasks are the same"
    many = compared_lines({"added": [f"T{n}" for n in range(500)]})
    assert len(many) == 21 and "480 more" in many[-1]


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (asked("1", "2"), "2 plans to be made for: Greet people"),
        (asked("1", by_hand=True), "a person makes the plan for: Greet people"),
        (drafted(), "candidate 1, “Greet”, is valid: 2 tasks, by claude-x in 1m05s for $0.25"),
        (failed("1", "a", "b"), "candidate 1 did not come about (2 faults): three rounds"),
        (log("decided", "D", approved=False, round=3, reason="no more"), "not approved, needs attention after round 3"),
        (log("watch_failed", "T1", reason="no host", since=TIME, lease=1), "its time stands still: no host"),
        (log("watch_restored", "T1", deadline=TIME, lease=1), "is looked for again, until 2026-01-01"),
        (log("readied", "T1", attempt=1), "treadle task prompt T1 --plan pabc"),
        (log("dispatched", "T1", attempt=1, note="Ann has it"), "dispatched, attempt 1: Ann has it"),
        (log("extended", tasks=[{"code": "fix-2", "round": 2}], reason="r"), "1 more tasks (fix-2, round 2): r"),
    ],
)
def test_new_events_have_their_words(message: tuple[str, dict[str, Any]], words: str) -> None:
    line = event_line(message[1])
    assert line is not None and words in line
