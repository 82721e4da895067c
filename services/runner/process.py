"""Starting agents' programs, and making sure that nothing of them stays.

Every process of a lease carries `TREADLE_LEASE=<plan>/<task>/<lease>` in its environment and hands it down to its
children, whatever session or process group they move to. So a lease's processes are: those with its mark, and
their descendants (which may have cleared their environment). A program that clears its environment *and* has been
orphaned before we look gets away, unless it is in a sandbox (`services.runner.sandbox`): there it stays a descendant of
the namespace's first process, and when that one ends, the kernel ends all the others.

Processes that fork and exit faster than we can look through all there are would never be met that way: between the list
of processes and the look at one of them it is gone. But they are the newest ones, and Linux says which process id it
gave away last. So these are looked at often (`_hunt`), and who is met is stopped at that very moment, which ends such a
chain when its one process is caught. In a sandbox it ends with the namespace anyway.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

import psutil

from services.runner.sandbox_enter import CANNOT_START, FAILED

LEASE_VARIABLE = "TREADLE_LEASE"
READ_BYTES = 32 * 1024

_POLL_S = 0.01
_PIPE_GRACE_S = 0.5
_STILL_WITHIN_S = 0.5
_LOOKS_IN_VAIN = 25
_HUNT_S, _HUNT_AGAIN_S = 0.5, 0.001
_NEWEST = 12
_BWRAP = "bwrap"
_BWRAP_FAILED, _BWRAP_SAYS = 1, "bwrap: "
_FIRST_WORDS_MAX_BYTES = 2048

Output = Callable[[bytes], None]

_log = logging.getLogger(__name__)


class CannotStart(Exception):
    """The program can't be started; the text says which one and why."""


def lease_mark(plan: str, task: str, lease: int) -> str:
    """The value of `TREADLE_LEASE` in every process of a lease."""
    return f"{plan}/{task}/{lease}"


def die_with_parent() -> list[str]:
    """Words to put before a command so that it gets SIGTERM when the process that started it dies, even by kill -9.

    Empty where util-linux is missing. The kernel means the *thread* that started it: start programs from the main one.
    """
    setpriv = shutil.which("setpriv") if sys.platform == "linux" else None
    return [setpriv, "--pdeathsig", "TERM", "--"] if setpriv else []


async def run_program(
    argv: Sequence[str], *, cwd: Path, env: Mapping[str, str], stdin: bytes, stdout: Output, stderr: Output
) -> int:
    """Runs a program to its end, and then ends whatever it left behind. `env` is all of its environment, mark included.

    Output arrives in pieces of at most `READ_BYTES`, as it comes; a slow receiver slows the program down. When
    cancelled, ends the whole tree before it raises. Returns the exit status (negative: the signal that killed
    it). Raises CannotStart, also when `argv` are the words of an enclosure and the program didn't come to run in it.
    """
    program = _resolve(argv[0], cwd, env)
    first_words = bytearray()

    def errors(piece: bytes) -> None:
        first_words.extend(piece[: _FIRST_WORDS_MAX_BYTES - len(first_words)])
        stderr(piece)

    with contextlib.ExitStack() as files:
        # A file as standard input, not a pipe: a program that doesn't read it can neither block nor break us.
        prompt = files.enter_context(tempfile.TemporaryFile())
        prompt.write(stdin)
        prompt.seek(0)
        # Pipes of our own: asyncio's Process.wait() may wait for its pipes to close, which a daemon that the program
        # left behind would hold open for ever.
        (out_read, out_write), (err_read, err_write) = _pipe(files), _pipe(files)
        try:
            process = await asyncio.create_subprocess_exec(
                *die_with_parent(),
                program,
                *argv[1:],
                cwd=cwd,
                env=dict(env),
                stdin=prompt,
                stdout=out_write,
                stderr=err_write,
                start_new_session=True,
            )
        except OSError as error:
            raise CannotStart(f"{argv[0]} can't be started in {cwd}: {error.strerror}") from error
        out_write.close()
        err_write.close()
        exited = asyncio.create_task(process.wait())
        reading = asyncio.gather(_read(out_read, stdout), _read(err_read, errors))
        try:
            await asyncio.wait((exited, reading), return_when=asyncio.FIRST_COMPLETED)
            if not exited.done():
                await reading  # raises what the receiver of the output raised; else the program only closed its output
            await exited
        finally:
            await end_lease(env[LEASE_VARIABLE])
            await asyncio.wait((exited, reading), timeout=_PIPE_GRACE_S)
            reading.cancel()
            exited.cancel()
            await asyncio.gather(reading, exited, return_exceptions=True)
    if Path(program).name == _BWRAP and (why := _why_not_in_sandbox(exited.result(), first_words)):
        raise CannotStart(why)
    return exited.result()


