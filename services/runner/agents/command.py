"""The agent `command`: any program, run in the worktree with the prompt on its standard input.

It is told `TREADLE_PLAN`, `TREADLE_TASK` and `TREADLE_ATTEMPT`. Exit status 0 means done; what it printed last is the
summary. Where an answer is what it is for, that is the last JSON object on its standard output.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Literal

import msgspec

from services.runner.agents import (
    ANSWER_MAX_BYTES,
    SUMMARY_MAX_BYTES,
    AgentRunner,
    AgentSession,
    Finished,
    Job,
    Kind,
    Report,
    Trial,
    activity,
    environment,
)
from services.runner.agents.last_object import last_object
from services.runner.process import CannotStart, run_program
from shared.requests import AgentCredentials

LINE_MAX_BYTES = 16 * 1024
"""A longer line is cut: it is no line that a person reads."""

TAIL_MAX_BYTES = 4 * 1024


class ShellFailure(msgspec.Struct, frozen=True):
    """The set-up or verification command that failed."""

    command: str
    status: int
    """Exit status; negative: the signal that ended it."""
    tail: str
    """The end of what it printed, at most `TAIL_MAX_BYTES`."""


class CommandRunner:
    """Runs `agent.command`."""

    needs_credentials = False
    resumes = False

    @asynccontextmanager
    async def open(self, job: Job, report: Report) -> AsyncIterator[AgentSession]:
        """See `AgentRunner.open`. Each turn is one run of the program."""
        yield _CommandSession(job, report)


class _CommandSession:
    def __init__(self, job: Job, report: Report) -> None:
        self._job, self._report = job, report
        self._deadline = time.monotonic() + job.timeout_s
        self._is_begun = False

    async def turn(self, message: str) -> Finished:
        """A program remembers nothing: it is told the prompt again, with what was wrong."""
        job, program = self._job, self._job.agent.command[0]
        told = f"{job.prompt}\n\n{message}" if self._is_begun else message
        self._is_begun = True
        output = _Output(self._report, "output", heard_max_bytes=2 * ANSWER_MAX_BYTES if job.rules.answer else 0)
        try:
            async with asyncio.timeout(self._deadline - time.monotonic()):
                status = await _run(job.agent.command, job, output, told.encode(errors="replace"))
        except TimeoutError:
            words = f"{program} did not finish within {_minutes(job.timeout_s)} and was stopped."
            return Finished(kind="timeout", message=f"{words} Raise timeout_minutes, or make the task smaller.")
        except CannotStart as error:
            return Finished(kind="agent_error", message=f"The agent did not start: {error}.")
        summary = output.stdout_tail(SUMMARY_MAX_BYTES)
        if status == 0:
            answer = await asyncio.to_thread(last_object, output.heard()) if job.rules.answer else ""
            return Finished(kind="completed", summary=summary, answer=answer)
        words = f"{program} ended with {_words(status)}. {last_output(output.tail(TAIL_MAX_BYTES))}"
        return Finished(kind="agent_error", message=words, summary=summary)


def last_output(tail: str) -> str:
    """What a program said last, in words; a paragraph of its own has to follow."""
    return f"Its last output:\n{tail}" if tail.strip() else "It printed nothing."


@asynccontextmanager
async def open_runner(_environment: Mapping[str, str]) -> AsyncIterator[AgentRunner]:
    """Needs nothing of the runner's environment."""
    yield CommandRunner()


async def try_out(_credentials: AgentCredentials | None, _model: str) -> Trial:
    """There is nothing to try: a program has neither key nor model."""
    return Trial("ok", "There is nothing to try: a command needs no key. Whether it starts, its first task shows.")


async def run_shell(
    commands: Sequence[str], job: Job, report: Report, kind: Literal["output", "verify"] = "output"
) -> ShellFailure | None:
    """Runs a task's `setup` or `verify` commands in its worktree, each in a shell of its own, up to the first failure.

    The caller bounds the time: when cancelled, nothing of a command stays. `kind` is of the activities.
    """
    for command in commands:
        output = _Output(report, kind)
        report(activity("tool" if kind == "output" else kind, f"$ {command}"))
        try:
            status = await _run(("sh", "-c", command), job, output, b"")
        except CannotStart as error:
            return ShellFailure(command, 127, str(error))
        if status != 0:
            return ShellFailure(command, status, output.tail(TAIL_MAX_BYTES))
    return None


