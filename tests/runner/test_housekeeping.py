"""A machine that runners share, of which some were killed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from nats.aio.msg import Msg

from services.runner import maintenance
from services.runner.caches import SetupCaches
from services.runner.deliver import push_lease
from services.runner.disk_floor import DiskFloor
from services.runner.git import Stop, run_git
from services.runner.git_threads import git_threads
from services.runner.housekeeping import keep_house
from services.runner.in_use import LeaseName, alone, in_use, lease_in_use, leases_left, lives, lock_of
from services.runner.leftovers import commit_leftovers
from services.runner.maintenance import is_worth_it, maintain, maintain_mirrors
from services.runner.mirror import mirror_of
from services.runner.process import LEASE_VARIABLE, lease_mark
from services.runner.pull import SlotPull
from services.runner.sweep import sweep
from services.runner.workspace import list_workspaces
from shared.bus import BusSettings, connect
from shared.streams import EVENTS, declare_pool, declare_streams, pool_consumer_name
from shared.subjects import pool_filter
from tests.nats_process import NatsServer
from tests.runner import repositories
from tests.runner.repositories import PROJECT_ID, Project, git, make_project

ROOT = Path(__file__).parents[2]
PLAN = "p" + "".join(secrets.choice("abcdefghijklmnop234567") for _ in range(12))
"""No other's: a lease's processes are looked for on the whole machine, where other tests may run."""

HOLDER = """
import sys
from pathlib import Path
from services.runner.in_use import in_use, lease_in_use
data_dir, plan, task, lease = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
with lease_in_use(data_dir, plan, task, lease), in_use(data_dir / "work" / plan):
    print("held", flush=True)
    sys.stdin.read()
"""

MAKER = """
import sys
from pathlib import Path
from services.runner.mirror import mirror_of
from services.runner.workspace import create_workspace
data_dir, url, project, plan, commit, number = Path(sys.argv[1]), *sys.argv[2:]
mirror = mirror_of(data_dir, url, project)
sys.stdin.readline()
for lease in range(1, 9):
    mirror.ensure(plan, [commit])
    create_workspace(data_dir, mirror, plan, f"T{number}", lease, commit)
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.setattr(repositories, "PLAN", PLAN)
    return make_project(tmp_path)


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with git_threads() as made:
        yield made


@contextlib.contextmanager
def runner(data_dir: Path, task: str, lease: int = 1) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that has a lease in its hands."""
    held = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(data_dir), PLAN, task, str(lease)],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert held.stdout is not None and held.stdin is not None
    try:
        assert held.stdout.readline() == b"held\n"
        yield held
    finally:
        held.kill()
        held.wait()
        held.stdout.close()
        held.stdin.close()


def killed_runner(data_dir: Path, task: str, lease: int = 1) -> None:
    """A lease's lock as a process that is killed leaves it."""
    with runner(data_dir, task, lease) as process:
        process.kill()
        process.wait()


@contextlib.contextmanager
def agent(task: str, lease: int = 1, plan: str = PLAN) -> Iterator[psutil.Process]:
    """A process of a lease, in a session of its own."""
    environment = {**os.environ, LEASE_VARIABLE: lease_mark(plan, task, lease)}
    process = subprocess.Popen(["sleep", "60"], env=environment, start_new_session=True)
    try:
        while not Path(f"/proc/{process.pid}/environ").read_bytes():
            pass  # the kernel says that a program runs a moment before it shows its environment
        yield psutil.Process(process.pid)
    finally:
        process.kill()
        process.wait()


