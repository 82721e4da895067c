"""`treadle replay --verify --all`: the whole log, as a user who can't write to it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import nats
from nats.aio.client import Client

from shared.bus import OPERATOR, READER, BusSettings, inbox_prefix
from shared.events import PlanPaused, TaskMarkedComplete, TaskStarted
from shared.history.archive import Archive
from shared.history.event_file import EventFile
from shared.history.verify import Verified, verify
from shared.jetstream import PAGE_MAX_BYTES, PAGE_MESSAGES, JetStreamStore
from shared.store import Meta
from shared.streams import EVENTS, declare_streams
from shared.subjects import event_subject, shard
from tests.histories.stage import PLAN_ID
from tests.nats_process import NatsServer
from treadle.whole_log import connected, spool

RECORDED = Path(__file__).parent.parent / "histories"
KEY = b"k" * 40


async def as_user(server: NatsServer, user: str) -> Client:
    access = server.access_of(user)
    return await nats.connect(access.url, user=user, password=access.password, inbox_prefix=inbox_prefix(user))


async def stored(server: NatsServer, directory: Path, key: bytes | None = None) -> int:
    """Puts a recorded history into the server's log, as the operator; returns how many messages it has then."""
    client = await as_user(server, OPERATOR)
    await declare_streams(client.jetstream())
    store, last = JetStreamStore(client, key), dict[str, int]()
    with Archive.open(RECORDED / "diamond.treadle") as archive, archive.event_file(directory) as file:
        for record in file.read():
            assert record.event is not None
            expected = last.get(record.entity, 0)
            seq = await store.append(PLAN_ID, record.entity, record.event, record.meta, expected=expected)
            assert seq == record.seq
            last[record.entity] = seq
    (directory / "events.jsonl").unlink()
    await client.jetstream().publish(f"treadle.evt.{shard('x')}.up/and/away._plan.paused", b"{}")
    messages = (await client.jetstream().stream_info(EVENTS)).state.messages
    await client.close()
    return messages


def reader(server: NatsServer) -> BusSettings:
    access = server.access_of(READER)
    return BusSettings(access.url, READER, access.password)


async def test_the_log_is_read_plan_by_plan_with_the_right_to_read_it_alone(
    own_nats: NatsServer, tmp_path: Path
) -> None:
    await stored(own_nats, tmp_path)
    async with connected(reader(own_nats)) as client:
        (path,) = await spool(client, None, tmp_path, lambda _: None)
    assert path.name == f"{PLAN_ID}.jsonl"  # and nothing for what only looks like a plan
    result = judged(path)
    assert (result.differences, result.unknown, result.checked) == (0, (), result.events)


