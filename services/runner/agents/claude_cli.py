"""How the Claude CLI is started: which one, in what environment, with which options.

The CLI gets an environment built from nothing, a home of its own, and instead of a key the proxy's one-lease token.
What the repository brings for Claude Code (settings, hooks, MCP servers) is not run.
"""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path, PurePath
from typing import Any

import claude_agent_sdk
import msgspec
from claude_agent_sdk import ClaudeAgentOptions, SessionStore, project_key_for_directory
from yarl import URL

from services.runner.agent_files import delete_below, make_directory_below, write_below
from services.runner.agents import Job, environment
from services.runner.agents.claude_conversation import TakenUp
from services.runner.agents.claude_gate import Gate
from services.runner.agents.claude_limits import Limits
from services.runner.agents.permissions import ANSWERING, offered_for
from services.runner.answer_forms import answer_schema
from services.runner.process import LEASE_VARIABLE, die_with_parent
from services.runner.proxy import Access
from shared.spec import WorkRules

ALLOWED = ["Bash", "Read", "Glob", "Grep", "Edit(./**)"]
"""`Edit(./**)` covers Write too, and nothing outside the worktree; a bare `Write` would allow writing anywhere."""

TURNS_MAX = 300
_CONFIG = "claude"
_MESSAGE_MAX_BYTES = 64 * 1024 * 1024
_ALLOWED_WORDS = "A person allowed the call, and it was run: its result is above. Go on."


class Start(msgspec.Struct, frozen=True, kw_only=True):
    """What differs from one start of the CLI to the next."""

    session_id: str
    resumes: bool
    """Whether its directory has this session."""
    gate: Gate
    runs_allowed: bool = False
    """Whether the transcript ends in a call that is to be run now."""


def options(
    job: Job,
    model: str,
    access: Access,
    limits: Limits,
    start: Start,
    *,
    store: SessionStore | None,
    stderr: Callable[[str], Any],
) -> ClaudeAgentOptions:
    """Options for one start; writes what they name into the job's scratch directory."""
    variables = {**environment(job), **_variables(job, access, limits), **_resuming(start)}
    # The SDK starts the wrapper in our own environment; emptied, it shows nothing until the wrapper replaces it.
    hidden = dict.fromkeys(os.environ, "")
    return ClaudeAgentOptions(
        cwd=job.cwd,  # of the wrapper; the CLI itself starts where the enclosure has it start
        cli_path=_write_wrapper(job, variables),
        env={**hidden, LEASE_VARIABLE: job.mark, "CLAUDE_CONFIG_DIR": str(config_directory(job))},
        stderr=stderr,
        model=model,
        # What differs between worktrees stands behind the system prompt, so that all tasks share its cache.
        system_prompt={"type": "preset", "preset": "claude_code", "exclude_dynamic_sections": True},
        session_id=None if start.resumes else start.session_id,
        resume=start.session_id if start.resumes else None,
        session_store=store,
        session_store_flush="eager",
        setting_sources=[],
        strict_mcp_config=True,
        verbatim_prompts=True,
        max_buffer_size=_MESSAGE_MAX_BYTES,
        max_turns=TURNS_MAX,
        max_budget_usd=job.budget_usd,
        tools=offered_for(job.rules),
        allowed_tools=list(ANSWERING[job.rules.answer]) if job.rules.answer else ALLOWED,
        output_format=_output_format(job.rules),
        permission_mode="dontAsk",
        # Without somebody to ask there would be no AskUserQuestion. It is the hook that answers, before this is used.
        permission_prompt_tool_name="stdio",
        hooks={"PreToolUse": [start.gate.matcher()]},
    )


def _output_format(rules: WorkRules) -> dict[str, Any] | None:
    """Makes the CLI offer `StructuredOutput`, and hold what is given there to the schema."""
    if not rules.answer:
        return None
    return {"type": "json_schema", "schema": msgspec.json.decode(answer_schema(rules))}


