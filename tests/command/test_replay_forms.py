"""How a replay is written and drawn: pure functions over moments, events and bars."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from rich.console import Console
from rich.text import Text

from shared import events as e
from shared.events import REGISTRY
from shared.history.archive import Archive
from shared.history.history import History
from shared.history.moment import Moment
from shared.store import Meta, recorded
from shared.subjects import Address
from tests.command.replay_story import BEGAN, HOSTILE, PLAN_ID, Story, archive, story, wide
from treadle.bad_input import BadInput
from treadle.replay.keys import split_keys
from treadle.replay.pace import PAUSE_MAX_S, pause_s
from treadle.replay.screen import moment_screen, rows_that_matter
from treadle.replay.signs import SIGNS
from treadle.replay.steps import first_met, steps
from treadle.replay.timeline import Timeline
from treadle.replay.until import parse_condition
from treadle.replay.words import as_json, branch_words, event_words, head_lines, moment_lines, queue_words, step_lines

SAMPLES = Path("tests/shared/stored")


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[dict[str, History]]:
    """The small story and one of 1,000 tasks."""
    made: dict[str, History] = {}
    closing: list[Archive] = []
    for name, told in (("small", story()), ("wide", wide(1_000))):
        directory = tmp_path / name
        directory.mkdir()
        one = Archive.open(archive(told.records, directory))
        closing.append(one)
        made[name] = History(one.event_file(directory))
    yield made
    for one in closing:
        one.close()


def is_steering(text: str) -> bool:
    return any(ch in text for ch in "\x1b\x07\x9b\u202e\r\n")


def shown(lines: list[Text]) -> str:
    return "\n".join(line.plain for line in lines)


# Conditions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seq"),
    [
        ("task T3 failed", 150),
        ("task T3 retry_wait", 150),
        ("task T3 needs attention", 190),
        ("task T2 running", 130),
        ("task T1 dispatched", 80),
        ("task _deliver pending", 60),
        ("plan drafted", 10),
        ("plan finalized", 70),
        ("plan needs_attention", 190),
        ("  plan   paused ", 200),
        ("seq 95", 100),
        ("seq 100", 100),
        ("cost > 1.49", 100),
        ("cost > 1.5", 160),
        ("cost >= 1.5", 100),
        ("cost>$2.5", 160),
        ("cost > 2.75", None),
        ("task T2 failed", None),
        ("plan completed", None),
        ("seq 201", None),
    ],
)
def test_condition_is_met_first_at_its_event(opened: dict[str, History], text: str, seq: int | None) -> None:
    assert first_met(opened["small"], parse_condition(text)) == seq


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "it wants 'task CODE"),
        ("T3 failed", "it wants 'task CODE"),
        ("task T3", "it wants 'task CODE"),
        ("task T3 exploded", "nor an event of it (abandoned"),
        ("task ../T3 failed", "is not a task code"),
        ("plan started", "neither a status of a plan (active"),
        ("cost < 3", "or 'cost > USD'"),
        ("cost > nan", "or 'cost > USD'"),
        ("cost > 1e3", "or 'cost > USD'"),
        ("seq -1", "'seq NUMBER'"),
        ("__import__('os').system('true')", "it wants"),
        (f"task T3 {HOSTILE}", "neither"),
    ],
)
def test_wrong_condition_names_what_is_allowed(text: str, told: str) -> None:
    with pytest.raises(BadInput) as error:
        parse_condition(text)
    assert told in str(error.value) and not is_steering(str(error.value))


def test_condition_about_a_task_that_the_plan_never_has_names_those_it_has(opened: dict[str, History]) -> None:
    with pytest.raises(BadInput, match="no task T9: it has T1, T2, T3, _deliver"):
        first_met(opened["small"], parse_condition("task T9 failed"))
    with pytest.raises(BadInput, match=r"no task t3: it has T3$"):
        first_met(opened["small"], parse_condition("task t3 failed"))
    with pytest.raises(BadInput, match="and 992 more"):
        first_met(opened["wide"], parse_condition("task X failed"))


# Steps ----------------------------------------------------------------------------------------------------------


def test_steps_say_what_each_event_changed_from_wherever_they_begin(opened: dict[str, History]) -> None:
    history = opened["small"]
    whole = [(step.record.seq, step.changes, step.cost_usd) for step in steps(history)]
    assert [seq for seq, _, _ in whole] == [record.seq for record in story().records]
    for after in (0, 5, 60, 100, 199):
        assert [(s.record.seq, s.changes, s.cost_usd) for s in steps(history, after)] == [
            one for one in whole if one[0] > after
        ]
    changed = {change.field: (change.before, change.after) for _, changes, _ in whole[9:10] for change in changes}
    assert changed["status"] == ("running", "completed") and changed["cost_usd"] == (0.0, 1.5)
    assert [cost for _, _, cost in whole if cost][::3] == [1.5, 1.5, 2.75, 2.75]


def test_costs_and_standings_of_the_steps_are_those_of_the_moments(opened: dict[str, History]) -> None:
    for step in steps(opened["small"]):
        moment = opened["small"].moment(step.record.seq)
        assert step.cost_usd == pytest.approx(moment.cost_usd)
        assert step.board.standing() == moment.standing


# Words ----------------------------------------------------------------------------------------------------------


def test_hostile_texts_of_events_never_steer_the_terminal(opened: dict[str, History]) -> None:
    history = opened["small"]
    lines = [line for step in steps(history) for line in step_lines(step)]
    for record in history.file.read():
        moment = history.moment(record.seq)
        lines += moment_lines(moment) + head_lines(moment)
        timeline = Timeline(history.file.read())
        lines += [line.plain for line in moment_screen(moment, timeline, width=140, height=40, until=moment.time)]
    assert any("nihtemos" in line for line in lines)
    assert [line for line in lines if is_steering(line)] == []


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_every_stored_event_has_its_line(name: str) -> None:
    kind, _, type_ = name.partition(".")
    entity = "_plan" if kind == "plan" else "T1"
    body = (SAMPLES / "v1" / f"{name}.json").read_bytes()
    record = recorded(7, BEGAN, Address(PLAN_ID, entity, type_), 1, body, Meta(actor="user:ann"))
    shown_ = as_json(record)
    assert (shown_["seq"], shown_["plan"]) == (7, PLAN_ID)
    line = event_words(record)
    assert line.startswith("      7  ") and ("T1" in line or "plan" in line) and "can't be read" not in line


def test_result_whose_time_was_over_before_it_could_be_looked_for_again_has_its_line() -> None:
    told = Story()
    told.tell("T1", e.TaskWatchRestored(lease=1))
    assert "is looked for again" in event_words(told.records[0])


def test_event_that_cannot_be_read_is_shown_with_why() -> None:
    record = recorded(7, BEGAN, Address(PLAN_ID, "T1", "woven"), 1, b"{}", Meta(actor="user:ann"))
    assert "can't be read: unknown event 'task.woven'" in event_words(record)


# Timeline -------------------------------------------------------------------------------------------------------


def test_bars_are_as_they_were_at_the_moment() -> None:
    timeline = Timeline(story().records)
    assert [bar.sign for bar in timeline.as_of("T3", 200)] == ["✗", "✗"]
    assert [bar.sign for bar in timeline.as_of("T3", 180)] == ["✗", "▶"]
    assert [bar.sign for bar in timeline.as_of("T3", 149)] == ["▶"]
    assert timeline.as_of("T3", 139) == [] and timeline.as_of("none", 200) == []


def test_lost_and_handed_back_leases_have_their_signs() -> None:
    told = Story()
    told.started("T1", 1)
    told.started("T1", 2, "r2")
    told.tell("T1", e.TaskReleased(lease=2, reason="shutdown"))
    told.started("T1", 3)
    told.tell("T1", e.TaskReleased(lease=3, reason="crash", lost=True))
    assert [bar.sign for bar in Timeline(told.records).as_of("T1", 1_000)] == ["!", "<", "!"]


def test_time_in_which_nobody_worked_takes_no_room() -> None:
    timeline = Timeline(story().records)
    end = story().records[-1].time
    assert (end - BEGAN) > timedelta(hours=2)
    assert timeline.elapsed_s(end) < 200
    assert "1h59m idle left out" in timeline.axis(end, 80) and len(timeline.axis(end, 80)) == 80
    # What is after the gap is after it on the line too, and within the gap it never goes back.
    moments = [BEGAN + timedelta(seconds=s) for s in range(0, 7_400, 50)]
    elapsed = [round(timeline.elapsed_s(moment), 6) for moment in moments]
    assert elapsed == sorted(elapsed)


@pytest.mark.parametrize("width", [1, 4, 17, 120])
def test_bars_take_exactly_their_width(width: int) -> None:
    timeline = Timeline(story().records)
    end = story().records[-1].time
    for seq in range(0, 210, 10):
        assert len(timeline.drawn("T3", seq, end, end, width)) == width
        assert len(timeline.axis(end, width)) == width or width < 20


# The screen -----------------------------------------------------------------------------------------------------


def test_statuses_differ_by_their_sign_alone() -> None:
    assert len(set(SIGNS.values())) == len(SIGNS)


@pytest.mark.parametrize("size", [(20, 8), (40, 12), (80, 24), (120, 40), (250, 70)])
@pytest.mark.parametrize("name", ["small", "wide"])
def test_screen_fits_any_terminal(opened: dict[str, History], name: str, size: tuple[int, int]) -> None:
    history = opened[name]
    timeline = Timeline(history.file.read())
    width, height = size
    moment = history.moment(history.last_seq)
    lines = moment_screen(moment, timeline, width=width, height=height, until=moment.time, told=["told"])
    assert len(lines) <= height and all(line.cell_len <= width for line in lines)
    console = Console(width=width, height=height, force_terminal=True, color_system=None)
    with console.capture() as captured:
        for line in lines:
            console.print(line)
    assert len(captured.get().splitlines()) == len(lines)


def test_screen_of_a_thousand_tasks_shows_those_that_matter(opened: dict[str, History]) -> None:
    history = opened["wide"]
    moment: Moment = history.moment(history.last_seq)
    codes = [moment.tasks[row].code for row in rows_that_matter(moment, 9)]
    assert codes == ["T0", "T1", "T7", "T500", "T900"], "four gaps between and behind them take a line each"
    assert [len(rows_that_matter(moment, rows)) for rows in (3, 4, 5, 6, 1_001, 1_002)] == [1, 1, 2, 2, 1_000, 1_002]
    timeline = Timeline(history.file.read())
    text = shown(moment_screen(moment, timeline, width=120, height=40, until=moment.time))
    for gap in ("┊     ┊ … and 399 more tasks: 399 pending", "├───!─┤ T500", "        … and 10"):
        assert f"\n{gap}" in text


@pytest.mark.parametrize("height", [None, 24, 12])
def test_moment_is_never_cut_off_a_narrow_screen(opened: dict[str, History], height: int | None) -> None:
    history = opened["small"]
    timeline = Timeline(history.file.read())
    moment = history.moment(190)
    told = step_lines(next(iter(steps(history, 180))))
    for width in (40, 60, 80):
        lines = moment_screen(moment, timeline, width=width, height=height, until=moment.time, told=told)
        text = " ".join(shown(lines).split())
        assert f"as of event 190 (T3 failed), {moment.time.astimezone():%Y-%m-%d %H:%M:%S.%f}" in text
        if height == 24:
            assert "\n    190  " in shown(lines), "the event itself keeps its place below"
        if height is None:
            assert f"{branch_words(moment)} " in text and f"{queue_words(moment)} " in text


# Keys and pace --------------------------------------------------------------------------------------------------


def test_keys_are_split_as_terminals_send_them() -> None:
    assert split_keys("\x1b[C\x1b[Dq\r") == ["right", "left", "q", "enter"]
    assert split_keys("\x1bOC\x1b[6~ ") == ["right", "page-down", " "]
    assert split_keys("\x1b") == ["escape"]
    assert split_keys("\x1b[200~x\x1b[") == ["x"]
    assert split_keys("\x7f\x04é") == ["backspace", "closed", "é"]


def test_pauses_are_divided_and_long_ones_are_cut_with_a_word() -> None:
    assert pause_s(timedelta(seconds=8), 4) == (2.0, "")
    assert pause_s(timedelta(seconds=-5), 4) == (0.0, "")
    assert pause_s(timedelta(hours=2), 4) == (PAUSE_MAX_S, "nothing happens for 2h00m: shown as 3s")
