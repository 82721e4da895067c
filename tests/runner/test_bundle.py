"""What a runner bundles of a plan's commits, and how it is fetched."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import msgspec
import pytest

from services.runner import bundle
from services.runner.bundle import KEPT_MAX, Bundles
from services.runner.git_threads import git_threads
from shared import requests
from shared.events import Head
from shared.requests import BUNDLE_PART_BYTES, BundlePartRequest, BundleReply, BundleRequest, GitCredentials, Unfinished
from shared.sealed import SealKey, seal
from shared.spec import DELIVER
from tests.runner.conftest import TOKEN, USERNAME
from tests.runner.git_server import GitServer
from tests.runner.repositories import PLAN, PROJECT_ID, Project, git, make_project

KEY = SealKey()
OTHER = "pabcdefghijkl"
Maker = Callable[..., Bundles]


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with git_threads() as pool:
        yield pool


@pytest.fixture
def project(tmp_path: Path) -> Project:
    (tmp_path / "local").mkdir()
    return make_project(tmp_path / "local", {"a.txt": "one\n", "large.bin": secrets.token_hex(40_000)})


@pytest.fixture
def maker(tmp_path: Path, private_dir: Path, threads: ThreadPoolExecutor) -> Maker:
    def make(**more: int) -> Bundles:
        return Bundles("r1", tmp_path / "elsewhere", tmp_path / "bundles", KEY, private_dir, threads, **more)

    return make


def of(project: Project, **more: object) -> BundleRequest:
    plain = BundleRequest(project=PROJECT_ID, plan=PLAN, repo_url=str(project.repo), base=project.base, heads=())
    return msgspec.structs.replace(plain, **more)


async def fetched(bundles: Bundles, made: BundleReply, file: Path) -> Path:
    """The bundle, as a gateway puts it together."""
    assert made.refused == ""
    found = bytearray()
    while part := (await bundles.part(BundlePartRequest(bundle=made.bundle, offset=len(found)))).part:
        assert len(part) <= BUNDLE_PART_BYTES
        found += part
    assert (len(found), sha256(found).hexdigest()) == (made.size_bytes, made.sha256)
    return written(file, bytes(found))


def written(file: Path, content: bytes) -> Path:
    file.write_bytes(content)
    return file


def left(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "bundles").rglob("*"))


async def test_a_bundle_holds_everybodys_work_with_all_history_and_needs_no_repository(
    project: Project, maker: Maker, tmp_path: Path
) -> None:
    one = project.work("T1", {"b.txt": "b\n"})
    two = project.work("T2", {"c.txt": "c\n"}, base=one)
    heads = (Head("T1", one), Head("T2", two), Head("T3", project.base, "pabcdefghijkl"), Head(DELIVER, two))
    made = await maker_made(bundles := maker(), of(project, heads=heads))
    assert made.complete
    file = await fetched(bundles, made, tmp_path / "x.bundle")
    git(tmp_path, "init", "-q", "--bare", "empty.git")
    empty = tmp_path / "empty.git"
    git(empty, "bundle", "verify", str(file))
    git(empty, "fetch", "-q", str(file), "+refs/*:refs/*")
    refs = dict(
        line.split()[::-1] for line in git(empty, "for-each-ref", "--format=%(objectname) %(refname)").splitlines()
    )
    assert refs == {
        f"refs/treadle-base/{PLAN}": project.base,
        f"refs/treadle/{PLAN}/T1/head": one,
        f"refs/treadle/{PLAN}/T2/head": two,
        "refs/treadle/pabcdefghijkl/T3/head": project.base,
        f"refs/heads/treadle/{PLAN}": two,
    }
    git(empty, "fsck", "--full", "--strict")
    assert git(empty, "show", f"{two}:c.txt") == "c"
    git(tmp_path, "clone", "-q", "-b", f"treadle/{PLAN}", str(file), "cloned")
    assert (tmp_path / "cloned" / "b.txt").read_text() == "b\n"


async def test_whoever_only_looks_hears_what_is_missing_and_leaves_nothing_behind(
    project: Project, maker: Maker, tmp_path: Path
) -> None:
    one, gone = project.work("T1", {"b.txt": "b\n"}), ["1" * 40, "2" * 40]
    bundles, other = maker(), "pabcdefghijkl"
    there = await bundles.make(of(project, heads=(Head("T1", one, PLAN),), only_look=True))
    assert there == BundleReply()
    heads = (Head("T1", one, PLAN), Head("T2", gone[0], other), Head("T3", gone[1], other))
    looked = await bundles.make(of(project, heads=heads, only_look=True))
    assert looked == BundleReply(missing=tuple(gone))
    away = await bundles.make(of(project, repo_url=str(tmp_path / "away"), heads=heads, only_look=True))
    assert (away.missing, "away" in away.refused) == ((), True)
    assert left(tmp_path) == []


async def maker_made(bundles: Bundles, request: BundleRequest) -> BundleReply:
    made = await bundles.make(request)
    assert made.refused == ""
    return made


async def test_with_too_much_history_it_begins_after_the_base_and_says_so(
    project: Project, maker: Maker, tmp_path: Path
) -> None:
    one = project.work("T1", {"b.txt": "b\n"})
    made = await maker_made(bundles := maker(max_bytes=20_000), of(project, heads=(Head("T1", one),)))
    assert not made.complete and made.size_bytes < 20_000
    file = await fetched(bundles, made, tmp_path / "x.bundle")
    git(tmp_path, "init", "-q", "--bare", "empty.git")
    with pytest.raises(AssertionError, match=project.base):
        git(tmp_path / "empty.git", "bundle", "verify", str(file))
    git(project.repo, "fetch", "-q", str(file), f"refs/treadle/{PLAN}/T1/head")
    assert git(project.repo, "rev-parse", "FETCH_HEAD") == one


async def test_what_is_too_large_even_so_is_refused_and_leaves_nothing(
    project: Project, maker: Maker, tmp_path: Path
) -> None:
    one = project.work("T1", {"b.txt": secrets.token_hex(40_000)})
    made = await maker(max_bytes=20_000).make(of(project, heads=(Head("T1", one),)))
    assert "over 0 MiB, even without what was there before" in made.refused
    assert left(tmp_path) == []


async def test_a_large_bundle_comes_in_parts(project: Project, maker: Maker, tmp_path: Path) -> None:
    large = secrets.token_hex(BUNDLE_PART_BYTES)
    one = project.work("T1", {"b.txt": large})
    made = await maker_made(bundles := maker(), of(project, heads=(Head("T1", one),)))
    assert made.size_bytes > BUNDLE_PART_BYTES
    await fetched(bundles, made, tmp_path / "x.bundle")


async def test_what_was_fetched_is_removed(project: Project, maker: Maker, tmp_path: Path) -> None:
    made = await maker_made(bundles := maker(), of(project))
    assert [path.name for path in left(tmp_path)][1:] == ["commits.bundle"]
    await fetched(bundles, made, tmp_path / "x.bundle")
    assert left(tmp_path) == []
    gone = await bundles.part(BundlePartRequest(bundle=made.bundle, offset=0))
    assert "no such bundle (any more)" in gone.refused and gone.part == b""


async def test_what_nobody_fetches_is_removed_in_time_and_at_the_next_start(
    project: Project, maker: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await maker_made(maker(), of(project))
    assert left(tmp_path)
    bundles = maker()
    bundles.clear()
    assert left(tmp_path) == []
    monkeypatch.setattr(bundle, "KEPT_S", 0.0)
    made = await maker_made(bundles, of(project))
    async with asyncio.timeout(10):
        while left(tmp_path):  # noqa: ASYNC110 - a directory tells nobody that it is empty
            await asyncio.sleep(0)
    assert (await bundles.part(BundlePartRequest(bundle=made.bundle, offset=0))).refused


async def test_only_so_many_wait_to_be_fetched(project: Project, maker: Maker) -> None:
    bundles = maker()
    for _ in range(KEPT_MAX):
        made = await maker_made(bundles, of(project))
    assert "try again later" in (await bundles.make(of(project))).refused
    await bundles.part(BundlePartRequest(bundle=made.bundle, offset=made.size_bytes))
    await maker_made(bundles, of(project))


async def test_work_whose_own_refs_are_gone_is_found_in_the_plans_branch(
    project: Project, maker: Maker, tmp_path: Path
) -> None:
    one = project.work("T1", {"b.txt": "b\n"})
    two = project.work("T2", {"c.txt": "c\n"}, base=one)
    git(project.repo, "update-ref", f"refs/heads/treadle/{PLAN}", two)
    for ref in git(project.repo, "for-each-ref", "--format=%(refname)", "refs/treadle/").splitlines():
        git(project.repo, "update-ref", "-d", ref)
    git(project.repo, "config", "uploadpack.allowAnySHA1InWant", "false")
    made = await maker_made(bundles := maker(), of(project, heads=(Head("T1", one), Head(DELIVER, two))))
    file = await fetched(bundles, made, tmp_path / "x.bundle")
    assert one in git(project.repo, "bundle", "list-heads", str(file))


async def test_a_commit_that_nobody_pushed_is_named_and_the_others_come(project: Project, maker: Maker) -> None:
    one, gone = project.work("T1", {"b.txt": "b\n"}), "1" * 40
    made = await maker_made(maker(), of(project, heads=(Head("T0", gone), Head("T1", one))))
    assert made.missing == (gone,)
    many = tuple(Head(f"T{n}", str(n) * 40) for n in range(1, 8))
    assert "push it there" in (await maker().make(of(project, heads=many))).refused


async def test_the_projects_credentials_open_the_repository_and_are_shown_nowhere(
    project: Project, maker: Maker, git_server: GitServer, served: Path
) -> None:
    url, base = git_server.url("repo.git"), git(served / "repo.git", "rev-parse", "main")
    without = await maker().make(of(project, repo_url=url, base=base))
    assert without.refused.startswith(f"fetching from {url}: ")
    credentials = msgspec.json.encode(GitCredentials(kind="token", secret=TOKEN, username=USERNAME))
    sealed = seal(KEY.public, credentials, requests.test_context("r1", "git"))
    assert (await maker().make(of(project, repo_url=url, base=base, sealed=sealed))).refused == ""
    git_server.refusal = f"go away, {TOKEN}"
    other = await maker().make(of(project, repo_url=url, base="1" * 40, sealed=sealed))
    assert other.refused and TOKEN not in other.refused


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"base": "1" * 40}, "111111111111: push it there, then try again"),
        ({"base": "--output=/tmp/x"}, "not a commit id"),
        ({"heads": (Head("T1", "HEAD"),)}, "not a commit id"),
        ({"heads": (Head("../x", "1" * 40),)}, "not a task code"),
        ({"heads": (Head("T1", "1" * 40, "../x"),)}, "not a plan id"),
        ({"plan": "../x"}, "not a plan id"),
        ({"repo_url": "/nowhere/at/all"}, "does not appear to be a git repository"),
        ({"repo_url": "https://127.0.0.1:1/x.git", "sealed": b"not for this one"}, "runner r1 can't open"),
    ],
)
async def test_what_can_not_be_bundled_is_answered_in_words_and_leaves_nothing(
    project: Project, maker: Maker, tmp_path: Path, change: dict[str, object], words: str
) -> None:
    assert words in (await maker().make(of(project, **change))).refused
    assert left(tmp_path) == []


@pytest.mark.parametrize("name", ["", "..", "../../x", "/etc/passwd"])
async def test_a_name_that_no_bundle_has_opens_no_file(maker: Maker, name: str) -> None:
    assert "no such bundle" in (await maker().part(BundlePartRequest(bundle=name, offset=0))).refused


async def test_what_attempts_left_unfinished_comes_along(project: Project, maker: Maker, tmp_path: Path) -> None:
    one = project.work("T1", {"b.txt": "b\n"})
    kept = project.work("T2", {"half.txt": "half\n"})
    mine, older, others = (f"refs/treadle/{plan}/T2/{lease}-wip" for plan, lease in ((PLAN, 2), (PLAN, 1), (OTHER, 2)))
    for ref in (mine, older, others):
        git(project.repo, "update-ref", ref, kept)
    heads, leases = (Head("T1", one),), (("T1", 1), ("T2", 2), ("T3", 1))
    made = await maker_made(bundles := maker(), of(project, heads=heads, leases=leases))
    assert (made.unfinished, made.without_unfinished) == ((Unfinished("T2", 2, kept),), "")
    file = await fetched(bundles, made, tmp_path / "x.bundle")
    listed = git(tmp_path, "bundle", "list-heads", str(file))
    assert f"{kept} {mine}" in listed and older not in listed and others not in listed


async def test_unfinished_work_alone_makes_a_bundle_and_none_of_it_makes_none(
    project: Project, maker: Maker, tmp_path: Path
) -> None:
    kept = project.work("T2", {"half.txt": "half\n"})
    nothing = await maker_made(bundles := maker(), of(project, leases=(("T2", 1),)))
    assert (nothing.bundle, nothing.without_unfinished, left(tmp_path)) == ("", "", [])
    git(project.repo, "update-ref", f"refs/treadle/{PLAN}/T2/1-wip", kept)
    made = await maker_made(bundles, of(project, leases=(("T2", 1),)))
    assert made.unfinished == (Unfinished("T2", 1, kept),) and made.bundle


async def test_unfinished_work_that_is_too_large_is_left_out_and_that_is_said(
    project: Project, maker: Maker, tmp_path: Path
) -> None:
    one = project.work("T1", {"b.txt": "b\n"})
    kept = project.work("T2", {"half.bin": secrets.token_hex(400_000)})
    git(project.repo, "update-ref", f"refs/treadle/{PLAN}/T2/1-wip", kept)
    request = of(project, heads=(Head("T1", one),), leases=(("T2", 1),))
    made = await maker_made(maker(max_bytes=200_000), request)
    assert made.unfinished == () and "with it the commits would be over" in made.without_unfinished
    assert made.complete and made.size_bytes < 200_000
