"""The whole log, plan by plan: read once from NATS into a file for each plan, in memory that does not grow with it.

The events of a log's plans are mixed, and each plan has to be folded by itself. So every batch that arrives is added
to its plans' files in a temporary directory (TMPDIR says where), which takes as much disk as the log has; nothing of
it is kept in memory but the plans' names. Each file is then opened, judged and removed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import msgspec
import nats
import nats.errors
import nats.js.errors
from nats.aio.client import Client

from shared.bus import READER, BusSettings, bus_settings_from_environment, inbox_prefix
from shared.history.event_file import line_of
from shared.jetstream import JetStreamStore
from shared.streams import EVENTS
from shared.subjects import PLAN_ID
from shared.waiting import mend_wait_for
from treadle.bad_input import BadInput
from treadle.instance import Instance

CONNECT_TIMEOUT_S = 5.0
SILENCE_MAX_S = 60.0
"""Without a word from the server for so long, the reading ends with an error."""

Progress = Callable[[str], None]


@contextlib.contextmanager
def log_access(instance: Instance) -> Iterator[BusSettings]:
    """Where the log is, as the user that may read it and store nothing.

    TREADLE_NATS_URL, TREADLE_NATS_USER (`reader` where it is not set), TREADLE_NATS_PASSWORD_FILE and
    TREADLE_LOG_KEY_FILE say so; without an address it is this machine's own suite. Raises `BadInput`, `SuiteError`.
    """
    if os.environ.get("TREADLE_NATS_URL"):
        try:
            settings = bus_settings_from_environment()
        except (OSError, ValueError) as error:
            raise BadInput(f"the NATS settings of the environment can't be used: {error}") from error
        yield msgspec.structs.replace(settings, user=settings.user or (READER if settings.password else None))
        return
    data = instance.own("replay --verify --all")
    with instance.reach() as reached:
        password = data.nats / f"{READER}.password"
        if reached.suite is None or not password.exists():
            raise BadInput(
                "the running suite has no user that may only read the log: start it again (`treadle down`), or, with a "
                "NATS server of your own, set TREADLE_NATS_URL, TREADLE_NATS_USER and TREADLE_NATS_PASSWORD_FILE"
            )
        secret = password.read_text(encoding="utf-8").strip()
        yield BusSettings(reached.suite.info.nats_url, READER, secret)


async def _unheard(_: Exception) -> None:
    """What goes wrong is raised to whoever asked for it."""


@contextlib.asynccontextmanager
async def connected(settings: BusSettings) -> AsyncIterator[Client]:
    """A connection that reads. Raises `BadInput` where the server does not let us in."""
    mend_wait_for()
    try:
        client = await nats.connect(
            settings.url,
            user=settings.user,
            password=settings.password,
            name="treadle replay --verify",
            inbox_prefix=inbox_prefix(settings.user),
            error_cb=_unheard,
            connect_timeout=CONNECT_TIMEOUT_S,
            allow_reconnect=False,
        )
    except (nats.errors.Error, OSError, TimeoutError) as error:
        raise BadInput(f"NATS at {settings.url} does not let {settings.user or 'us'} in: {error}") from error
    try:
        yield client
    finally:
        with contextlib.suppress(nats.errors.Error):  # it was lost, and is closed already
            await client.close()


async def spool(client: Client, key: bytes | None, directory: Path, progress: Progress) -> list[Path]:
    """Reads the log as far as it goes now. Returns a file for each plan, in the order of their first events.

    With the log's key, what was not written by its holders is left out; without it, every message counts.
    Raises `BadInput` where the server forbids it or falls silent, `OSError`.
    """
    try:
        newest = (await client.jetstream().stream_info(EVENTS)).state.last_seq
    except (nats.js.errors.Error, nats.errors.Error, TimeoutError) as error:
        raise BadInput(f"the log can't be read: {error!r}") from error
    files: dict[str, Path] = {}
    count = 0
    pages = JetStreamStore(client, key).pages(until=newest)
    while True:
        try:
            async with asyncio.timeout(SILENCE_MAX_S):
                events = await anext(pages, None)
        except TimeoutError:
            raise BadInput(f"NATS said nothing for {SILENCE_MAX_S:g} s while the log was read: try again") from None
        if events is None:
            return list(files.values())
        lines: defaultdict[str, list[bytes]] = defaultdict(list)
        for record in events:
            if PLAN_ID.fullmatch(record.plan):  # else somebody put it there, and it must name no file
                lines[record.plan].append(line_of(record))
        for plan, some in lines.items():
            with files.setdefault(plan, directory / f"{plan}.jsonl").open("ab") as file:
                file.writelines(some)
        count += len(events)
        progress(f"reading the log: {count:,} events of {len(files):,} plans")
