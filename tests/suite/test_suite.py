from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import nats
import nats.errors
import nats.js.errors
import psutil
import pytest
from nats.aio.client import Client

from shared.bus import OPERATOR, USERS
from tests.nats_process import NatsServer
from tests.suite.conditions import gone, until, wait_for
from tests.suite.conftest import fill
from treadle.instance import Instance
from treadle.supervision import slowness
from treadle.supervision.data_dir import DataDir
from treadle.supervision.ensure import JoinedSuite, ensure_suite, stop_suite
from treadle.supervision.environment import Secrets
from treadle.supervision.keyring_file import read_keyring
from treadle.supervision.nats_server import NatsAccess
from treadle.supervision.ports import LOOPBACK
from treadle.supervision.private_files import secret_in
from treadle.supervision.suite_error import SuiteError
from treadle.supervision.suite_info import SuiteOptions, running_suite

STAND_IN = str(Path(__file__).with_name("stand_in.py"))
SECRETS = Secrets("sk-made-up-0123456789", "http://127.0.0.1:9/made-up")


def options(data: Path, **more: object) -> SuiteOptions:
    programs = {role: [sys.executable, STAND_IN, role] for role in ("planner", "dispatcher", "gateway", "runner")}
    given = {"data_dir": str(data), "programs": programs, "runners": 2} | more
    return msgspec.convert(given, SuiteOptions)


@pytest.fixture
def data(tmp_path: Path) -> Iterator[DataDir]:
    data_dir = DataDir(tmp_path / "data")
    yield data_dir
    stop_suite(data_dir)


def told(data: DataDir, event: str) -> list[tuple[str, int]]:
    path = data.path / "work" / "told.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [(line["role"], line["pid"]) for line in lines if line["event"] == event]


def all_started(data: DataDir) -> list[int]:
    """The processes of the five services, once each has told that it started."""
    return wait_for(lambda: [pid for _, pid in started] if len(started := told(data, "started")) == 5 else [])


def nats_pid(suite: JoinedSuite) -> int:
    """The nats-server of the suite, once it runs."""

    def find() -> int:
        for child in psutil.Process(suite.info.pid).children():
            with contextlib.suppress(psutil.NoSuchProcess):  # it ended while we looked
                if child.name() == "nats-server":
                    return child.pid
        return 0

    return wait_for(find)


def nats_access(data: DataDir, suite: JoinedSuite) -> NatsAccess:
    return NatsAccess(suite.info.nats_url, OPERATOR, data.nats / f"{OPERATOR}.password")


async def connected(access: NatsAccess) -> Client:
    return await nats.connect(
        access.url,
        user=access.user,
        password=access.password,
        reconnect_time_wait=0.05,
        max_reconnect_attempts=-1,
        error_cb=_unheard,
    )


