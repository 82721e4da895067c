"""Events and views as people see them: pure functions."""

from datetime import UTC, datetime
from typing import Any

import pytest
from rich.console import Console

from shared.events import REGISTRY
from treadle.events import event_lines
from treadle.lines import _SAYINGS, duration, event_line, money, standing_line, tokens
from treadle.plain_text import one_line, plain
from treadle.table import choose_rows, last_action, render, spent_s

HOSTILE = "\x1b]0;owned\x07\x1b[31mred\u202egnihtemos\x9b1m\r\nnext"


def task(code: str, status: str = "pending", **more: Any) -> dict[str, Any]:
    return {
        "code": code,
        "name": code,
        "status": status,
        "agent": "sh",
        "attempt": 1,
        "lease": 1,
        "runner": "",
        "started_at": None,
        "ended_at": None,
        "retry_at": None,
        "usage": {},
        "failure": None,
        "message": "",
        "summary": "",
        "commit": "",
        "base_commit": "",
        "waiting_for": [],
        **more,
    }


PLAN = {"plan": "pabc", "standing": "running", "name": "Plan", "counts": {"pending": 2}, "usage": {}, "fault": ""}


def drawn(tasks: list[dict[str, Any]], rows: int = 10, width: int = 120) -> str:
    console = Console(width=width, no_color=True, force_terminal=False)
    with console.capture() as captured:
        console.print(render(PLAN, {t["code"]: t for t in tasks}, {}, datetime.now(UTC), rows))
    return captured.get()


def test_plain_text_keeps_words_and_drops_what_steers_a_terminal() -> None:
    shown = plain(HOSTILE)
    assert "red" in shown and "next" in shown and "\n" in shown
    assert not any(ch in shown for ch in "\x1b\x07\x9b\u202e\r")
    assert "\n" not in one_line(HOSTILE)
    assert len(one_line("x" * 5_000)) == 200


def test_every_event_that_moves_a_task_or_plan_has_a_line() -> None:
    silent = {"plan.finalizing", "task.planned"}
    said = {f"{'plan' if of_plan else 'task'}.{type_}" for of_plan, type_ in _SAYINGS}
    assert said == set(REGISTRY) - silent


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"type": "started", "runner": "runner-1", "lease": 2, "supersedes": 1},
            "started on runner-1, lease 1 was lost",
        ),
        ({"type": "failed", "kind": "merge_conflict", "message": "a\nb", "retry_at": None}, "needs attention: a b"),
        ({"type": "abandoned", "note": "no use"}, "abandoned: no use"),
        ({"type": "abandoned"}, "abandoned"),
    ],
)
def test_a_line_says_what_happened(fields: dict[str, Any], words: str) -> None:
    line = event_line({"time": "2026-01-01T10:00:00Z", "plan": "p", "task": "T1", "seq": 1, **fields})
    assert line is not None and "T1" in line and words in line and "\n" not in line


def test_hostile_words_in_an_event_stay_on_one_harmless_line() -> None:
    event = {"time": "2026-01-01T10:00:00Z", "plan": "p", "task": "T1", "type": "failed", "kind": "agent_error"}
    line = event_line({**event, "message": HOSTILE})
    assert line is not None and not set("\x1b\x07\x9b\u202e\r\n") & set(line)


def test_the_table_shows_all_tasks_where_they_fit_and_says_how_many_do_not() -> None:
    tasks = [task(f"T{i}") for i in range(30)]
    assert "more tasks" not in drawn(tasks, rows=30)
    assert "… and 20 more tasks" in drawn(tasks, rows=10)


def test_what_needs_a_person_is_shown_before_what_is_done() -> None:
    tasks = [task(f"T{i}", "completed", ended_at="2026-01-01T10:00:00Z") for i in range(20)]
    tasks += [task("late", "running", started_at="2026-01-01T10:00:00Z"), task("bad", "needs_attention")]
    shown = [t["code"] for t in choose_rows(tasks, 3)]
    assert "bad" in shown and "late" in shown and len(shown) == 3


def test_markup_in_a_message_is_text_and_not_a_style() -> None:
    assert "[bold]x[/bold]" in drawn([task("T1", "needs_attention", message="[bold]x[/bold]")])


def test_a_waiting_task_says_for_what() -> None:
    assert last_action(task("T3", waiting_for=["T1", "T2"]), "") == "waits for T1, T2"


def test_an_ended_attempt_stops_its_clock() -> None:
    times = {"started_at": "2026-01-01T10:00:00Z", "ended_at": "2026-01-01T10:01:30Z"}
    now = datetime(2026, 1, 1, 12, tzinfo=UTC)
    assert spent_s(task("T1", "completed", **times), now) == 90
    assert spent_s(task("T1", "running", started_at="2026-01-01T11:59:00Z"), now) == 60


def test_numbers_are_short_and_small_sums_stay_visible() -> None:
    assert [money(x) for x in (0, 0.0123, 3.456)] == ["$0.00", "$0.0123", "$3.46"]
    assert [duration(x) for x in (5, 65, 3_700)] == ["5s", "1m05s", "1h01m"]
    assert tokens({"input_tokens": 1_200, "output_tokens": 300, "cost_usd": 1}) == "1.5k"
    assert "stands still: x" in standing_line({**PLAN, "fault": "x"})


def test_a_plan_that_stands_still_says_what_to_do_about_it() -> None:
    fault = "event 186 (started) can't be read: unknown version 7"
    shows = "`treadle events pabc --since 186` shows it; `treadle events skip pabc 186 --reason …` has it left out"
    assert f"{fault}; {shows}" in standing_line({**PLAN, "fault": fault})
    unreadable = {"fault": "unknown version 7", "version": 7}
    event = {"seq": 186, "plan": "pabc", "task": "T1", "type": "started", "unreadable": unreadable}
    assert f"{fault}; {shows}" in (event_line({**event, "time": "2026-01-01T10:00:00Z", "actor": "x"}) or "")
    imported = standing_line({**PLAN, "fault": fault, "imported": {"plan": "pdef"}})
    assert fault in imported and "skip" not in imported


def test_an_event_that_was_left_out_says_by_whom_and_why_and_not_how_to() -> None:
    unreadable = {"fault": "no JSON", "version": 1, "size": 1, "bytes": "eA==", "text": "x"}
    event = {"seq": 7, "time": "2026-01-01T10:00:00Z", "plan": "pabc", "task": "T1", "type": "started", "actor": "r"}
    event["unreadable"] = unreadable
    assert event_lines(event)[-1].endswith("treadle events skip pabc 7 --reason …")
    word = {"seq": 9, "actor": "user:ann", "skipped_seq": 7, "reason": "of a build\nnever released"}
    assert event_lines(event, word)[-1].strip() == "left out by user:ann, event 9: of a build never released"
    assert not any("events skip" in line for line in event_lines(event, word))


@pytest.mark.parametrize("width", [60, 80, 200])
def test_a_long_message_never_takes_the_codes_and_states_off_the_screen(width: int) -> None:
    shown = drawn([task("weave-all", "needs_attention", message="x " * 500), task("T2", "completed")], width=width)
    assert "weave-all" in shown and "needs attention" in shown and "completed" in shown
    assert all(len(line) <= width for line in shown.splitlines())
