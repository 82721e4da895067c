"""`treadle replay` on a `.treadle` file: what a pipe gets, and a terminal."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from fcntl import ioctl
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from tests.command.replay_story import HOSTILE, PLAN_ID, archive, story, wide
from treadle.main import main

DEADLINE_S = 60.0


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The small story: see `replay_story.story` for its sequences."""
    return archive(story().records, tmp_path)


def said(file: Path | str, *words: str) -> Result:
    """Runs the command on a pipe. No suite is needed: its data directory can't be made."""
    data = "/dev/null/none"
    result = CliRunner().invoke(main, ["--data", data, "replay", str(file), *words], env={"TREADLE_URL": ""})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert not any(ch in result.output for ch in "\x1b\x07\x9b\u202e"), result.output
    return result


def objects(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


# One moment -----------------------------------------------------------------------------------------------------


def test_end_of_the_history_is_shown_as_words_with_every_task(file: Path) -> None:
    done = said(file)
    assert done.exit_code == 0
    for words in (
        "paused, needs attention: a look",
        "as of event 200 (plan paused)",
        "$2.75, of $9.00",
        "not made yet",
    ):
        assert words in done.stdout
    rows = [line.split()[:3] for line in done.stdout.splitlines() if line and line[0] in "✓!·▶"]
    assert rows == [
        ["✓", "T1", "completed"],
        ["✓", "T2", "completed"],
        ["!", "T3", "needs"],
        ["·", "_deliver", "pending"],
    ]


def test_moment_is_named_by_a_sequence_or_a_time(file: Path) -> None:
    by_seq, by_time = said(file, "--at", "145"), said(file, "--at", "2026-03-01T12:00:52Z")
    assert by_seq.stdout == by_time.stdout
    assert "as of event 140 (T3 started)" in by_seq.stdout and "2 leased" in by_seq.stdout
    assert "lease: T2 1 with r1 since " in by_seq.stdout
    (moment,) = objects(said(file, "--at", "145", "--json"))
    assert (moment["seq"], moment["plan"]) == (140, PLAN_ID)
    assert {task["code"]: task["status"] for task in moment["tasks"]}["T3"] == "running"


def test_time_without_a_zone_is_this_machine_s(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as zone:
        zone.setenv("TZ", "Asia/Tokyo")
        time.tzset()
        shown = said(file, "--at", "2026-03-01T21:00:52").stdout
    time.tzset()
    assert "as of event 140 (T3 started), 2026-03-01 21:00:51" in shown
    assert said(file, "--at", "20260301").stdout == said(file).stdout


def test_time_as_screens_show_it_is_its_whole_second_and_one_with_a_fraction_is_exact(file: Path) -> None:
    records = story().records
    last = records[-1]
    shown = last.time.replace(microsecond=0)
    assert last.time.microsecond, "the test wants an event within a second"
    as_shown = said(file, "--at", f"{shown:%Y-%m-%dT%H:%M:%SZ}")
    assert f"as of event {last.seq} " in as_shown.stdout and as_shown.stderr == ""
    assert f"as of event {records[-2].seq} " in said(file, "--at", f"{shown:%Y-%m-%dT%H:%M:%S}.000Z").stdout
    assert f"as of event {last.seq} " in said(file, "--at", last.time.isoformat()).stdout


@pytest.mark.parametrize("words", [["--at", "9999"], ["--at", "2999-01-01"], ["--diff", "10", "9999"]])
def test_moment_behind_the_end_is_told_to_be_the_end(file: Path, words: list[str]) -> None:
    done = said(file, *words, "--json")
    assert done.exit_code == 0
    assert done.stderr.startswith("the plan's last event is 200, of 2026-03-01 ")
    assert done.stderr.endswith("; this is how it stood after it\n") and done.stderr.count("\n") == 1
    assert objects(done) == objects(said(file, *[word.replace("9999", "end") for word in words[:-1]], "end", "--json"))
    for at in ("200", "end", "195"):
        assert said(file, "--at", at).stderr == ""


def test_until_shows_the_first_moment_at_which_it_is_so(file: Path) -> None:
    assert "as of event 150 (T3 failed)" in said(file, "--until", "task T3 failed").stdout
    assert "as of event 190 (T3 failed)" in said(file, "--at", "150", "--until", "task T3 failed").stdout
    (moment,) = objects(said(file, "--until", "cost > 2", "--json"))
    assert moment["seq"] == 160


def test_until_that_never_comes_true_is_told_by_the_status(file: Path) -> None:
    for words in (["--until", "plan completed"], ["--at", "190", "--until", "task T3 failed"]):
        done = said(file, *words)
        assert (done.exit_code, done.stdout) == (1, "")
        assert "never came true: " in done.stderr
    stepped = said(file, "--step", "--until", "plan completed")
    assert stepped.exit_code == 1 and stepped.stdout.count("status") > 5


def test_two_moments_are_compared_in_either_order(file: Path) -> None:
    done = said(file, "--diff", "100", "end")
    for words in ("from event 100 to event 200", "T2: status pending → completed", "plan: cost usd $1.50 → $2.75"):
        assert words in done.stdout
    assert "T1" not in done.stdout
    (back,) = objects(said(file, "--diff", "end", "100", "--json"))
    assert (back["before_seq"], back["after_seq"]) == (200, 100)
    assert [task["code"] for task in back["tasks"]] == ["T2", "T3", "_deliver"]
    assert "nothing is otherwise" in said(file, "--diff", "100", "105").stdout


# Event by event -------------------------------------------------------------------------------------------------


def test_steps_on_a_pipe_are_each_event_with_what_it_changed(file: Path) -> None:
    lines = said(file, "--step", "--at", "90", "--until", "seq 100").stdout.splitlines()
    assert [line.split()[0] for line in lines if not line.startswith(" " * 8)] == ["90", "100"]
    assert "started on r1" in lines[0]
    assert "T1: status running → completed" in "\n".join(lines) and "T1: cost usd $0.00 → $1.50" in "\n".join(lines)


def test_steps_as_json_are_one_object_for_each_event(file: Path) -> None:
    found = objects(said(file, "--step", "--json"))
    assert [one["event"]["seq"] for one in found] == [record.seq for record in story().records]
    failed = found[14]
    assert (failed["event"]["task"], failed["event"]["type"], failed["event"]["actor"]) == ("T3", "failed", "user:ann")
    assert {"task": "T3", "field": "status", "before": "running", "after": "retry_wait"} in failed["changes"]
    assert (failed["standing"], failed["cost_usd"], failed["counts"]["retry_wait"]) == ("running", 1.5, 1)


def test_playing_on_a_pipe_says_where_a_pause_was_cut(file: Path) -> None:
    began_s = time.monotonic()
    done = said(file, "--speed", "100", "--at", "190")
    assert done.exit_code == 0 and "nothing happens for 2h00m: shown as 3s" in done.stdout
    assert 2.9 < time.monotonic() - began_s < 100


# Bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--at", "3"], "3 is before the plan's first event, which is 10"),
        (["--at", "yesterday"], "'yesterday' is no moment: give a sequence such as 200"),
        (["--at", "2020-01-01"], "is before the plan's first event"),
        (["--at", HOSTILE], "is no moment"),
        (["--diff", "10", "x"], "'x' is no moment"),
        (["--diff", "10", "20", "--step"], "--diff compares two moments"),
        (["--step", "--speed", "2"], "choose one"),
        (["--speed", "0"], "is not in the range"),
        (["--speed", "nan"], "--speed"),
        (["--until", "task T3 exploded"], "nor an event of it"),
        (["--until", "task T9 failed"], "no task T9: it has T1, T2, T3, _deliver"),
        (["--until", "T3"], "'task CODE EVENT-OR-STATUS'"),
        (["--verify", "--at", "10"], "leave the other options out"),
        (["--all"], "say --verify --all"),
    ],
)
def test_bad_input_is_named(file: Path, words: list[str], told: str) -> None:
    done = said(file, *words)
    assert done.exit_code == 2 and told in " ".join(done.stderr.split()), done.stderr
    assert done.stdout == ""


