"""`python -m services.gateway [serve|migrate|streams]`; settings come from the environment (`settings.py`).

`serve` is what is done without a word. `migrate` brings the database to this version's tables; `streams` declares what
the log's server keeps. Both are for the one run before the services start, and harmless when repeated.
"""

import asyncio
import logging
import os
import sys
from collections.abc import Callable

from services.gateway.settings import database_from_environment, settings_from_environment
from shared.bus import bus_settings_from_environment, connect
from shared.memory import hide_memory

GRACE_S = 1
"""For requests that are being answered when the process is told to stop."""


def main(words: list[str]) -> int:
    """Returns 0, 1 for a server that could not start, 78 for settings that can't work, 64 for an unknown word."""
    commands: dict[str, Callable[[], int]] = {"serve": serve, "migrate": run_migrate, "streams": run_streams}
    command = commands.get(words[0]) if len(words) == 1 else serve if not words else None
    if command is None:
        say(f"gateway: expected one of {', '.join(commands)}")
        return os.EX_USAGE
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    try:
        return command()
    except (OSError, ValueError) as error:
        say(f"gateway: {error}")
        return os.EX_CONFIG


def serve() -> int:
    """Serves until SIGTERM or SIGINT."""
    import uvicorn  # here: what only migrates need not load the whole API

    from services.gateway.app import make_app

    settings = settings_from_environment()
    hide_memory()
    config = uvicorn.Config(
        make_app(settings),
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        # Whose headers are believed chooses the address that logins are counted by: nobody's, unless the settings say.
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=list(settings.trusted_proxies),
        timeout_graceful_shutdown=GRACE_S,
    )
    server = uvicorn.Server(config)
    server.run()
    return 0 if server.started else 1


def run_migrate() -> int:
    """Makes or changes the database's tables."""
    from services.gateway.database.migrate import migrate  # here: a server need not load Alembic's commands

    asyncio.run(migrate(database_from_environment()))
    return 0


def run_streams() -> int:
    """Declares the streams, and the consumers that runners share."""
    asyncio.run(declare())
    return 0


async def declare() -> None:
    # Here: what only migrates need not load NATS.
    from shared.streams import RUNNER_POOLS, declare_pool, declare_streams

    nc = await connect(bus_settings_from_environment(), "treadle-streams")
    try:
        await declare_streams(nc.jetstream())
        for pool in RUNNER_POOLS:
            await declare_pool(nc.jetstream(), pool)
    finally:
        await nc.close()


def say(line: str) -> None:
    print(line, file=sys.stderr)  # noqa: T201 - the start's one message


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