def is_running(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def scratch(project: Project, task: str, lease: int = 1) -> Path:
    made = project.data_dir / "scratch" / f"{PLAN}-{task}-{lease}"
    (made / "home").mkdir(parents=True)
    return made


# Sweeping ---------------------------------------------------------------------------------------------------------


async def test_what_a_killed_runner_left_is_ended_and_removed(project: Project, threads: ThreadPoolExecutor) -> None:
    workspace, used = project.workspace("T-1"), scratch(project, "T-1")
    half = workspace.path.with_name(".T-1-1.gone")
    half.mkdir()
    killed_runner(project.data_dir, "T-1")
    with agent("T-1") as process:
        swept = await sweep(project.data_dir, threads)
        assert not is_running(process), swept
    assert swept.processes == (LeaseName(PLAN, "T-1", 1),)
    assert {*swept.removed} == {half, used, workspace.path}
    assert not workspace.path.exists() and not used.exists() and not half.exists()
    assert leases_left(project.data_dir) == []
    assert await sweep(project.data_dir, threads) == type(swept)()


async def test_what_a_live_runner_has_is_left_alone(project: Project, threads: ThreadPoolExecutor) -> None:
    mine, orphaned = project.workspace("T1"), project.workspace("T2")
    kept, gone = scratch(project, "T1"), scratch(project, "T2")
    killed_runner(project.data_dir, "T2")
    with runner(project.data_dir, "T1"), agent("T1") as process:
        building = mine.path.with_name(".T1-1.new")
        building.mkdir()
        swept = await sweep(project.data_dir, threads)
        assert is_running(process)
        assert mine.path.exists() and kept.exists() and building.exists()
    assert {*swept.removed} == {orphaned.path, gone}


async def test_the_processes_of_another_installation_are_none_of_ours(
    project: Project, threads: ThreadPoolExecutor
) -> None:
    killed_runner(project.data_dir, "T1")
    with agent("T1", plan="pzzzzzzzzzzzz") as others, agent("T1", lease=2) as unknown:
        await sweep(project.data_dir, threads)
        assert is_running(others) and is_running(unknown)


async def test_unsaved_work_stays_and_is_told(project: Project, threads: ThreadPoolExecutor) -> None:
    edited, pushed = project.workspace("T1"), project.workspace("T2")
    (edited.code / "a.txt").write_text("nobody else has this\n")
    (pushed.code / "a.txt").write_text("pushed\n")
    push_lease(pushed, commit_leftovers(pushed, "a task").commit)
    for task in ("T1", "T2"):
        killed_runner(project.data_dir, task)
    swept = await sweep(project.data_dir, threads)
    assert (swept.removed, swept.kept) == ((pushed.path,), (edited.path,))
    assert (await sweep(project.data_dir, threads)).kept == (edited.path,)


async def test_without_a_lock_of_its_own_a_lease_is_swept_only_when_nobody_works_for_its_plan(
    project: Project, threads: ThreadPoolExecutor
) -> None:
    old = project.workspace("T1")
    with runner(project.data_dir, "T2"):
        assert (await sweep(project.data_dir, threads)).removed == ()
    assert (await sweep(project.data_dir, threads)).removed == (old.path,)


async def test_what_is_no_lease_of_ours_stays(project: Project, threads: ThreadPoolExecutor) -> None:
    for name in ("work/notes", f"work/{PLAN}/notes", "scratch/mine", "held/notes"):
        (project.data_dir / name).mkdir(parents=True)
    await sweep(project.data_dir, threads)
    assert all(
        (project.data_dir / n).exists() for n in ("work/notes", f"work/{PLAN}/notes", "scratch/mine", "held/notes")
    )


async def test_locks_of_what_is_gone_go_and_locks_that_are_held_stay(
    project: Project, threads: ThreadPoolExecutor
) -> None:
    work = project.data_dir / "work"
    (work / "pempty0000000").mkdir(parents=True)
    with in_use(work / "pempty0000000"), in_use(project.mirror.path):
        pass
    with in_use(work / "pheld00000000"):
        await sweep(project.data_dir, threads)
        assert [p.name for p in work.iterdir()] == [".pheld00000000.in-use"]
        assert not lock_of(project.mirror.path).exists()


def test_a_lock_that_is_removed_under_a_waiting_one_still_keeps_two_apart(tmp_path: Path) -> None:
    place, inside, most = tmp_path / "place", 0, 0

    def use() -> None:
        nonlocal inside, most
        for _ in range(50):
            with alone(place):
                inside += 1
                most = max(most, inside)
                inside -= 1
                lock_of(place).unlink()

    users = [threading.Thread(target=use) for _ in range(4)]
    for user in users:
        user.start()
    for user in users:
        user.join()
    assert most == 1


def test_a_lease_is_seen_alive_as_long_as_it_is_held(project: Project) -> None:
    name = LeaseName(PLAN, "T1", 1)
    assert not lives(project.data_dir, name)
    with lease_in_use(project.data_dir, *name):
        assert lives(project.data_dir, name)
    assert not lives(project.data_dir, name)
    killed_runner(project.data_dir, "T1")
    assert leases_left(project.data_dir) == [name] and not lives(project.data_dir, name)


async def test_the_house_is_kept_once_the_former_life_was_dealt_with(
    project: Project, threads: ThreadPoolExecutor, caplog: pytest.LogCaptureFixture
) -> None:
    kept, orphaned = project.workspace("T1"), project.workspace("T2")
    (kept.code / "a.txt").write_text("nobody else has this\n")
    came_back, caches = asyncio.Event(), SetupCaches(project.data_dir, 1 << 30, threads)
    caplog.set_level(logging.INFO)
    house = asyncio.create_task(keep_house(project.data_dir, caches, threads, came_back, every_s=0.01))
    try:
        for _ in range(20):
            await asyncio.sleep(0)
        assert orphaned.path.exists()
        came_back.set()
        async with asyncio.timeout(60):
            while orphaned.path.exists() or "1 workspaces hold" not in caplog.text:  # noqa: ASYNC110 - it tells nobody
                await asyncio.sleep(0.02)
    finally:
        house.cancel()
        await asyncio.wait([house])
    assert kept.path.exists()


# Mirrors ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def commits(project: Project, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Those of a mirror that is as many fetches leave it."""
    monkeypatch.setattr(maintenance, "PACKS_MAX", 3)
    commits = []
    for number in range(4):
        (project.repo / "a.txt").write_text(f"{number}\n")
        git(project.repo, "commit", "-qam", str(number))
        commits.append(git(project.repo, "rev-parse", "HEAD"))
        project.mirror.ensure(PLAN, commits[-1:])
        git(project.mirror.path, "repack", "-q", "-d")
    return commits


def packs(project: Project) -> int:
    return len(list(project.mirror.objects.glob("pack/*.pack")))


def test_maintenance_makes_packs_few_and_loses_nothing(project: Project, commits: list[str]) -> None:
    unreachable = run_git(
        "hash-object", "-w", "--stdin", doing="x", git_dir=project.mirror.path, stdin=b"of no ref"
    ).out.decode().strip()  # fmt: skip
    git(project.mirror.path, "update-ref", "-d", f"refs/fetched/{PLAN}/0")
    assert is_worth_it(project.mirror.path)
    assert maintain(project.mirror.path)
    assert packs(project) <= 3 and not is_worth_it(project.mirror.path)
    for commit in (*commits, unreachable):
        git(project.mirror.path, "cat-file", "-e", commit)
    git(project.mirror.path, "rev-list", "--objects", "--all")
    workspace = project.workspace(base=commits[3])
    assert (workspace.code / "a.txt").read_text() == "3\n"
    assert not maintain(project.mirror.path)  # not worth it any more


async def test_maintenance_keeps_away_from_a_mirror_that_is_used(project: Project, commits: list[str]) -> None:
    before = packs(project)
    with in_use(project.mirror.path):
        assert await maintain_mirrors(project.data_dir) == []
        assert packs(project) == before
    assert await maintain_mirrors(project.data_dir) == [project.data_dir / "mirrors" / project.mirror.path.name]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a thread has no priority of its own")
async def test_maintenance_gives_way_to_work(
    project: Project, commits: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told, before = tmp_path / "told", os.getpriority(os.PRIO_PROCESS, 0)
    wrap_git(tmp_path / "bin", monkeypatch, f'echo "$(nice)" >> {told}\n')
    await maintain_mirrors(project.data_dir)
    assert set(told.read_text().split()) == {"19"}
    assert os.getpriority(os.PRIO_PROCESS, 0) == before


# Workspaces and fetches -------------------------------------------------------------------------------------------


def test_processes_that_make_many_workspaces_at_once_do_not_disturb_each_other(project: Project) -> None:
    words = (str(project.data_dir), str(project.repo), PROJECT_ID, PLAN, project.base)
    makers = [
        subprocess.Popen([sys.executable, "-c", MAKER, *words, str(n)], cwd=ROOT, stdin=subprocess.PIPE)
        for n in range(3)
    ]
    for maker in makers:
        assert maker.stdin is not None
        maker.stdin.write(b"go\n")
        maker.stdin.close()
    assert [maker.wait(150) for maker in makers] == [0, 0, 0]
    found = list_workspaces(project.data_dir)
    assert len(found) == 24 and not any(stored.unsaved for stored in found)
    for stored in found:
        assert git(stored.path / "code", "status", "--porcelain", "--branch") == f"## treadle/{stored.task}"
    git(project.mirror.path, "rev-list", "--objects", "--all")


def wrap_git(directory: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Has a script run before each git command."""
    real = subprocess.run(["sh", "-c", "command -v git"], capture_output=True, text=True, check=True).stdout.strip()
    directory.mkdir()
    (directory / "git").write_text(f'#!/bin/sh\n{script}exec {real} "$@"\n')
    (directory / "git").chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")


def new_commits(project: Project, count: int) -> list[str]:
    """Commits that are in the person's repository only."""
    commits = []
    for number in range(count):
        git(project.repo, "commit", "-q", "--allow-empty", "-m", f"new {number}")
        commits.append(git(project.repo, "rev-parse", "HEAD"))
    return commits


def fetch_all(project: Project, wants: Sequence[str]) -> list[BaseException]:
    """Wants each commit in a thread of its own, all at once."""
    errors: list[BaseException] = []
    together = threading.Barrier(len(wants))

    def fetch(commit: str) -> None:
        mirror = mirror_of(project.data_dir, str(project.repo), PROJECT_ID)
        together.wait()
        try:
            Stop().during(lambda: mirror.ensure(PLAN, [commit]))
        except Exception as error:  # noqa: BLE001 - it is what the test looks at
            errors.append(error)

    users = [threading.Thread(target=fetch, args=(commit,)) for commit in wants]
    for user in users:
        user.start()
    for user in users:
        user.join()
    return errors


def test_leases_that_want_commits_at_once_share_fetches(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.mirror.ensure(PLAN, [project.base])
    commits, told = new_commits(project, 12), tmp_path / "told"
    # Slow enough for the others to arrive meanwhile, as a network is.
    wrap_git(
        tmp_path / "bin", monkeypatch, f'case "$*" in *" fetch "*|fetch*) echo fetch >> {told}; sleep 1.5;; esac\n'
    )
    assert fetch_all(project, commits + commits) == []
    assert len(told.read_text().split()) <= 8  # not 24, nor 12: some come late where the machine is busy
    for commit in commits:
        git(project.mirror.path, "cat-file", "-e", commit)


def test_a_commit_that_nobody_has_spoils_nobody_elses_fetch(project: Project) -> None:
    project.mirror.ensure(PLAN, [project.base])
    commits = new_commits(project, 4)
    [error] = fetch_all(project, [*commits, "1" * 40])
    assert "has no commit 111111111111" in str(error)
    for commit in commits:
        git(project.mirror.path, "cat-file", "-e", commit)


# The disk ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting needs rights that this user lacks")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_below_the_floor_there_is_a_reason_and_above_it_none(
    small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    floor = DiskFloor(small_disk / "data", 4 << 20)
    assert floor() == ""
    (small_disk / "big").write_bytes(bytes(5 << 20))
    assert floor() == floor() == "3 MiB are free on the disk, fewer than the 4 MiB to be kept free"
    (small_disk / "big").unlink()
    assert floor() == floor() == ""
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


def test_a_data_directory_that_is_gone_is_a_reason_too(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "can't be used" in DiskFloor(tmp_path / "file/data", 1)()


async def test_a_runner_without_room_takes_nothing_until_there_is_room_again(own_nats: NatsServer) -> None:
    nc = await connect(BusSettings(own_nats.url, own_nats.user, own_nats.password), "test")
    js = nc.jetstream()
    await declare_streams(js)
    await declare_pool(js, "command")
    taken: asyncio.Queue[bytes] = asyncio.Queue()
    room, asked = asyncio.Event(), asyncio.Event()

    async def take(message: Msg) -> None:
        await message.ack()
        taken.put_nowait(message.data)

    def hindrance() -> str:
        asked.set()
        return "" if room.is_set() else "the disk is full"

    pull = SlotPull(nc, ["command"], 2, take, hindrance)
    running = asyncio.create_task(pull.run())
    for number in range(3):
        await js.publish(pool_filter("command").replace("*", f"x{number}"), str(number).encode())
    async with asyncio.timeout(60):
        for _ in range(3):
            asked.clear()
            await asked.wait()
        assert taken.empty()
        room.set()
        assert sorted([await taken.get() for _ in range(3)]) == [b"0", b"1", b"2"]
        pull.stop()
        await running
    await nc.close()


async def test_a_message_that_was_on_its_way_when_the_disk_filled_goes_back(own_nats: NatsServer) -> None:
    nc = await connect(BusSettings(own_nats.url, own_nats.user, own_nats.password), "test")
    js = nc.jetstream()
    await declare_streams(js)
    await declare_pool(js, "command")
    asked, full, taken = asyncio.Event(), "", asyncio.Event()

    async def take(message: Msg) -> None:
        await message.ack()
        taken.set()

    def hindrance() -> str:
        asked.set()
        return full

    pull = SlotPull(nc, ["command"], 1, take, hindrance)
    running = asyncio.create_task(pull.run())
    async with asyncio.timeout(60):
        await asked.wait()
        await nc.flush()
        full = "the disk is full"  # the server has our request already
        await js.publish(pool_filter("command").replace("*", "x"), b"")
        while (await js.consumer_info(EVENTS, pool_consumer_name("command"))).num_redelivered == 0:
            info = await js.consumer_info(EVENTS, pool_consumer_name("command"))
            if info.delivered.consumer_seq and not info.num_waiting and info.num_ack_pending:
                break  # it was sent back, and waits there for somebody with room
        assert not taken.is_set()
        full = ""
        await taken.wait()
        pull.stop()
        await running
    await nc.close()
