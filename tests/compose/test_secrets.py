"""What `make secrets` makes: strong, private, kept, and a configuration that the server takes."""

import json
import os
import stat
import subprocess
from pathlib import Path

from deploy.make_secrets import make_secrets
from services.gateway.credentials.keyring import Keyring
from services.gateway.settings import strong_secret
from shared.bus import USERS
from treadle.supervision.nats_server import nats_server_binary

GROUP = os.getegid()


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_a_second_run_changes_nothing(tmp_path: Path) -> None:
    make_secrets(tmp_path, GROUP)
    before = files(tmp_path)
    make_secrets(tmp_path, GROUP)
    assert files(tmp_path) == before
    assert len(before) == 4 + len(USERS) + 3


def test_what_people_put_into_the_env_file_stays(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("TREADLE_SLOTS=4\nTREADLE_SECRETS_GID=1\n")
    make_secrets(tmp_path, GROUP)
    assert (tmp_path / ".env").read_text().splitlines() == ["TREADLE_SLOTS=4", f"TREADLE_SECRETS_GID={GROUP}"]


def test_only_the_owner_and_one_group_can_read_a_secret_and_only_the_owner_enters_the_directory(tmp_path: Path) -> None:
    make_secrets(tmp_path, GROUP)
    assert stat.S_IMODE((tmp_path / "secrets").stat().st_mode) == 0o700
    for path in (tmp_path / "secrets").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o750 if path.is_dir() else 0o640), path
        assert path.stat().st_gid == GROUP


def test_the_gateway_takes_its_secrets_and_no_two_are_alike(tmp_path: Path) -> None:
    make_secrets(tmp_path, GROUP)
    secrets = tmp_path / "secrets"
    assert Keyring(secrets / "keyring/keyring.json").current == "k1"
    made = ("admin_password", "session_secret", "database_password", "log_key")
    names = [*made, *(f"nats_{user}_password" for user in USERS)]
    assert len({strong_secret(secrets / name) for name in names}) == len(names)


def test_a_new_key_becomes_the_current_one_and_the_old_one_stays(tmp_path: Path) -> None:
    make_secrets(tmp_path, GROUP)
    make_secrets(tmp_path, GROUP, new_key=True)
    keyring = Keyring(tmp_path / "secrets/keyring/keyring.json")
    assert (keyring.current, keyring.key_ids) == ("k2", ("k1", "k2"))


def test_nats_server_accepts_the_configuration_with_every_user_in_it(tmp_path: Path) -> None:
    make_secrets(tmp_path, GROUP)
    conf = tmp_path / "secrets/nats.conf"
    assert {user["user"] for user in json.loads(conf.read_text())["authorization"]["users"]} == set(USERS)
    done = subprocess.run([nats_server_binary(), "-t", "--config", str(conf)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
