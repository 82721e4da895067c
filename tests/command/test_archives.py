"""`treadle export` and `treadle import`, against a real gateway where they need one."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from shared.history.archive import Archive
from tests.gateway.conftest import gateway_on_sqlite, make_database, make_migrated_database, planner
from tests.gateway.gateway_process import GatewayProcess
from tests.gateway.plans import made
from tests.shared.history.archives import whole
from treadle.main import main

__all__ = ["gateway_on_sqlite", "make_database", "make_migrated_database", "planner"]

NOWHERE = {"TREADLE_URL": "http://127.0.0.1:1", "TREADLE_TOKEN": "t"}


def command(*words: str, env: dict[str, str]) -> Result:
    result = CliRunner().invoke(main, list(words), env=env)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.fixture
def gateway(gateway_on_sqlite: GatewayProcess) -> GatewayProcess:
    return gateway_on_sqlite


def as_user(gateway: GatewayProcess, name: str) -> dict[str, str]:
    return {"TREADLE_URL": gateway.url, "TREADLE_TOKEN": gateway.token_of(name)}


async def drafted(gateway: GatewayProcess, owner: str) -> str:
    async with gateway.as_user(owner) as client:
        return await made.plan(client, await made.project(client, await made.agent(client, slug="claude")))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "x.treadle"
    path.write_bytes(whole(tmp_path)[0])
    return path


async def test_what_one_exports_another_imports_and_looks_at(
    gateway: GatewayProcess, planner: None, tmp_path: Path
) -> None:
    plan, out = await drafted(gateway, "carla"), tmp_path / "out" / "plan.treadle"
    out.parent.mkdir()
    async with gateway.as_user("dora"):
        pass  # the account is made
    done = await asyncio.to_thread(command, "export", plan, "-o", str(out), env=as_user(gateway, "carla"))
    assert done.exit_code == 0, done.output
    with Archive.open(out) as archive:
        assert (archive.plan, f"digest: {archive.digest}" in done.stderr) == (plan, True)
        digest = archive.digest
    assert f"plan {plan}: 1 event" in done.stderr and done.stdout == ""
    assert list(out.parent.iterdir()) == [out] and out.stat().st_mode & 0o777 == 0o600

    taken = await asyncio.to_thread(command, "import", str(out), "--digest", digest, env=as_user(gateway, "dora"))
    assert taken.exit_code == 0, taken.output
    assert f"it was {plan} where it ran" in taken.stderr and f"digest: {digest}" in taken.stderr
    again = await asyncio.to_thread(command, "import", str(out), "--json", env=as_user(gateway, "dora"))
    view = json.loads(again.stdout)
    assert f"plan {view['id']}" in taken.stderr and view["id"].startswith("i")
    status = await asyncio.to_thread(command, "status", view["id"], env=as_user(gateway, "dora"))
    assert status.exit_code == 0, status.output
    unseen = await asyncio.to_thread(command, "status", view["id"], env=as_user(gateway, "carla"))
    assert unseen.exit_code == 2
    same = await asyncio.to_thread(command, "export", view["id"], env=as_user(gateway, "dora"))
    assert same.stdout_bytes == out.read_bytes()


async def test_a_redirected_export_is_the_file_itself(gateway: GatewayProcess, planner: None, tmp_path: Path) -> None:
    plan = await drafted(gateway, "cleo")
    done = await asyncio.to_thread(command, "export", plan, env=as_user(gateway, "cleo"))
    path = tmp_path / "redirected.treadle"
    path.write_bytes(done.stdout_bytes)
    with Archive.open(path) as archive:
        assert f"digest: {archive.digest}" in done.stderr and archive.plan == plan


async def test_a_redacted_export_names_nobody(gateway: GatewayProcess, planner: None, tmp_path: Path) -> None:
    plan = await drafted(gateway, "celia")
    for words, has_name in (((), True), (("--redact",), False)):
        out = tmp_path / f"{has_name}.treadle"
        done = await asyncio.to_thread(
            command, "export", plan, "-o", str(out), "--json", *words, env=as_user(gateway, "celia")
        )
        told = json.loads(done.stdout)
        assert (told["plan"], told["redacted"], told["file"]) == (plan, not has_name, str(out))
        with Archive.open(out) as archive:
            assert (b"celia" in b"".join(archive.contents("events.jsonl") or ())) == has_name


def test_a_terminal_gets_no_binary(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    try:
        ended = subprocess.run(
            [sys.executable, "-m", "treadle", "--data", "/dev/null/none", "export"],
            stdout=theirs, stderr=subprocess.PIPE, cwd=Path(__file__).parents[2], timeout=60, check=False,
            env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "TERM": "xterm"},
        )  # fmt: skip
    finally:
        os.close(ours)
        os.close(theirs)
    assert ended.returncode == 2 and b"no text for a terminal: name a file by -o FILE" in ended.stderr


def test_a_damaged_file_is_told_before_anything_is_sent(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    done = command("import", str(file), env=NOWHERE)
    assert done.exit_code == 2 and "x.treadle: " in done.stderr and "damaged" in done.stderr


def test_another_file_than_the_exporters_is_told_before_anything_is_sent(file: Path, tmp_path: Path) -> None:
    done = command("import", str(file), "--digest", "0" * 64, env=NOWHERE)
    assert done.exit_code == 2 and f"its own is {whole(tmp_path)[1]}" in done.stderr
    assert command("import", str(file), "--digest", "abc", env=NOWHERE).exit_code == 2
    right = command("import", str(file), "--digest", whole(tmp_path)[1].upper(), env=NOWHERE)
    assert right.exit_code == 1 and "does not answer" in right.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("import", "/nowhere/at/all.treadle"), "/nowhere/at/all.treadle can't be read: No such file"),
        (("import", "."), "can't be read"),
        (("export", "-o", "/nowhere/at/all.treadle"), "nothing can be written to /nowhere/at"),
        (("export", "--json"), "--json wants a file"),
    ],
)
def test_what_can_not_be_read_or_written_is_told_in_words(words: tuple[str, ...], told: str) -> None:
    done = command(*words, env=NOWHERE)
    assert done.exit_code == 2 and told in done.stderr


@contextmanager
def breaking_off(content: bytes) -> Iterator[str]:
    """A gateway that dies while it sends."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.send_response(200)
            if self.path.startswith("/api/plans/pabcdefghijkl/export"):
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                self.wfile.write(b"%x\r\n%s\r\n" % (len(content), content))
                self.close_connection = True
                return
            body = b'{"plan":"pabcdefghijkl"}'
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        serving.join()
        server.server_close()


def test_an_export_that_breaks_off_leaves_no_file(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with breaking_off(file.read_bytes()) as url:
        env = {"TREADLE_URL": url, "TREADLE_TOKEN": "t"}
        done = command("export", "pabcdefghijkl", "-o", str(out / "plan.treadle"), env=env)
        piped = command("export", "pabcdefghijkl", env=env)
    assert done.exit_code == 1 and "broke off before the file's end" in done.stderr
    assert list(out.iterdir()) == []
    assert piped.exit_code == 1 and piped.stdout_bytes == b""
