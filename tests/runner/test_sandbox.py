"""What a process in a sandbox can do and what it can't, with the real bubblewrap and the real git."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import shutil
import signal
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import aiohttp
import psutil
import pytest
from aiohttp import web

from services.runner.process import LEASE_VARIABLE, CannotStart, end_lease, run_program
from services.runner.proxy import KeyProxy
from services.runner.sandbox import (
    NoSandbox,
    Sandbox,
    SandboxFails,
    enclose,
    find_sandbox,
    probe_sandbox,
)
from services.runner.workspace import agents_head
from services.runner.worktree import INSIDE
from tests.agents.probes import FORK_CHAIN
from tests.runner.enclosures import inside
from tests.runner.repositories import Project, git, make_project

WITHIN_S = 60.0
ENDED_WITHIN_S = 4.5
"""`end_lease` gives up after 5."""
DAEMON = "env -i setsid sh -c 'exec -a {name} sleep 600' </dev/null >/dev/null 2>&1 &"


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    """Not below /tmp, as an operator's data directory isn't."""
    with tempfile.TemporaryDirectory(prefix="treadle-test-", dir="/var/tmp") as made:
        yield Path(made).resolve()


@pytest.fixture(params=["beside /tmp", "below /tmp"])
def project(request: pytest.FixtureRequest, home: Path, tmp_path: Path) -> Project:
    place = tmp_path
    if request.param == "beside /tmp":
        place = Path(tempfile.mkdtemp(dir=home))
    return make_project(place)


@pytest.fixture(scope="module")
def sandbox(home: Path) -> Sandbox:
    """Fails, and does not skip, where there is none: without it nothing here is shown."""
    return probe_sandbox(hidden=[home])


async def until(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WITHIN_S
    while not true():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.01)


def alive(name: str) -> list[int]:
    """The processes that were started under that name."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        with contextlib.suppress(psutil.NoSuchProcess):  # it ended while we looked
            if (process.info["cmdline"] or [""])[0] == name and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found


