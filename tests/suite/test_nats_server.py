from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import stat
from pathlib import Path

import nats
import nats.errors
import nats.js.errors
import psutil
import pytest

from tests.nats_process import NatsServer
from tests.suite.conditions import until
from treadle.supervision.nats_server import NatsServerError, given_server, wait_until_ready
from treadle.supervision.ports import LOOPBACK, PortInUse, ReservedPort


async def test_nothing_acknowledged_is_lost_when_the_server_is_killed_under_load(own_nats: NatsServer) -> None:
    client = await nats.connect(
        own_nats.url,
        user=own_nats.user,
        password=own_nats.password,
        reconnect_time_wait=0.05,
        max_reconnect_attempts=-1,
        error_cb=_unheard,
    )
    stream = client.jetstream(timeout=5)
    await stream.add_stream(name="LOG", subjects=["log.>"])
    acknowledged: set[int] = set()
    numbers, url, done = itertools.count(), own_nats.url, asyncio.Event()

    async def write() -> None:
        while not done.is_set():
            number = next(numbers)
            # One that was under way when the server died has no answer: it may be stored or not.
            with contextlib.suppress(nats.errors.Error, nats.js.errors.Error):
                await stream.publish("log.entry", str(number).encode())
                acknowledged.add(number)

    writing = asyncio.gather(*(write() for _ in range(32)))
    await until(lambda: len(acknowledged) >= 100)
    own_nats.kill()
    before = len(acknowledged)
    own_nats.start()
    assert own_nats.url == url
    await until(lambda: len(acknowledged) >= before + 100)
    done.set()
    await writing
    assert acknowledged <= await _stored(own_nats)
    await client.close()


async def _stored(server: NatsServer) -> set[int]:
    client = await nats.connect(server.url, user=server.user, password=server.password)
    subscription = await client.jetstream().pull_subscribe("log.>", stream="LOG")
    count = (await client.jetstream().stream_info("LOG")).state.messages
    stored: list[int] = []
    while len(stored) < count:
        stored += [int(message.data) for message in await subscription.fetch(500, timeout=60)]
    await client.close()
    return set(stored)


async def _unheard(_: Exception) -> None:
    """The killed server is the test's own doing."""


async def test_password_is_needed_and_stands_in_no_argument(own_nats: NatsServer) -> None:
    with pytest.raises(nats.errors.Error, match=r"(?i)authorization"):
        await nats.connect(own_nats.url, allow_reconnect=False, error_cb=_unheard)
    process = psutil.Process(own_nats.pid)
    assert own_nats.password not in " ".join(process.cmdline())
    assert own_nats.password not in str(process.environ())
    for path in (own_nats.password_file, Path(process.cmdline()[-1])):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_message_of_eight_mebibytes_less_headers_can_be_stored(own_nats: NatsServer) -> None:
    client = await nats.connect(own_nats.url, user=own_nats.user, password=own_nats.password)
    await client.jetstream().add_stream(name="BIG", subjects=["big"])
    await client.jetstream().publish("big", bytes((8 << 20) - 1024), timeout=60)
    assert client.max_payload == 8 << 20
    await client.close()


async def test_server_listens_on_loopback_only(own_nats: NatsServer) -> None:
    listening = [c.laddr.ip for c in psutil.Process(own_nats.pid).net_connections() if c.status == psutil.CONN_LISTEN]
    assert listening == [LOOPBACK]


async def test_waiting_for_a_server_that_is_not_there_ends_with_a_clear_message() -> None:
    port = ReservedPort()
    access = given_server(f"nats://{LOOPBACK}:{port.number}", Path("unused"))
    with pytest.raises(NatsServerError, match=r"was not ready within 0\.2 s"):
        await wait_until_ready(access, deadline_s=0.2)
    port.release()


def test_password_of_a_given_address_moves_into_a_private_file(tmp_path: Path) -> None:
    access = given_server("nats://me:p%40ss@example.org", tmp_path / "password")
    assert (access.url, access.user, access.password) == ("nats://example.org:4222", "me", "p@ss")
    assert stat.S_IMODE((tmp_path / "password").stat().st_mode) == 0o600
    assert "p@ss" not in repr(access)
    assert "p@ss" not in str(access.environment())


@pytest.mark.parametrize("url", ["", "localhost", "http://host", "nats://", "nats://host:99999", "nats://host/path"])
def test_address_that_is_none_is_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(NatsServerError, match="must look like"):
        given_server(url, tmp_path / "password")


def test_reserved_port_is_refused_while_somebody_listens_on_it() -> None:
    with socket.create_server((LOOPBACK, 0)) as other:
        number = other.getsockname()[1]
        with pytest.raises(PortInUse, match=f"port {number} .*choose another one"):
            ReservedPort(number)


def test_reserved_port_is_given_to_nobody_else() -> None:
    reserved = ReservedPort()
    with pytest.raises(OSError, match="in use"), socket.socket() as other:
        other.bind((LOOPBACK, reserved.number))
    with socket.create_server((LOOPBACK, reserved.number)):
        pass  # its own server, which asks for SO_REUSEADDR, gets it
    reserved.release()