def test_file_that_is_none_is_named(file: Path, tmp_path: Path) -> None:
    torn, empty = tmp_path / "torn.treadle", tmp_path / f"e{HOSTILE.replace('/', '')}.treadle"
    torn.write_bytes(file.read_bytes()[:-40])
    empty.write_bytes(b"")
    for path in (torn, empty, tmp_path / "missing.treadle", tmp_path):
        done = said(path)
        assert done.exit_code == 2 and done.stderr.startswith("treadle: "), done.stderr


# On a terminal --------------------------------------------------------------------------------------------------


class Terminal:
    """The command on a terminal of its own."""

    def __init__(self, *words: str, columns: int = 110, rows: int = 40, **settings: str) -> None:
        self.shown = ""
        self._ours, self._theirs = pty.openpty()
        self.resize(columns, rows)
        self.modes = termios.tcgetattr(self._theirs)
        environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "TERM": "xterm", "LC_ALL": "C.UTF-8"}
        environment |= settings
        theirs = self._theirs
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "treadle", "replay", *words],
            stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True,
            preexec_fn=lambda: ioctl(theirs, termios.TIOCSCTTY, 0),
        )  # fmt: skip

    def resize(self, columns: int, rows: int) -> None:
        ioctl(self._theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def press(self, keys: str) -> None:
        os.write(self._ours, keys.encode())

    def wait_for(self, words: str) -> str:
        """What was shown up to these words, which are then forgotten."""
        end_s = time.monotonic() + DEADLINE_S
        while words not in (seen := _without_codes(self.shown)):
            if time.monotonic() > end_s or (self.process.poll() is not None and not self._read(0)):
                pytest.fail(f"the terminal never showed {words!r}, but:\n{seen[-3000:]}")
            self._read(0.1)
        before, _, self.shown = seen.partition(words)
        return before

    def ends(self) -> int:
        """The exit status; what came until then is in `shown`."""
        end_s = time.monotonic() + DEADLINE_S
        while self.process.poll() is None and time.monotonic() < end_s:
            self._read(0.1)
        while self._read(0):
            """The rest."""
        return self.process.wait(1)

    @property
    def modes_now(self) -> list[Any]:
        return termios.tcgetattr(self._theirs)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._ours)
        os.close(self._theirs)

    def _read(self, timeout_s: float) -> bool:
        if not select.select([self._ours], [], [], timeout_s)[0]:
            return False
        self.shown += os.read(self._ours, 65_536).decode(errors="replace")
        return True


