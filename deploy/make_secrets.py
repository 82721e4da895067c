"""Makes the secrets that compose.yaml mounts. What is there is never overwritten: run it as often as you like.

    python deploy/make_secrets.py            secrets/, and in .env the group that may read them
    python deploy/make_secrets.py new-key    also a new key in the keyring; then POST /api/keys/reencrypt

The directory is its owner's alone. A file in it can also be read by one group, which compose gives to the containers:
your own, or, where root runs this, the containers' own.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from shared.bus import USERS
from shared.nats_permissions import server_config
from treadle.supervision.keyring_file import add_key, make_keyring
from treadle.supervision.private_files import make_private_dir, secret_in, write_private

CONTAINERS_ID = 10001
"""User and group in our images."""
DIRECTORY, FILE = 0o750, 0o640
MAX_PAYLOAD_BYTES = 8 << 20
STORE_MAX_BYTES = 1 << 50
"""The disk is the limit: by default the server refuses events when three quarters of what was free are used."""


def make_secrets(root: Path, group: int, *, new_key: bool = False) -> None:
    """Makes `secrets/` below `root`, and sets TREADLE_SECRETS_GID in its `.env`. Raises OSError."""
    secrets = make_private_dir(root / "secrets")
    for name in ("admin_password", "session_secret", "database_password", "log_key"):
        secret_in(secrets / name)
    passwords = {user: secret_in(secrets / f"nats_{user}_password") for user in USERS}
    _replace(secrets / "nats.conf", json.dumps(nats_config(passwords), indent=1))
    # A directory of its own: a keyring is replaced as a whole, which a mount of the file alone would not show.
    keyring = make_private_dir(secrets / "keyring") / "keyring.json"
    make_keyring(keyring)
    if new_key:
        add_key(keyring, unused=frozenset())
    for path in secrets.rglob("*"):
        os.chown(path, -1, group)
        path.chmod(DIRECTORY if path.is_dir() else FILE)
    _set_group(root / ".env", group)


def nats_config(passwords: dict[str, str]) -> dict[str, Any]:
    """The server's configuration; its own format is a superset of JSON, which has the safer quoting."""
    return {
        "server_name": "treadle",
        "port": 4222,
        "http": "127.0.0.1:8222",  # for its health check alone
        "max_payload": MAX_PAYLOAD_BYTES,
        # An acknowledged event must survive a power cut: the default interval is minutes.
        "jetstream": {"store_dir": "/var/lib/nats", "sync_interval": "always", "max_file_store": STORE_MAX_BYTES},
        "authorization": server_config(passwords),
    }


def _replace(path: Path, text: str) -> None:
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        write_private(path, text)


def _set_group(env_file: Path, group: int) -> None:
    """Compose reads the file by itself; whatever else a person keeps there stays."""
    lines = env_file.read_text(encoding="utf-8").splitlines() if env_file.exists() else []
    kept = [line for line in lines if not line.startswith("TREADLE_SECRETS_GID=")]
    env_file.write_text("\n".join([*kept, f"TREADLE_SECRETS_GID={group}"]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    make_secrets(
        Path(__file__).resolve().parent.parent,
        CONTAINERS_ID if os.geteuid() == 0 else os.getegid(),
        new_key=sys.argv[1:] == ["new-key"],
    )