def _why_not_in_sandbox(status: int, first_words: bytearray) -> str | None:
    """What bubblewrap or `sandbox_enter` said, when it did not get to the program. (A program inside may say the same,
    and then is believed: it fails either way.)"""
    said = first_words.decode(errors="replace").partition("\n")[0]
    if status == _BWRAP_FAILED and said.startswith(_BWRAP_SAYS):
        return f"the sandbox could not be made ({said.removeprefix(_BWRAP_SAYS)}): treadle doctor says what to do"
    if status == CANNOT_START and said.startswith(FAILED):
        return said.removeprefix(FAILED)
    return None


def _resolve(program: str, cwd: Path, env: Mapping[str, str]) -> str:
    """The program's path; found here because a missing one would otherwise end as status 127 of the wrapper."""
    path = env.get("PATH", os.defpath)
    found = shutil.which(cwd / program) if "/" in program else shutil.which(program, path=path)
    if found is None:
        if Path(program).name == _BWRAP:
            raise CannotStart(f"the sandbox is gone: there is no {program} any more, install bubblewrap again")
        where = cwd if "/" in program else f"PATH ({path})"
        raise CannotStart(f"there is no executable {program} in {where}: install it, or correct the agent's command")
    return found


def _pipe(files: contextlib.ExitStack) -> tuple[IO[bytes], IO[bytes]]:
    read, write = os.pipe()
    return files.enter_context(os.fdopen(read, "rb", 0)), files.enter_context(os.fdopen(write, "wb", 0))


async def _read(pipe: IO[bytes], output: Output) -> None:
    reader = asyncio.StreamReader(READ_BYTES)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), pipe
    )
    try:
        while piece := await reader.read(READ_BYTES):
            output(piece)
    finally:
        transport.close()


async def end_lease(mark: str, *, grace_s: float = 0.3, deadline_s: float = 5.0) -> None:
    """Ends every process of a lease: SIGTERM first, SIGKILL after `grace_s`. Returns when all are gone.

    That is when none was seen among all, nor by 25 looks in a row at the newest; one that was seen and had
    died meanwhile counts as seen, for it may have forked. A sandbox's own process is spared the first signal: it would
    take all that is inside with it, without any grace. Also for what an earlier life of this runner left behind. What
    is still there `deadline_s` after the grace (stuck in the kernel, or never caught) is logged as an error, and left.
    """
    known = await asyncio.to_thread(_processes_of, mark)
    _signal([process for process in known if not _is_sandbox(process)], psutil.Process.terminate)
    await _gone(known, grace_s)
    deadline = time.monotonic() + deadline_s
    while seen := await asyncio.to_thread(_kill, mark, known):
        if time.monotonic() > deadline:
            _log.error("processes %s of lease %s could not be ended: look at them with ps", sorted(seen), mark)
            return
        await _gone(known, _POLL_S * 10)


@contextlib.contextmanager
def held_still(mark: str) -> Iterator[None]:
    """Stops the processes of a lease for the length of the block, so that who looks sees one moment. Blocks.

    What stops late (a process stuck in the kernel) can't do anything meanwhile either. No defence: processes that fork
    and exit faster than they can be caught go on (`services.runner.git.git_within` is for those), and so does what was
    started anew by whoever is not of the lease.
    """
    held: set[psutil.Process] = set()
    deadline = time.monotonic() + _STILL_WITHIN_S
    try:
        before: set[int] | None = None
        while (seen := _stop(mark, held)) != before and time.monotonic() < deadline:
            before = seen
        while not all(map(_is_still, held)) and time.monotonic() < deadline:
            time.sleep(_POLL_S / 10)
        yield
    finally:
        _signal(held, psutil.Process.resume)


def cpu_time_s(mark: str) -> float:
    """What a lease's processes have used so far, with those of their children that they saw end."""
    used_s = 0.0
    for process in _processes_of(mark):
        with contextlib.suppress(psutil.NoSuchProcess):
            used_s += sum(process.cpu_times()[:4])  # user, system, and the same of its ended children
    return used_s


