"""Replays of simulated plans: random ones, with people and breakage in them."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from shared.history.event_file import EventFile
from shared.history.history import History
from tests.gateway.projection.histories import simulated
from treadle.replay.screen import moment_screen
from treadle.replay.steps import steps
from treadle.replay.timeline import Timeline
from treadle.replay.viewer import Viewer
from treadle.replay.words import moment_lines, step_lines

WIDTH, HEIGHT = 100, 30


def histories(seed: int, directory: Path) -> list[History]:
    files: dict[str, EventFile] = {}
    for _, record in simulated(seed):
        if record.plan not in files:
            files[record.plan] = EventFile.create(directory / record.plan, record.plan)
        files[record.plan].append(record)
    return [History(file) for file in files.values()]


def seen(viewer: Viewer) -> str:
    console = Console(width=WIDTH, height=HEIGHT, color_system=None)
    with console.capture() as captured:
        console.print(viewer.screen(WIDTH, HEIGHT))
    return captured.get()


@pytest.mark.parametrize("seed", [1, 2])
def test_every_moment_of_every_plan_can_be_shown(seed: int, tmp_path: Path) -> None:
    for history in histories(seed, tmp_path):
        timeline = Timeline(history.file.read())
        for step in steps(history):
            moment = history.moment(step.record.seq)
            assert step_lines(step)[0].startswith(f"{step.record.seq:>7}  ")
            assert step.cost_usd == pytest.approx(moment.cost_usd)
            assert {task.code for task in moment.tasks} <= {
                line.split()[1] for line in moment_lines(moment) if " " in line
            }
            lines = moment_screen(moment, timeline, width=WIDTH, height=HEIGHT, until=moment.time)
            assert len(lines) <= HEIGHT and all(line.cell_len <= WIDTH for line in lines)


@pytest.mark.parametrize("seed", [1])
def test_a_moment_looks_the_same_however_one_came_to_it(seed: int, tmp_path: Path) -> None:
    for history in histories(seed, tmp_path):
        forwards = Viewer(history, seq=history.file.first_seq)
        screens = [seen(forwards)]
        for _ in range(len(history.file) - 1):
            forwards.press("n")
            screens.append(seen(forwards))
        backwards = Viewer(history, seq=history.last_seq)
        for place in reversed(range(len(history.file))):
            assert seen(backwards) == screens[place]
            backwards.press("b")
        for place in range(0, len(history.file), 7):
            for key in ("j", *str(history.file.seq_at_place(place)), "enter"):
                backwards.press(key)
            assert seen(backwards) == screens[place]
