"""What one project's repositories do to a look is nothing to the others, and nothing to the runner."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import pytest

from services.runner.git import Access, end_if_stopped
from services.runner.watch import taking as taking_module
from services.runner.watch.collab import Collab
from services.runner.watch.results import Asked, Given, read_result
from services.runner.watch.shares import Shares
from shared import events as e
from tests.nats_process import NatsServer
from tests.runner.bench import reached
from tests.runner.watch_world import CollabRepository, World, open_world, spec_of, until_looks


@pytest.fixture
async def world(own_nats: NatsServer, tmp_path: Path) -> AsyncIterator[World]:
    async with open_world(own_nats, tmp_path) as opened:
        yield opened


async def test_a_project_has_its_share_and_who_waits_for_it_takes_nobody_elses_room() -> None:
    shares, inside, end = Shares(3, 2), [], asyncio.Event()

    async def look(project: str) -> None:
        async with shares.room(project):
            inside.append(project)
            await end.wait()

    async with asyncio.TaskGroup() as group:
        for project in ("greedy", "greedy", "greedy", "greedy", "modest", "late"):
            group.create_task(look(project))
        await reached(lambda: len(inside) == 3)
        assert inside == ["greedy", "greedy", "modest"]
        end.set()
    assert sorted(inside) == ["greedy"] * 4 + ["late", "modest"]


async def test_a_look_that_fails_as_nobody_reckoned_with_is_told_and_ends_neither_the_runner_nor_others(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd, sound = CollabRepository(tmp_path, "odd.git"), CollabRepository(tmp_path, "sound.git")
    refresh, broken = Collab.refresh, threading.Event()
    broken.set()

    def run_out(self: Collab, access: Access | None) -> str:
        if self.repo_url == odd.url and broken.is_set():
            raise MemoryError
        return refresh(self, access)

    monkeypatch.setattr(Collab, "refresh", run_out)
    plan = await world.plan(spec_of("T1"), spec_of("T2"))
    await world.hand_out(plan, odd.url, "T1")
    await world.hand_out(plan, sound.url, "T2")
    odd.deliver(plan, "T1")
    async with world.watching() as watcher:
        fault = (await world.event(plan, "watch_failed")).event
        assert isinstance(fault, e.TaskWatchFailed) and "MemoryError" in fault.reason and "odd.git" in fault.reason
        assert "MemoryError" in (await world.looked(watcher, odd.url)).fault
        sound.deliver(plan, "T2")
        await world.event(plan, "completed", task="T2")
        broken.clear()
        await world.event(plan, "completed")


async def test_one_result_that_cannot_be_judged_leaves_the_others_alone(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged_in: list[str] = []

    def judge(content: bytes, asked: Asked) -> Given:
        judged_in.append(threading.current_thread().name)
        if asked.task == "T1":
            raise MemoryError
        return read_result(content, asked)

    monkeypatch.setattr(taking_module, "read_result", judge)
    collab = CollabRepository(tmp_path)
    plan = await world.plan(spec_of("T1"), spec_of("T2"))
    for task in ("T1", "T2"):
        await world.hand_out(plan, collab.url, task)
        collab.write(plan, task)
    collab.push()
    async with world.watching():
        await world.event(plan, "completed", task="T2")
        fault = (await world.event(plan, "watch_failed")).event
    assert isinstance(fault, e.TaskWatchFailed) and "MemoryError" in fault.reason
    assert threading.current_thread().name not in judged_in  # the loop must not wait for a judgement


async def test_results_are_held_a_few_at_a_time_however_many_come_at_once(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(taking_module, "READ_AT_ONCE_BYTES", 10_000)
    read, held = Collab.read, []

    def measured(self: Collab, ids: Iterable[str]) -> dict[str, bytes]:
        contents = read(self, ids)
        held.append(sum(map(len, contents.values())))
        return contents

    monkeypatch.setattr(Collab, "read", measured)
    collab = CollabRepository(tmp_path)
    tasks = [spec_of(f"T{number}") for number in range(8)]
    plan = await world.plan(*tasks)
    for task in tasks:
        await world.hand_out(plan, collab.url, task.code)
        collab.write(plan, task.code, summary="Done." + " " * 4000)
    collab.push()
    async with world.watching():
        for task in tasks:
            await world.event(plan, "completed", task=task.code)
    assert max(held) <= 10_000 and sum(held) > 8 * 4000 and len(held) >= 4


async def test_files_that_do_not_come_end_the_look_after_a_while(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collab, hanging, bring = CollabRepository(tmp_path), threading.Event(), Collab.bring
    hanging.set()

    def hang(self: Collab, *args: object) -> object:
        while hanging.is_set():
            end_if_stopped()
            time.sleep(0.01)
        return bring(self, *args)  # type: ignore[arg-type]  # what it was called with

    monkeypatch.setattr(Collab, "bring", hang)
    monkeypatch.setattr(taking_module, "FETCHED_WITHIN_S", 3.0)
    plan = await world.plan()
    await world.hand_out(plan, collab.url)
    collab.deliver(plan)
    async with world.watching() as watcher:
        await until_looks(watcher, 1)
        fault = (await world.event(plan, "watch_failed")).event
        assert isinstance(fault, e.TaskWatchFailed) and "did not answer" in fault.reason
        hanging.clear()
        await world.event(plan, "completed")
