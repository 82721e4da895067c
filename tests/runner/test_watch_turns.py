"""Any number of watchers ask a repository once in an interval, and say in the log when nobody can look."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from services.runner.watch import claims as claims_module
from services.runner.watch.claims import BACKOFF_MAX_S, Claim, Claims, pause_s
from services.runner.watch.watched import Repository
from shared import events as e
from shared.clock import utc_now
from shared.requests import GitCredentials
from shared.streams import RUNNER_POOLS, WATCHES_STREAM, declare_pool
from tests.nats_process import NatsServer
from tests.runner.bench import reached
from tests.runner.conftest import TOKEN, USERNAME
from tests.runner.git_server import GitServer
from tests.runner.repositories import git
from tests.runner.watch_world import DIRECTORY, CollabRepository, World, open_world, spec_of, until_looks

PLACE = Repository("p", "https://h/r.git")


@pytest.fixture
async def world(own_nats: NatsServer, tmp_path: Path) -> AsyncIterator[World]:
    async with open_world(own_nats, tmp_path) as opened:
        opened.credentials = GitCredentials(kind="token", secret=TOKEN, username=USERNAME)
        yield opened


@pytest.fixture
def collab(served: Path) -> CollabRepository:
    """On the git server."""
    return CollabRepository(served)


def asked(server: GitServer) -> int:
    """How often the server was asked for its refs, by whoever was let in."""
    return sum(1 for header in server.seen if header == server.expected)


async def taken(claims: Claims, interval_s: float = 10.0) -> Claim:
    claim = await claims.take(PLACE, interval_s)
    assert isinstance(claim, Claim)
    return claim


async def waits(claims: Claims, interval_s: float = 10.0) -> float:
    left_s = await claims.take(PLACE, interval_s)
    assert isinstance(left_s, float) and left_s > 0
    return left_s


async def test_one_at_a_time_has_the_turn_and_the_one_that_looked_last_comes_first_again(world: World) -> None:
    now = utc_now()
    ann, bob = (Claims(world.nc, name, lambda: now) for name in ("ann", "bob"))
    claim = await taken(ann)
    assert await waits(bob) == claims_module.LAPSES_S
    turn = await ann.settle(claim, failed=False)
    assert 0.8 <= turn.jitter <= 1.2
    assert await waits(bob) == pytest.approx(await waits(ann) + 2.5)
    assert await waits(bob, 4.0) == pytest.approx(4 * turn.jitter + 1)  # somebody wants it more often
    now += timedelta(seconds=10 * turn.jitter + 0.1)
    await waits(bob)
    await ann.settle(await taken(ann), failed=False)
    now += timedelta(seconds=20)
    await taken(bob)


async def test_a_turn_that_is_not_renewed_lapses_and_a_wrong_clock_does_not_hold_it_for_ever(world: World) -> None:
    now = utc_now()
    ann, bob = (Claims(world.nc, name, lambda: now) for name in ("ann", "bob"))
    lost = await taken(ann)
    now += timedelta(seconds=claims_module.LAPSES_S)
    mine = await taken(bob)
    await ann.settle(lost, failed=False)  # too late: it changes nothing
    assert await waits(ann) == claims_module.LAPSES_S
    now += timedelta(hours=5)
    await bob.settle(mine, failed=False)
    now -= timedelta(hours=5)
    assert await waits(ann) < 20


async def test_a_turn_whose_taking_was_not_answered_is_taken_again_at_once(world: World) -> None:
    ann = Claims(world.nc, "ann", utc_now)
    await taken(ann)
    await taken(ann)


async def test_of_many_that_want_the_turn_at_once_one_gets_it(world: World) -> None:
    everybody = [Claims(world.nc, f"r{number}", utc_now) for number in range(20)]
    got = await asyncio.gather(*(claims.take(PLACE, 10) for claims in everybody))
    assert sum(isinstance(one, Claim) for one in got) == 1


async def test_a_turn_is_renewed_as_long_as_it_is_held(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims_module, "LAPSES_S", 3.0)
    monkeypatch.setattr(claims_module, "RENEW_S", 0.1)
    ann, bob = Claims(world.nc, "ann", utc_now), Claims(world.nc, "bob", utc_now)
    claim = await taken(ann)
    first = claim.revision
    async with ann.held(claim):
        await reached(lambda: claim.revision >= first + 40)  # longer than it would last
        await waits(bob)
    await ann.settle(claim, failed=False)
    assert await waits(bob) > 1


async def test_failures_are_counted_over_all_watchers_and_the_first_one_is_kept(world: World) -> None:
    now = utc_now()
    ann, bob = (Claims(world.nc, name, lambda: now) for name in ("ann", "bob"))
    first = await ann.settle(await taken(ann), failed=True)
    now += timedelta(minutes=1)
    second = await bob.settle(await taken(bob), failed=True)
    assert (first.failures, second.failures, second.since) == (1, 2, first.at)
    await ann.recover(PLACE)
    now += timedelta(minutes=1)
    assert (await taken(ann)).turn.failures == 0


def test_the_pause_grows_to_five_minutes_while_looks_fail() -> None:
    assert [pause_s(30, failures) for failures in range(7)] == [30, 30, 60, 120, 240, 300, 300]
    assert pause_s(30, 10_000) == BACKOFF_MAX_S
    assert pause_s(600, 3) == 600


async def test_two_watchers_with_many_tasks_ask_a_repository_once_an_interval(
    world: World, collab: CollabRepository, git_server: GitServer
) -> None:
    tasks = [spec_of(f"T{number}") for number in range(10)]
    plan = await world.plan(*tasks)
    url = git_server.url("collab.git")
    interval_s = 1.0
    for task in tasks:
        await world.hand_out(plan, url, task.code, interval_s=interval_s)
    async with world.watching("one") as one, world.watching("two", data_dir=world.directory / "other") as two:
        await reached(lambda: one.looks + two.looks >= 1)
        began, before = asyncio.get_running_loop().time(), one.looks + two.looks
        await reached(lambda: one.looks + two.looks >= before + 6)
        elapsed_s = asyncio.get_running_loop().time() - began
        assert elapsed_s >= 5 * interval_s * 0.8
        # A look that finds nothing new is two requests, and what is new was fetched once by either.
        assert asked(git_server) <= 2 * (one.looks + two.looks) + 6
    for task in tasks:
        assert (await world.types(plan, task.code)).count("started") == 1


async def test_a_result_is_taken_over_https_with_the_projects_credentials(
    world: World, collab: CollabRepository, git_server: GitServer
) -> None:
    plan = await world.plan()
    url = git_server.url("collab.git")
    code_commit = collab.push("The work is in the same repository")
    await world.hand_out(plan, url, code_url=url)
    async with world.watching():
        collab.deliver(plan, commit=code_commit)
        done = (await world.event(plan, "completed")).event
    assert isinstance(done, e.TaskCompleted) and done.commit == code_commit
    assert {(request.project, request.repo_url) for request in world.lent} == {(world.project, url)}
    kept = b"".join(file.read_bytes() for file in world.data_dir.rglob("*") if file.is_file())
    assert TOKEN.encode() not in kept


async def test_a_repository_that_cannot_be_looked_into_stops_the_clock_until_it_can_again(
    world: World, collab: CollabRepository, git_server: GitServer
) -> None:
    plan = await world.plan(spec_of("T1"), spec_of("T2"))
    for task in ("T1", "T2"):
        await world.hand_out(plan, git_server.url("collab.git"), task)
    async with world.watching() as watcher:
        await world.event(plan, "started")
        await until_looks(watcher, 1)
        git_server.refusal = f"go away, {TOKEN}"
        failed_at = utc_now()
        for task in ("T1", "T2"):
            record = await world.event(plan, "watch_failed", task=task)
            fault = record.event
            assert isinstance(fault, e.TaskWatchFailed)
            assert TOKEN not in fault.reason and "collab.git" in fault.reason
            # Of the first try that failed, not of the second one.
            assert failed_at - timedelta(seconds=30) < fault.since < record.time - timedelta(seconds=0.2)
        deadline = (await world.state(plan, "T2")).deadline
        assert deadline is not None
        collab.deliver(plan)
        git_server.refusal = None
        restored = (await world.event(plan, "watch_restored", task="T2")).event
        assert isinstance(restored, e.TaskWatchRestored)
        assert restored.deadline is not None and restored.deadline > deadline
        await world.event(plan, "completed")
    assert (await world.types(plan, "T2")).count("watch_failed") == 1


async def test_one_failing_look_is_nobodys_business(
    world: World, collab: CollabRepository, git_server: GitServer
) -> None:
    plan = await world.plan()
    await world.hand_out(plan, git_server.url("collab.git"), interval_s=3.0)
    async with world.watching() as watcher:
        await world.event(plan, "started")
        await until_looks(watcher, 1)
        git_server.refusal = "not now"
        await until_looks(watcher, 1)
        git_server.refusal = None
        collab.deliver(plan)
        await world.event(plan, "completed")
    assert "watch_failed" not in await world.types(plan)


async def test_a_person_who_asks_hears_of_a_failing_fetch_and_ends_the_pause_with_one_that_works(
    world: World, collab: CollabRepository, git_server: GitServer
) -> None:
    plan = await world.plan()
    url = git_server.url("collab.git")
    await world.hand_out(plan, url, interval_s=0.3)
    async with world.watching() as watcher:
        await world.event(plan, "started")
        git_server.refusal = "no"
        await world.event(plan, "watch_failed")
        assert "collab.git" in (await world.looked(watcher, url)).fault
        git_server.refusal = None
        assert not (await world.looked(watcher, url)).fault
        await world.event(plan, "watch_restored")


async def test_credentials_that_nobody_gives_out_are_a_failing_fetch(
    world: World, collab: CollabRepository, git_server: GitServer
) -> None:
    world.credentials = None
    plan = await world.plan()
    await world.hand_out(plan, git_server.url("collab.git"))
    async with world.watching():
        fault = (await world.event(plan, "watch_failed")).event
        assert isinstance(fault, e.TaskWatchFailed) and "collab.git" in fault.reason
        world.credentials = GitCredentials(kind="token", secret=TOKEN, username=USERNAME)
        await world.event(plan, "watch_restored")


async def test_a_server_that_was_restarted_and_forgot_the_turns_is_no_reason_to_stop(
    world: World, collab: CollabRepository, own_nats: NatsServer, git_server: GitServer
) -> None:
    plan = await world.plan(spec_of("T1"), spec_of("T2"))
    url = git_server.url("collab.git")
    for task in ("T1", "T2"):
        await world.hand_out(plan, url, task)
    async with world.watching() as watcher:
        await world.event(plan, "started")
        await until_looks(watcher, 1)
        own_nats.kill()
        own_nats.start()
        collab.deliver(plan)
        await world.event(plan, "completed")
        await world.nc.jetstream().delete_stream(WATCHES_STREAM)
        collab.deliver(plan, "T2")
        await world.event(plan, "completed", task="T2")


@contextmanager
def runner_process(server: NatsServer, directory: Path, name: str) -> Iterator[subprocess.Popen[bytes]]:
    """A whole runner, with a runner's rights on the bus."""
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(directory),
        "TREADLE_RUNNER_NAME": name,
        "TREADLE_RUNNER_DIR": str(directory / name),
        "TREADLE_DATA": str(directory / "data"),
        "GIT_SSL_CAINFO": os.environ["GIT_SSL_CAINFO"],
        **server.access_of("runner").environment(),
    }
    log = directory / f"{name}.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "services.runner"], env=environment, cwd=Path(__file__).parents[2],
            stdin=subprocess.DEVNULL, stdout=file, stderr=file,
        )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(60)
        told = log.read_text()
        assert "NATS denies" not in told and "Traceback" not in told, told


