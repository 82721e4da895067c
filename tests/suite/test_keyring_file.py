from __future__ import annotations

import stat
from pathlib import Path

import pytest

from services.gateway.credentials.keyring import Keyring as GatewaysKeyring
from treadle.supervision.keyring_file import add_key, make_keyring, read_keyring
from treadle.supervision.suite_error import SuiteError


def test_new_key_is_current_and_the_gateway_can_still_open_what_is_older(tmp_path: Path) -> None:
    path = tmp_path / "keyring.json"
    make_keyring(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    gateways = GatewaysKeyring(path)
    key_id, sealed = gateways.encrypt("agent", "holder", b"secret")
    assert add_key(path, set()) == "k2"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert gateways.current == "k2"
    assert gateways.decrypt("agent", "holder", key_id, sealed) == b"secret"


def test_unused_keys_are_dropped_but_never_the_one_that_was_current(tmp_path: Path) -> None:
    path = tmp_path / "keyring.json"
    make_keyring(path)
    add_key(path, set())
    assert add_key(path, {"k1", "k2"}) == "k3"
    assert set(read_keyring(path).keys) == {"k2", "k3"}
    assert add_key(path, {"k1", "k2"}) == "k4", "an id is never used again"


def test_making_a_keyring_leaves_one_that_is_there(tmp_path: Path) -> None:
    path = tmp_path / "keyring.json"
    make_keyring(path)
    before = path.read_bytes()
    make_keyring(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("text", ["", "[]", '{"current": "k1"}', '{"current": "k2", "keys": {"k1": "c2VjcmV0"}}'])
def test_broken_keyring_is_told_without_a_word_of_its_keys_and_left_alone(tmp_path: Path, text: str) -> None:
    path = tmp_path / "keyring.json"
    path.write_text(text)
    with pytest.raises(SuiteError, match="keyring") as failure:
        add_key(path, set())
    assert "c2VjcmV0" not in str(failure.value)
    assert path.read_text() == text
