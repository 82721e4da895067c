"""A collaboration repository is somebody else's: whatever lies in it, it is not followed, and not read when large."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from services.runner.deleted import remove_project
from services.runner.git import GitFailed
from services.runner.watch import collab as collab_module
from services.runner.watch.collab import Collab, TooLarge, collab_of
from services.runner.watch.results import RESULT_MAX_BYTES
from shared import events as e
from shared.clock import new_id
from shared.requests import ProjectDeleted
from tests.nats_process import NatsServer
from tests.runner.repositories import PROJECT_ID, git
from tests.runner.watch_world import DIRECTORY, CollabRepository, World, open_world, until_looks


@pytest.fixture
async def world(own_nats: NatsServer, tmp_path: Path) -> AsyncIterator[World]:
    async with open_world(own_nats, tmp_path) as opened:
        yield opened


@pytest.fixture
def theirs(tmp_path: Path) -> CollabRepository:
    return CollabRepository(tmp_path)


@pytest.fixture
def ours(tmp_path: Path, theirs: CollabRepository) -> Iterator[Collab]:
    yield collab_of(tmp_path / "data", PROJECT_ID, theirs.url)


async def test_links_directories_submodules_and_huge_files_are_told_as_no_result(
    world: World, theirs: CollabRepository
) -> None:
    plan = await world.plan()
    await world.hand_out(plan, theirs.url)
    place = theirs.place(plan)
    (place / "usage.json").symlink_to("/etc/passwd")
    result = place / "result.json"

    def link() -> None:
        result.symlink_to("/etc/passwd")

    def directory() -> None:
        result.unlink()
        result.mkdir()
        (result / "x").write_text("x")

    def submodule() -> None:
        (result / "x").unlink()
        result.rmdir()
        head = git(theirs.clone, "rev-parse", "HEAD")
        git(theirs.clone, "rm", "-q", "-r", "--cached", "-f", str(result.relative_to(theirs.clone)))
        git(theirs.clone, "update-index", "--add", "--cacheinfo", f"160000,{head},{result.relative_to(theirs.clone)}")
        git(theirs.clone, "commit", "-q", "-m", "A submodule")
        git(theirs.clone, "push", "-q", "--force", str(theirs.bare), "HEAD:main")

    def huge() -> None:
        git(theirs.clone, "rm", "-q", "--cached", "-f", str(result.relative_to(theirs.clone)))
        result.write_bytes(os.urandom(RESULT_MAX_BYTES + 3 * 1024 * 1024))

    def bomb() -> None:
        result.write_bytes(b"{" + b" " * (8 * 1024 * 1024) + b"}")

    async with world.watching():
        for number, (put, word) in enumerate(
            ((link, "symbolic link"), (directory, "directory"), (submodule, "submodule"), (huge, "may have 1048576"),
             (bomb, "and has 8388610")), 1,
        ):  # fmt: skip
            put()
            if put is not submodule:
                theirs.push()
            failed = (await world.event(plan, "failed", number=number)).event
            assert isinstance(failed, e.TaskFailed) and failed.kind == "invalid_result"
            assert word in failed.message and "root:" not in failed.message
        result.write_text('{"task_code": "T1", "summary": "Done.", "artifacts": []}')
        theirs.push()
        done = (await world.event(plan, "completed")).event
    assert isinstance(done, e.TaskCompleted) and done.usage == e.Usage()


async def test_a_folder_that_is_a_link_leads_nowhere(world: World, theirs: CollabRepository, tmp_path: Path) -> None:
    plan = await world.plan()
    await world.hand_out(plan, theirs.url)
    elsewhere = theirs.clone / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "result.json").write_text('{"task_code": "T1", "summary": "Done."}')
    (theirs.clone / DIRECTORY / plan).mkdir(parents=True)
    (theirs.clone / DIRECTORY / plan / "T1").symlink_to("../../elsewhere")
    theirs.push()
    async with world.watching() as watcher:
        await until_looks(watcher, 2)
        assert (await world.state(plan)).status == "running"


def test_only_what_is_wanted_is_fetched_and_nothing_is_checked_out(ours: Collab, theirs: CollabRepository) -> None:
    (theirs.clone / "big.bin").write_bytes(os.urandom(4 * 1024 * 1024))
    theirs.deliver("p", content="{}")
    path = f"{DIRECTORY}/p/T1/result.json"
    commit = ours.refresh(None)
    entry = ours.entries(commit, [path, "big.bin", "missing", f"{DIRECTORY}/p", "a\nb"])
    assert set(entry) == {path, "big.bin", f"{DIRECTORY}/p"}
    assert (entry[path].kind, entry[f"{DIRECTORY}/p"].kind) == ("file", "directory")
    assert ours.bring({entry[path].id: 10}, None) == {entry[path].id: 2}
    assert ours.read([entry[path].id]) == {entry[path].id: b"{}"}
    stored = sum(file.stat().st_size for file in ours.path.rglob("*") if file.is_file())
    assert stored < 100_000
    too_large = ours.bring({entry["big.bin"].id: 1000}, None)[entry["big.bin"].id]
    assert isinstance(too_large, TooLarge)
    assert not list(ours.path.glob("objects/pack/tmp_*"))


def test_history_is_not_fetched_and_a_rewritten_one_is_followed(ours: Collab, theirs: CollabRepository) -> None:
    for number in range(5):
        theirs.push(f"Commit {number}")
    first = ours.refresh(None)
    assert git(ours.path, "rev-list", "--count", first) == "1"
    git(theirs.clone, "reset", "-q", "--hard", "HEAD~3")
    (theirs.clone / "README").write_text("Another history\n")
    rewritten = theirs.push("Rewritten")
    assert ours.refresh(None) == rewritten
    assert ours.entries(rewritten, ["README"])["README"].id == git(theirs.clone, "rev-parse", "HEAD:README")


def test_a_server_that_leaves_no_files_out_is_read_all_the_same(
    ours: Collab, theirs: CollabRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collab_module, "_LOCAL_UPLOAD", "--upload-pack=git upload-pack")
    theirs.deliver("p", content="{}")
    path = f"{DIRECTORY}/p/T1/result.json"
    entry = ours.entries(ours.refresh(None), [path])[path]
    assert ours.bring({entry.id: 10}, None) == {entry.id: 2}
    assert ours.read([entry.id]) == {entry.id: b"{}"}


def test_a_commit_that_is_too_large_is_a_failing_fetch_and_leaves_nothing(
    ours: Collab, theirs: CollabRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collab_module, "_LOCAL_UPLOAD", "--upload-pack=git upload-pack")
    monkeypatch.setattr(collab_module, "FETCH_MAX_BYTES", 1024 * 1024)
    (theirs.clone / "big.bin").write_bytes(os.urandom(4 * 1024 * 1024))
    theirs.push()
    with pytest.raises(GitFailed, match="has more than"):
        ours.refresh(None)
    assert not list(ours.path.glob("objects/pack/tmp_*"))


def test_a_copy_that_is_broken_or_has_grown_is_made_anew(
    ours: Collab, theirs: CollabRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collab_module, "PACKS_MAX", 3)
    for number in range(8):
        (theirs.clone / "README").write_text(f"{number}\n")
        assert ours.refresh(None) == theirs.push() or ours.refresh(None)
        assert len(list(ours.path.glob("objects/pack/*.pack"))) <= 4
    commit = ours.refresh(None)
    for pack in ours.path.glob("objects/pack/*.pack"):
        pack.chmod(0o600)
        pack.write_bytes(b"")
    again = collab_of(ours.path.parents[1], PROJECT_ID, theirs.url)
    with pytest.raises(GitFailed):
        again.entries(commit, ["README"])
    assert again.entries(again.refresh(None), ["README"])


def test_a_directory_with_very_many_files_is_taken_as_empty(
    ours: Collab, theirs: CollabRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collab_module, "TREE_MAX_BYTES", 1000)
    theirs.write("p", "T1", content="{}")
    theirs.write("p", "T2", content="{}")
    for number in range(100):
        (theirs.place("p", "T1") / f"{number}").write_text("x")
    theirs.push()
    paths = [f"{DIRECTORY}/p/{task}/result.json" for task in ("T1", "T2")]
    assert list(ours.entries(ours.refresh(None), paths)) == [paths[1]]


def test_names_that_git_or_a_terminal_reads_otherwise_are_only_names(ours: Collab, theirs: CollabRepository) -> None:
    odd = [f"{DIRECTORY}/{name}/result.json" for name in ("-x", "a b", 'q"uote', "ü", "co\\lon:x", "@{u}", "new\nline")]
    for path in odd:
        (theirs.clone / path).parent.mkdir(parents=True)
        (theirs.clone / path).write_text("{}")
    theirs.push()
    assert set(ours.entries(ours.refresh(None), [*odd, "../x", "/etc/passwd", "a\0b", ""])) == set(odd)


def test_folders_that_are_not_there_are_told_from_those_that_are_whatever_their_names(
    ours: Collab, theirs: CollabRepository
) -> None:
    theirs.deliver("p", content="{}")
    there = f"{DIRECTORY}/p/T1/result.json"
    readme_tree = git(theirs.clone, "rev-parse", "HEAD^{tree}")
    odd = [
        f"{name}/README" for name in ("x tree", "x tree 5", f"x\n{readme_tree} tree 30", "x\n", "missing", "x blob 3")
    ]
    assert set(ours.entries(ours.refresh(None), [*odd, there])) == {there}


def test_of_many_files_those_that_are_too_large_are_left_out_and_all_others_are_brought(
    ours: Collab, theirs: CollabRepository
) -> None:
    paths = [f"{number}.bin" for number in range(9)]
    for number, path in enumerate(paths):
        (theirs.clone / path).write_bytes(os.urandom(8 * 1024 * 1024 if number in (2, 7) else 50))
    theirs.push()
    entries = ours.entries(ours.refresh(None), paths)
    brought = ours.bring({entry.id: 100 for entry in entries.values()}, None)
    large = [path for path in paths if isinstance(brought[entries[path].id], TooLarge)]
    assert large == ["2.bin", "7.bin"] and len(brought) == 9
    with pytest.raises(GitFailed, match="lost"):
        ours.read([entries["2.bin"].id])


def test_a_deleted_projects_copy_goes_and_that_of_another_project_stays(
    ours: Collab, theirs: CollabRepository, tmp_path: Path
) -> None:
    others = collab_of(tmp_path / "data", new_id(), theirs.url)
    for copy in (ours, others):
        copy.refresh(None)
    remove_project(tmp_path / "data", ProjectDeleted(project=PROJECT_ID, plans=(), repo_urls=(theirs.url,)))
    assert (ours.path.exists(), others.path.exists()) == (False, True)
    assert ours.entries(ours.refresh(None), ["README"])
