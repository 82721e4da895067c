"""What one set-up has downloaded, a hundred others find; and none but a trusted one decides what they find."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import io
import json
import os
import shutil
import sys
import tarfile
import threading
import zipfile
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from services.runner.caches import COPIED_MAX_BYTES, LeaseCache, SetupCaches, remove_cache
from services.runner.git_threads import git_threads
from services.runner.mirror import Mirror, mirror_of

BASE, OTHER_BASE = "1" * 40, "2" * 40
BALLAST = os.urandom(COPIED_MAX_BYTES * 2)
"""So that what holds it is too large to be copied into a view."""
MIRROR = Mirror(Path("mirrors/0123456789abcdef01234567.git"), "/srv/repo")


class Index:
    """A package index on loopback, which counts what it hands out."""

    def __init__(self) -> None:
        self.served: Counter[str] = Counter()
        self.files = {"tiny-1.0-py3-none-any.whl": wheel(), "tiny-1.0.0.tgz": tarball()}
        index = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                index.answer(self)

            def log_message(self, *_: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        name = handler.path.rpartition("/")[2]
        self.served[name] += 1
        kind, lasts = "text/html", "no-cache"
        if name in self.files:
            body, kind, lasts = self.files[name], "application/octet-stream", "max-age=31536000"
        elif handler.path == "/simple/tiny/":
            body = b'<a href="/files/tiny-1.0-py3-none-any.whl">tiny-1.0-py3-none-any.whl</a>'
        elif handler.path == "/tiny":
            body, kind = json.dumps(self.packument()).encode(), "application/json"
        else:
            handler.send_error(404)
            return
        handler.send_response(200)
        for header, value in (("Content-Type", kind), ("Content-Length", len(body)), ("Cache-Control", lasts)):
            handler.send_header(header, str(value))
        handler.end_headers()
        handler.wfile.write(body)

    def packument(self) -> dict[str, object]:
        digest = hashlib.sha512(self.files["tiny-1.0.0.tgz"]).digest()
        integrity = f"sha512-{base64.b64encode(digest).decode()}"
        dist = {"tarball": f"{self.url}/files/tiny-1.0.0.tgz", "integrity": integrity}
        version = {"name": "tiny", "version": "1.0.0", "dist": dist}
        return {"name": "tiny", "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": version}}


def wheel() -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("tiny/__init__.py", "words = 'from the index'\n")
        archive.writestr("tiny/ballast.bin", BALLAST)
        archive.writestr("tiny-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
        archive.writestr("tiny-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("tiny-1.0.dist-info/RECORD", "")
    return made.getvalue()


def tarball() -> bytes:
    made = io.BytesIO()
    files = {"package.json": b'{"name": "tiny", "version": "1.0.0"}', "index.js": b"", "ballast.bin": BALLAST}
    with tarfile.open(fileobj=made, mode="w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"package/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return made.getvalue()


@pytest.fixture
def index() -> Iterator[Index]:
    made = Index()
    thread = threading.Thread(target=made.server.serve_forever, daemon=True)
    thread.start()
    yield made
    made.server.shutdown()
    made.server.server_close()
    thread.join()


class Machine:
    """Leases on one machine, as the executor goes about them."""

    def __init__(self, directory: Path, max_bytes: int = 1 << 30) -> None:
        self.data_dir = directory / "data"
        self.caches = SetupCaches(self.data_dir, max_bytes, git_threads())

    @contextlib.contextmanager
    def lease(self, name: str, mirror: Mirror = MIRROR) -> Iterator[LeaseCache]:
        scratch = self.data_dir / "scratch" / name
        (scratch / "home").mkdir(parents=True)
        with self.caches.for_lease(mirror, scratch) as cache:
            yield cache
        shutil.rmtree(scratch)

    async def set_up(self, name: str, *command: str, trusted: bool = True, base: str = BASE) -> str:
        """A whole lease with one command for its set-up; returns what that printed."""
        with self.lease(name) as cache:
            async with self.caches.setting_up(cache, base, command, trusted=trusted):
                return await run(cache, *command)

    async def write(self, name: str, files: dict[str, bytes], *, trusted: bool = True, base: str = BASE) -> None:
        """A lease whose set-up puts files into its cache."""
        with self.lease(name) as cache:
            async with self.caches.setting_up(cache, base, ["write"], trusted=trusted):
                for path, content in files.items():
                    place = cache.view / path
                    place.parent.mkdir(parents=True, exist_ok=True)
                    place.unlink(missing_ok=True)
                    place.write_bytes(content)

    async def seen(self, path: str) -> bytes | None:
        """What an agent finds in its cache."""
        with self.lease("agent") as cache:
            async with self.caches.setting_up(cache, BASE, ["write"], trusted=False):
                place = cache.view / path
                return place.read_bytes() if place.exists() else None


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


async def run(cache: LeaseCache, *command: str) -> str:
    environment = {"PATH": os.environ["PATH"], "HOME": str(cache.view.parent / "home"), **cache.environment}
    process = await asyncio.create_subprocess_exec(
        *command,
        env=environment,
        cwd=cache.view.parent,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said = (await process.communicate())[0].decode()
    assert process.returncode == 0, said
    return said


async def test_pip_downloads_a_package_once_for_many_workspaces(index: Index, machine: Machine) -> None:
    host = index.url.removeprefix("http://")
    command = (
        *(sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--no-deps", "--target", "site"),
        *("--index-url", f"{index.url}/simple", "--trusted-host", host, "tiny"),
    )
    said = await asyncio.gather(*(machine.set_up(f"lease-{n}", *command) for n in range(3)))
    said.append(await machine.set_up("of another base", *command, trusted=False))
    assert all("Successfully installed tiny-1.0" in one for one in said), said
    assert index.served["tiny-1.0-py3-none-any.whl"] == 1


@pytest.mark.skipif(shutil.which("npm") is None, reason="there is no npm on this machine")
async def test_npm_downloads_a_package_once_for_many_workspaces(index: Index, machine: Machine) -> None:
    command = ("npm", "install", "--no-audit", "--no-fund", "--registry", index.url, "tiny")
    said = await asyncio.gather(*(machine.set_up(f"lease-{n}", *command) for n in range(2)))
    said.append(await machine.set_up("of another base", *command, trusted=False))
    assert all("added 1 package" in one for one in said), said
    assert index.served["tiny-1.0.0.tgz"] == 1


async def test_only_one_sets_a_base_commit_up_and_the_others_wait_for_it(machine: Machine) -> None:
    second, found = asyncio.Event(), 0

    async def one(name: str) -> None:
        nonlocal found
        with machine.lease(name) as cache:
            async with machine.caches.setting_up(cache, BASE, ["x"], trusted=True):
                if (cache.view / "pip/got").exists():
                    found += 1
                    second.set()
                    return
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.5):
                        await second.wait()
                (cache.view / "pip/got").write_text("it")

    await asyncio.gather(*(one(f"lease-{n}") for n in range(5)))
    assert found == 4


async def test_nobody_waits_for_ever_for_who_fills(machine: Machine) -> None:
    with machine.lease("slow") as slow, machine.lease("other") as other:
        async with (
            machine.caches.setting_up(slow, BASE, ["x"], trusted=True),
            asyncio.timeout(60),
            machine.caches.setting_up(other, BASE, ["x"], trusted=True, wait_s=0.3),
        ):
            (other.view / "pip/own").write_text("not kept: somebody else fills")
    assert await machine.seen("pip/own") is None


async def test_what_an_untrusted_set_up_or_an_agent_writes_reaches_nobody(machine: Machine) -> None:
    await machine.write("first", {"pip/small": b"good", "pip/large": b"good" * COPIED_MAX_BYTES})
    await machine.write("second", {"pip/small": b"bad", "pip/large": b"bad", "pip/more": b"bad"}, trusted=False)
    with machine.lease("agent-2") as cache:
        async with machine.caches.setting_up(cache, BASE, ["write"], trusted=True):
            pass
        (cache.view / "pip/small").write_bytes(b"bad")  # after the set-up
        (cache.view / "pip/late").write_bytes(b"bad")
    assert await machine.seen("pip/small") == b"good"
    assert await machine.seen("pip/large") == b"good" * COPIED_MAX_BYTES
    assert await machine.seen("pip/more") is None and await machine.seen("pip/late") is None


async def test_what_a_later_trusted_set_up_adds_or_changes_is_seen_by_all(machine: Machine) -> None:
    await machine.write("first", {"npm/a/index": b"one\n", "npm/big": b"1" * COPIED_MAX_BYTES * 2})
    await machine.write("later", {"npm/a/index": b"one\ntwo\n", "npm/b": b"new"}, base=OTHER_BASE)
    assert await machine.seen("npm/a/index") == b"one\ntwo\n"
    assert await machine.seen("npm/b") == b"new"
    assert await machine.seen("npm/big") == b"1" * COPIED_MAX_BYTES * 2


async def test_a_set_up_that_fails_is_not_kept_and_holds_up_nobody(machine: Machine) -> None:
    with machine.lease("fails") as cache, pytest.raises(RuntimeError, match="status 1"):
        async with machine.caches.setting_up(cache, BASE, ["write"], trusted=True):
            (cache.view / "pip/half").write_text("half")
            raise RuntimeError("status 1")
    async with asyncio.timeout(60):
        await asyncio.gather(*(machine.write(f"next-{n}", {"pip/next": b"x"}) for n in range(3)))
    assert await machine.seen("pip/half") is None


async def test_a_set_up_that_was_cut_off_leaves_it_to_the_next_one(machine: Machine) -> None:
    with machine.lease("stopped") as cache, pytest.raises(asyncio.CancelledError):
        async with machine.caches.setting_up(cache, BASE, ["write"], trusted=True):
            raise asyncio.CancelledError
    await machine.write("next", {"pip/x": b"x"})
    assert await machine.seen("pip/x") == b"x"


async def test_shared_files_can_not_be_changed_through_a_view(machine: Machine) -> None:
    await machine.write("first", {"pip/large": b"good" * COPIED_MAX_BYTES, "npm/small": b"good"})
    with machine.lease("agent-2") as cache:
        async with machine.caches.setting_up(cache, BASE, ["write"], trusted=False):
            assert (cache.view / "pip/large").is_symlink()
            assert (cache.shared / "pip/large").stat().st_mode & 0o222 == 0
            small = cache.view / "npm/small"
            assert not small.is_symlink() and small.stat().st_mode & 0o200
            assert small.stat().st_ino != (cache.shared / "npm/small").stat().st_ino


async def test_links_are_kept_only_when_they_stay_in_the_cache(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("outside")
    with machine.lease("uv") as cache:
        async with machine.caches.setting_up(cache, BASE, ["write"], trusted=True):
            archive = cache.view / "uv/archive/x"
            archive.mkdir(parents=True)
            (archive / "file").write_text("in the archive")
            (cache.view / "uv/wheels").mkdir()
            (cache.view / "uv/wheels/tiny").symlink_to(archive)
            (cache.view / "uv/wheels/relative").symlink_to("../archive/x/file")
            (cache.view / "uv/wheels/away").symlink_to(tmp_path / "outside")
            (cache.view / "uv/wheels/up").symlink_to("../../../../../outside")
            (cache.view / "uv/wheels/round").symlink_to("tiny/../../../../../outside")
            os.mkfifo(cache.view / "uv/pipe")
            linked = cache.view / "uv/linked"
            linked.write_bytes(b"x" * COPIED_MAX_BYTES * 2)
            (tmp_path / "mine too").hardlink_to(linked)
    (tmp_path / "mine too").write_bytes(b"changed")
    assert await machine.seen("uv/wheels/tiny/file") == b"in the archive"
    assert await machine.seen("uv/wheels/relative") == b"in the archive"
    assert await machine.seen("uv/linked") == b"x" * COPIED_MAX_BYTES * 2
    shared = machine.data_dir / "caches" / MIRROR.path.stem / "uv"
    assert sorted(p.name for p in (shared / "wheels").iterdir()) == ["relative", "tiny"]
    assert not (shared / "pipe").exists()


async def test_the_longest_unused_cache_goes_first_and_one_in_use_never(tmp_path: Path) -> None:
    machine = Machine(tmp_path, max_bytes=300_000)
    mirrors = [Mirror(Path(f"mirrors/{n}.git"), "/srv/repo") for n in range(3)]
    for at, mirror in enumerate(mirrors):
        with machine.lease(f"fill-{at}", mirror) as cache:
            (cache.shared / "pip/file").write_bytes(b"x" * 200_000)
        os.utime(cache.shared, (1000 + at, 1000 + at))
    with machine.lease("user", mirrors[0]) as used:
        os.utime(used.shared, (999, 999))
        assert [path.name for path in machine.caches.bound()] == ["1", "2"]
    assert machine.caches.bound() == []


async def test_a_full_cache_takes_no_more(tmp_path: Path) -> None:
    machine = Machine(tmp_path, max_bytes=100_000)
    await machine.write("first", {"pip/large": b"x" * 150_000})
    await machine.write("second", {"pip/more": b"x"}, base=OTHER_BASE)
    assert await machine.seen("pip/large") is not None
    assert await machine.seen("pip/more") is None


async def test_a_cache_is_removed_when_the_last_lease_has_let_go_of_it(machine: Machine) -> None:
    with machine.lease("user") as cache:
        with pytest.raises(BlockingIOError):
            remove_cache(cache.shared, wait=False)
        assert cache.shared.exists()
    remove_cache(cache.shared)
    remove_cache(cache.shared)
    assert not cache.shared.exists()


async def test_projects_of_one_local_repository_share_no_cache(machine: Machine) -> None:
    seen = {}
    for project in ("project-b", "project-a", "project-b"):
        mirror = mirror_of(machine.data_dir, "/srv/repo", project)
        with machine.lease(project, mirror) as cache:
            async with machine.caches.setting_up(cache, BASE, [f"set {project} up"], trusted=True):
                place = cache.view / "pip/wheels/tiny.whl"
                seen[project] = place.read_bytes() if place.exists() else None
                if project == "project-b" and seen[project] is None:
                    place.parent.mkdir(parents=True)
                    place.write_bytes(b"of project b")
    assert seen == {"project-a": None, "project-b": b"of project b"}
