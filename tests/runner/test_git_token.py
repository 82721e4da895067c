"""A token reaches the server that it is for, and nothing and nobody else."""

from __future__ import annotations

import asyncio
import base64
import os
import stat
from collections.abc import Collection
from pathlib import Path

import psutil
import pytest

from services.runner.deliver import deliver, move_head, push_lease
from services.runner.git import GitFailed, run_git
from services.runner.git_access import GitAccess
from services.runner.git_threads import git_threads, in_thread
from services.runner.leftovers import commit_leftovers
from services.runner.mirror import Mirror, mirror_of
from services.runner.workspace import create_workspace
from shared.events import Head
from shared.requests import GitCredentials
from tests.runner.conftest import TOKEN, USERNAME
from tests.runner.git_server import GitServer, serving
from tests.runner.repositories import PLAN, PROJECT_ID, git


def token_for(url: str, private_dir: Path, token: str = TOKEN) -> GitAccess:
    return GitAccess(GitCredentials(kind="token", secret=token, username=USERNAME), url, private_dir)


@pytest.fixture
def url(git_server: GitServer) -> str:
    return git_server.url("repo.git")


@pytest.fixture
def mirror(tmp_path: Path, url: str, private_dir: Path) -> Mirror:
    return mirror_of(tmp_path / "data", url, PROJECT_ID, token_for(url, private_dir))


def main_of(served: Path) -> str:
    return git(served / "repo.git", "rev-parse", "main")


def test_a_whole_task_and_its_delivery_go_through_a_server_that_wants_a_token(
    tmp_path: Path, served: Path, mirror: Mirror
) -> None:
    base = main_of(served)
    mirror.ensure(PLAN, [base])
    workspace = create_workspace(tmp_path / "data", mirror, PLAN, "T1", 1, base)
    (workspace.code / "new.txt").write_text("new\n")
    commit = commit_leftovers(workspace, "a task").commit
    push_lease(workspace, commit)
    move_head(mirror, PLAN, "T1", commit)
    deliver(mirror, PLAN, base, [Head("T1", commit)])
    repo = served / "repo.git"
    assert git(repo, "rev-parse", f"refs/treadle/{PLAN}/T1/head") == commit
    assert git(repo, "show", f"treadle/{PLAN}:new.txt") == "new"


def test_without_credentials_the_server_lets_nobody_in(tmp_path: Path, served: Path, url: str) -> None:
    with pytest.raises(GitFailed, match="could not read Username"):
        mirror_of(tmp_path / "data", url, PROJECT_ID).ensure(PLAN, [main_of(served)])


def test_a_wrong_token_is_refused_without_being_shown(
    tmp_path: Path, served: Path, url: str, private_dir: Path
) -> None:
    access = token_for(url, private_dir, "tok-wrong-9876543210")
    with pytest.raises(GitFailed, match="Authentication failed") as refused:
        mirror_of(tmp_path / "data", url, PROJECT_ID, access).ensure(PLAN, [main_of(served)])
    assert "tok-wrong" not in str(refused.value) + repr(access)


@pytest.mark.parametrize("token", [None, "tok-wrong-9876543210"])
def test_what_one_projects_token_brought_is_not_there_for_another_project(
    tmp_path: Path, served: Path, url: str, mirror: Mirror, private_dir: Path, token: str | None
) -> None:
    base = main_of(served)
    mirror.ensure(PLAN, [base])
    access = token_for(url, private_dir, token) if token else None
    for project in ("0" * 24, ""):
        others = mirror_of(tmp_path / "data", url, project, access)
        assert others.path != mirror.path
        with pytest.raises(GitFailed, match=r"Authentication failed|could not read Username"):
            others.ensure("potherother23", [base])
    assert len(list(mirror.path.parent.glob("*.git/complete"))) == 1


def test_a_repository_on_this_machine_has_one_mirror_for_all_projects(tmp_path: Path) -> None:
    paths = {mirror_of(tmp_path, "/srv/a.git", project).path for project in ("", "0" * 24, PROJECT_ID)}
    assert len(paths) == 1


async def test_nobody_on_the_machine_sees_the_token_while_git_waits(
    git_server: GitServer, served: Path, mirror: Mirror
) -> None:
    git_server.goes_on.clear()
    commit = main_of(served)
    fetching = asyncio.create_task(in_thread(lambda: mirror.ensure(PLAN, [commit]), git_threads()))
    assert await asyncio.to_thread(git_server.asked.wait, 60)
    secrets = (TOKEN.encode(), base64.b64encode(f"{USERNAME}:{TOKEN}".encode()))
    children = {child.pid for child in psutil.Process().children(recursive=True)}
    assert any(b"git-remote-https" in readable(pid, children) for pid in children)
    for pid in psutil.pids():
        shown = readable(pid, children)
        assert not any(secret in shown for secret in secrets), pid
    git_server.goes_on.set()
    await fetching
    # The same look finds what is there to be found.
    assert any(header and header.encode().removeprefix(b"Basic ") in secrets for header in git_server.seen)


