"""Git credentials stay where they are sent to, and a key takes no gateway's time."""

from __future__ import annotations

import base64
from collections.abc import Callable
from functools import partial
from time import process_time

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from services.gateway.credentials.origins import origin
from services.gateway.problems import ProblemError
from services.gateway.projects.repositories import NewGitCredentials, checked
from tests.gateway.answers import assert_problem
from tests.gateway.gateway_process import GatewayProcess
from tests.gateway.plans import made
from tests.gateway.plans.made import ok

KNOWN_HOSTS = "git.example.com ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEabcdefghij"
TOKEN = {"kind": "token", "secret": "ghp_0123456789abcdefghijklmnopWXYZ"}
HOME = "https://git.example.com/a/b.git"

Key = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


def written(key: Key) -> str:
    return key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()).decode()


def deploy_key(secret: str) -> NewGitCredentials:
    return NewGitCredentials(kind="deploy_key", secret=secret, known_hosts=KNOWN_HOSTS)


def container(*strings: bytes, private: tuple[bytes, ...]) -> str:
    """OpenSSH's container of a key that nobody has to compute first."""

    def joined(*parts: bytes) -> bytes:
        return b"".join(len(part).to_bytes(4, "big") + part for part in parts)

    body = b"openssh-key-v1\0" + joined(b"none", b"none", b"") + b"\0\0\0\1" + joined(joined(*strings))
    body += joined(b"12341234" + joined(*private))
    text = base64.encodebytes(body).decode()
    return f"-----BEGIN OPENSSH PRIVATE KEY-----\n{text}-----END OPENSSH PRIVATE KEY-----\n"


@pytest.mark.parametrize(
    "make",
    [
        ed25519.Ed25519PrivateKey.generate,
        partial(ec.generate_private_key, ec.SECP256R1()),
        partial(ec.generate_private_key, ec.SECP521R1()),
        partial(rsa.generate_private_key, 65537, 2048),
    ],
    ids=["ed25519", "p256", "p521", "rsa"],
)
async def test_usual_keys_are_taken(make: Callable[[], Key]) -> None:
    key = written(make())
    assert (await checked(deploy_key(key))).secret == key


NUMBER = b"\x7f" + b"\xff" * 1791
SMALL = b"\x7f" + b"\xff" * 255
HUGE = container(b"ssh-rsa", b"\3", NUMBER, private=(b"ssh-rsa", NUMBER, b"\3", NUMBER, *[NUMBER[:896]] * 3))
HIDDEN = container(b"ssh-rsa", b"\3", SMALL, private=(b"ssh-rsa", SMALL, b"\3", SMALL, SMALL, NUMBER, NUMBER))


@pytest.mark.parametrize("secret", [HUGE, HIDDEN], ids=["modulus", "prime"])
async def test_a_key_of_huge_numbers_is_refused_before_anything_is_computed(secret: str) -> None:
    since = process_time()
    with pytest.raises(ProblemError, match="4096 bits"):
        await checked(deploy_key(secret))
    assert process_time() - since < 10


@pytest.mark.parametrize(
    "secret",
    [
        HUGE[:-200] + "\n-----END OPENSSH PRIVATE KEY-----\n",
        HUGE.replace("\n", "", 3),
        container(b"ssh-rsa", b"\3", SMALL, private=(b"ssh-ed25519", SMALL, b"\3", SMALL, SMALL, NUMBER, NUMBER)),
        container(b"ssh-rsa", private=(b"ssh-rsa",)),
        container(b"sk-ssh-ed25519@openssh.com", SMALL, private=(b"sk-ssh-ed25519@openssh.com",)),
        container(b"ssh-dss", *[SMALL] * 4, private=(b"ssh-dss", *[SMALL] * 5)),
    ],
    ids=["cut", "one line", "two types", "no numbers", "hardware", "dsa"],
)
async def test_what_is_no_key_for_git_is_refused_in_words(secret: str) -> None:
    with pytest.raises(ProblemError, match="ssh-keygen -t ed25519"):
        await checked(deploy_key(secret))


async def test_credentials_do_not_follow_a_project_to_another_place(gateway: GatewayProcess) -> None:
    async with gateway.as_user("ann") as ann, gateway.as_admin() as admin:
        path = f"/api/projects/{await made.project(ann, code_repo_url=HOME)}"
        await ok(ann.put(f"{path}/git-credentials", json=TOKEN), 204)
        before = await ok(ann.get(path))
        for client in (ann, admin):
            for field in ("code_repo_url", "collab_repo_url"):
                for url in (
                    "https://evil.example.com/a/b.git",
                    "https://git.example.com:8443/a/b.git",
                    "ssh://git@git.example.com/a/b.git",
                    "git@git.example.com:a/b.git",
                ):
                    refused = await client.patch(path, json={field: url, "name": "Other"})
                    assert_problem(refused, 409, "would_clear_credentials")
        assert await ok(ann.get(path)) == before
        near = {"code_repo_url": "https://git.example.com:443/c/d.git", "collab_repo_url": HOME}
        assert (await ok(ann.patch(path, json=near)))["has_git_credentials"] is True
        assert (await ok(ann.patch(path, json={"clear_credentials": True})))["has_git_credentials"] is True
        away = {"code_repo_url": "git@other.example.com:c/d.git", "clear_credentials": True}
        gone = await ok(ann.patch(path, json=away))
        assert (gone["has_git_credentials"], gone["code_repo_url"]) == (False, away["code_repo_url"])
        assert await ok(ann.patch(path, json={"code_repo_url": HOME}))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("https://h.example.com/a", "https://H.example.com.:443/b"),
        ("git@h.example.com:a/b", "ssh://me@h.example.com:22/c"),
        ("git@[2001:db8::1]:a/b", "ssh://[2001:DB8::1]/c"),
        ("/srv/a", "./b"),
    ],
)
def test_one_place_has_many_addresses(one: str, other: str) -> None:
    assert origin(one) == origin(other)
