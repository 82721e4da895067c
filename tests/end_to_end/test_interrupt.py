"""Ctrl-C, on a real pseudo-terminal and without one."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.plans import Gate, files, lease_processes, plan, task, write
from tests.end_to_end.suite import TREADLE, Suite, ended, until

QUESTION = "then Enter:"


class Terminal:
    """A command on a terminal of its own."""

    def __init__(self, suite: Suite, *args: str) -> None:
        self.shown = ""
        self._master, slave = pty.openpty()
        environment = {**suite.environment, "TERM": "xterm", "COLUMNS": "120", "LINES": "40"}
        self.process = subprocess.Popen(
            [TREADLE, "--data", str(suite.data), *args],
            stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True,
            preexec_fn=lambda: _own_terminal(slave),
        )  # fmt: skip
        os.close(slave)

    def type(self, keys: str) -> None:
        """What a person types; \x03 is Ctrl-C."""
        os.write(self._master, keys.encode())

    def wait_for(self, words: str, deadline_s: float = 90.0) -> None:
        """Reads the screen until it shows the words; what came before is forgotten."""
        end_s = time.monotonic() + deadline_s
        while words not in self.shown:
            if time.monotonic() > end_s or not self._read(end_s):
                pytest.fail(f"the terminal never showed {words!r}, but:\n{self.shown[-3000:]}")
        self.shown = self.shown.partition(words)[2]

    def ends(self, deadline_s: float = 90.0) -> int:
        """The exit status."""
        end_s = time.monotonic() + deadline_s
        while self.process.poll() is None and time.monotonic() < end_s:
            self._read(time.monotonic() + 0.1)
        while self._read(time.monotonic()):
            pass  # what it wrote last
        return self.process.wait(1)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._master)

    def _read(self, end_s: float) -> bool:
        readable, _, _ = select.select([self._master], [], [], max(0.0, end_s - time.monotonic()))
        if not readable:
            return False
        try:
            self.shown += os.read(self._master, 65536).decode(errors="replace")
        except OSError:  # the other side has closed it
            return False
        return True


def _own_terminal(slave: int) -> None:
    import fcntl
    import termios

    fcntl.ioctl(slave, termios.TIOCSCTTY, 0)


@pytest.fixture
def started(tmp_path: Path) -> Path:
    """What the task of `held_plan` touches."""
    return tmp_path / "started"


@pytest.fixture
def held_plan(tmp_path: Path, started: Path, gate: Gate) -> str:
    """A plan file whose task waits for the gate."""
    return write(tmp_path, plan(task("T1", f"touch {started}; {gate.wait}; echo x > x.txt")))


@pytest.fixture
def terminal(suite: Suite, held_plan: str, repo: Path) -> Iterator[Terminal]:
    """`treadle run` on a terminal."""
    made = Terminal(suite, "run", held_plan, "--repo", str(repo))
    try:
        yield made
    finally:
        made.close()


def newest_plan(suite: Suite) -> str:
    newest: str = suite.plans()[0]["plan"]
    return newest


def test_ctrl_c_asks_and_a_detached_plan_goes_on_and_is_taken_up_again(
    suite: Suite, repo: Path, terminal: Terminal, gate: Gate, started: Path
) -> None:
    terminal.wait_for("running")
    until(started.exists, "the task runs")
    terminal.type("\x03")
    terminal.wait_for(QUESTION)
    terminal.type("d\n")
    terminal.wait_for("goes on")
    assert terminal.ends() == 130
    made = newest_plan(suite)
    again = Terminal(suite, "watch", made[:6])
    try:
        again.wait_for("running")
        gate.open()
        again.wait_for("completed")
        assert again.ends() == 0
    finally:
        again.close()
    assert files(repo, f"treadle/{made}")["x.txt"] == "x"


def test_ctrl_c_and_enter_goes_on_watching(terminal: Terminal, gate: Gate, started: Path) -> None:
    until(started.exists, "the task runs")
    terminal.wait_for("running")
    terminal.type("\x03")
    terminal.wait_for(QUESTION)
    terminal.type("\n")
    terminal.wait_for("running")
    gate.open()
    terminal.wait_for("completed")
    assert terminal.ends() == 0


def test_an_answer_that_is_none_is_said_to_be_none(terminal: Terminal, gate: Gate, started: Path) -> None:
    until(started.exists, "the task runs")
    terminal.wait_for("running")
    terminal.type("\x03")
    terminal.wait_for(QUESTION)
    terminal.type("continue\n")  # which begins as the word that cancels
    terminal.wait_for("“continue” is neither d nor c: watching goes on")
    gate.open()
    terminal.wait_for("completed")
    assert terminal.ends() == 0


def test_ctrl_c_and_c_cancels_the_plan(suite: Suite, terminal: Terminal, started: Path) -> None:
    until(started.exists, "the task runs")
    terminal.wait_for("running")
    terminal.type("\x03")
    terminal.wait_for(QUESTION)
    terminal.type("c\n")
    terminal.wait_for("cancelled")
    assert terminal.ends() == 1
    made = newest_plan(suite)
    assert suite.get(f"/plans/{made}")["status"] == "cancelled"
    assert lease_processes(made) == []


def test_a_second_ctrl_c_detaches(suite: Suite, terminal: Terminal, gate: Gate, started: Path) -> None:
    until(started.exists, "the task runs")
    terminal.wait_for("running")
    terminal.type("\x03")
    terminal.wait_for(QUESTION)
    terminal.type("\x03")
    assert terminal.ends() == 130
    gate.open()
    suite.standing(newest_plan(suite), "completed")


def test_a_terminal_is_left_as_it_was_found(terminal: Terminal, gate: Gate, started: Path) -> None:
    until(started.exists, "the task runs")
    terminal.wait_for("\x1b[?25l")  # the table hides the cursor
    gate.open()
    terminal.ends()
    assert re.findall(r"\x1b\[\?25[lh]", terminal.shown)[-1] == "\x1b[?25h"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_without_a_terminal_a_signal_detaches_and_the_plan_goes_on(
    suite: Suite, repo: Path, held_plan: str, gate: Gate, started: Path, number: signal.Signals
) -> None:
    process = suite.start("run", held_plan, "--repo", str(repo))
    until(started.exists, "the task runs")
    process.send_signal(number)
    done = ended(process)
    assert done.status == 130
    assert "treadle watch" in done.err
    gate.open()
    suite.standing(newest_plan(suite), "completed")