def config_directory(job: Job) -> Path:
    """The CLI's own directory; below the home, which is all of the scratch directory that a sandbox shows."""
    return _home(job) / _CONFIG


def write_transcript(job: Job, session_id: str, taken_up: TakenUp) -> None:
    """Puts a conversation where the CLI looks for it."""
    lines = (msgspec.json.encode(entry) + b"\n" for entry in taken_up.entries)
    write_below(_home(job), _transcript(job, session_id), lines)


def forget_transcript(job: Job, session_id: str) -> None:
    """Takes a conversation away again: the CLI begins none under an id that it knows."""
    delete_below(_home(job), _transcript(job, session_id))


def _home(job: Job) -> Path:
    """What set-up and the agent may write to: nothing in it is opened but by `services.runner.agent_files`."""
    return job.scratch / "home"


def _transcript(job: Job, session_id: str) -> PurePath:
    return PurePath(_CONFIG, "projects", project_key_for_directory(str(job.worktree.inside)), f"{session_id}.jsonl")


def _variables(job: Job, access: Access, limits: Limits) -> dict[str, str]:
    make_directory_below(_home(job), _CONFIG)
    url = job.enclosure.model_url or access.base_url
    direct = (job.env.get("NO_PROXY"), job.enclosure.environment.get("NO_PROXY"), URL(url).host)
    return {
        "ANTHROPIC_API_KEY": access.token,
        "ANTHROPIC_BASE_URL": url,
        "NO_PROXY": ",".join(dict.fromkeys(filter(None, direct))),
        "CLAUDE_CONFIG_DIR": str(config_directory(job)),
        "CLAUDE_CODE_TMPDIR": str(job.scratch / "tmp"),
        "CLAUDE_CODE_DISABLE_AUTO_MEMORY": "1",
        "CLAUDE_CODE_DISABLE_BACKGROUND_TASKS": "1",
        "CLAUDE_CODE_DISABLE_LEGACY_MODEL_REMAP": "1",  # it silently puts a newer model in a retired one's place
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "CLAUDE_CODE_MAX_RETRIES": str(limits.retries_max),
        "API_TIMEOUT_MS": str(round(limits.api_timeout_s * 1000)),
        "CLAUDE_BYTE_STREAM_IDLE_TIMEOUT_MS": str(round(limits.stream_idle_s * 1000)),
        "DISABLE_AUTOUPDATER": "1",
        "DISABLE_TELEMETRY": "1",
    }


def _resuming(start: Start) -> dict[str, str]:
    if start.runs_allowed:
        return {"CLAUDE_CODE_RESUME_PROMPT": _ALLOWED_WORDS}
    # A second lock on the door: no transcript that it is given has such a call.
    return {"CLAUDE_CODE_DISABLE_DEFERRED_TOOL_RESUME": "1"}


def _write_wrapper(job: Job, variables: Mapping[str, str]) -> Path:
    """Two scripts: one drops the environment, one builds the new one. So the token stands in no argument list."""
    bundled = Path(claude_agent_sdk.__file__).with_name("_bundled") / "claude"
    begin, wrapper = "claude-start", "claude-wrapper"
    exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in variables.items())
    command = shlex.join([*die_with_parent(), *job.enclosure.command([str(bundled)])])
    write_below(job.scratch, begin, [f'{exports}exec {command} "$@"\n'.encode()], 0o700)
    # Away from our terminal's process group: its Ctrl-C is for the runner, which hands the work back.
    own_session = [path] if (path := shutil.which("setsid")) else []
    clean = shlex.join([*own_session, shutil.which("env") or "/usr/bin/env", "-i", "/bin/sh", str(job.scratch / begin)])
    write_below(job.scratch, wrapper, [f'#!/bin/sh\nexec {clean} "$@"\n'.encode()], 0o700)
    return job.scratch / wrapper