def readable(pid: int, children: Collection[int]) -> bytes:
    """What a process's neighbours can read of it: arguments, environment; of our children open files too."""
    found = b""
    for name in ("cmdline", "environ"):
        try:
            found += Path(f"/proc/{pid}/{name}").read_bytes()
        except OSError:
            continue  # gone, or the kernel's own
    if pid == os.getpid():
        return found
    try:
        numbers = list(Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return found
    for number in numbers if pid in children else ():
        try:
            if not stat.S_ISCHR(number.stat().st_mode):
                descriptor = os.open(number, os.O_RDONLY | os.O_NONBLOCK)
                with os.fdopen(descriptor, "rb") as file:
                    found += os.pread(file.fileno(), 65536, 0) if file.seekable() else os.read(file.fileno(), 65536)
        except OSError:
            continue  # a socket can't be opened this way: that is the point
    return found


def test_a_token_in_a_file_or_a_pipe_would_have_been_seen(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.write(write, TOKEN.encode())
    with psutil.Popen(["sleep", "30"], pass_fds=[read]) as child:
        assert TOKEN.encode() in readable(child.pid, [child.pid])
        child.kill()
    os.close(read)
    os.close(write)


def test_a_redirect_takes_the_token_to_no_other_host(
    tmp_path: Path, served: Path, certificate: Path, git_server: GitServer, mirror: Mirror
) -> None:
    with serving(served, certificate, USERNAME, TOKEN) as other:
        git_server.redirect_to = other.url("").rstrip("/")
        with pytest.raises(GitFailed):
            mirror.ensure(PLAN, [main_of(served)])
        assert other.seen == []


def test_without_credentials_a_redirect_leads_to_no_other_host(
    served: Path, certificate: Path, git_server: GitServer, url: str
) -> None:
    with serving(served, certificate, USERNAME, TOKEN) as other:
        git_server.redirect_to = other.url("").rstrip("/")
        with pytest.raises(GitFailed):
            run_git("ls-remote", "--quiet", "--", url, doing="asking", as_operator=True)
        assert git_server.seen
        assert other.seen == []


def test_the_token_is_given_once_and_for_its_own_host_only(url: str, private_dir: Path) -> None:
    host = url.removeprefix("https://").partition("/")[0]
    access = token_for(url, private_dir)

    def fill(protocol: str, of_host: str) -> bytes:
        asked = f"protocol={protocol}\nhost={of_host}\n\n".encode()
        given = ("credential", "fill")
        return run_git(*given, doing="asking", stdin=asked, as_operator=True, access=access, statuses=(0, 128)).out

    # Redacted where git prints it, which shows that it came.
    assert b"password=[token]" in fill("https", host)
    for protocol, of_host in (("https", "127.0.0.1"), ("http", host), ("https", f"evil.{host}"), ("https", "")):
        assert b"password" not in fill(protocol, of_host)


def test_the_operators_own_git_settings_neither_get_the_token_nor_help(
    tmp_path: Path, served: Path, url: str, mirror: Mirror, private_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / ".gitconfig").write_text(f'[credential]\n\thelper = store\n[credential "{url}"]\n\thelper = store\n')
    monkeypatch.setenv("HOME", str(home))
    mirror.ensure(PLAN, [main_of(served)])
    assert not (home / ".git-credentials").exists()
    # What the operator may reach is none of the project's business.
    host = url.removeprefix("https://").partition("/")[0]
    (home / ".git-credentials").write_text(f"https://{USERNAME}:{TOKEN}@{host}\n")
    assert mirror_of(tmp_path / "operators", url, PROJECT_ID).remote_tip("refs/heads/main")
    with pytest.raises(GitFailed, match="Authentication failed"):
        mirror_of(tmp_path / "projects", url, PROJECT_ID, token_for(url, private_dir, "wrong")).remote_tip(
            "refs/heads/main"
        )


def test_a_server_that_repeats_the_token_does_not_bring_it_into_a_message(
    git_server: GitServer, mirror: Mirror
) -> None:
    basic = git_server.expected.removeprefix("Basic ")
    git_server.refusal = f"no entry with {TOKEN} or {basic}"
    with pytest.raises(GitFailed, match=r"no entry with \[token\] or \[token\]"):
        mirror.remote_refs("refs/heads/*")


@pytest.mark.parametrize(
    ("kind", "secret", "address", "words"),
    [
        ("token", "tok\nhost=evil.example", "https://127.0.0.1/r.git", "control characters"),
        ("token", "t" * 20_000, "https://127.0.0.1/r.git", "too long"),
        ("token", TOKEN, "git@127.0.0.1:r.git", "for https only"),
        ("deploy_key", TOKEN, "https://127.0.0.1/r.git", "for ssh only"),
    ],
)
def test_credentials_that_can_not_work_are_refused_in_words(
    kind: str, secret: str, address: str, words: str, private_dir: Path
) -> None:
    credentials = GitCredentials(kind="token" if kind == "token" else "deploy_key", secret=secret)
    access = GitAccess(credentials, address, private_dir)
    with pytest.raises(GitFailed, match=words) as refused:
        run_git("ls-remote", "--", address, doing="asking", as_operator=True, access=access)
    assert secret not in str(refused.value)
    assert list(private_dir.iterdir()) == []
