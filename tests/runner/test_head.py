"""What a runner tells a gateway of a repository's head."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from services.runner.git_threads import git_threads
from services.runner.head import Heads
from shared import requests
from shared.requests import GitCredentials, HeadReply, HeadRequest
from shared.sealed import SealKey, seal
from tests.runner.conftest import TOKEN, USERNAME
from tests.runner.git_server import GitServer
from tests.runner.repositories import PROJECT_ID, Project, git, make_project

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
def heads(private_dir: Path, threads: ThreadPoolExecutor) -> Heads:
    return Heads("r1", KEY, private_dir, threads)


def of(repo_url: object, branch: str = "", sealed: bytes = b"") -> HeadRequest:
    return HeadRequest(project=PROJECT_ID, repo_url=str(repo_url), branch=branch, sealed=sealed)


async def test_the_default_branch_and_its_commit_are_told(project: Project, heads: Heads) -> None:
    assert await heads.answer(of(project.repo)) == HeadReply(commit=project.base, branch="main")
    git(project.repo, "commit", "-q", "--allow-empty", "-m", "More")
    newest = git(project.repo, "rev-parse", "HEAD")
    assert (await heads.answer(of(project.repo))).commit == newest


async def test_a_named_branch_is_told_and_no_other_that_ends_like_it(project: Project, heads: Heads) -> None:
    git(project.repo, "branch", "v2")
    git(project.repo, "checkout", "-q", "-b", "refs/heads/v2")
    git(project.repo, "commit", "-q", "--allow-empty", "-m", "More")
    assert await heads.answer(of(project.repo, "v2")) == HeadReply(commit=project.base, branch="v2")
    assert await heads.answer(of(project.repo, "main")) == HeadReply(commit=project.base, branch="main")
    assert "has no branch v3 yet" in (await heads.answer(of(project.repo, "v3"))).refused


async def test_a_repository_where_no_branch_is_checked_out_still_has_a_commit(project: Project, heads: Heads) -> None:
    git(project.repo, "checkout", "-q", "--detach")
    assert await heads.answer(of(project.repo)) == HeadReply(commit=project.base)


async def test_an_empty_repository_is_told_in_words(tmp_path: Path, heads: Heads) -> None:
    git(tmp_path, "init", "-q", "empty")
    refused = (await heads.answer(of(tmp_path / "empty"))).refused
    assert "has no commit on its default branch yet: push one there" in refused


async def test_the_projects_credentials_open_the_repository_and_are_shown_nowhere(
    heads: Heads, git_server: GitServer, served: Path
) -> None:
    url = git_server.url("repo.git")
    assert (await heads.answer(of(url))).refused.startswith(f"asking {url} for its default branch: ")
    credentials = msgspec.json.encode(GitCredentials(kind="token", secret=TOKEN, username=USERNAME))
    sealed = seal(KEY.public, credentials, requests.test_context("r1", "git"))
    told = await heads.answer(of(url, sealed=sealed))
    assert told == HeadReply(commit=git(served / "repo.git", "rev-parse", "main"), branch="main")
    git_server.refusal = f"go away, {TOKEN}"
    refused = (await heads.answer(of(url, sealed=sealed))).refused
    assert refused and TOKEN not in refused


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"branch": "--upload-pack=x"}, "no name of a branch"),
        ({"branch": "a/../b"}, "no name of a branch"),
        ({"branch": "*"}, "no name of a branch"),
        ({"branch": "a\x1b[31m b"}, "no name of a branch"),
        ({"repo_url": "./x"}, "must be absolute"),
        ({"repo_url": "--upload-pack=touch x"}, "starts with a dash"),
        ({"repo_url": "ext::sh -c true"}, "would start a remote helper"),
        ({"repo_url": "/nowhere/at/all"}, "does not appear to be a git repository"),
        ({"repo_url": "https://127.0.0.1:1/x.git", "sealed": b"not for this one"}, "runner r1 can't open"),
    ],
)
async def test_what_can_not_be_told_is_answered_in_words(
    project: Project, heads: Heads, change: dict[str, object], words: str
) -> None:
    request = msgspec.structs.replace(of(project.repo), **change)
    assert words in (await heads.answer(request)).refused
