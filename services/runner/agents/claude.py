"""The agent `claude`: the Claude Agent SDK, driving the CLI that it bundles.

What the repository brings for Claude Code (settings, hooks, MCP servers) is not run; its CLAUDE.md joins the prompt.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack, asynccontextmanager
from typing import TYPE_CHECKING

from services.runner.agents import AgentRunner, AgentSession, Finished, Job, Report, activity
from services.runner.agents.claude_limits import Limits
from services.runner.agents.claude_trial import try_out
from services.runner.agents.liveness import STALLED_S
from services.runner.api_address import BadAddress
from services.runner.prices import HIGHEST, is_known
from services.runner.process import end_lease
from services.runner.proxy import DEFAULT_UPSTREAM, KeyProxy, NoKey
from shared.spec import DEFAULT_MODEL

if TYPE_CHECKING:
    from services.runner.agents.claude_session import ClaudeSession

__all__ = ["ClaudeRunner", "open_runner", "try_out"]

_NO_KEY = "There is no key for the Claude API: set ANTHROPIC_API_KEY where the runner is started."


class ClaudeRunner:
    """Runs Claude through a key proxy."""

    needs_credentials = True
    resumes = True

    def __init__(
        self, proxy: KeyProxy, *, limits: Limits | None = None, stalled_s: float = STALLED_S, no_key: str = _NO_KEY
    ) -> None:
        """An agent of which nothing moves for `stalled_s` is ended (`services.runner.agents.liveness`).

        `no_key`: what a task is told that needs the proxy's own key where that has none.
        """
        self._no_key = no_key
        self._proxy = proxy
        self._limits = limits or Limits()
        self._stalled_s = stalled_s

    @asynccontextmanager
    async def open(self, job: Job, report: Report) -> AsyncIterator[AgentSession]:
        """See `AgentRunner.open`. `turn` raises what `job.memory` and `job.use_approval` raise."""
        model = job.agent.model or DEFAULT_MODEL
        if not is_known(model):
            price = f"{HIGHEST.input:g} USD in and {HIGHEST.output:g} USD out per million tokens"
            report(activity("treadle", f"No price is known for {model}; it is counted at the highest: {price}."))
        session_type = await asyncio.to_thread(_load_session_type)
        with ExitStack() as held:
            session: AgentSession
            try:
                access = held.enter_context(self._proxy.lease(job.budget_usd, job.credentials))
                job.enclosure.serve_model(self._proxy.serve)
                session = session_type(job, model, access, report, limits=self._limits, stalled_s=self._stalled_s)
            except NoKey:
                session = _Refused(self._no_key)
            except BadAddress as error:
                session = _Refused(f"{error}. Correct the agent type's api_base_url, then redispatch the task.")
            try:
                yield session
            finally:
                await end_lease(job.mark)


@asynccontextmanager
async def open_runner(environment: Mapping[str, str]) -> AsyncIterator[AgentRunner]:
    """Takes ANTHROPIC_API_KEY and ANTHROPIC_BASE_URL from the environment.

    An address that is none fails the tasks that need it, with its words: other tasks don't, so the runner lives.
    """
    key, upstream = environment.get("ANTHROPIC_API_KEY"), environment.get("ANTHROPIC_BASE_URL") or DEFAULT_UPSTREAM
    no_key = _NO_KEY
    try:
        key_proxy = KeyProxy(key, upstream)
    except BadAddress as error:
        key_proxy = KeyProxy(None)
        no_key = f"ANTHROPIC_BASE_URL: {error}. Correct it where the runner is started, then redispatch the task."
    async with key_proxy as proxy:
        yield ClaudeRunner(proxy, no_key=no_key)


def _load_session_type() -> type[ClaudeSession]:
    """Only the first task that needs the SDK waits for it: a runner that comes back has others to hand back first."""
    module = importlib.import_module("services.runner.agents.claude_session")
    session_type: type[ClaudeSession] = module.ClaudeSession
    return session_type


class _Refused:
    """A session that can't begin."""

    def __init__(self, words: str) -> None:
        self._words = words

    async def turn(self, _message: str) -> Finished:
        return Finished(kind="authentication_refused", message=self._words)
