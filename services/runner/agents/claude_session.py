"""One lease's conversation with Claude.

Each turn is one life of the CLI: while the runner commits and verifies, no process of the agent is left that could
change a file. The next turn, of this lease or of another, resumes the conversation.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

from claude_agent_sdk import (
    AssistantMessage,
    ClaudeSDKClient,
    ClaudeSDKError,
    Message,
    ResultMessage,
    SessionKey,
    SessionStore,
    SessionStoreEntry,
    ToolUseBlock,
    UserMessage,
)

from services.runner.agent_files import read_below
from services.runner.agents import Asks, Finished, Job, Memory, Report, activity, cut
from services.runner.agents.claude_activity import activities, results
from services.runner.agents.claude_cli import Start, forget_transcript, options, write_transcript
from services.runner.agents.claude_conversation import TakenUp, take_up
from services.runner.agents.claude_gate import Gate
from services.runner.agents.claude_limits import Limits
from services.runner.agents.claude_verdict import judge
from services.runner.agents.liveness import Hung, Liveness
from services.runner.process import end_lease
from services.runner.proxy import Access

INSTRUCTIONS_MAX_BYTES = 32 * 1024
_INSTRUCTION_FILES = ("CLAUDE.md", "AGENTS.md")
_GOODBYE_S = 1.0
_LAST_ENTRIES_S = 1.0
_STDERR_LINES = 20


class ClaudeSession:
    """See `AgentSession`."""

    def __init__(
        self, job: Job, model: str, access: Access, report: Report, *, limits: Limits, stalled_s: float
    ) -> None:
        self._job, self._model, self._access, self._report = job, model, access, report
        self._limits, self._stalled_s = limits, stalled_s
        self._deadline = time.monotonic() + job.timeout_s
        self._session_id = job.memory.session_id if job.memory else str(uuid4())
        self._is_begun = False
        """Whether the CLI's directory has the conversation."""

    async def turn(self, message: str) -> Finished | Asks:
        """See `AgentSession.turn`. Raises what the job's memory raises: then the lease is over, or can't go on."""
        if self._access.is_budget_spent:
            words = "Nothing is left of what this attempt may cost. Raise budget_usd, or make the task smaller."
            return Finished(kind="budget_spent", message=words, usage=self._access.usage)
        if self._is_begun:
            taken_up = TakenUp(entries=[], words=message)
        else:
            taken_up = await self._taken_up("" if message == self._job.prompt else message)
            if not taken_up.entries:
                return await self._afresh(message, taken_up.words)
            write_transcript(self._job, self._session_id, taken_up)
        try:
            return await self._life(taken_up, resumes=True)
        except _CannotResume as error:
            self._report(activity("treadle", f"The conversation can't be taken up again ({error}): it begins anew."))
            forget_transcript(self._job, self._session_id)
            return await self._afresh(message, taken_up.words if taken_up.words != message else "")

    async def _taken_up(self, said: str) -> TakenUp:
        job = self._job
        if job.memory is None or not job.memory.resumes:
            return TakenUp(entries=[])
        taken_up = take_up(await job.memory.load(), job.approval, said, job.worktree)
        if not taken_up.entries:
            self._report(activity("treadle", "Nothing was kept of the conversation so far: it begins anew."))
            return taken_up
        if taken_up.added:
            if job.approval is not None and job.approval.expired:
                self._report(activity("treadle", "Nobody answered in time: refused. The agent is told, and goes on."))
            await job.memory.append(taken_up.added)
        if taken_up.allowed is not None and job.use_approval is not None:
            await job.use_approval()
        self._report(activity("treadle", "The conversation goes on where it was interrupted."))
        return taken_up

    async def _afresh(self, message: str, words: str) -> Finished | Asks:
        prompt = self._job.prompt
        # What is said to a conversation that is lost would mean nothing without the prompt.
        said = message.removeprefix(prompt).strip()
        told = "\n\n".join(filter(None, (_with_instructions(prompt, self._job.cwd), said, words)))
        return await self._life(TakenUp(entries=[], words=told), resumes=False)

    async def _life(self, taken_up: TakenUp, *, resumes: bool) -> Finished | Asks:
        gate = Gate(self._job, taken_up.allowed)
        start = Start(
            session_id=self._session_id,
            resumes=resumes,
            gate=gate,
            runs_allowed=taken_up.allowed is not None,
        )
        life = _Life(self._job, self._model, self._access, self._report, self._limits, start)
        try:
            async with asyncio.timeout(self._deadline - time.monotonic()) as limit:
                end = await life.run(taken_up.words, self._stalled_s)
        except TimeoutError:
            if not limit.expired():
                raise
            words = f"Claude did not finish within {self._job.timeout_s / 60:g} minutes and was stopped."
            return self._timeout(f"{words} Raise timeout_minutes, or make the task smaller.")
        except Hung:
            words = f"For {self._stalled_s / 60:g} minutes Claude neither said nor received nor computed anything"
            return self._timeout(
                f"{words}; it was stopped. Redispatch the task; if it hangs again, look at its last call."
            )
        self._is_begun = True
        if self._job.memory is not None:
            self._job.memory.turn_ended(self._access.usage)
        return end

    def _timeout(self, words: str) -> Finished:
        return Finished(kind="timeout", message=words, usage=self._access.usage)


class _CannotResume(Exception):
    """The CLI did not take the transcript."""


