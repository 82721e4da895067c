"""What lives, what is replayed and what is shown agree after every single event."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest

from services.dispatcher.dispatcher import Dispatcher
from services.gateway.projection.rows import Folding
from shared.board import Board
from shared.history.event_file import EventFile
from shared.history.history import History
from shared.history.moment import Moment
from shared.plan import PlanState
from shared.store import Recorded
from shared.task import TaskState, TaskStatus
from tests.simulation.virtual_time import run_in_virtual_time
from tests.simulation.world import World

WORLDS = 30

Live = dict[tuple[str, int], tuple[PlanState, dict[str, TaskState], dict[str, int], Counter[TaskStatus]]]


@pytest.mark.parametrize("seed", range(WORLDS))
def test_live_state_is_replayed_state_is_the_projection_at_every_sequence(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = noted(monkeypatch)
    world = World(seed)
    run_in_virtual_time(world.live())
    assert live
    looked_at = 0
    for plan in world.specs:
        records = [record for record in world.records() if record.plan == plan]
        history = replayed(tmp_path / plan, records)
        shown = asyncio.run(projected(world, records))
        for record in records:
            board, moment = history.board_at(record.seq), history.moment(record.seq)
            if (plan, record.seq) in live:  # but for the event that ended the plan: no dispatcher keeps that
                assert (board.plan, board.tasks, board.seqs, board.counts) == live[plan, record.seq]
                looked_at += 1
            as_shown(board, moment, *shown[record.seq])
    assert looked_at > len(world.records()) * 0.8


def noted(monkeypatch: pytest.MonkeyPatch) -> Live:
    """How every dispatcher had each plan after each event, whenever it lived. All that had it had the same."""
    live: Live = {}
    fold = Dispatcher._fold

    def note(self: Dispatcher, record: Recorded) -> None:
        fold(self, record)
        if (board := self._boards.get(record.plan)) is not None:
            now = (board.plan, dict(board.tasks), dict(board.seqs), board.counts.copy())
            assert live.setdefault((record.plan, record.seq), now) == now

    monkeypatch.setattr(Dispatcher, "_fold", note)
    return live


def replayed(path: Path, records: list[Recorded]) -> History:
    """The plan's history, written to a file and read back."""
    file = EventFile.create(path, records[0].plan)
    for record in records:
        file.append(record)
    file.close()
    return History(EventFile.open(path))


async def projected(world: World, records: list[Recorded]) -> dict[int, tuple[dict[str, Any], dict[str, Any]]]:
    """By sequence, the rows as the projector would have them: the plan's, and its tasks' by code."""
    rows: dict[int, tuple[dict[str, Any], dict[str, Any]]] = {}
    folding, tasks = Folding(world.log), dict[str, Any]()

    async def known(plans: set[str]) -> set[str]:
        return plans

    for record in records:
        changes = await folding.fold([record], known)
        (plan,) = changes.plans
        tasks.update({task["code"]: task for task in changes.tasks})
        rows[record.seq] = (plan, dict(tasks))
    return rows


def as_shown(board: Board, moment: Moment, plan: dict[str, Any], tasks: dict[str, Any]) -> None:
    """The projection's rows say what the moment says."""
    assert (plan["status"], plan["standing"], plan["seq"]) == (moment.status, moment.standing, moment.seq)
    view = msgspec.json.decode(plan["view"])
    assert view["head_commit"] == moment.head_commit
    assert msgspec.convert(view["usage"], type(moment.usage)) == moment.usage
    assert list(tasks) == [] if not board.visible else set(tasks) == {task.code for task in moment.tasks}
    for task in moment.tasks:
        row = tasks[task.code]
        seen = msgspec.json.decode(row["view"])
        assert (row["status"], row["seq"]) == (task.status, task.seq)
        assert (seen["attempt"], seen["lease"], seen["runner"]) == (task.attempt, task.lease, task.runner)
        assert (seen["commit"], seen["base_commit"]) == (task.commit, task.base_commit)
        assert msgspec.convert(seen["usage"], type(task.usage)) == task.usage
