"""`python -m services.gateway`: settings come from the environment.

`TREADLE_GATEWAY_HOST` (127.0.0.1), `TREADLE_GATEWAY_PORT`, `TREADLE_GATEWAY_TOKEN_FILE`, and those of `shared.bus`.
"""

import ipaddress
import os
import sys
from pathlib import Path

import uvicorn

from services.gateway.access import read_token
from services.gateway.app import configure_logging, make_app
from shared.bus import bus_settings_from_environment

EX_CONFIG = 78


def main() -> int:
    """Serves until SIGTERM or SIGINT. Returns 78 for settings that can't work."""
    host = os.environ.get("TREADLE_GATEWAY_HOST", "127.0.0.1")
    try:
        port = int(os.environ["TREADLE_GATEWAY_PORT"])
        token = read_token(Path(os.environ["TREADLE_GATEWAY_TOKEN_FILE"]))
        if not ipaddress.ip_address(host).is_loopback:
            raise ValueError(
                f"TREADLE_GATEWAY_HOST is {host}: this gateway has no accounts yet and serves loopback only"
            )
    except KeyError as missing:
        print(f"gateway: {missing.args[0]} is not set", file=sys.stderr)  # noqa: T201 - the start's one message
        return EX_CONFIG
    except (OSError, ValueError) as error:
        print(f"gateway: {error}", file=sys.stderr)  # noqa: T201 - the start's one message
        return EX_CONFIG
    configure_logging()
    config = uvicorn.Config(
        make_app(bus_settings_from_environment(), token),
        host=host,
        port=port,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    server.run()
    return 0 if server.started else 1


if __name__ == "__main__":
    sys.exit(main())
