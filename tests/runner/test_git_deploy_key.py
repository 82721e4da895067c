"""A deploy key reaches ssh and nobody else, and ssh trusts nothing but what the project says."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from services.runner.git import GitFailed
from services.runner.git_access import GitAccess
from services.runner.mirror import mirror_of
from shared.requests import GitCredentials
from tests.runner.repositories import PLAN, PROJECT_ID, git

SSHD = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
USER = pwd.getpwuid(os.getuid()).pw_name
"""Whatever the environment says."""
needs_sshd = pytest.mark.skipif(SSHD is None, reason="there is no sshd on this machine")


@dataclass(frozen=True)
class Keys:
    """A deploy key, and a server's host key."""

    private: str
    public: str
    host_key: Path
    host_public: str


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    def make(name: str) -> Path:
        path = tmp_path / name
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "canary", "-f", path], check=True)
        return path

    deploy, host = make("deploy"), make("host")
    public = [path.with_suffix(".pub").read_text().rsplit(" ", 1)[0] for path in (deploy, host)]
    return Keys(deploy.read_text(), public[0], host, public[1])


@pytest.fixture
def ssh_port(tmp_path: Path, keys: Keys, unused_tcp_port: int) -> Iterator[int]:
    """A real sshd that takes the deploy key."""
    authorized, config = tmp_path / "authorized", tmp_path / "sshd_config"
    authorized.write_text(f"{keys.public}\n")
    config.write_text(
        f"ListenAddress 127.0.0.1\nPort {unused_tcp_port}\nHostKey {keys.host_key}\nAuthorizedKeysFile {authorized}\n"
        "StrictModes no\nUsePAM no\nPidFile none\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
        "PermitRootLogin yes\n"
    )
    log = tmp_path / "sshd.log"
    with log.open("wb") as file, subprocess.Popen([str(SSHD), "-D", "-e", "-f", config], stderr=file) as server:
        try:
            deadline = time.monotonic() + 60
            while not _answers(unused_tcp_port):
                if server.poll() is not None:
                    pytest.skip(f"this machine's sshd does not start for us: {log.read_text()}")
                assert time.monotonic() < deadline, log.read_text()
            yield unused_tcp_port
        finally:
            server.terminate()


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 0.2).close()
    except OSError:
        return False
    return True


def key_for(url: str, private_dir: Path, secret: str, known_hosts: str) -> GitAccess:
    credentials = GitCredentials(kind="deploy_key", secret=secret, known_hosts=known_hosts)
    return GitAccess(credentials, url, private_dir)


@needs_sshd
def test_a_real_server_takes_the_key(
    tmp_path: Path, served: Path, ssh_port: int, keys: Keys, private_dir: Path
) -> None:
    url = f"ssh://{USER}@127.0.0.1:{ssh_port}{served}/repo.git"
    known_hosts = f"[127.0.0.1]:{ssh_port} {keys.host_public}"
    mirror = mirror_of(
        tmp_path / "data", url, PROJECT_ID, key_for(url, private_dir, keys.private.replace("\n", "\r\n"), known_hosts)
    )
    main = git(served / "repo.git", "rev-parse", "main")
    mirror.ensure(PLAN, [main])
    mirror.push(mirror.path, f"+{main}:refs/treadle/{PLAN}/T1/1")
    assert mirror.remote_tip(f"refs/treadle/{PLAN}/T1/1") == main
    assert list(private_dir.iterdir()) == []


@needs_sshd
@pytest.mark.parametrize("known", ["", "[127.0.0.1]:{port} {other}"])
def test_a_host_that_the_project_does_not_know_is_refused(
    tmp_path: Path, served: Path, ssh_port: int, keys: Keys, private_dir: Path, known: str
) -> None:
    url = f"ssh://{USER}@127.0.0.1:{ssh_port}{served}/repo.git"
    access = key_for(url, private_dir, keys.private, known.format(port=ssh_port, other=keys.public))
    with pytest.raises(GitFailed, match="host key verification failed"):
        mirror_of(tmp_path / "data", url, PROJECT_ID, access).remote_refs("refs/heads/*")
    assert list(private_dir.iterdir()) == []