async def _run(argv: Sequence[str], job: Job, output: _Output, stdin: bytes) -> int:
    try:
        return await run_program(
            job.enclosure.command(argv),
            cwd=job.cwd,
            env=environment(job),
            stdin=stdin,
            stdout=output.take_stdout,
            stderr=output.take_stderr,
        )
    finally:
        output.close()


class _Output:
    """Reports whole lines, many at a time, and remembers the last ones; never holds more than a few pieces."""

    def __init__(self, report: Report, kind: Kind, heard_max_bytes: int = 0) -> None:
        """`heard_max_bytes` of standard output are kept as they are, the last ones."""
        self._report, self._kind = report, kind
        self._heard, self._heard_max_bytes = bytearray(), heard_max_bytes
        self._stdout, self._stderr = _Lines(), _Lines()
        self._tail = self._stdout_tail = b""

    def take_stdout(self, piece: bytes) -> None:
        if self._heard_max_bytes:
            self._heard += piece
            if len(self._heard) > 2 * self._heard_max_bytes:
                del self._heard[: -self._heard_max_bytes]
        self._note_stdout(self._stdout.take(piece))

    def take_stderr(self, piece: bytes) -> None:
        self._note(self._stderr.take(piece))

    def close(self) -> None:
        """Reports last lines that lack their end."""
        self._note_stdout(self._stdout.rest())
        self._note(self._stderr.rest())

    def tail(self, max_bytes: int) -> str:
        return _last_lines(self._tail, max_bytes)

    def heard(self) -> str:
        """The end of standard output, its lines whole however long they are."""
        return self._heard[-self._heard_max_bytes :].decode(errors="replace") if self._heard_max_bytes else ""

    def stdout_tail(self, max_bytes: int) -> str:
        return _last_lines(self._stdout_tail, max_bytes)

    def _note_stdout(self, lines: bytes) -> None:
        self._stdout_tail = (self._stdout_tail + lines)[-TAIL_MAX_BYTES:]
        self._note(lines)

    def _note(self, lines: bytes) -> None:
        if lines:
            self._tail = (self._tail + lines)[-TAIL_MAX_BYTES:]
            self._report(activity(self._kind, lines.decode(errors="replace").removesuffix("\n")))


class _Lines:
    """Cuts a stream into whole lines of bounded length."""

    def __init__(self) -> None:
        self._begun = b""
        self._is_cut = False

    def take(self, piece: bytes) -> bytes:
        """The lines that are complete now."""
        head, newline, begun = piece.rpartition(b"\n")
        whole = b""
        if newline:
            first, newline, others = (head + newline).partition(b"\n")
            whole = self._end(first + newline) + others
            self._begun, self._is_cut = b"", False
        self._begin(begun)
        return whole

    def rest(self) -> bytes:
        """The line that never ended."""
        rest, self._begun = self._begun, b""
        return rest

    def _begin(self, part: bytes) -> None:
        room = LINE_MAX_BYTES - len(self._begun)
        if len(part) > room and not self._is_cut:
            self._begun, self._is_cut = self._begun + part[:room] + b" ... [cut]", True
        elif not self._is_cut:
            self._begun += part

    def _end(self, part: bytes) -> bytes:
        return self._begun + b"\n" if self._is_cut else self._begun + part


def _last_lines(output: bytes, max_bytes: int) -> str:
    """The last lines that say something; whole ones, if they fit."""
    lines = [line.rstrip() for line in output.decode(errors="replace").splitlines() if line.strip()]
    kept: list[str] = []
    room = max_bytes
    for line in reversed(lines):
        room -= len(line.encode()) + 1
        if room < 0:
            break
        kept.insert(0, line)
    if not kept and lines:
        return lines[-1].encode()[-max_bytes:].decode(errors="ignore")
    return "\n".join(kept)


def _words(status: int) -> str:
    return f"exit status {status}" if status >= 0 else f"signal {-status} ({signal.strsignal(-status)})"


def _minutes(time_s: float) -> str:
    return f"{time_s / 60:g} minutes" if time_s >= 60 else f"{time_s:g} seconds"
