"""What the keyring encrypts opens for its holder alone, and the file may change under a running gateway."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from services.gateway.credentials.keyring import CredentialUnreadable, Keyring
from tests.gateway.credentials.keyring_file import key, write_keyring

SECRET = b"sk-canary-0123456789abcdef"


def ring(current: str, keys: Mapping[str, object], **more: object) -> str:
    """A file's content."""
    return json.dumps({"current": current, "keys": keys, **more})


def test_what_was_encrypted_opens_for_its_holder(keyring: Keyring) -> None:
    key_id, sealed = keyring.encrypt("agent", "holder-1", SECRET)
    assert key_id == "k1"
    assert SECRET not in sealed
    assert keyring.decrypt("agent", "holder-1", key_id, sealed) == SECRET


def test_the_same_secret_is_encrypted_differently_each_time(keyring: Keyring) -> None:
    sealed = {keyring.encrypt("agent", "holder-1", SECRET)[1] for _ in range(100)}
    assert len({s[:12] for s in sealed}) == 100


@pytest.mark.parametrize(
    ("kind", "holder"),
    [("agent", "holder-2"), ("git", "holder-1"), ("agen", "tholder-1"), ('agent","holder-1', ""), ("agent", "")],
)
def test_another_holders_ciphertext_is_not_opened(keyring: Keyring, kind: str, holder: str) -> None:
    key_id, sealed = keyring.encrypt("agent", "holder-1", SECRET)
    with pytest.raises(CredentialUnreadable, match="changed or belongs to something else"):
        keyring.decrypt(kind, holder, key_id, sealed)


def test_every_changed_byte_is_noticed(keyring: Keyring) -> None:
    key_id, sealed = keyring.encrypt("agent", "holder-1", SECRET)
    for place in range(len(sealed)):
        changed = bytearray(sealed)
        changed[place] ^= 1
        with pytest.raises(CredentialUnreadable):
            keyring.decrypt("agent", "holder-1", key_id, bytes(changed))


@pytest.mark.parametrize("length", [0, 1, 11, 12, 13, 27])
def test_a_shortened_ciphertext_is_not_opened(keyring: Keyring, length: int) -> None:
    key_id, sealed = keyring.encrypt("agent", "holder-1", SECRET)
    with pytest.raises(CredentialUnreadable):
        keyring.decrypt("agent", "holder-1", key_id, sealed[:length])


def test_a_key_of_another_id_does_not_stand_in_even_with_the_same_bytes(keyring_file: Path) -> None:
    keyring_file.write_text(json.dumps({"current": "k1", "keys": {"k1": key("k1"), "twin": key("k1")}}))
    keyring = Keyring(keyring_file)
    _, sealed = keyring.encrypt("agent", "holder-1", SECRET)
    with pytest.raises(CredentialUnreadable):
        keyring.decrypt("agent", "holder-1", "twin", sealed)


def test_a_missing_key_is_named_with_its_holder(keyring: Keyring) -> None:
    with pytest.raises(CredentialUnreadable, match=r"holder-1 is encrypted with key 'k9'.*put that key back"):
        keyring.decrypt("agent", "holder-1", "k9", bytes(40))


def test_a_rotated_file_is_taken_up_without_a_restart(keyring: Keyring, keyring_file: Path) -> None:
    old_id, old = keyring.encrypt("agent", "holder-1", SECRET)
    write_keyring(keyring_file, "k2", "k1")
    new_id, new = keyring.encrypt("agent", "holder-1", SECRET)
    assert (old_id, new_id) == ("k1", "k2")
    assert keyring.key_ids == ("k1", "k2")
    assert keyring.decrypt("agent", "holder-1", old_id, old) == keyring.decrypt("agent", "holder-1", new_id, new)


def test_a_key_that_another_gateway_used_first_is_looked_for_in_the_file(keyring_file: Path) -> None:
    slow = Keyring(keyring_file)
    write_keyring(keyring_file, "k2", "k1")
    sealed = Keyring(keyring_file).encrypt("agent", "holder-1", SECRET)
    assert slow.decrypt("agent", "holder-1", *sealed) == SECRET


def test_a_file_that_breaks_leaves_the_keys_of_before_in_use(
    keyring: Keyring, keyring_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sealed = keyring.encrypt("agent", "holder-1", SECRET)
    keyring_file.write_text(key("k1")[:20])
    assert keyring.decrypt("agent", "holder-1", *sealed) == SECRET
    assert "the keys of before stay in use" in caplog.text
    assert key("k1")[:8] not in caplog.text
    keyring_file.unlink()
    assert keyring.decrypt("agent", "holder-1", *sealed) == SECRET
    write_keyring(keyring_file, "k2", "k1")
    assert keyring.current == "k2"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "is no keyring"),
        ("{}", "is no keyring"),
        (ring("k1", {}), "holds no such key"),
        (ring("k2", {"k1": key("k1")}), "holds no such key"),
        (ring("k1", {"k1": base64.b64encode(bytes(31)).decode()}), "has 31 bytes, not 32"),
        (ring("k1", {"k1": "not base64!"}), "is not base64"),
        (ring("k 1", {"k 1": key("k1")}), "has a key of the id 'k 1'"),
        (ring("k1", {"k1": key("k1")}, more=1), "is no keyring"),
    ],
)
def test_a_file_that_is_no_keyring_is_refused_in_words(keyring_file: Path, content: str, words: str) -> None:
    keyring_file.write_text(content)
    with pytest.raises(ValueError, match=words):
        Keyring(keyring_file)


@pytest.mark.parametrize(("mode", "words"), [(0o604, "read by everybody"), (0o622, "written by others")])
def test_a_file_that_others_can_read_or_write_is_refused(keyring_file: Path, mode: int, words: str) -> None:
    keyring_file.chmod(mode)
    with pytest.raises(ValueError, match=words):
        Keyring(keyring_file)


def test_neither_errors_nor_representations_show_a_key(keyring_file: Path) -> None:
    secret = key("k1")
    keyring_file.write_text(ring("k1", {"k1": [secret]}))
    with pytest.raises(ValueError, match="is no keyring") as refused:
        Keyring(keyring_file)
    assert secret not in f"{refused.value!r} {refused.value.__cause__!r}"
    write_keyring(keyring_file, "k1")
    assert secret not in repr(Keyring(keyring_file))


def test_an_answer_carries_its_keys_id(keyring: Keyring, keyring_file: Path) -> None:
    stored = keyring.encrypt_answer("user-1 key-1", SECRET)
    write_keyring(keyring_file, "k2", "k1")
    assert keyring.decrypt_answer("user-1 key-1", stored) == SECRET
    for damaged in (b"", stored[1:], b"\xff\xfe:" + stored):
        with pytest.raises(CredentialUnreadable):
            keyring.decrypt_answer("user-1 key-1", damaged)
    with pytest.raises(CredentialUnreadable):
        keyring.decrypt_answer("user-2 key-1", stored)
