"""What a plan says: the normalised form that events carry.

Reading a person's file and naming its faults is the planner's work (`services.planner`); this module only holds
what comes out of it, and the limits that it is checked against.
"""

import re
from hashlib import sha256
from typing import Literal

import msgspec

TASK_CODE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
"""A task code is a subject token, a ref, a file name and an environment value at once."""

DELIVER = "_deliver"
"""The reserved task behind all others; a runner makes the plan's branch in it."""

SdkType = Literal["claude", "command"]
"""The agents that a runner can drive; each is the name of a runner pool too."""

DEFAULT_MODEL = "claude-sonnet-5-5"
"""Pinned: an alias or no model at all would let the work change under a running plan."""

MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@\[\]-]{0,127}")
"""A model travels in arguments and addresses, so it can't begin with a dash."""

TASKS_MAX = 20_000
AGENTS_MAX = 100
NAME_MAX_CHARS = 200
AGENT_NAME_MAX_CHARS = 63
DESCRIPTION_MAX_BYTES = 256 * 1024
"""Of a task's description and of the plan's goal."""
OUTPUT_PATH_MAX_CHARS = 1024
MAX_PARALLEL_MAX = 1000
TIMEOUT_MIN_MINUTES = 0.01
TIMEOUT_MAX_MINUTES = 24 * 60
ATTEMPTS_MAX = 20
BACKOFF_MAX_S = 600
"""Also where doubling ends."""
BUDGET_MIN_USD = 0.01
BUDGET_MAX_USD = 1000
COMMANDS_MAX = 64
"""Of a list of commands, of a command's arguments and of `env_allow`."""
COMMAND_MAX_BYTES = 16 * 1024
PLAN_MAX_BYTES = 7 * 1024 * 1024
"""A candidate travels in one event; the server's `max_payload` is 8 MiB, headers included."""


class Spec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Base of the plan's parts."""


class AgentSpec(Spec, frozen=True, kw_only=True):
    """Who does a task."""

    sdk_type: SdkType
    model: str | None = None
    """Only for `claude`; `DEFAULT_MODEL` when absent."""
    command: tuple[str, ...] = ()
    """Only for `command`: the program and its arguments. It gets the prompt on standard input."""


class Retry(Spec, frozen=True, kw_only=True):
    """How often a failing task is tried, when its author says so."""

    max_attempts: int = 3
    """Attempts in all, the first included; 1 to 20."""
    backoff_s: float = 5.0
    """Wait before the second attempt, in seconds; doubles with each further one, up to ten minutes."""


class TaskSpec(Spec, frozen=True, kw_only=True):
    """One node of the DAG."""

    code: str
    name: str
    assignee: str
    """A key of the plan's `agents`."""
    description: str = ""
    depends_on: tuple[str, ...] = ()
    expected_output: str | None = None
    timeout_minutes: float = 30.0
    """Bounds one attempt's agent, set-up and verification together."""
    verify: tuple[str, ...] = ()
    """Shell commands, run in the worktree after the agent; each must exit with 0."""
    retry: Retry | None = None
    """None: three attempts for what is nobody's fault (overload, network, a lost runner), one for all else."""
    budget_usd: float = 5.0
    """The most that one attempt may cost. It is checked after each answer of the model, so one answer may overshoot."""


class PlanSpec(Spec, frozen=True, kw_only=True):
    """A whole plan, valid and complete: every default filled in, every assignee resolved."""

    name: str
    tasks: tuple[TaskSpec, ...]
    agents: dict[str, AgentSpec]
    goal: str = ""
    max_parallel: int = 64
    setup: tuple[str, ...] = ()
    """Shell commands, run in each fresh workspace before its agent."""
    env_allow: tuple[str, ...] = ()
    """Names of the runner's environment variables that agents may see."""


def encode_spec(spec: PlanSpec) -> bytes:
    """The one spelling of a plan: what its digest and its size are taken from."""
    return msgspec.json.encode(spec, order="deterministic")


def digest(spec: PlanSpec) -> str:
    """SHA-256 of the plan's one spelling, in hex."""
    return sha256(encode_spec(spec)).hexdigest()
