"""A project's credentials for one repository, and how git gets them: never in an argument or an environment.

A token waits in a socket that git's credential helper inherits (`credential_helper.py`). A deploy key has to be a file,
since ssh reads nothing else: in a private directory, for as long as the one command runs.
"""

from __future__ import annotations

import base64
import shlex
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from services.runner import credential_helper
from services.runner.git import GitFailed, Presented, masked, printable
from shared.requests import GitCredentials

TOKEN_MAX_BYTES = 16 * 1024
"""Much less than a socket's buffer, which holds the answer until git asks."""

SSH_CONNECT_TIMEOUT_S = 30


@dataclass(frozen=True)
class GitAccess:
    """Credentials that are good for this one repository's host only."""

    credentials: GitCredentials
    repo_url: str
    private_dir: Path
    """Of the runner alone, mode 0700; exists."""

    @contextmanager
    def presented(self) -> Iterator[Presented]:
        """See `services.runner.git.Access`. Raises `GitFailed` for credentials that do not fit the address."""
        is_https = self.repo_url.startswith("https://")
        shown = printable(masked(self.repo_url))
        if self.credentials.kind == "token":
            if not is_https:
                words = "the project's git credentials are a token, which is for https only: "
                raise GitFailed(f"{words}write the https address of {shown}, or give the project a deploy key")
            with self._token() as presented:
                yield presented
        else:
            if is_https:
                words = "the project's git credentials are a deploy key, which is for ssh only: "
                raise GitFailed(f"{words}write the ssh address of {shown}, or give the project a token")
            with self._deploy_key() as presented:
                yield presented

    def redacted(self, output: bytes) -> bytes:
        """See `services.runner.git.Access`."""
        if self.credentials.kind != "token":
            return output
        secret = self.credentials.secret.strip().encode()
        basic = base64.b64encode(self.credentials.username.encode() + b":" + secret)
        for word in filter(None, (basic, secret)):
            output = output.replace(word, b"[token]")
        return output

    @contextmanager
    def _token(self) -> Iterator[Presented]:
        username, token = self.credentials.username, self.credentials.secret.strip()
        answer = f"username={username}\npassword={token}\n".encode()
        if not (username + token).isprintable() or len(answer) > TOKEN_MAX_BYTES:
            words = "has control characters in it" if len(answer) <= TOKEN_MAX_BYTES else "is too long"
            raise GitFailed(f"the project's git token {words}: store it again")
        address = urlsplit(self.repo_url)
        ours, gits = socket.socketpair()
        with ours, gits:
            ours.sendall(answer)
            ours.shutdown(socket.SHUT_WR)
            helper = [sys.executable, "-I", "-S", credential_helper.__file__]
            helper += [str(gits.fileno()), address.scheme, address.netloc.lower()]
            config = (
                ("credential.helper", ""),  # forgets all others, which would be told the token to keep it
                ("credential.helper", f"!{shlex.join(helper)}"),
                ("http.sslVerify", "true"),
            )
            yield Presented(config=config, pass_fds=(gits.fileno(),))

    @contextmanager
    def _deploy_key(self) -> Iterator[Presented]:
        directory = Path(tempfile.mkdtemp(dir=self.private_dir))  # it makes them 0700
        try:
            key, known_hosts = directory / "key", directory / "known_hosts"
            key.touch(mode=0o600)
            key.write_text(_lines(self.credentials.secret))
            known_hosts.write_text(_lines(self.credentials.known_hosts))
            yield Presented(env={"GIT_SSH_COMMAND": _ssh(key, known_hosts), "GIT_SSH_VARIANT": "ssh"})
        finally:
            shutil.rmtree(directory)


def _lines(text: str) -> str:
    """As OpenSSH reads it: no carriage returns, and a last line that ends."""
    return text.replace("\r\n", "\n").strip() + "\n"


def _ssh(key: Path, known_hosts: Path) -> str:
    """The ssh command: this key, these hosts, and nothing that the machine's own user has."""
    options = {
        "IdentitiesOnly": "yes",
        "IdentityAgent": "none",
        "PreferredAuthentications": "publickey",
        "BatchMode": "yes",
        "StrictHostKeyChecking": "yes",
        "UserKnownHostsFile": f'"{_unexpanded(known_hosts)}"',
        "GlobalKnownHostsFile": "/dev/null",
        "UpdateHostKeys": "no",
        "ConnectTimeout": str(SSH_CONNECT_TIMEOUT_S),
    }
    pairs = (f"-o{name}={value}" for name, value in options.items())
    return shlex.join(["ssh", "-F", "/dev/null", "-i", _unexpanded(key), *pairs])


def _unexpanded(path: Path) -> str:
    """A path that ssh takes as it is: it replaces words that begin with a percent sign."""
    return str(path).replace("%", "%%")
