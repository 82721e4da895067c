"""A project's repositories: which they are, and the credentials that a runner's git reaches them with."""

from typing import Annotated, Literal

import msgspec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key

from services.gateway.database.tables import Project
from services.gateway.problems import ProblemError, bad_request
from shared.requests import GitCredentials

SECRET_MAX_CHARS = 16 * 1024
KNOWN_HOSTS_MAX_CHARS = 64 * 1024


class NewGitCredentials(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a project's repositories are reached with. It is stored encrypted, and never shown."""

    kind: Literal["token", "deploy_key"]
    secret: Annotated[str, msgspec.Meta(min_length=1, max_length=SECRET_MAX_CHARS)]
    """The token, or the private key in OpenSSH's form, without a passphrase."""
    username: Annotated[str, msgspec.Meta(min_length=1, max_length=255)] = "git"
    """With a token over https; hosts that want none take any."""
    known_hosts: Annotated[str, msgspec.Meta(max_length=KNOWN_HOSTS_MAX_CHARS)] = ""
    """Lines of OpenSSH's known_hosts, such as `ssh-keyscan` prints: a deploy key is shown to these hosts only."""

    def __repr__(self) -> str:
        return f"NewGitCredentials({self.kind!r}, …)"


def repo_urls(project: Project) -> tuple[str, ...]:
    """The project's repositories, each once."""
    urls = (project.code_repo_url, project.collab_repo_url)
    return tuple(dict.fromkeys(url for url in urls if url is not None))


def checked(new: NewGitCredentials) -> GitCredentials:
    """The credentials as they are stored. Raises `ProblemError` 400, which never shows a part of the secret."""
    if not new.username.isascii() or not new.username.isprintable() or set(new.username) & set(" :@/"):
        raise bad_request("username", "a user name has printable ASCII characters, without blanks, `:`, `@` and `/`")
    secret = new.secret.strip()
    if new.kind == "token":
        if not secret or not secret.isascii() or not secret.isprintable() or " " in secret:
            raise bad_request("secret", "a token has only printable ASCII characters and no blanks: copy it again")
        return GitCredentials(kind="token", secret=secret, username=new.username)
    known_hosts = _checked_known_hosts(new.known_hosts)
    return GitCredentials(
        kind="deploy_key", secret=_checked_key(secret), username=new.username, known_hosts=known_hosts
    )


def _checked_key(secret: str) -> str:
    text = secret.replace("\r\n", "\n") + "\n"
    try:
        load_ssh_private_key(text.encode(), password=None)
    except Exception:  # noqa: BLE001 - whatever it is, its text might show a part of the key
        raise _bad_key() from None
    return text


def _bad_key() -> ProblemError:
    return bad_request(
        "secret",
        "a deploy key is a private key in OpenSSH's form without a passphrase, from its BEGIN to its END line: "
        "make one with `ssh-keygen -t ed25519 -N ''`",
    )


def _checked_known_hosts(text: str) -> str:
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    if not lines:
        raise bad_request("known_hosts", "a deploy key needs it: the lines that `ssh-keyscan <host>` prints")
    for line in lines:
        if not line.isprintable() or len(line.split()) < 3:
            raise bad_request("known_hosts", "a line of known_hosts is a host, a key's type and the key")
    return "\n".join(lines) + "\n"