@needs_sshd
def test_another_key_is_refused_though_the_machine_has_keys_of_its_own(
    tmp_path: Path, served: Path, ssh_port: int, keys: Keys, private_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"ssh://{USER}@127.0.0.1:{ssh_port}{served}/repo.git"
    own = f"ssh -F /dev/null -oStrictHostKeyChecking=no -oUserKnownHostsFile=/dev/null -i {tmp_path / 'deploy'}"
    monkeypatch.setenv("GIT_SSH_COMMAND", own)
    assert mirror_of(tmp_path / "operators", url, PROJECT_ID).remote_tip("refs/heads/main")
    access = key_for(url, private_dir, keys.host_key.read_text(), f"[127.0.0.1]:{ssh_port} {keys.host_public}")
    with pytest.raises(GitFailed, match="Permission denied"):
        mirror_of(tmp_path / "data", url, PROJECT_ID, access).remote_refs("refs/heads/*")


SSH = """#!/bin/sh
# Notes how it was called and what it could read; then does what a server would have done.
printf '%s\\n' "$@" > {notes}/args
env > {notes}/env
while [ $# -gt 1 ]; do
    case $1 in
        -i) cp "$2" {notes}/key; stat -c %a "$2" "$(dirname "$2")" > {notes}/modes; shift ;;
        -oUserKnownHostsFile=*) f=${{1#*=}}; f=${{f#\\"}}; cp "${{f%\\"}}" {notes}/known_hosts ;;
    esac
    shift
done
eval "$1"
"""


@pytest.fixture
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a stand-in for ssh notes."""
    directory, programs = tmp_path / "notes", tmp_path / "bin"
    directory.mkdir()
    programs.mkdir()
    (programs / "ssh").write_text(SSH.format(notes=directory))
    (programs / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "agent"))
    return directory


def test_ssh_gets_the_key_in_a_private_file_that_is_gone_afterwards(
    tmp_path: Path, served: Path, notes: Path, keys: Keys
) -> None:
    private_dir = tmp_path / "a private 100% directory"
    private_dir.mkdir(mode=0o700)
    url = f"git@host.example:{served}/repo.git"
    access = key_for(url, private_dir, keys.private, "host.example ssh-ed25519 AAAA\r\n")
    assert mirror_of(tmp_path / "data", url, PROJECT_ID, access).remote_tip("refs/heads/main")
    told = (notes / "args").read_text().splitlines()
    assert told[:3] == ["-F", "/dev/null", "-i"]
    assert "100%% directory" in told[3]  # ssh expands what begins with a percent sign
    assert {
        "-oIdentitiesOnly=yes",
        "-oIdentityAgent=none",
        "-oBatchMode=yes",
        "-oStrictHostKeyChecking=yes",
        "-oGlobalKnownHostsFile=/dev/null",
    } <= set(told)
    body = keys.private.splitlines()[1]
    assert body not in (notes / "args").read_text() + (notes / "env").read_text()
    assert "SSH_AUTH_SOCK" not in (notes / "env").read_text()
    assert list(private_dir.iterdir()) == []


def test_the_key_file_is_for_its_owner_only(
    tmp_path: Path, served: Path, notes: Path, keys: Keys, private_dir: Path
) -> None:
    url = f"git@host.example:{served}/repo.git"
    access = key_for(url, private_dir, keys.private.strip(), "host.example ssh-ed25519 AAAA\r\n")
    assert mirror_of(tmp_path / "data", url, PROJECT_ID, access).remote_tip("refs/heads/main")
    assert (notes / "modes").read_text().split() == ["600", "700"]
    assert (notes / "key").read_text() == keys.private
    assert (notes / "known_hosts").read_text() == "host.example ssh-ed25519 AAAA\n"


def test_a_failing_ssh_leaves_no_key_behind(tmp_path: Path, notes: Path, keys: Keys, private_dir: Path) -> None:
    url = f"git@host.example:{tmp_path}/nowhere.git"
    with pytest.raises(GitFailed, match="does not appear to be a git repository"):
        mirror_of(tmp_path / "data", url, PROJECT_ID, key_for(url, private_dir, keys.private, "")).remote_refs(
            "refs/heads/*"
        )
    assert list(private_dir.iterdir()) == []
