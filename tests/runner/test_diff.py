"""What a runner tells a gateway of two commits."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from services.runner.diff import REPLY_MAX_BYTES, Diffs
from services.runner.git_threads import git_threads
from shared import requests
from shared.requests import DiffReply, DiffRequest, GitCredentials
from shared.sealed import SealKey, seal
from tests.runner.conftest import TOKEN, USERNAME
from tests.runner.git_server import GitServer
from tests.runner.repositories import PLAN, PROJECT_ID, Project, git, make_project

KEY = SealKey()


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with git_threads() as pool:
        yield pool


@pytest.fixture
def project(tmp_path: Path) -> Project:
    (tmp_path / "local").mkdir()
    return make_project(tmp_path / "local")


@pytest.fixture
def diffs(tmp_path: Path, private_dir: Path, threads: ThreadPoolExecutor) -> Diffs:
    return Diffs("r1", tmp_path / "elsewhere", KEY, private_dir, threads)


def asked(repo_url: str, base: str, commit: str, sealed: bytes = b"") -> DiffRequest:
    return DiffRequest(project=PROJECT_ID, plan=PLAN, repo_url=repo_url, base=base, commit=commit, sealed=sealed)


async def told(diffs: Diffs, request: DiffRequest) -> DiffReply:
    answer = await diffs.answer(request)
    assert len(answer) <= REPLY_MAX_BYTES
    return msgspec.json.decode(answer, type=DiffReply)


async def test_a_runner_that_never_saw_the_repository_tells_what_changed(project: Project, diffs: Diffs) -> None:
    commit = project.work("T1", {"a.txt": "one\n2\n"})
    reply = await told(diffs, asked(str(project.repo), project.base, commit))
    assert "-two\n+2\n" in reply.patch
    assert "a.txt | 2 +-" in reply.stat
    assert (reply.cut, reply.refused) == (False, "")


async def test_what_is_huge_once_it_is_json_is_cut_to_what_the_bus_carries(project: Project, diffs: Diffs) -> None:
    commit = project.work("T1", {"bells.txt": "\x07" * 79 + "\n"} | {f"{n}.txt": "\x07\n" * 800_000 for n in (1, 2)})
    reply = await told(diffs, asked(str(project.repo), project.base, commit))
    assert reply.cut
    assert len(reply.patch) > 100_000


async def test_the_projects_credentials_open_the_repository_and_are_shown_nowhere(
    diffs: Diffs, git_server: GitServer, served: Path
) -> None:
    repo = served / "repo.git"
    base = git(repo, "rev-parse", "main")
    tree = git(repo, "rev-parse", "main^{tree}")
    commit = git(repo, "commit-tree", "-p", base, "-m", "Empty", tree)
    git(repo, "update-ref", f"refs/treadle/{PLAN}/T1/1", commit)
    url = git_server.url("repo.git")
    without = await told(diffs, asked(url, base, commit))
    assert without.refused.startswith(f"fetching from {url}: ")
    credentials = msgspec.json.encode(GitCredentials(kind="token", secret=TOKEN, username=USERNAME))
    sealed = seal(KEY.public, credentials, requests.test_context("r1", "git"))
    assert await told(diffs, asked(url, base, commit, sealed)) == DiffReply()
    git_server.refusal = f"go away, {TOKEN}"
    other = await told(diffs, asked(url, base, "1" * 40, sealed))
    assert other.refused and TOKEN not in other.refused


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"commit": "1" * 40}, "111111111111: push it there, then try again"),
        ({"commit": "--output=/tmp/x"}, "not a commit id"),
        ({"plan": "../x"}, "not a plan id"),
        ({"repo_url": "/nowhere/at/all"}, "does not appear to be a git repository"),
        ({"repo_url": "https://127.0.0.1:1/x.git", "sealed": b"not for this one"}, "runner r1 can't open"),
    ],
)
async def test_what_can_not_be_told_is_answered_in_words(
    project: Project, diffs: Diffs, change: dict[str, object], words: str
) -> None:
    request = msgspec.structs.replace(asked(str(project.repo), project.base, project.base), **change)
    assert words in (await told(diffs, request)).refused