async def test_a_watcher_that_is_killed_while_it_looks_is_followed_by_another_one(
    world: World,
    collab: CollabRepository,
    own_nats: NatsServer,
    git_server: GitServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(claims_module, "LAPSES_S", 1.0)  # as the one that survives sees it
    for pool in RUNNER_POOLS:
        await declare_pool(world.nc.jetstream(), pool)
    plan = await world.plan()
    path = f"{DIRECTORY}/{plan}/T1/result.json"
    url = git_server.url("collab.git")
    await world.hand_out(plan, url)
    with runner_process(own_nats, tmp_path, "killed") as process:
        await world.event(plan, "started")
        await reached(lambda: asked(git_server) > 1)
        git_server.goes_on.clear()
        git_server.asked.clear()
        assert await asyncio.to_thread(git_server.asked.wait, 60)
        process.send_signal(signal.SIGKILL)
        process.wait(60)
    git_server.goes_on.set()
    collab.deliver(plan)
    async with world.watching("survivor"):
        done = await world.event(plan, "completed")
    assert done.meta.actor == "runner:survivor"
    assert (await world.types(plan)).count("started") == 1
    assert git(collab.clone, "rev-parse", f"HEAD:{path}")


async def test_a_runner_process_watches_with_a_runners_rights_on_the_bus(
    world: World, collab: CollabRepository, own_nats: NatsServer, git_server: GitServer, tmp_path: Path
) -> None:
    for pool in RUNNER_POOLS:
        await declare_pool(world.nc.jetstream(), pool)
    plan, wanted = await world.plan(), await world.request_plan(git_server.url("collab.git"))
    await world.hand_out(plan, git_server.url("collab.git"))
    with runner_process(own_nats, tmp_path, "alone"):
        await world.event(plan, "started")
        git_server.refusal = "no"
        await world.event(plan, "watch_failed")
        git_server.refusal = None
        await world.event(plan, "watch_restored")
        collab.deliver(plan, content="[]")
        await world.event(plan, "failed")
        (collab.clone / DIRECTORY / f"plan-{wanted}.json").write_text("{}")
        collab.deliver(plan)
        await world.event(plan, "completed")
        await reached(lambda: world.offered)
