"""The one suite of a data directory, for a command that wants to use it: found, or started in the background."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, TypeVar

from treadle.supervision.background import start_in_background
from treadle.supervision.data_dir import DataDir
from treadle.supervision.environment import Secrets
from treadle.supervision.slowness import Slowness
from treadle.supervision.suite_error import DataDirHeld, SuiteError
from treadle.supervision.suite_info import SuiteInfo, SuiteOptions, running_suite, stored_info

T = TypeVar("T")

_LOOK_AGAIN_S = 0.05


@dataclass
class JoinedSuite:
    """A suite in use: as long as this is open, it does not stop for idleness."""

    info: SuiteInfo
    token: str = field(repr=False)
    _membership: IO[str] = field(repr=False)
    # Kept so that the supervisor is our child in good standing while we live.
    _started: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def close(self) -> None:
        self._membership.close()

    def __enter__(self) -> JoinedSuite:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _say_nothing(_: str) -> None:
    """For programs, which wait without being told for what."""


def ensure_suite(
    options: SuiteOptions, secrets: Secrets, deadline_s: float = 90.0, say: Callable[[str], None] = _say_nothing
) -> JoinedSuite:
    """Joins the suite that uses the data directory, or starts one; of two that start at once, one wins and both join.

    Options and secrets count only for a suite that is started here. `say` hears what is being waited for where that
    takes longer than a moment. Raises SuiteError.
    """
    data_dir = DataDir(Path(options.data_dir))
    data_dir.prepare()
    until_s = time.monotonic() + deadline_s
    with Slowness(say) as slowness, contextlib.ExitStack() as on_failure:
        slowness.waits_for(f"the suite in {data_dir.path} is stopping; waiting for its end …")
        membership = _until(until_s, data_dir.join_as_client)
        if membership is None:
            raise SuiteError(f"the suite of {data_dir.path} is stopping, and was not done within {deadline_s:g} s")
        on_failure.enter_context(membership)
        info, process = _found_or_started(data_dir, options, secrets, until_s, slowness)
        on_failure.pop_all()
    return JoinedSuite(info, data_dir.token.read_text(encoding="utf-8").strip(), membership, process)


def _found_or_started(
    data_dir: DataDir, options: SuiteOptions, secrets: Secrets, until_s: float, slowness: Slowness
) -> tuple[SuiteInfo, subprocess.Popen[bytes] | None]:
    process = None
    slowness.waits_for(f"waiting for the suite in {data_dir.path} to answer …")
    while time.monotonic() < until_s:
        info = running_suite(data_dir)
        if info is not None:
            return info, process
        if data_dir.holder_pid() is None:
            slowness.waits_for(_start_words(data_dir))
            with contextlib.suppress(DataDirHeld):
                process = start_in_background(data_dir, options, secrets, until_s - time.monotonic())
                continue
        time.sleep(_LOOK_AGAIN_S)
    pid = data_dir.holder_pid()
    raise SuiteError(
        f"{data_dir.path} is in use by {f'process {pid}' if pid else 'another process'}, which does not answer: see "
        f"{data_dir.log('supervisor')}, end that process, or choose another directory with --data"
    )


def _start_words(data_dir: DataDir) -> str:
    died = stored_info(data_dir)  # one that stops takes its file away
    if died is not None:
        return f"the suite (process {died.pid}) is gone; starting it again in {data_dir.path} …"
    return f"starting Treadle in {data_dir.path} …"


def stop_suite(data_dir: DataDir, deadline_s: float = 40.0) -> bool:
    """Stops the suite politely, and waits until its last process is gone. False when none was running.

    Raises SuiteError when it has not stopped in time.
    """
    pid = data_dir.holder_pid() if data_dir.path.is_dir() else None
    if pid is None:
        return False
    if pid:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    if not _until(time.monotonic() + deadline_s, lambda: data_dir.holder_pid() is None):
        raise SuiteError(
            f"the suite (process {pid}) has not stopped within {deadline_s:g} s; its log: {data_dir.log('supervisor')}"
        )
    return True


def _until(until_s: float, attempt: Callable[[], T]) -> T:
    """The first result of `attempt` that counts as true; past the time, the last one."""
    while not (result := attempt()) and time.monotonic() < until_s:
        time.sleep(_LOOK_AGAIN_S)
    return result