def contents(directory: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


async def test_an_agent_commits_in_its_worktree(project: Project, sandbox: Sandbox) -> None:
    async with inside(project, sandbox) as lease:
        done = await lease.sh("echo new > new.txt && git add -A && git commit -qm work && git rev-parse HEAD")
        assert done.status == 0, done.err
        assert git(lease.workspace.agents_repo, "rev-parse", "treadle/T1") == done.out.strip()
        assert git(lease.workspace.agents_repo, "show", "treadle/T1:new.txt") == "new"


async def test_everything_starts_at_the_same_place_in_every_lease(project: Project, sandbox: Sandbox) -> None:
    for task in ("T1", "T2"):
        async with inside(project, sandbox, task=task) as lease:
            assert lease.enclosure.place_of(lease.workspace.code) == INSIDE
            said = (await lease.sh('pwd; pwd -P; echo "$PWD"; readlink /proc/self/cwd; echo x > made')).out
            assert said.split() == [str(INSIDE)] * 4
            assert (lease.workspace.code / "made").read_text() == "x\n"
            assert (await lease.run("python3", "-c", "import os; print(os.getcwd())")).out == f"{INSIDE}\n"


async def test_git_knows_the_worktree_where_everything_starts_and_does_not_lose_it(
    project: Project, sandbox: Sandbox
) -> None:
    async with inside(project, sandbox) as lease:
        code = lease.workspace.code
        assert (await lease.sh("git rev-parse --show-toplevel")).out == f"{INSIDE}\n"
        assert (await lease.sh("echo new > new.txt; git status --porcelain")).out == "?? new.txt\n"
        # Git writes down where it was last used, once that note is a day old: neither of the names may lead nowhere.
        aged = 'touch -d "3 days ago" "$(git rev-parse --git-dir)/gitdir"; '
        for doing in ("", aged, f"cd {shlex.quote(str(code))}; {aged}"):
            done = await lease.sh(
                f"set -e; {doing}git add -A; git commit --allow-empty -qm work; git worktree prune; "
                "git gc --prune=now -q; git worktree list --porcelain"
            )
            assert done.status == 0, done
            assert "branch refs/heads/treadle/T1" in done.out
            assert "prunable" not in done.out
        assert git(lease.workspace.agents_repo, "show", "treadle/T1:new.txt") == "new"
        head = (await lease.sh("git rev-parse HEAD")).out.strip()
        assert agents_head(lease.workspace.agents_repo, "T1") == head
        assert git(code, "status", "--porcelain") == ""


async def test_what_takes_the_worktrees_place_is_refused(home: Path) -> None:
    for hidden in (INSIDE, INSIDE / "data"):
        with pytest.raises(SandboxFails, match="/treadle/code is where agents find their worktree"):
            probe_sandbox(hidden=[Path(hidden)])
    with pytest.raises(SandboxFails, match="TREADLE_SANDBOX_READ or PATH"):
        probe_sandbox(environment={"PATH": os.environ["PATH"], "TREADLE_SANDBOX_READ": "/"})


async def test_it_writes_to_its_worktree_home_and_tmp_and_nowhere_else(project: Project, sandbox: Sandbox) -> None:
    async with inside(project, sandbox) as lease:
        workspace, scratch = lease.workspace, lease.scratch
        allowed = [workspace.code, workspace.agents_repo, scratch / "home", scratch / "tmp", Path("/tmp")]  # noqa: S108
        allowed.append(Path(INSIDE))
        refused = [Path("/"), Path("/usr"), Path("/etc"), Path("/opt"), Path("/var"), Path("/run"), Path(sys.prefix)]
        refused.append(Path(INSIDE.parent))
        refused += [workspace.path, scratch, workspace.mirror.objects, scratch.parent, Path("/proc/sys/kernel")]
        every = " ".join(shlex.quote(str(place)) for place in (*allowed, *refused))
        done = await lease.sh(f'for place in {every}; do touch "$place/probe" && echo "$place"; done')
        written = {Path(line) for line in done.out.splitlines()}
        assert written >= set(allowed)
        # Above a place below /tmp is a /tmp that is nobody else's; it may write there.
        assert not {place for place in refused if not place.is_relative_to("/tmp")} & written  # noqa: S108 - see above
        assert not [place for place in refused if (place / "probe").exists()]


async def test_no_ref_of_the_repository_or_the_mirror_can_be_moved(project: Project, sandbox: Sandbox) -> None:
    async with inside(project, sandbox) as lease:
        refs = git(project.repo, "for-each-ref"), git(project.mirror.path, "for-each-ref")
        done = await lease.sh(
            f"git commit -q --allow-empty -m sly; for to in {shlex.quote(str(project.repo))} "
            f"{shlex.quote(str(project.mirror.path))}; do "
            'git push -f "$to" HEAD:refs/heads/main && exit 3; git -C "$to" update-ref refs/heads/main HEAD && exit 4; '
            'echo sly > "$to/refs/heads/main" && exit 5; done; exit 0'
        )
        assert done.status == 0, done
        assert refs == (git(project.repo, "for-each-ref"), git(project.mirror.path, "for-each-ref"))


async def test_the_mirrors_objects_can_be_read_and_not_corrupted(project: Project, sandbox: Sandbox) -> None:
    async with inside(project, sandbox) as lease:
        before = contents(project.mirror.objects)
        objects = shlex.quote(str(project.mirror.objects))
        done = await lease.sh(
            f"git cat-file -p HEAD >/dev/null || exit 3; find {objects} -type f | while read -r file; do "
            f'chmod u+w "$file" && exit 4; echo junk > "$file" && exit 5; rm -f "$file" && exit 6; done; '
            f"mount -o remount,rw {objects} && exit 7; touch {objects}/x && exit 8; exit 0"
        )
        assert done.status == 0, done
        assert before
        assert contents(project.mirror.objects) == before


async def test_what_the_project_does_not_give_it_does_not_exist(
    project: Project, sandbox: Sandbox, tmp_path: Path
) -> None:
    secret = tmp_path / "secret-of-the-operator"
    secret.write_text("canary")
    other = project.workspace("T2")
    async with inside(project, sandbox) as lease:
        workspace = lease.workspace
        hidden = [secret, other.path, other.code, workspace.runners_repo, workspace.path / "pushed", project.repo]
        hidden += [project.mirror.path / "HEAD", project.data_dir / "scratch" / "other", Path("/etc/shadow")]
        hidden += [Path("/etc/ssl/private"), Path("/var/run/docker.sock"), Path("/sys"), Path.home() / ".ssh"]
        every = " ".join(shlex.quote(str(path)) for path in hidden)
        assert (await lease.sh(f'for path in {every}; do ls -d "$path"; done')).out == ""
        assert (await lease.sh(f"ls -A {shlex.quote(str(project.data_dir))}")).out.split() == (
            ["mirrors", "scratch", "work"]
        )
        assert (await lease.sh("cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline | grep -q '[c]anary'")).status != 0


async def test_it_sees_no_process_but_its_own(project: Project, sandbox: Sandbox) -> None:
    async with inside(project, sandbox) as lease:
        done = await lease.sh(f"ls /proc; kill -0 {os.getpid()} && echo reached; cat /proc/*/environ")
    pids = [int(word) for word in done.out.split() if word.isdigit()]
    assert pids
    assert len(pids) < 6
    assert "reached" not in done.out
    assert "PYTEST_CURRENT_TEST" not in done.out


async def test_a_link_that_the_agent_leaves_does_not_lead_the_next_process_astray(
    project: Project, sandbox: Sandbox, tmp_path: Path
) -> None:
    secret = tmp_path / "secrets"
    secret.mkdir()
    (secret / "key").write_text("canary")
    async with inside(project, sandbox) as lease:
        places = [
            Path(INSIDE),
            lease.workspace.code,
            lease.workspace.agents_repo,
            lease.scratch / "home",
            lease.scratch / "tmp",
        ]
        for place in places:
            path, target = shlex.quote(str(place)), shlex.quote(str(secret))
            await lease.sh(f"rm -rf {path}; mv {path} {path}.away; ln -s {target} {path}; ln -s {target} {path}/link")
        done = await lease.sh("cat " + " ".join(f"{place}/key {place}/link/key" for place in places))
        assert "canary" not in done.out
        assert all(place.is_dir() and not place.is_symlink() for place in places[1:])


async def test_nothing_can_be_bound_below_a_place_that_the_agent_writes_to(project: Project, sandbox: Sandbox) -> None:
    workspace = project.workspace()
    with pytest.raises(ValueError, match="within"):
        async with enclose(
            sandbox,
            workspace_code=workspace.code,
            agents_repo=workspace.agents_repo,
            objects=project.mirror.objects,
            scratch=workspace.code,
        ):
            pass


async def test_a_daemon_with_a_cleared_environment_is_gone_when_the_command_ends(
    project: Project, sandbox: Sandbox
) -> None:
    name = f"daemon-{os.getpid()}-ends"
    async with inside(project, sandbox) as lease:
        started = "until pgrep -f '^" + name + "'; do :; done"
        done = await lease.run("bash", "-c", f"{DAEMON.format(name=name).replace('sh -c', 'bash -c')} {started}")
        assert done.status == 0, done
        assert not alive(name)


async def test_ending_a_lease_returns_when_its_daemons_are_gone_too(project: Project, sandbox: Sandbox) -> None:
    name = f"daemon-{os.getpid()}-lease"
    async with inside(project, sandbox) as lease:
        script = f"{DAEMON.format(name=name).replace('sh -c', 'bash -c')} trap '' TERM; while :; do sleep 1; done"
        running = asyncio.create_task(lease.run("bash", "-c", script))
        await until(lambda: bool(alive(name)), "the daemon did not start")
        begun = time.monotonic()
        await end_lease(lease.mark)
        assert not alive(name)
        assert time.monotonic() - begun < ENDED_WITHIN_S
        assert (await running).status != 0


async def test_no_chain_of_forks_outlives_its_sandbox(project: Project, sandbox: Sandbox) -> None:
    async with inside(project, sandbox) as lease:
        running = asyncio.create_task(lease.run("sh", "-c", 'perl -e "$1" & sleep 60', "sh", FORK_CHAIN))
        beat = lease.workspace.code / "beat"
        await until(lambda: beat.exists() and beat.stat().st_size > 20, "the chain did not start")
        begun = time.monotonic()
        await end_lease(lease.mark)
        seen = beat.stat().st_size
        assert time.monotonic() - begun < ENDED_WITHIN_S
        assert (await running).status != 0
        assert beat.stat().st_size == seen


async def test_what_reads_a_worktree_is_led_nowhere(project: Project, sandbox: Sandbox, tmp_path: Path) -> None:
    secret = tmp_path / "secret-of-the-operator"
    secret.write_text("canary")
    workspace = project.workspace()
    code, runners = workspace.code, workspace.runners_repo
    (code / "link").symlink_to(secret)
    shutil.rmtree(workspace.agents_repo / "objects")
    (workspace.agents_repo / "objects").symlink_to(tmp_path)
    words = sandbox.reading(
        cwd=runners, read_write=[runners], read_only=[code, workspace.agents_repo, project.mirror.objects]
    )

    async def said(script: str) -> str:
        out = bytearray()
        env = {"PATH": os.environ["PATH"], "CANARY": "canary", LEASE_VARIABLE: "reading/T1/1"}
        argv = [*words, "sh", "-c", script]
        await run_program(argv, cwd=runners, env=env, stdin=b"", stdout=out.extend, stderr=lambda _: None)
        return out.decode()

    away = f"{secret} {code}/link {workspace.agents_repo}/objects/{secret.name} /proc/1/environ /proc/self/environ"
    assert await said(f"cat {away} {project.repo}/.git/config; ls /proc {tmp_path}/{secret.name}") == ""
    assert await said(f"touch {code}/x {workspace.agents_repo}/x {project.mirror.objects}/x && echo touched") == ""
    assert await said(f"touch {runners}/x && cat {code}/.git && echo yes") == (code / ".git").read_text() + "yes\n"


async def test_a_program_has_time_to_end_well(project: Project, sandbox: Sandbox) -> None:
    async with inside(project, sandbox) as lease:
        script = "trap 'echo goodbye > said; exit 0' TERM; touch ready; while :; do sleep 0.01; done"
        running = asyncio.create_task(lease.sh(script))
        await until((lease.workspace.code / "ready").exists, "it did not start")
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert (lease.workspace.code / "said").read_text() == "goodbye\n"


async def test_nothing_outlives_a_runner_that_is_killed(project: Project, sandbox: Sandbox, tmp_path: Path) -> None:
    name = f"daemon-{os.getpid()}-killed"
    workspace = project.workspace()
    (tmp_path / "lease-scratch").mkdir()
    script = f"{DAEMON.format(name=name).replace('sh -c', 'bash -c')} while :; do sleep 1; done"
    runner = tmp_path / "runner.py"
    runner.write_text(
        textwrap.dedent(f"""
        import asyncio, os
        from pathlib import Path
        from services.runner.process import run_program
        from services.runner.sandbox import enclose, probe_sandbox

        async def main():
            code = Path({str(workspace.code)!r})
            enclosing = enclose(
                probe_sandbox(), workspace_code=code, agents_repo=Path({str(workspace.agents_repo)!r}),
                objects=Path({str(project.mirror.objects)!r}), scratch=Path({str(tmp_path / "lease-scratch")!r}),
            )
            async with enclosing as enclosure:
                words = enclosure.command(["bash", "-c", {script!r}])
                env = {{"PATH": os.environ["PATH"], "TREADLE_LEASE": "p/killed/1"}}
                nothing = lambda piece: None
                await run_program(words, cwd=code, env=env, stdin=b"", stdout=nothing, stderr=nothing)

        asyncio.run(main())
        """)
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = await asyncio.create_subprocess_exec(sys.executable, str(runner), env=env)
    try:
        await until(lambda: bool(alive(name)), "the daemon did not start")
    finally:
        process.send_signal(signal.SIGKILL)
        await process.wait()
    await until(lambda: not alive(name), "the daemon outlived its runner")


async def test_the_model_is_reached_and_nothing_else(project: Project, sandbox: Sandbox) -> None:
    async def model(request: web.Request) -> web.Response:
        return web.json_response({"key": request.headers["x-api-key"]})

    app = web.Application()
    app.router.add_post("/v1/messages", model)
    served = web.AppRunner(app)
    await served.setup()
    await web.TCPSite(served, "127.0.0.1", 0).start()
    port = served.addresses[0][1]
    try:
        async with KeyProxy("sk-made-up", f"http://127.0.0.1:{port}") as proxy, inside(project, sandbox) as lease:
            lease.enclosure.serve_model(proxy.serve)
            with proxy.lease(1.0) as access:
                url = f"{lease.enclosure.model_url}/v1/messages"
                ask = f"curl -sS --max-time 60 -X POST -H 'x-api-key: {access.token}' -d '{{}}' {url}"
                for network in (True, False):
                    done = await lease.sh(ask, network=network)
                    assert done.out == '{"key": "sk-made-up"}', done
                outside = access.base_url
                assert (await lease.sh(f"curl -sS --noproxy '*' --max-time 60 {outside}")).status == 7
                assert (await lease.sh(f"curl -sS --noproxy '*' --max-time 60 http://127.0.0.1:{port}")).status == 7
            # The proxy serves others on: nothing but the sandbox's own socket was closed.
            async with aiohttp.ClientSession() as session, session.post(f"{access.base_url}/v1/messages") as answer:
                assert answer.status == 401
    finally:
        await served.cleanup()


async def test_the_hand_over_is_closed_to_whatever_runs_later(project: Project, sandbox: Sandbox) -> None:
    async with inside(project, sandbox) as lease:
        attempt = textwrap.dedent("""
            import socket
            for kind in (socket.SOCK_SEQPACKET, socket.SOCK_STREAM):
                with socket.socket(socket.AF_UNIX, kind) as again:
                    try:
                        again.connect("/run/treadle/hand-over")
                    except OSError as error:
                        print(type(error).__name__)
                    else:
                        print("connected")
        """)
        done = await lease.run("python3", "-c", attempt)
        assert "connected" not in done.out, done
        assert "ConnectionRefusedError" in done.out
        closed = await lease.run("python3", "-c", attempt, network=False)
        assert closed.out.split() == ["FileNotFoundError"] * 2


async def test_many_processes_at_once_each_have_their_network(project: Project, sandbox: Sandbox) -> None:
    async with inside(project, sandbox) as lease:
        asked = [
            lease.sh(f"curl -sS --max-time 60 http://host-{number}.example/", mark=f"{lease.mark}{number}")
            for number in range(6)
        ]
        for number, done in enumerate(await asyncio.gather(*asked)):
            assert f"host-{number}.example:80 is not among the hosts" in done.out, done
        assert len(lease.enclosure.refused_hosts()) == 6


async def test_no_token_is_in_the_words_of_a_command(project: Project, sandbox: Sandbox) -> None:
    async with KeyProxy("sk-made-up") as proxy, inside(project, sandbox) as lease:
        lease.enclosure.serve_model(proxy.serve)
        with proxy.lease(1.0) as access:
            words = lease.enclosure.command(["true"])
            assert not [word for word in words if access.token in word or "sk-made-up" in word]


async def test_a_missing_program_is_named(project: Project, sandbox: Sandbox) -> None:
    async with inside(project, sandbox) as lease:
        with pytest.raises(CannotStart, match="no-such-program can't be started in the sandbox"):
            await lease.run("no-such-program")


async def test_signals_that_python_ignores_are_not_ignored_inside(project: Project, sandbox: Sandbox) -> None:
    async with inside(project, sandbox) as lease:
        done = await lease.sh("grep SigIgn /proc/self/status")
    # Only Python's two: what this machine itself ignores (some start their jobs with the C library's own signal 32
    # ignored, which no program can undo) is not ours to judge.
    ignored = int(done.out.split()[1], 16)
    assert not {number for number in (signal.SIGPIPE, signal.SIGXFSZ) if ignored & 1 << number - 1}


async def test_without_a_sandbox_an_enclosure_has_the_same_face(project: Project) -> None:
    async with inside(project, None) as lease:
        assert (await lease.sh("echo out; exit 3")) == type(await lease.sh("true"))(3, "out\n", "")
        assert not lease.enclosure.is_sandboxed
        assert lease.enclosure.command(["a", "b"]) == ["a", "b"]
        code = lease.workspace.code
        assert str(lease.enclosure.place_of(code)) == str(code) == (await lease.sh("pwd")).out.strip()
        assert lease.enclosure.model_url == ""


def fake_bwrap(place: Path, script: str) -> str:
    """A PATH whose bwrap is that script."""
    place.mkdir()
    (place / "bwrap").write_text(f"#!/bin/sh\n{script}\n")
    (place / "bwrap").chmod(0o755)
    return f"{place}:/usr/bin:/bin"


REFUSED = {
    "missing": None,
    "says why": '[ "$1" = --version ] || { echo "bwrap: Creating namespaces: Operation not permitted" >&2; exit 1; }',
}
BROKEN = {
    "fails": "exit 1",
    "hangs": '[ "$1" = --version ] || exec sleep 60',
    "is killed": '[ "$1" = --version ] || kill -9 $$',
    "has too many": '[ "$1" = --version ] || { echo "bwrap: Creating new namespace failed: (ENOSPC)" >&2; exit 1; }',
    "does nothing": "exit 0",
    "does not sandbox": 'while [ "$1" != -- ] && [ $# -gt 0 ]; do shift; done; shift; exec "$@"',
}


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.runner.sandbox._PROBE_WITHIN_S", 4.0)  # enough to start a shell
    monkeypatch.setattr("services.runner.sandbox._PROBE_AGAIN_S", 0.01)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("script", BROKEN.values(), ids=BROKEN)
def test_a_bubblewrap_that_does_not_work_leaves_nobody_without_a_sandbox(tmp_path: Path, script: str) -> None:
    path = fake_bwrap(tmp_path / "bin", script)
    for mode in ("required", "preferred"):
        with pytest.raises(SandboxFails):
            find_sandbox("required" if mode == "required" else "preferred", environment={"PATH": path})


def test_a_sandbox_that_failed_once_is_tried_again(tmp_path: Path) -> None:
    binary = shutil.which("bwrap")
    first = f'if [ "$1" != --version ] && mkdir {tmp_path}/tried 2>/dev/null; then exit 1; fi'
    path = fake_bwrap(tmp_path / "bin", f'{first}; exec {binary} "$@"')
    assert find_sandbox("preferred", environment={"PATH": path}) is not None
    assert (tmp_path / "tried").exists()


@pytest.mark.parametrize("script", REFUSED.values(), ids=REFUSED)
def test_where_there_can_be_no_sandbox_it_is_missing_only_where_it_is_not_required(
    tmp_path: Path, script: str | None
) -> None:
    path = str(tmp_path) if script is None else fake_bwrap(tmp_path / "bin", script)
    with pytest.raises(NoSandbox):
        find_sandbox("required", environment={"PATH": path})
    assert find_sandbox("preferred", environment={"PATH": path}) is None


def test_off_means_none_even_where_there_could_be_one() -> None:
    assert find_sandbox("off") is None


@pytest.mark.parametrize("mode", ["required", "preferred"])
async def test_a_sandbox_that_breaks_later_starts_nothing(
    project: Project, tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    binary = shutil.which("bwrap")
    assert binary is not None
    path = fake_bwrap(tmp_path / "bin", f'[ -e {tmp_path}/broken ] && exit 1; exec {binary} "$@"')
    monkeypatch.setenv("PATH", f"{path}:{os.environ['PATH']}")
    found = find_sandbox("required" if mode == "required" else "preferred", hidden=[project.data_dir])
    assert found is not None
    async with inside(project, found) as lease:
        assert (await lease.sh("true")).status == 0
        (tmp_path / "broken").touch()
        assert (await lease.sh("touch ran")).status == 1
        (tmp_path / "bin/bwrap").write_text("#!/bin/sh\necho 'bwrap: No permissions' >&2\nexit 1\n")
        with pytest.raises(CannotStart, match="the sandbox could not be made"):
            await lease.sh("touch ran")
        (tmp_path / "bin/bwrap").unlink()
        with pytest.raises(CannotStart, match="the sandbox is gone"):
            await lease.sh("touch ran")
        assert not (lease.workspace.code / "ran").exists()


def test_the_operator_names_more_to_read(tmp_path: Path) -> None:
    (tmp_path / "toolchain").mkdir()
    found = probe_sandbox(environment={**os.environ, "TREADLE_SANDBOX_READ": f"{tmp_path}/toolchain"})
    assert tmp_path / "toolchain" in found.readable
    with pytest.raises(NoSandbox, match="TREADLE_SANDBOX_READ"):
        probe_sandbox(environment={**os.environ, "TREADLE_SANDBOX_READ": f"{tmp_path}/nowhere"})


def test_a_directory_of_path_shows_neither_the_home_nor_what_is_hidden(tmp_path: Path) -> None:
    hidden = tmp_path / "data"
    (hidden / "bin").mkdir(parents=True)
    (tmp_path / "tools/bin").mkdir(parents=True)
    path = f"{os.environ['PATH']}:{Path.home()}:{tmp_path}:{hidden}/bin:{tmp_path}/tools/bin:/:."
    readable = probe_sandbox(hidden=[hidden], environment={"PATH": path}).readable
    assert tmp_path / "tools/bin" in readable
    assert not {Path.home(), tmp_path, hidden / "bin", Path("/")} & set(readable)


async def test_a_hidden_directory_below_a_readable_one_is_not_seen(tmp_path: Path) -> None:
    (tmp_path / "tree/data").mkdir(parents=True)
    (tmp_path / "tree/data/secret").write_text("canary")
    (tmp_path / "tree/shown").touch()
    environment = {**os.environ, "TREADLE_SANDBOX_READ": str(tmp_path / "tree")}
    found = probe_sandbox(hidden=[tmp_path / "tree/data"], environment=environment)
    (tmp_path / "project").mkdir()
    project = make_project(tmp_path / "project")
    async with inside(project, found) as lease:
        done = await lease.sh(f"ls {tmp_path}/tree; ls {tmp_path}/tree/data")
        assert done.out.split() == ["data", "shown"]


async def test_output_closed_early_ends_a_program_inside(project: Project, sandbox: Sandbox) -> None:
    class Enough(Exception):
        pass

    def enough(_: bytes) -> None:
        raise Enough

    async with inside(project, sandbox) as lease:
        words = lease.enclosure.command(["sh", "-c", "while :; do echo more; done"])
        with contextlib.suppress(Enough):
            await run_program(
                words, cwd=lease.workspace.code, env=lease.env, stdin=b"", stdout=enough, stderr=lambda _: None
            )
            pytest.fail("it ended by itself")


async def test_a_port_of_this_machine_is_reached_where_it_is_listed(project: Project, sandbox: Sandbox) -> None:
    async def answer(_request: web.Request) -> web.Response:
        return web.Response(text="the machine's")

    app = web.Application()
    app.router.add_get("/", answer)
    served = web.AppRunner(app)
    await served.setup()
    await web.TCPSite(served, "127.0.0.1", 0).start()
    port = served.addresses[0][1]
    urllib = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=60).read().decode())"
    try:
        async with inside(project, sandbox, network_allow=[f"127.0.0.1:{port}", f"localhost:{port}"]) as lease:
            for host in ("127.0.0.1", "localhost"):
                assert (await lease.sh(f"curl -sS --max-time 60 http://{host}:{port}/")).out == "the machine's"
                assert (await lease.run("python3", "-c", urllib, f"http://{host}:{port}/")).out == "the machine's\n"
            assert lease.enclosure.refused_hosts() == ()
    finally:
        await served.cleanup()


async def test_a_server_of_the_agents_own_is_asked_directly_where_loopback_is_not_listed(
    project: Project, sandbox: Sandbox
) -> None:
    async with inside(project, sandbox, network_allow=["example.org"]) as lease:
        script = "echo mine > it; python3 -m http.server 8123 >/dev/null 2>&1 & "
        script += "curl -sS --retry 40 --retry-connrefused --retry-delay 1 http://127.0.0.1:8123/it; kill $!"
        done = await lease.sh(script)
        assert done.out == "mine\n", done