def _without_codes(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


@contextlib.contextmanager
def on_terminal(*words: str, columns: int = 110, rows: int = 40, **settings: str) -> Iterator[Terminal]:
    made = Terminal(*words, columns=columns, rows=rows, **settings)
    try:
        yield made
    finally:
        made.close()


def test_keys_go_forwards_and_backwards_and_the_terminal_is_left_as_it_was(file: Path) -> None:
    with on_terminal(str(file), "--step") as terminal:
        terminal.wait_for("event 1 of 20  stopped")
        terminal.press("\r")
        assert "plan: status drafted → finalizing" in terminal.wait_for("event 2 of 20")
        terminal.press("\x1aG")
        assert "needs attention" in terminal.wait_for("event 20 of 20")
        terminal.press("b")
        assert "━✗" in terminal.wait_for("event 19 of 20")
        terminal.press("j2026-03-01T12:00:52Z\r")
        screen = terminal.wait_for("event 14 of 20")
        for line in ("✓   T1 ", "├─▶ T2 ", "▶─┤ T3 ", "  · _deliver "):
            assert f"\n{line}" in screen, screen
        terminal.press("utask T3 exploded\r")
        terminal.wait_for("watch_restored)")
        terminal.press("utask T3 failed\r")
        assert "as of event 150" in terminal.wait_for("event 15 of 20")
        terminal.resize(60, 20)
        narrow = terminal.wait_for("event 15 of 20")
        assert max(len(line.rstrip()) for line in narrow.splitlines()[2:]) <= 60
        terminal.press("q")
        assert terminal.ends() == 0
        assert "as of event 150" in terminal.shown.rpartition("\x1b[?1049l")[2], "it stays on the screen"
        assert terminal.modes_now == terminal.modes
        assert not any(ch in terminal.shown for ch in "\x07\x9b\u202e") and "\x1b]" not in terminal.shown


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_being_interrupted_leaves_the_terminal_as_it_was(file: Path, number: signal.Signals, status: int) -> None:
    with on_terminal(str(file), "--step") as terminal:
        terminal.wait_for("event 1 of 20  stopped")
        assert terminal.modes_now != terminal.modes
        if number == signal.SIGINT:
            terminal.press("\x03")
        else:
            terminal.process.send_signal(number)
        assert terminal.ends() == status
        assert terminal.modes_now == terminal.modes
        assert terminal.shown.count("\x1b[?1049l") == 1 and "\x1b[?25h" in terminal.shown
        assert "Traceback" not in terminal.shown


def test_playing_ends_by_itself_where_the_condition_came_true(tmp_path: Path) -> None:
    file = archive(wide(1_000).records, tmp_path)
    with on_terminal(str(file), "--speed", "1000", "--until", "task T500 failed", columns=100, rows=30) as terminal:
        assert terminal.ends() == 0
        last = terminal.shown.rpartition("\x1b[?1049l")[2]
        assert "T500 failed" in last and "more tasks: " in last
        assert len(last.splitlines()) <= 30


def test_space_stops_what_plays(file: Path) -> None:
    with on_terminal(str(file), "--speed", "1", "--at", "190") as terminal:
        terminal.wait_for("nothing happens for 2h00m: shown as 3s")
        terminal.press(" ")
        terminal.wait_for("event 19 of 20  stopped")
        terminal.press("q")
        assert terminal.ends() == 0


def test_moment_is_drawn_once_on_a_terminal(file: Path) -> None:
    with on_terminal(str(file), "--at", "190") as terminal:
        assert terminal.ends() == 0
        assert "\x1b[?1049h" not in terminal.shown
        assert "\n!─┤ T3 " in _without_codes(terminal.shown)


def test_picture_that_is_printed_once_has_every_task_however_low_the_terminal_is(tmp_path: Path) -> None:
    file = archive(wide(300).records, tmp_path)
    with on_terminal(str(file), columns=100, rows=24) as terminal:
        assert terminal.ends() == 0
        shown = _without_codes(terminal.shown)
        assert re.findall(r" T([0-9]+) ", shown.partition("branch: ")[2]) == [str(number) for number in range(301)]
        assert " _deliver " in shown and "more task" not in shown


@pytest.mark.parametrize(("columns", "rows"), [(40, 24), (80, 24), (110, 40), (40, 8)])
def test_how_to_quit_is_seen_on_any_terminal(file: Path, columns: int, rows: int) -> None:
    with on_terminal(str(file), "--step", columns=columns, rows=rows) as terminal:
        terminal.wait_for("event 1 of 20  stopped")
        terminal.wait_for("q quits · enter next")
        if rows >= 24:
            terminal.wait_for("g/G first/last")
        terminal.press("q")
        assert terminal.ends() == 0


def test_terminal_without_a_second_screen_keeps_the_last_picture_once(file: Path) -> None:
    with on_terminal(str(file), "--step") as terminal:
        terminal.wait_for("event 1 of 20  stopped")
        terminal.press("q")
        assert terminal.ends() == 0
        before, _, kept = terminal.shown.rpartition("\x1b[2J\x1b[H")
        assert before and "q quits" not in kept and kept.count("as of event 10 ") == 1


def test_jump_behind_the_end_says_where_the_end_is(file: Path) -> None:
    with on_terminal(str(file), "--step") as terminal:
        terminal.wait_for("event 1 of 20  stopped")
        terminal.press("j9999\r")
        terminal.wait_for("event 20 of 20  stopped  the plan's last event is 200")
        terminal.press("q")
        assert terminal.ends() == 0


def test_node_of_a_task_has_its_colour_but_not_where_none_is_wanted(file: Path) -> None:
    with on_terminal(str(file), "--at", "190") as terminal:
        assert terminal.ends() == 0
        assert "\n\x1b[1;31m!\x1b[0m\x1b[2m─┤\x1b[0m \x1b[7mT3\x1b[0m" in terminal.shown, terminal.shown
    with on_terminal(str(file), "--at", "190", NO_COLOR="1") as terminal:
        assert terminal.ends() == 0
        assert "─┤" in terminal.shown and re.search(r"\x1b\[[0-9;]*3[0-9][;m]", terminal.shown) is None


def test_terminal_of_another_encoding_gets_what_it_can_show(file: Path) -> None:
    with on_terminal(str(file), "--step", PYTHONIOENCODING="ascii") as terminal:
        terminal.wait_for("event 1 of 20  stopped")
        terminal.press("G")
        screen = terminal.wait_for("event 20 of 20")
        for line in ("v   T1 ", "+-v T2 ", "!-+ T3 ", "  , _deliver "):
            assert f"\n{line}" in screen, screen
        terminal.press("q")
        assert terminal.ends() == 0 and "Traceback" not in terminal.shown


def test_playing_shows_the_dag_change(file: Path) -> None:
    with on_terminal(str(file), "--speed", "20") as terminal:
        seen = terminal.wait_for("nothing happens for 2h00m: shown as 3s")
        signs = re.findall(r"\n├─(.) T2 ", seen)
        assert signs[0] == "·" and signs[-1] == "✓" and "▶" in signs
        terminal.press("q")
        assert terminal.ends() == 0