def test_suite_starts_once_and_is_used_again(data: DataDir) -> None:
    with ensure_suite(options(data.path), SECRETS) as first, ensure_suite(options(data.path), SECRETS) as second:
        assert first.info == second.info
        assert first.info.has_claude_key
        assert first.token == data.token.read_text()
        assert len(all_started(data)) == 5
    assert {path.name for path in data.private_files} >= {"gateway.token", "gateway.secret", "keyring.json"}
    for path in (data.suite_file, data.log("gateway"), *data.private_files):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_two_starts_at_once_end_with_one_suite(data: DataDir) -> None:
    script = (
        "import sys, msgspec; from treadle.supervision.ensure import *; "
        "from treadle.supervision.suite_info import SuiteOptions; "
        "print(ensure_suite(msgspec.json.decode(sys.argv[1], type=SuiteOptions), Secrets()).info.pid)"
    )
    order = msgspec.json.encode(options(data.path)).decode()
    commands = [
        subprocess.Popen([sys.executable, "-c", script, order], stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    pids = {command.communicate(timeout=150)[0].strip() for command in commands}
    assert pids == {str(data.holder_pid())}
    assert len(all_started(data)) == 5


def test_stop_is_polite_and_runners_go_first(data: DataDir) -> None:
    with ensure_suite(options(data.path), SECRETS) as suite:
        pids = [*all_started(data), nats_pid(suite)]
        assert stop_suite(data)
    assert all(gone(pid) for pid in pids)
    assert {role for role, _ in told(data, "asked to stop")[:2]} == {"runner"}
    assert not data.suite_file.exists()
    assert not stop_suite(data)


def test_killed_supervisor_takes_its_children_along_and_the_next_start_works(data: DataDir) -> None:
    with ensure_suite(options(data.path), SECRETS) as suite:
        pids = [*all_started(data), nats_pid(suite)]
        os.kill(suite.info.pid, signal.SIGKILL)
        wait_for(lambda: all(gone(pid) for pid in pids), deadline_s=30)
        with ensure_suite(options(data.path), SECRETS) as after:
            assert after.info.pid != suite.info.pid
            wait_for(lambda: len(told(data, "started")) == 10)


def test_a_slow_start_says_what_it_does_and_a_quick_one_says_nothing(
    data: DataDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(slowness, "MOMENT_S", 0.0)  # any start is slow
    with ensure_suite(options(data.path), SECRETS, say=said.append) as suite:
        assert said[-1] == f"starting Treadle in {data.path} …"
        monkeypatch.setattr(slowness, "MOMENT_S", 60.0)
        before = list(said)
        with ensure_suite(options(data.path), SECRETS, say=said.append):
            assert said == before
        monkeypatch.setattr(slowness, "MOMENT_S", 0.0)
        os.kill(suite.info.pid, signal.SIGKILL)
        wait_for(lambda: data.holder_pid() is None)
        with ensure_suite(options(data.path), SECRETS, say=said.append):
            assert f"the suite (process {suite.info.pid}) is gone; starting it again in {data.path} …" in said


def test_a_command_that_waits_for_its_suite_tells_the_person_and_not_its_output(
    data: DataDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(slowness, "MOMENT_S", 0.0)
    with Instance(data, keys=SECRETS).reach(options(data.path)):
        told = capsys.readouterr()
    assert f"starting Treadle in {data.path} …\n" in told.err and told.out == ""


async def test_killed_nats_server_comes_back_on_its_port_with_everything_acknowledged(data: DataDir) -> None:
    with await asyncio.to_thread(ensure_suite, options(data.path), SECRETS) as suite:
        client = await connected(nats_access(data, suite))
        await client.jetstream().add_stream(name="LOG", subjects=["log"])
        for _ in range(20):
            await client.jetstream().publish("log", b"x")
        killed = nats_pid(suite)
        os.kill(killed, signal.SIGKILL)
        await until(lambda: client.stats["reconnects"])
        assert (await client.jetstream().stream_info("LOG")).state.messages == 20
        assert nats_pid(suite) != killed
        await client.close()


def test_secrets_reach_the_runners_by_standard_input_only(data: DataDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", SECRETS.anthropic_api_key or "")
    monkeypatch.setenv("SOME_TOKEN", "sk-of-another-program")
    with ensure_suite(options(data.path), Secrets.of(os.environ)) as suite:
        all_started(data)
        runners = [pid for role, pid in told(data, "started") if role == "runner"]
        for pid in runners:
            given = json.loads((data.path / "work" / f"stdin-{pid}").read_text())
            assert given["anthropic_api_key"] == SECRETS.anthropic_api_key
        passwords = [path.read_text() for path in data.nats.glob("*.password")]
        keys = [data.secret.read_text(), *read_keyring(data.keyring).keys.values()]
        assert len(passwords) == len(USERS) and len(keys) == 2
        supervisor = psutil.Process(suite.info.pid)
        family = [supervisor, *supervisor.children(recursive=True)]
        assert len(family) == 7
        for process in family:
            shown = " ".join(process.cmdline()) + str(process.environ())
            for secret in (SECRETS.anthropic_api_key or "", "sk-of-another-program", suite.token, *passwords, *keys):
                assert secret not in shown
    stop_suite(data)
    for path in [p for p in data.path.rglob("*") if p.is_file() and not p.name.startswith("stdin-")]:
        assert (SECRETS.anthropic_api_key or "").encode() not in path.read_bytes(), path


def test_each_service_is_a_user_of_its_own_on_the_bus(data: DataDir) -> None:
    with ensure_suite(options(data.path), SECRETS):
        all_started(data)
        for role, pid in told(data, "started"):
            env = psutil.Process(pid).environ()
            assert env["TREADLE_NATS_USER"] == role
            assert env["TREADLE_NATS_PASSWORD_FILE"] == str(data.nats / f"{role}.password")
    passwords = [path.read_text() for path in data.nats.glob("*.password")]
    assert len(set(passwords)) == len(USERS)


def test_killed_runner_is_given_its_secrets_again(data: DataDir) -> None:
    with ensure_suite(options(data.path), SECRETS):
        all_started(data)
        os.kill(next(pid for role, pid in told(data, "started") if role == "runner"), signal.SIGKILL)
        wait_for(lambda: len(told(data, "started")) == 6)
        role, pid = told(data, "started")[-1]
        assert role == "runner"
        assert json.loads((data.path / "work" / f"stdin-{pid}").read_text()) == msgspec.to_builtins(SECRETS)


def test_idle_suite_stops_but_not_while_it_is_busy_or_has_a_client(data: DataDir) -> None:
    with ensure_suite(options(data.path, idle_after_s=0.5), SECRETS) as suite:
        usage = data.path / "work" / "usage.json"
        usage.write_text('{"busy": false, "clients": 0}')
        # Two seconds are four times what it waits for: a client that only holds the suite must be enough.
        with pytest.raises(AssertionError):
            wait_for(lambda: gone(suite.info.pid), deadline_s=2)
        usage.write_text('{"busy": true, "clients": 0}')
    with pytest.raises(AssertionError):
        wait_for(lambda: gone(suite.info.pid), deadline_s=2)
    usage.write_text('{"busy": false, "clients": 0}')
    wait_for(lambda: data.holder_pid() is None)
    assert running_suite(data) is None


def test_port_in_use_is_told_before_anything_starts(data: DataDir) -> None:
    with socket.create_server((LOOPBACK, 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(SuiteError, match=f"port {port} on {LOOPBACK} can't be used .*choose another one"):
            ensure_suite(options(data.path, gateway_port=port), SECRETS)
    assert told(data, "started") == []


def test_service_that_cannot_start_is_told_and_nothing_is_left_running(data: DataDir) -> None:
    broken = options(data.path)
    broken.programs["gateway"] = [sys.executable, STAND_IN, "misconfigured"]
    with pytest.raises(SuiteError, match=r"gateway ended with exit status 78: .*the setting X is wrong"):
        ensure_suite(broken, SECRETS)
    assert all(gone(pid) for _, pid in told(data, "started"))
    assert data.holder_pid() is None


def test_database_that_cannot_be_migrated_is_told_with_its_reason(data: DataDir) -> None:
    broken = options(data.path)
    broken.programs["gateway"] = [sys.executable, STAND_IN, "unmigrated"]
    with pytest.raises(SuiteError, match=r"migration ended with exit status 78: .*the setting X is wrong"):
        ensure_suite(broken, SECRETS)
    assert all(gone(pid) for _, pid in told(data, "started"))
    assert data.holder_pid() is None


def test_gateway_starts_only_once_the_database_is_migrated(data: DataDir) -> None:
    with ensure_suite(options(data.path), SECRETS):
        all_started(data)
    lines = [json.loads(line) for line in (data.path / "work" / "told.jsonl").read_text().splitlines()]
    of_gateway = [line["event"] for line in lines if line["role"] == "gateway"]
    assert of_gateway == ["migrated", "started"]


def test_directory_of_the_former_version_is_given_what_it_lacks_and_keeps_its_token(data: DataDir) -> None:
    data.prepare()
    secret_in(data.token)
    secret_in(data.nats / "password")
    token = data.token.read_text()
    with ensure_suite(options(data.path), SECRETS) as suite:
        assert suite.token == token
        assert read_keyring(data.keyring).current == "k1"
        assert data.secret.exists() and data.database.exists()
        assert not (data.nats / "password").exists()
    before = {path: path.read_bytes() for path in (data.token, data.secret, data.keyring)}
    assert stop_suite(data)
    with ensure_suite(options(data.path), SECRETS):
        assert {path: path.read_bytes() for path in before} == before


def test_nats_server_that_cannot_start_is_told_with_its_reason(data: DataDir) -> None:
    data.prepare()
    (data.nats / "jetstream").write_text("in the way")
    with pytest.raises(SuiteError, match=r"nats-server ended with .*Can't start JetStream: .*not a directory"):
        ensure_suite(options(data.path), SECRETS)


def test_holder_that_does_not_answer_is_named(data: DataDir) -> None:
    data.prepare()
    with data.hold(), pytest.raises(SuiteError, match=rf"in use by process {os.getpid()}, which does not answer"):
        ensure_suite(options(data.path), SECRETS, deadline_s=0.3)


def test_given_nats_server_is_used_instead_of_an_own_one(data: DataDir, own_nats: NatsServer) -> None:
    url = own_nats.url.replace("://", f"://{own_nats.user}:{own_nats.password}@")
    with ensure_suite(options(data.path, nats_url=url), SECRETS) as suite:
        pids = all_started(data)
        assert suite.info.nats_url == own_nats.url
        names = [child.name() for child in psutil.Process(suite.info.pid).children()]
        assert "nats-server" not in names
        env = psutil.Process(pids[0]).environ()
        assert env["TREADLE_NATS_URL"] == own_nats.url
        assert Path(env["TREADLE_NATS_PASSWORD_FILE"]).read_text() == own_nats.password


def test_given_nats_server_that_is_not_there_is_told(data: DataDir) -> None:
    with pytest.raises(SuiteError, match=r"NATS server at nats://127.0.0.1:1 was not ready .*Connect call failed"):
        ensure_suite(options(data.path, nats_url="nats://127.0.0.1:1"), SECRETS)


def test_suite_does_not_start_on_a_full_disk(small_disk: Path) -> None:
    data = DataDir(small_disk / "data")
    with pytest.raises(SuiteError, match=r"the disk of .* is full: .* Free some space"):
        ensure_suite(options(data.path), SECRETS)


async def test_events_are_refused_while_the_disk_is_full_and_taken_again_once_it_is_not(large_disk: Path) -> None:
    data, filler = DataDir(large_disk / "data"), large_disk / "filler"
    with await asyncio.to_thread(ensure_suite, options(data.path), SECRETS) as suite:
        client = await connected(nats_access(data, suite))
        stream, impatient = client.jetstream(timeout=60), client.jetstream(timeout=0.5)
        await stream.add_stream(name="LOG", subjects=["log"])
        stored = 0
        fill(filler)
        with pytest.raises((nats.errors.Error, nats.js.errors.Error)):
            while stored < 1000:
                await impatient.publish("log", os.urandom(100_000))
                stored += 1
        log = data.log("supervisor")
        await until(lambda: re.search(r"the disk of .* is full: 0 MiB are free", log.read_text()))
        filler.unlink()
        await until(lambda: client.stats["reconnects"])
        # What was refused may have been written, or may not; what was acknowledged has been.
        assert (await stream.stream_info("LOG")).state.messages >= stored
        await stream.publish("log", b"and on it goes")
        await client.close()
    assert await asyncio.to_thread(stop_suite, data)


async def _unheard(_: Exception) -> None:
    """The killed server is the test's own doing."""