async def test_a_log_of_many_and_large_messages_is_read_page_by_page_to_its_end(
    own_nats: NatsServer, tmp_path: Path
) -> None:
    client = await as_user(own_nats, OPERATOR)
    await declare_streams(client.jetstream())
    store = JetStreamStore(client)
    sizes = [*([2 * 1024**2] * 10), *([10] * (2 * PAGE_MESSAGES)), PAGE_MAX_BYTES // 4]
    for at, size in enumerate(sizes):
        await store.append(PLAN_ID, f"T{at}", TaskMarkedComplete(note="x" * size), Meta(actor="user:ann"), expected=0)
    async with connected(reader(own_nats)) as reading:
        pages = [page async for page in JetStreamStore(reading).pages(until=len(sizes))]
        assert [record.seq for page in pages for record in page] == list(range(1, len(sizes) + 1))
        assert len(pages[0]) < 10 < len(pages[1]) <= PAGE_MESSAGES
        (path,) = await spool(reading, None, tmp_path, lambda _: None)
    with path.open("rb") as file:
        assert sum(1 for _ in file) == len(sizes)
    await client.close()


async def test_what_was_not_written_by_holders_of_the_logs_key_is_left_out_by_who_has_it(
    own_nats: NatsServer, tmp_path: Path
) -> None:
    await stored(own_nats, tmp_path, KEY)
    forger = await as_user(own_nats, OPERATOR)
    forged = JetStreamStore(forger)
    newest = await forged.last_seq(PLAN_ID, "_plan")
    await forged.append(PLAN_ID, "_plan", PlanPaused(reason="forged"), Meta(actor="user:ann"), expected=newest)
    await forger.close()
    counts = []
    for key in (None, KEY):
        directory = tmp_path / str(key is None)
        directory.mkdir()
        async with connected(reader(own_nats)) as client:
            (path,) = await spool(client, key, directory, lambda _: None)
        counts.append(judged(path).events)
    assert counts == [25, 24]


WHO_TRIES_TO_WRITE = """
import asyncio, sys, tempfile
from pathlib import Path
from shared.bus import bus_settings_from_environment
from shared.events import PlanPaused
from shared.history.event_file import EventFile
from shared.history.verify import verify
from shared.jetstream import JetStreamStore
from shared.store import Meta, StoreUnavailable
from treadle.whole_log import connected, spool

async def main():
    with tempfile.TemporaryDirectory() as made:
        async with connected(bus_settings_from_environment()) as client:
            (path,) = await spool(client, None, Path(made), lambda _: None)
            with EventFile.open(path) as file:
                result = verify(file)
                print(result.differences, result.checked)
                store = JetStreamStore(client)
                try:
                    await store.append(file.plan, "_plan", PlanPaused(), Meta(actor="x"), expected=file.last_seq)
                    print("stored")
                except StoreUnavailable:
                    print(client.last_error)

asyncio.run(main())
"""


async def test_the_process_that_decides_again_is_refused_by_the_server_when_it_stores_an_event(
    own_nats: NatsServer, tmp_path: Path
) -> None:
    before = await stored(own_nats, tmp_path)
    done = run([sys.executable, "-c", WHO_TRIES_TO_WRITE], own_nats, tmp_path)
    decided, refused = done.stdout.splitlines()
    assert decided == "0 24", done
    subject = event_subject(PLAN_ID, "_plan", PlanPaused())
    assert "permissions violation" in refused.lower() and subject in refused, done
    operator = await as_user(own_nats, OPERATOR)
    assert (await operator.jetstream().stream_info(EVENTS)).state.messages == before
    await operator.close()


async def test_the_command_verifies_a_whole_log_and_ends_with_1_where_one_plan_differs(
    own_nats: NatsServer, tmp_path: Path
) -> None:
    await stored(own_nats, tmp_path)
    command = [sys.executable, "-m", "treadle", "--data", str(tmp_path / "data"), "replay", "--verify", "--all"]
    done = run([*command, "--json"], own_nats, tmp_path)
    one, total = (json.loads(line) for line in done.stdout.splitlines())
    assert (done.returncode, one["plan"], one["checked"]) == (0, PLAN_ID, 24), done
    assert (total["plans"], total["events"], total["differences"]) == (1, 24, 0)
    operator = await as_user(own_nats, OPERATOR)
    store = JetStreamStore(operator)
    started = TaskStarted(lease=9, runner="r", execution="e")
    meta = Meta(actor="runner:r", command="Start", given='{"phase":"open","dispatch":1}')
    newest = await store.last_seq(PLAN_ID, "T1")
    await store.append(PLAN_ID, "T1", started, meta, expected=newest)
    await operator.close()
    done = run(command, own_nats, tmp_path)
    assert done.returncode == 1, done
    assert "recorded task.started, refused: dispatch 1 was overtaken: the task is completed" in done.stdout
    assert 'status: "completed"' in done.stdout and "1 otherwise" in done.stdout


async def test_a_wrong_password_is_told_in_one_line(own_nats: NatsServer, tmp_path: Path) -> None:
    wrong = tmp_path / "password"
    wrong.write_text("wrong")
    command = [sys.executable, "-m", "treadle", "--data", str(tmp_path / "data"), "replay", "--verify", "--all"]
    done = run(command, own_nats, tmp_path, TREADLE_NATS_PASSWORD_FILE=str(wrong))
    assert (done.returncode, done.stdout) == (2, "")
    assert "does not let reader in" in done.stderr and "Traceback" not in done.stderr


def judged(path: Path) -> Verified:
    with EventFile.open(path) as file:
        return verify(file)


def run(argv: list[str], server: NatsServer, directory: Path, **more: str) -> subprocess.CompletedProcess[str]:
    access = server.access_of(READER)
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(directory),
        "TREADLE_NATS_URL": access.url,
        "TREADLE_NATS_USER": READER,
        "TREADLE_NATS_PASSWORD_FILE": str(access.password_file),
        **more,
    }
    return subprocess.run(argv, capture_output=True, text=True, env=environment, timeout=150)
