"""The agent `claude`: the Claude Agent SDK, driving the CLI that it bundles, one process for each job.

The CLI gets an environment built from nothing, a home of its own, and instead of a key the proxy's one-lease token.
What the repository brings for Claude Code (settings, hooks, MCP servers) is not run; its CLAUDE.md joins the prompt.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import shutil
import uuid
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import claude_agent_sdk
from claude_agent_sdk import (
    AssistantMessage,
    ClaudeAgentOptions,
    ClaudeSDKClient,
    ClaudeSDKError,
    Message,
    ResultMessage,
    SystemMessage,
    TextBlock,
    ToolResultBlock,
    ToolUseBlock,
    UserMessage,
)

from services.runner.agents import AgentRunner, Finished, Job, Report, activity, cut, environment
from services.runner.agents.claude_trial import try_out
from services.runner.agents.claude_verdict import describe_call, judge
from services.runner.prices import HIGHEST, is_known
from services.runner.process import LEASE_VARIABLE, die_with_parent, end_lease
from services.runner.proxy import DEFAULT_UPSTREAM, Access, BadAddress, KeyProxy, NoKey
from shared.events import Usage
from shared.spec import DEFAULT_MODEL

__all__ = ["ClaudeRunner", "open_runner", "try_out"]

TOOLS = ["Bash", "Read", "Edit", "Write", "Glob", "Grep"]
ALLOWED = ["Bash", "Read", "Glob", "Grep", "Edit(./**)"]
"""`Edit(./**)` covers Write too, and nothing outside the worktree; a bare `Write` would allow writing anywhere."""

TURNS_MAX = 300
INSTRUCTIONS_MAX_BYTES = 32 * 1024
_INSTRUCTION_FILES = ("CLAUDE.md", "AGENTS.md")
_MESSAGE_MAX_BYTES = 64 * 1024 * 1024
_GOODBYE_S = 1.0
_STDERR_LINES = 20


class ClaudeRunner:
    """Runs Claude through a key proxy."""

    needs_credentials = True

    def __init__(
        self,
        proxy: KeyProxy,
        *,
        retries_max: int = 7,
        api_timeout_s: float = 180.0,
        stream_idle_s: float = 90.0,
    ) -> None:
        """A failed call of the API is tried again `retries_max` times, after waits that double from half a second; an
        answer must begin within `api_timeout_s` and may then pause for `stream_idle_s` (at least 10).
        """
        self._proxy = proxy
        self._limits = {
            "CLAUDE_CODE_MAX_RETRIES": str(retries_max),
            "API_TIMEOUT_MS": str(round(api_timeout_s * 1000)),
            "CLAUDE_BYTE_STREAM_IDLE_TIMEOUT_MS": str(round(stream_idle_s * 1000)),
        }

    async def run(self, job: Job, report: Report) -> Finished:
        try:
            return await self._run(job, report)
        except NoKey:
            words = "There is no key for the Claude API: set ANTHROPIC_API_KEY where the runner is started."
            return Finished(kind="authentication_refused", message=words)
        except BadAddress as error:
            words = f"{error}. Correct the agent type's api_base_url, then redispatch the task."
            return Finished(kind="authentication_refused", message=words)

    async def _run(self, job: Job, report: Report) -> Finished:
        model = job.agent.model or DEFAULT_MODEL
        if not is_known(model):
            price = f"{HIGHEST.input:g} USD in and {HIGHEST.output:g} USD out per million tokens"
            report(activity("text", f"No price is known for {model}; it is counted at the highest: {price}."))
        with self._proxy.lease(job.budget_usd, job.credentials) as access:
            session = _Session(job, model, access, report)
            try:
                async with asyncio.timeout(job.timeout_s):
                    return await session.run(self._limits)
            except TimeoutError:
                words = f"Claude did not finish within {job.timeout_s / 60:g} minutes and was stopped."
                words += " Raise timeout_minutes, or make the task smaller."
                return Finished(kind="timeout", message=words, usage=access.usage)


@asynccontextmanager
async def open_runner(environment: Mapping[str, str]) -> AsyncIterator[AgentRunner]:
    """Takes ANTHROPIC_API_KEY and ANTHROPIC_BASE_URL from the environment. Raises BadAddress."""
    key, upstream = environment.get("ANTHROPIC_API_KEY"), environment.get("ANTHROPIC_BASE_URL") or DEFAULT_UPSTREAM
    async with KeyProxy(key, upstream) as proxy:
        yield ClaudeRunner(proxy)


class _Session:
    """One conversation, from the prompt to the CLI's result."""

    def __init__(self, job: Job, model: str, access: Access, report: Report) -> None:
        self._job, self._model, self._access, self._report = job, model, access, report
        self._stderr: deque[str] = deque(maxlen=_STDERR_LINES)
        self._error: str | None = None
        self._reported = Usage()

    async def run(self, limits: Mapping[str, str]) -> Finished:
        client = ClaudeSDKClient(self._options(limits))
        conversation = asyncio.create_task(self._converse(client))
        try:
            finished = await asyncio.shield(conversation)
            # Now that it is idle, the CLI leaves at once when asked; if not, it is ended below.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_GOODBYE_S):
                    await client.disconnect()
            return finished
        finally:
            # First the processes, then the conversation: the SDK waits for seconds on a CLI that is at work.
            await end_lease(self._job.mark)
            conversation.cancel()
            await asyncio.wait((conversation,))
            await client.disconnect()

    async def _converse(self, client: ClaudeSDKClient) -> Finished:
        try:
            await client.connect()
            await client.query(_prompt(self._job))
            async for message in client.receive_response():
                self._note(message)
                if isinstance(message, ResultMessage):
                    return judge(message, self._error, self._model, self._access, self._job)
        except ClaudeSDKError as error:
            return self._broken(str(error))
        return self._broken("it ended without a result")

    def _broken(self, words: str) -> Finished:
        last = "\n".join(self._stderr) or "nothing on standard error"
        message = f"The Claude CLI failed: {words}. It said:\n{cut(last, 2000)}"
        return Finished(kind="agent_error", message=message, usage=self._access.usage)

    def _note(self, message: Message) -> None:
        if isinstance(message, AssistantMessage):
            self._error = message.error or self._error
            for block in message.content:
                if isinstance(block, TextBlock):
                    self._report(activity("text", block.text))
                elif isinstance(block, ToolUseBlock):
                    self._report(activity("tool", describe_call(block.name, block.input, self._job)))
        elif isinstance(message, UserMessage) and isinstance(message.content, list):
            for block in message.content:
                if isinstance(block, ToolResultBlock):
                    self._report(activity("result", _result_text(block)))
        elif isinstance(message, SystemMessage) and message.subtype == "api_retry":
            status, attempt = message.data.get("error_status") or "no answer", message.data.get("attempt")
            self._report(activity("text", f"The API failed ({status}); trying again, number {attempt}."))
        if (usage := self._access.usage) != self._reported:
            self._reported = usage
            self._report(activity("usage", usage=usage))

    def _options(self, limits: Mapping[str, str]) -> ClaudeAgentOptions:
        job = self._job
        # The SDK starts the wrapper in our own environment; emptied, it shows nothing until the wrapper replaces it.
        hidden = dict.fromkeys(os.environ, "")
        return ClaudeAgentOptions(
            cwd=job.cwd,
            cli_path=_write_wrapper(job, {**environment(job), **_cli_environment(job, self._access), **limits}),
            env={**hidden, LEASE_VARIABLE: job.mark},
            stderr=self._stderr.append,
            model=self._model,
            # What differs between worktrees stands behind the system prompt, so that all tasks share its cache.
            system_prompt={"type": "preset", "preset": "claude_code", "exclude_dynamic_sections": True},
            session_id=str(uuid.uuid4()),
            setting_sources=[],
            strict_mcp_config=True,
            verbatim_prompts=True,
            max_buffer_size=_MESSAGE_MAX_BYTES,
            max_turns=TURNS_MAX,
            max_budget_usd=job.budget_usd,
            tools=TOOLS,
            allowed_tools=ALLOWED,
            permission_mode="dontAsk",
        )


