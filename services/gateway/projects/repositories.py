"""A project's repositories: which they are, and the credentials that a runner's git reaches them with."""

import asyncio
import re
from binascii import Error as NotBase64
from binascii import a2b_base64
from typing import Annotated, Literal

import msgspec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key

from services.gateway.database.tables import Project
from services.gateway.problems import ProblemError, bad_request
from shared.requests import GitCredentials

SECRET_MAX_CHARS = 16 * 1024
KNOWN_HOSTS_MAX_CHARS = 64 * 1024
RSA_MAX_BITS = 4096
_KEY_TYPES = frozenset({b"ssh-ed25519", b"ecdsa-sha2-nistp256", b"ecdsa-sha2-nistp384", b"ecdsa-sha2-nistp521"})
_RSA = b"ssh-rsa"
_CONTAINER = re.compile(
    r"-----BEGIN OPENSSH PRIVATE KEY-----\n([A-Za-z0-9+/=\n]+)\n-----END OPENSSH PRIVATE KEY-----\n"
)
_MAGIC = b"openssh-key-v1\0"


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


async def checked(new: NewGitCredentials) -> GitCredentials:
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
        kind="deploy_key", secret=await _checked_key(secret), username=new.username, known_hosts=known_hosts
    )


async def _checked_key(secret: str) -> str:
    text = secret.replace("\r\n", "\n") + "\n"
    _check_size(text)
    try:
        await asyncio.to_thread(load_ssh_private_key, text.encode(), password=None)
    except Exception:  # noqa: BLE001 - whatever it is, its text might show a part of the key
        raise _bad_key() from None
    return text


def _check_size(text: str) -> None:
    """Looks into OpenSSH's container (its PROTOCOL.key), before anything is computed with numbers of any size."""
    written = _CONTAINER.fullmatch(text)
    try:
        rest = a2b_base64(written[1]) if written else b""
        if not rest.startswith(_MAGIC):
            raise _bad_key()
        cipher, _, _, rest = _taken(rest.removeprefix(_MAGIC), 3)
        public, private, _ = _taken(rest[4:], 2)
        key_type, numbers = _taken(public, 1)
        if cipher != b"none" or rest[:4] != b"\0\0\0\1" or key_type not in {_RSA, *_KEY_TYPES}:
            raise _bad_key()
        if key_type == _RSA:
            own_type, *six, _ = _taken(private[8:], 7)
            if own_type != _RSA:
                raise _bad_key()
            for number in (*_taken(numbers, 2)[:2], *six):
                if int.from_bytes(number, "big").bit_length() > RSA_MAX_BITS:
                    raise _large_key()
    except (NotBase64, IndexError):
        raise _bad_key() from None


def _taken(data: bytes, count: int) -> list[bytes]:
    """So many strings from the beginning, each behind its length, and what is left. Raises IndexError."""
    strings = []
    for _ in range(count):
        end = 4 + int.from_bytes(data[:4], "big")
        if len(data) < max(end, 4):
            raise IndexError(end)
        strings.append(data[4:end])
        data = data[end:]
    return [*strings, data]


def _large_key() -> ProblemError:
    return bad_request(
        "secret", f"an RSA key has at most {RSA_MAX_BITS} bits: make one with `ssh-keygen -t ed25519 -N ''`"
    )


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