def lease_marks() -> set[str]:
    """The marks of all processes that this user may look at, of whatever runner or installation they are."""
    variable = f"{LEASE_VARIABLE}=".encode()
    environments = (_environment(pid) for pid in psutil.pids())
    found = (one for environment in environments for one in environment if one.startswith(variable))
    return {one.removeprefix(variable).decode(errors="replace") for one in found}


def _processes_of(mark: str) -> set[psutil.Process]:
    """Everything that carries the mark, and its descendants."""
    wanted = f"{LEASE_VARIABLE}={mark}".encode()
    found: set[psutil.Process] = set()
    for pid in psutil.pids():
        if wanted not in _environment(pid):
            continue
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            found |= {process, *process.children(recursive=True)}
    return found


def _stop(mark: str, stopped: set[psutil.Process]) -> set[int]:
    """Stops everything that carries the mark, and its descendants; adds them to `stopped`.

    Returns the process ids that had the mark when they were looked at, also of what had died before it was stopped.
    """
    wanted = f"{LEASE_VARIABLE}={mark}".encode()
    seen = {pid for pid in sorted(psutil.pids(), reverse=True) if _stopped(pid, wanted)}
    seen |= _hunt(wanted)
    for pid in seen:
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            stopped.add(process)
            # Of a stopped one there are no more to come, and none is orphaned.
            children = set(process.children(recursive=True)) - stopped
            _signal(children, psutil.Process.suspend)
            stopped |= children
    return seen


def _hunt(wanted: bytes) -> set[int]:
    """Stops the newest processes, again and again, until many looks in a row met no other.

    Not much longer than `_HUNT_S`, if it met any: who calls then comes again.
    """
    seen: set[int] = set()
    in_vain, until = 0, time.monotonic() + _HUNT_S
    while in_vain < _LOOKS_IN_VAIN and not (seen and time.monotonic() > until):
        if met := {pid for pid in _newest() if _stopped(pid, wanted)} - seen:
            seen |= met
            in_vain = 0
        else:
            in_vain += 1
            time.sleep(_HUNT_AGAIN_S)
    return seen


def _stopped(pid: int, wanted: bytes) -> bool:
    """Whether a process has the variable; if so it is stopped at once, for it may live for some 100 µs only."""
    if wanted not in _environment(pid):
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
    return True


def _newest() -> Iterable[int]:
    """The process ids that were given away last, the newest first; none where the system doesn't say."""
    try:
        last = int(Path("/proc/loadavg").read_bytes().split()[-1])
    except (OSError, ValueError):
        return ()
    return range(last, max(last - _NEWEST, 0), -1)


def _kill(mark: str, known: set[psutil.Process]) -> set[int]:
    """Kills everything that carries the mark, its descendants, and those `known`, to which it adds them.

    Returns the ids of those seen, and of those known that were alive still.
    """
    seen = {process.pid for process in known if _is_alive(process)}
    # A sandbox takes all that is inside with it, however fast that forks.
    _signal([process for process in known if _is_sandbox(process)], psutil.Process.kill)
    seen |= _stop(mark, known)
    _signal(known, psutil.Process.kill)
    return seen


def _environment(pid: int) -> Sequence[bytes]:
    """The variables a process was started with; none for one that is gone, a zombie, or another user's."""
    if sys.platform == "linux":  # read directly: psutil takes ten times as long, which counts on a busy machine
        try:
            return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            return ()
    try:
        return [f"{name}={value}".encode() for name, value in psutil.Process(pid).environ().items()]
    except psutil.Error:
        return ()


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _is_sandbox(process: psutil.Process) -> bool:
    try:
        return process.name() == _BWRAP
    except psutil.NoSuchProcess:
        return False


def _is_still(process: psutil.Process) -> bool:
    try:
        return process.status() in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE, psutil.STATUS_TRACING_STOP)
    except psutil.NoSuchProcess:
        return True


def _signal(processes: Iterable[psutil.Process], send: Callable[[psutil.Process], None]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            send(process)


async def _gone(processes: Iterable[psutil.Process], within_s: float) -> None:
    """Returns when all are gone, or the time is up."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline and any(map(_is_alive, processes)):  # noqa: ASYNC110 - only a parent is notified
        await asyncio.sleep(_POLL_S)