def _cli_environment(job: Job, access: Access) -> dict[str, str]:
    config = job.scratch / "claude"
    config.mkdir(exist_ok=True)
    return {
        "ANTHROPIC_API_KEY": access.token,
        "ANTHROPIC_BASE_URL": access.base_url,
        "NO_PROXY": ",".join(filter(None, (job.env.get("NO_PROXY"), "127.0.0.1"))),
        "CLAUDE_CONFIG_DIR": str(config),
        "CLAUDE_CODE_TMPDIR": str(job.scratch / "tmp"),
        "CLAUDE_CODE_DISABLE_AUTO_MEMORY": "1",
        "CLAUDE_CODE_DISABLE_BACKGROUND_TASKS": "1",
        "CLAUDE_CODE_DISABLE_LEGACY_MODEL_REMAP": "1",  # it silently puts a newer model in a retired one's place
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "DISABLE_AUTOUPDATER": "1",
        "DISABLE_TELEMETRY": "1",
    }


def _write_wrapper(job: Job, variables: Mapping[str, str]) -> Path:
    """Two scripts: one drops the environment, one builds the new one. So the token stands in no argument list."""
    bundled = Path(claude_agent_sdk.__file__).with_name("_bundled") / "claude"
    start, wrapper = job.scratch / "claude-start", job.scratch / "claude-wrapper"
    exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in variables.items())
    command = shlex.join([*die_with_parent(), str(bundled)])
    _write_private(start, f'{exports}exec {command} "$@"\n')
    # Away from our terminal's process group: its Ctrl-C is for the runner, which hands the work back.
    own_session = [path] if (path := shutil.which("setsid")) else []
    clean = shlex.join([*own_session, shutil.which("env") or "/usr/bin/env", "-i", "/bin/sh", str(start)])
    _write_private(wrapper, f'#!/bin/sh\nexec {clean} "$@"\n')
    return wrapper


def _write_private(path: Path, text: str) -> None:
    path.touch(mode=0o700)
    path.chmod(0o700)
    path.write_text(text)


def _prompt(job: Job) -> str:
    """The task's prompt, and the repository's own instructions, which the CLI doesn't read without its settings."""
    worktree = job.cwd.resolve()
    for name in _INSTRUCTION_FILES:
        path = (worktree / name).resolve()
        # A link may lead to another file of the repository, not out of it.
        if path.is_file() and path.is_relative_to(worktree):
            with path.open("rb") as file:
                text = file.read(INSTRUCTIONS_MAX_BYTES + 1).decode(errors="replace")
            return f"{job.prompt}\n\n# This repository's instructions ({name})\n\n{cut(text, INSTRUCTIONS_MAX_BYTES)}"
    return job.prompt


def _result_text(block: ToolResultBlock) -> str:
    if isinstance(block.content, str):
        return block.content
    return "\n".join(str(part.get("text", part.get("type"))) for part in block.content or ())
