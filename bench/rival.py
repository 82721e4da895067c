"""The rivals' processes: installed into an environment of their own, kept running, and given one shape at a time."""

import asyncio
import json
import os
import subprocess
import venv
from asyncio.subprocess import PIPE, Process
from contextlib import AsyncExitStack
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Self

from bench.shapes import Shape
from treadle.supervision.log_files import open_log
from treadle.supervision.processes import die_with_parent

HERE = Path(__file__).resolve().parent
ENVIRONMENT = HERE.parent / ".venv-bench"
LOCK = HERE / "requirements.lock"
START_TIMEOUT_S = 60.0
SHAPE_TIMEOUT_S = 300.0
ANSWER_MAX_BYTES = 16 * 1024 * 1024


class RivalFailed(Exception):
    """A rival can't be installed, started or measured; the message says why."""


def install() -> Path:
    """The rivals' Python, with everything in `requirements.lock`; the second call does nothing.

    Raises `RivalFailed`.
    """
    python = ENVIRONMENT / "bin" / "python"
    installed = ENVIRONMENT / "installed"
    lock = sha256(LOCK.read_bytes()).hexdigest()
    if installed.exists() and installed.read_text() == lock:
        return python
    venv.create(ENVIRONMENT, with_pip=True, clear=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--require-hashes", "-r", str(LOCK)]
    done = subprocess.run(pip, capture_output=True, text=True, check=False)
    if done.returncode:
        words = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise RivalFailed(f"the rivals could not be installed into {ENVIRONMENT.name}: {words}")
    installed.write_text(lock)
    return python


class Rival:
    """One rival's process, for as long as the context lasts. Raises `RivalFailed`."""

    def __init__(self, name: str, python: Path, directory: Path, script: str, *arguments: str) -> None:
        self.name = name
        self._argv = [str(python), str(HERE / "rivals" / script), *arguments]
        self._directory = directory
        self._log = directory / f"{name.replace(' ', '-')}.log"
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        with open_log(self._log) as log:
            self._process: Process = await asyncio.create_subprocess_exec(
                *self._argv, stdin=PIPE, stdout=PIPE, stderr=log, cwd=self._directory, limit=ANSWER_MAX_BYTES,
                env={name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ},
                preexec_fn=die_with_parent(),
            )  # fmt: skip
        if self._process.stdin is None or self._process.stdout is None:
            raise TypeError("a process that was started with pipes has them")
        self._shapes, self._answers = self._process.stdin, self._process.stdout
        try:
            await self._answer(START_TIMEOUT_S)
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._end()

    async def run(self, shape: Shape) -> float:
        """Seconds from handing the shape in to its last task's end, by the rival's own clock."""
        self._shapes.write(json.dumps(shape).encode() + b"\n")
        await self._shapes.drain()
        return float(await self._answer(SHAPE_TIMEOUT_S))

    async def _answer(self, timeout_s: float) -> str:
        try:
            async with asyncio.timeout(timeout_s):
                line = await self._answers.readline()
        except TimeoutError:
            raise RivalFailed(f"{self.name} did not answer within {timeout_s:g} s") from None
        if not line:
            words = (self._log.read_text(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
            raise RivalFailed(f"{self.name} ended: {words}")
        return line.decode().strip()

    async def _end(self) -> None:
        self._shapes.close()
        try:
            async with asyncio.timeout(10):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
