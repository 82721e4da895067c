"""What is sealed opens for one key and one purpose only."""

from __future__ import annotations

import base64

import pytest

from shared.requests import AgentCredentials, GitCredentials, lease_context
from shared.requests import test_context as context_of_test
from shared.sealed import NotForUs, SealKey, seal

CONTEXT = b"for this"
MESSAGE = b"sk-canary-0123456789"


def test_what_was_sealed_to_a_key_opens_with_it() -> None:
    key = SealKey()
    for message in (MESSAGE, b"", b"x" * 100_000):
        assert key.open(seal(key.public, message, CONTEXT), CONTEXT) == message


def test_two_sealings_of_one_message_have_nothing_in_common() -> None:
    key = SealKey()
    first, second = (seal(key.public, MESSAGE, CONTEXT) for _ in range(2))
    assert first[:32] != second[:32] and first[32:] != second[32:]
    assert MESSAGE not in first


def test_another_key_opens_nothing() -> None:
    sealed = seal(SealKey().public, MESSAGE, CONTEXT)
    with pytest.raises(NotForUs):
        SealKey().open(sealed, CONTEXT)


def test_what_was_sealed_for_one_lease_is_no_good_for_another() -> None:
    key, plan = SealKey(), "pabcdefghij23"
    contexts = [
        lease_context(plan, "T1", 1, "agent"),
        lease_context(plan, "T1", 2, "agent"),
        lease_context(plan, "T2", 1, "agent"),
        lease_context(plan, "T1", 1, "git"),
        context_of_test("r1", "agent"),
        context_of_test("r1", "git"),
        context_of_test("r2", "agent"),
    ]
    assert len(set(contexts)) == len(contexts)
    for sealed_for in contexts:
        sealed = seal(key.public, MESSAGE, sealed_for)
        for context in contexts:
            if context == sealed_for:
                assert key.open(sealed, context) == MESSAGE
            else:
                with pytest.raises(NotForUs):
                    key.open(sealed, context)


def test_a_change_of_any_byte_is_noticed() -> None:
    key = SealKey()
    sealed = seal(key.public, MESSAGE, CONTEXT)
    for place in range(len(sealed)):
        changed = bytearray(sealed)
        changed[place] ^= 1
        with pytest.raises(NotForUs):
            key.open(bytes(changed), CONTEXT)


@pytest.mark.parametrize("length", [0, 1, 31, 32, 47])
def test_a_message_that_was_cut_short_is_noticed(length: int) -> None:
    key = SealKey()
    with pytest.raises(NotForUs):
        key.open(seal(key.public, MESSAGE, CONTEXT)[:length], CONTEXT)


def test_a_sender_whose_key_fixes_the_secret_is_refused() -> None:
    # All-zero public keys give an all-zero shared secret, whoever the recipient is.
    with pytest.raises(NotForUs):
        SealKey().open(bytes(32) + bytes(16), CONTEXT)


@pytest.mark.parametrize("public", ["", "no key", "ü", *(base64.b64encode(b"x" * n).decode() for n in (31, 33))])
def test_what_is_no_public_key_is_refused(public: str) -> None:
    with pytest.raises(ValueError, match="no public key"):
        seal(public, MESSAGE, CONTEXT)


def test_a_public_key_that_fixes_the_secret_is_refused() -> None:
    with pytest.raises(ValueError):
        seal(base64.urlsafe_b64encode(bytes(32)).decode(), MESSAGE, CONTEXT)


def test_the_private_half_shows_nowhere() -> None:
    key = SealKey()
    assert repr(key) == f"SealKey({key.public})"


def test_credentials_do_not_show_their_secret() -> None:
    agent = AgentCredentials(api_key="sk-canary", base_url="https://example.com")
    git = GitCredentials(kind="token", secret="tok-canary")
    assert "canary" not in repr((agent, git)) + str(agent) + f"{git}"