class _Life:
    """One process of the CLI, from its start to its result."""

    def __init__(self, job: Job, model: str, access: Access, report: Report, limits: Limits, start: Start) -> None:
        self._job, self._model, self._access, self._report, self._start = job, model, access, report, start
        self._stderr: deque[str] = deque(maxlen=_STDERR_LINES)
        self._store = _Store(job.memory) if job.memory else None
        store = cast(SessionStore | None, self._store)  # it wants four more methods, which it calls optional
        self._client = ClaudeSDKClient(
            options(job, model, access, limits, start, store=store, stderr=self._stderr.append)
        )
        self._error: str | None = None
        self._messages = 0
        self._open_calls: set[str] = set()
        self._reported = access.told

    async def run(self, words: str, stalled_s: float) -> Finished | Asks:
        """`words` "": the CLI goes on by itself, with the call that was allowed. Raises `_CannotResume` and Hung."""
        liveness = Liveness(self._job.mark, self._moved, stalled_s=stalled_s)
        conversation = asyncio.create_task(self._converse(words))
        watch = asyncio.create_task(liveness.watch())
        alarms: list[asyncio.Future[Any]] = [watch, *([self._store.failed] if self._store else [])]
        try:
            await asyncio.wait((conversation, *alarms), return_when=asyncio.FIRST_COMPLETED)
            for alarm in alarms:
                if alarm.done():
                    alarm.result()  # raises
            end = conversation.result()
            # Now that it is idle, the CLI leaves at once when asked; if not, it is ended below.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_GOODBYE_S):
                    await self._client.disconnect()
            return end
        finally:
            if self._store:
                self._store.patience_s = _LAST_ENTRIES_S
            # First the processes, then the conversation: the SDK waits for seconds on a CLI that is at work.
            await end_lease(self._job.mark)
            for task in (conversation, watch):
                task.cancel()
            await asyncio.wait((conversation, watch))
            await self._client.disconnect()

    def _moved(self) -> int:
        """Grows with whatever can be seen of it from outside: messages, the model's bytes, a download's."""
        return self._messages + self._access.passed_bytes + self._job.enclosure.passed_bytes

    async def _converse(self, words: str) -> Finished | Asks:
        try:
            await self._client.connect()
            if words:
                await self._client.query(words)
            async for message in self._client.receive_response():
                self._note(message)
                if isinstance(message, ResultMessage):
                    return self._end(message)
        except ClaudeSDKError as error:
            return self._broken(str(error))
        return self._broken("it ended without a result")

    def _end(self, result: ResultMessage) -> Finished | Asks:
        call, verdict = result.deferred_tool_use, self._start.gate.asks
        if call is None or verdict is None:
            return judge(result, self._error, self._model, self._access, self._job)
        return Asks(
            kind="question" if verdict.answer == "question" else "tool",
            tool=call.name,
            input=call.input,
            why=verdict.why,
            usage=self._access.usage,
        )

    def _broken(self, words: str) -> Finished:
        last = cut("\n".join(self._stderr) or "nothing on standard error", 2000)
        if self._start.resumes and not self._messages:
            raise _CannotResume(f"{words}; the CLI said: {last}")
        message = f"The Claude CLI failed: {words}. It said:\n{last}"
        return Finished(kind="agent_error", message=message, usage=self._access.usage)

    def _note(self, message: Message) -> None:
        self._messages += 1
        for each in activities(message, self._job):
            self._report(each)
        if isinstance(message, AssistantMessage):
            self._error = message.error or self._error
            self._open_calls |= {block.id for block in message.content if isinstance(block, ToolUseBlock)}
        elif isinstance(message, UserMessage) and (answered := results(message)):
            self._open_calls -= {block.tool_use_id for block in answered}
            if not self._open_calls and self._job.memory is not None:
                self._job.memory.turn_ended(self._access.usage)
        # What the API has told: an estimate of the answer under way may turn out too large, and people wonder.
        if (usage := self._access.told) != self._reported:
            self._reported = usage
            self._report(activity("usage", usage=usage))


class _Store:
    """Keeps what the CLI writes into its transcript. Nothing is loaded here: `write_transcript` has done that."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Has the first error of the memory: the SDK itself would go on without it."""
        self.patience_s: float | None = None
        """For one append; None: as long as it takes."""

    async def append(self, key: SessionKey, entries: Sequence[SessionStoreEntry]) -> None:
        if key.get("subpath"):
            return  # a helper's own conversation: nobody resumes that
        if self.failed.done():
            self.failed.result()
        try:
            async with asyncio.timeout(self.patience_s):
                await self._memory.append([{**entry} for entry in entries])
        except Exception as error:
            if not self.failed.done():
                self.failed.set_exception(error)
                self.failed.exception()  # looked at: it is also raised here
            raise

    async def load(self, key: SessionKey) -> None:
        return None


def _with_instructions(prompt: str, directory: Path) -> str:
    """The task's prompt, and the repository's own instructions, which the CLI doesn't read without its settings."""
    worktree = directory.resolve()
    for name in _INSTRUCTION_FILES:
        # A link may lead to another file of the repository, not out of it.
        try:
            inner = (worktree / name).resolve().relative_to(worktree)
        except (ValueError, RuntimeError, OSError):  # out of it; in a circle; or through what can't be looked at
            continue
        found = read_below(worktree, inner, INSTRUCTIONS_MAX_BYTES + 1, cut=True)
        if found is not None:
            text = cut(found.decode(errors="replace"), INSTRUCTIONS_MAX_BYTES)
            return f"{prompt}\n\n# This repository's instructions ({name})\n\n{text}"
    return prompt
