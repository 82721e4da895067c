"""What an agent can make of the files and directories that the runner looks at, writes and removes."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from services.runner import git_threads as threads_module
from services.runner.agent_files import delete_below, make_directory_below, read_below, write_below
from services.runner.caches import LeaseCache, SetupCaches, keep_new
from services.runner.deliver import push_lease
from services.runner.git import GitFailed
from services.runner.git_threads import git_threads, hangs, in_thread
from services.runner.housekeeping import keep_house
from services.runner.leftovers import commit_leftovers
from services.runner.sweep import sweep
from services.runner.trees import holds_anything, remove_tree, size_bytes
from services.runner.workspace import Workspace, holds_unsaved_work, list_workspaces
from tests.runner.repositories import PLAN, Project, git, make_project


@pytest.fixture(autouse=True)
def removed(tmp_path: Path) -> Iterator[None]:
    """Whatever a test comes to: pytest itself can't remove what is nested here."""
    yield
    subprocess.run(["rm", "-rf", *tmp_path.iterdir()], check=True)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return make_project(tmp_path, {"a.txt": "a\n"})


def nest(top: Path, levels: int, name: str = "d") -> int:
    """Directories in each other, deeper than there are paths; returns the last one, open."""
    at = os.open(top, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir(name, dir_fd=at)
        below = os.open(name, os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    return at


def put(at: int, name: str, content: bytes) -> None:
    with os.fdopen(os.open(name, os.O_WRONLY | os.O_CREAT, dir_fd=at), "wb") as file:
        file.write(content)


@pytest.mark.parametrize("levels", [1_500, 10_000])
def test_a_directory_of_any_depth_is_removed(tmp_path: Path, levels: int) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    top = tmp_path / "top"
    (top / "side/way").mkdir(parents=True)
    (top / "side/link").symlink_to(outside)
    (top / "side").chmod(0)
    at = nest(top, levels)
    put(at, "last", b"x")
    os.symlink(outside, "link", dir_fd=at)
    os.close(at)
    remove_tree(top)
    assert not top.exists()
    assert (outside / "kept").exists()
    remove_tree(top)  # harmless
    (tmp_path / "link").symlink_to(outside)
    remove_tree(tmp_path / "link")
    assert (outside / "kept").exists()


def test_what_lies_deep_is_found_and_measured(tmp_path: Path) -> None:
    at = nest(tmp_path, 3_000)
    assert not holds_anything(tmp_path)
    put(at, "last", b"x" * 100_000)
    os.close(at)
    assert holds_anything(tmp_path)
    assert size_bytes(tmp_path) >= 100_000
    remove_tree(tmp_path / "d")  # pytest could not


def test_deep_directories_keep_no_workspace_from_being_seen_and_removed(project: Project) -> None:
    os.close(nest(project.workspace("T1").code, 1_500, ".claude"))
    (stored,) = list_workspaces(project.data_dir)
    assert not stored.unsaved


async def test_a_sweep_removes_deep_directories_and_whatever_comes_after_them(project: Project) -> None:
    for lease in (1, 2):
        scratch = project.data_dir / "scratch" / f"{PLAN}-T1-{lease}"
        scratch.mkdir(parents=True)
        os.close(nest(scratch, 1_500))
    swept = await sweep(project.data_dir, git_threads())
    assert len(swept.removed) == 2
    assert list((project.data_dir / "scratch").iterdir()) == []


async def test_no_fault_of_any_kind_ends_the_housekeeping(project: Project, caplog: pytest.LogCaptureFixture) -> None:
    again, came_back = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    class Faulty(SetupCaches):
        rounds = 0

        def bound(self) -> list[Path]:
            self.rounds += 1
            if self.rounds > 1:
                loop.call_soon_threadsafe(again.set)
            raise RecursionError("too deep")

    came_back.set()
    caches = Faulty(project.data_dir, 1, git_threads())
    keeping = asyncio.create_task(keep_house(project.data_dir, caches, git_threads(), came_back, 0.01))
    waiting = asyncio.create_task(again.wait())
    async with asyncio.timeout(60):
        await asyncio.wait((keeping, waiting), return_when=asyncio.FIRST_COMPLETED)
    assert not keeping.done()
    keeping.cancel()
    assert f"{project.data_dir / 'caches'} could not be looked after" in caplog.text


def fifo_for_alternates(workspace: Workspace, other: Path) -> None:
    alternates = workspace.agents_repo / "objects/info/alternates"
    alternates.unlink()
    os.mkfifo(alternates)


def huge_alternates(workspace: Workspace, other: Path) -> None:
    os.truncate(workspace.agents_repo / "objects/info/alternates", 3 << 40)


def fifo_for_a_pack(workspace: Workspace, other: Path) -> None:
    name = workspace.agents_repo / "objects/pack" / f"pack-{'a' * 40}"
    name.with_suffix(".pack").touch()
    os.mkfifo(name.with_suffix(".idx"))


def link_packs(workspace: Workspace, other: Path) -> None:
    (workspace.agents_repo / "objects/pack").rmdir()
    (workspace.agents_repo / "objects/pack").symlink_to(other / "pack")


def link_loose_objects(workspace: Workspace, other: Path) -> None:
    for place in other.glob("[0-9a-f][0-9a-f]"):
        if not (mine := workspace.agents_repo / "objects" / place.name).exists():
            mine.symlink_to(place)


def link_one_object(workspace: Workspace, other: Path) -> None:
    place = next(other.glob("[0-9a-f][0-9a-f]/*"))
    mine = workspace.agents_repo / "objects" / place.parent.name / place.name
    mine.parent.mkdir(exist_ok=True)
    mine.symlink_to(place)


def link_the_way_to_alternates(workspace: Workspace, other: Path) -> None:
    shutil.move(workspace.agents_repo / "objects/info", workspace.code / "info")
    (workspace.agents_repo / "objects/info").symlink_to(workspace.code / "info")


@pytest.mark.parametrize(
    "plant",
    [
        *(fifo_for_alternates, huge_alternates, fifo_for_a_pack),
        *(link_packs, link_loose_objects, link_one_object, link_the_way_to_alternates),
    ],
)
def test_an_object_directory_that_is_no_ordinary_one_is_refused_at_once(
    project: Project, tmp_path: Path, plant: Callable[[Workspace, Path], None]
) -> None:
    (tmp_path / "theirs").mkdir()
    other = make_project(tmp_path / "theirs", {"secret": "theirs\n"})
    workspace = project.workspace("T1")
    # The agent names theirs as its own work's parent without having it.
    tree = git(workspace.code, "rev-parse", "HEAD^{tree}")
    parents = f"parent {project.base}\nparent {other.base}\n"
    (tmp_path / "merge").write_text(f"tree {tree}\n{parents}author a <a@b> 1 +0000\ncommitter a <a@b> 1 +0000\n\nm\n")
    own = make_commit(project, tmp_path / "merge")
    plant(workspace, other.repo / ".git/objects")
    (workspace.agents_repo / "refs/heads/treadle/T1").write_text(f"{own}\n")
    faults: list[Exception] = []

    def take() -> None:
        try:
            commit_leftovers(workspace, "Write")
        except GitFailed as fault:
            faults.append(fault)

    taking = threading.Thread(target=take, daemon=True)
    taking.start()
    taking.join(60)
    assert "redirected its repository's objects" in str(faults[0])


def make_commit(project: Project, text: Path) -> str:
    """As an object of the mirror, which every workspace sees."""
    return git(project.mirror.path, "hash-object", "-t", "commit", "-w", "--literally", str(text))


def test_what_was_taken_does_not_rest_on_the_agents_objects_any_more(project: Project) -> None:
    workspace = project.workspace("T1")
    (workspace.code / "mine.txt").write_text("mine\n")
    git(workspace.code, "add", ".")
    git(workspace.code, "commit", "-q", "-m", "one")
    commit_leftovers(workspace, "Write")
    (workspace.code / "mine.txt").write_text("mine too\n")
    git(workspace.code, "commit", "-qam", "two")
    outcome = commit_leftovers(workspace, "Write")
    shutil.rmtree(workspace.agents_repo)
    push_lease(workspace, outcome.commit)
    assert git(project.repo, "show", f"{outcome.commit}:mine.txt") == "mine too"
    assert not holds_unsaved_work(workspace.path, "T1")


def test_an_object_under_anothers_name_is_not_taken(project: Project) -> None:
    workspace = project.workspace("T1")
    (workspace.code / "mine.txt").write_text("mine\n")
    git(workspace.code, "add", ".")
    git(workspace.code, "commit", "-q", "-m", "one")
    names = [git(workspace.code, "rev-parse", name) for name in ("HEAD:mine.txt", "HEAD:")]
    blob, tree = (workspace.agents_repo / "objects" / name[:2] / name[2:] for name in names)
    blob.unlink()
    shutil.copy(tree, blob)
    with pytest.raises(GitFailed, match="that the agent of T1 made"):
        commit_leftovers(workspace, "Write")


async def test_work_that_hangs_on_a_file_holds_up_nobody_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads_module, "STUCK_S", 0.2)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    async with asyncio.timeout(60):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await in_thread(pipe.read_bytes, git_threads())
        assert hangs()
        pipe.write_bytes(b"a word at last")
        while hangs():  # noqa: ASYNC110 - a thread's end is seen by the loop, and told to nobody
            await asyncio.sleep(0.01)


def test_a_file_is_read_through_no_link_and_no_pipe(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    (outside / "secret").write_text("secret")
    (root / "sub").mkdir()
    (root / "sub/file").write_text("mine")
    (root / "link").symlink_to(outside)
    (root / "sub/link").symlink_to(outside / "secret")
    os.mkfifo(root / "pipe")
    assert read_below(root, "sub/file", 4) == b"mine"
    assert read_below(root, "sub/file", 3) is None
    assert read_below(root, "sub/file", 3, cut=True) == b"min"
    for hostile in ("link/secret", "sub/link", "pipe", "sub", "missing/file"):
        assert read_below(root, hostile, 100) is None
    for wrong in ("../outside/secret", "/etc/hostname", "."):
        with pytest.raises(ValueError, match="not a path below"):
            read_below(root, wrong, 100)


def test_a_file_is_written_and_removed_through_no_link(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    (outside / "file").write_text("theirs")
    (root / "way").symlink_to(outside)
    delete_below(root, "way/file")
    write_below(root, "way/file", [b"mine"])
    assert (root / "way").is_dir()
    assert not (root / "way").is_symlink()
    (root / "way/file").unlink()
    (root / "way/file").symlink_to(outside / "file")
    write_below(root, "way/file", [b"mi", b"ne"], 0o700)
    assert (root / "way/file").read_text() == "mine"
    assert (root / "way/file").stat().st_mode & 0o777 == 0o700
    (root / "way/file").unlink()
    os.mkfifo(root / "way/file")
    write_below(root, "way/file", [b"mine"])
    delete_below(root, "way/file")
    assert list((root / "way").iterdir()) == []
    (root / "home").symlink_to(outside)
    make_directory_below(root, "home/inner")
    assert not (root / "home").is_symlink()
    assert [path.name for path in outside.iterdir()] == ["file"]
    assert (outside / "file").read_text() == "theirs"


def test_a_cache_takes_nothing_from_where_a_set_ups_link_leads_and_not_the_deepest(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    cache = LeaseCache(tmp_path / "shared", tmp_path / "view")
    for part in ("npm", "uv", "xdg"):
        (cache.view / part).mkdir(parents=True)
    (cache.view / "pip").symlink_to(outside)
    (cache.view / "npm/kept").write_text("kept")
    os.close(nest(cache.view / "uv", 1_500))
    keep_new(cache)
    assert (cache.shared / "npm/kept").exists()
    assert list(cache.shared.rglob("secret")) == []
    remove_tree(cache.view)
