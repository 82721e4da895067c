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

Delivery = Literal["branch", "merge", "command"]
"""What becomes of a plan's branch: it is left to whoever merges it, merged, or handed to a command of the project's."""

OnConflict = Literal["report", "agent"]
"""Where tasks' work can't be merged, a person looks at it, or an agent merges it in a task of its own."""

Answer = Literal["always", "never", "ask"]

Mode = Literal["auto", "manual"]
"""Of a project: runners do its tasks, or people do."""

PlanningMode = Literal["balanced", "quality", "cost_effective", "speed"]
"""What a plan that is made from a goal is to be good for."""

Wanted = Literal["", "plan", "review"]
"""What an attempt gives as its answer instead of changed files; empty: it changes files."""

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
MAX_PARALLEL = 64
MAX_PARALLEL_MAX = 1000
TIMEOUT_MINUTES = 30.0
TIMEOUT_MIN_MINUTES = 0.01
TIMEOUT_MAX_MINUTES = 24 * 60
ATTEMPTS_MAX = 20
BACKOFF_MAX_S = 600
"""Also where doubling ends."""
VERIFY_ROUNDS = 2
VERIFY_ROUNDS_MAX = 10
APPROVAL_TIMEOUT_MINUTES = 24 * 60.0
APPROVAL_TIMEOUT_MIN_MINUTES = 0.01
APPROVAL_TIMEOUT_MAX_MINUTES = 31 * 24 * 60
PERMISSIONS_MAX = 200
REVIEW_ROUNDS_MAX = 20
POLL_INTERVAL_S = 30.0
"""Between two looks at a collaboration repository."""
POLL_INTERVAL_MIN_S = 5.0
POLL_INTERVAL_MAX_S = 3600.0
CAPABILITIES_MAX_CHARS = 2000
HOSTS_MAX = 200
"""Of `network_allow`."""
BUDGET_MIN_USD = 0.01
BUDGET_MAX_USD = 1000
PLAN_BUDGET_MAX_USD = 1_000_000
"""Of a whole plan."""
COMMANDS_MAX = 64
"""Of a list of commands, of a command's arguments and of `env_allow`."""
COMMAND_MAX_BYTES = 16 * 1024
PLAN_MAX_BYTES = 7 * 1024 * 1024
"""A candidate travels in one event; the server's `max_payload` is 8 MiB, headers included."""


ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
ENV_RESERVED = ("ANTHROPIC_", "CLAUDE_", "TREADLE_")
"""The runner sets these itself: with the real key or another address in them an agent could go round its proxy."""
UNPRINTABLE_LINE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u2028\u2029\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
"""Control codes, line breaks, and the marks that make a terminal show text in another order than it has."""
UNPRINTABLE_TEXT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
"""What not even a text of several lines may hold."""


class Spec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Base of the plan's parts."""


class AgentSpec(Spec, frozen=True, kw_only=True):
    """Who does a task."""

    sdk_type: SdkType | None
    """None: a person does it."""
    model: str | None = None
    """Only for `claude`; `DEFAULT_MODEL` when absent."""
    command: tuple[str, ...] = ()
    """Only for `command`: the program and its arguments. It gets the prompt on standard input."""
    agent_id: str = ""
    """The gateway's id of the agent; empty for one that the plan itself declares."""
    agent_type_id: str = ""
    """Whose credentials it works with; empty: with those of the runner itself."""

    @property
    def is_auto(self) -> bool:
        """Whether a runner does its tasks."""
        return self.sdk_type is not None


class ProjectAgent(Spec, frozen=True, kw_only=True):
    """An agent that a project's tasks may be given to."""

    slug: str
    name: str
    type_name: str
    spec: AgentSpec
    unusable: str = ""
    """Why no task may be given to it now (inactive, expired); empty: they may."""
    capabilities: str = ""
    """What it is good at, in its owner's words: for whoever makes a plan."""


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
    timeout_minutes: float | None = None
    """Bounds one attempt's agent, set-up and verification together; None: the project's, else `TIMEOUT_MINUTES`."""
    verify: tuple[str, ...] = ()
    """Shell commands, run in the worktree after the agent; each must exit with 0."""
    retry: Retry | None = None
    """None: three attempts for what is nobody's fault (overload, network, a lost runner), one for all else."""
    verify_rounds: int | None = None
    """How often what `verify` found goes back to the agent before the attempt fails; None: as the project has it."""
    requires_approval: bool = False
    """A person accepts the result before the task counts as completed."""
    allow_no_change: bool = False
    """Whether the task may end without having changed a file."""
    resolves: str = ""
    """The task whose start met a conflict: this one merges what it starts from. Only Treadle itself sets it."""
    reviews: str = ""
    """The task whose work this one judges, and the only one that it waits for: its answer is a review, no change."""
    max_review_rounds: int | None = None
    """Makes the task a decision: nobody does it, it waits for reviews of one and the same task and completes once all
    of them approve. Until then, and for at most so many rounds, the work is mended and reviewed again."""
    fixer: str = ""
    """Only of a decision: who mends; a key of the plan's `agents`. Empty: whoever did the work."""
    round: int = 1
    """Of a review loop. Only Treadle itself sets it."""
    budget_usd: float = 5.0
    """The most that one attempt may cost. It is checked after each answer of the model, so one answer may overshoot."""

    @property
    def is_decision(self) -> bool:
        """Whether nobody does the task: reviews decide it."""
        return self.max_review_rounds is not None


class PlanSpec(Spec, frozen=True, kw_only=True):
    """A whole plan, valid and complete: every default filled in, every assignee resolved."""

    name: str
    tasks: tuple[TaskSpec, ...]
    agents: dict[str, AgentSpec]
    goal: str = ""
    max_parallel: int | None = None
    """Tasks dispatched at once; None: `MAX_PARALLEL`. The project may allow less."""
    budget_usd: float | None = None
    """The most that the whole plan may cost; None: the project's, else no limit."""
    setup: tuple[str, ...] = ()
    """Shell commands, run in each fresh workspace before its agent."""
    env_allow: tuple[str, ...] = ()
    """Names of the runner's environment variables that agents may see."""
    network_allow: tuple[str, ...] = ()
    """Hosts that set-up, agents and verification may reach from the sandbox: `example.com`, `*.example.com`, with an
    optional port (443 and 80 otherwise)."""


class Permission(Spec, frozen=True, kw_only=True):
    """What happens when an agent calls a tool; the first rule that fits decides."""

    tool: str
    """A tool's name, or `*`."""
    pattern: str = "*"
    """A shell pattern (`fnmatch`) over what tells most of the call: a command, a path, an address."""
    answer: Answer
    """Let it, refuse it, or ask a person."""


class WorkRules(Spec, frozen=True, kw_only=True):
    """What a dispatched attempt may do, and what has to hold before it counts as done."""

    network_allow: tuple[str, ...] = ()
    permissions: tuple[Permission, ...] = ()
    approval_timeout_s: float = APPROVAL_TIMEOUT_MINUTES * 60
    """No answer within it is a denial."""
    verify_rounds: int = VERIFY_ROUNDS
    requires_approval: bool = False
    allow_no_change: bool = False
    expected_output: str | None = None
    """Repository-relative path that must be there in the end."""
    resolves: str = ""
    answer: Wanted = ""
    """Not empty: the attempt changes nothing, what it says is what it was for."""
    plan_schema: str = ""
    """Of the answer `plan`: its JSON schema, as JSON."""
    reviews: str = ""
    """Of the answer `review`: the task whose work is judged."""
    round: int = 1


class CollabRules(Spec, frozen=True, kw_only=True):
    """Where people put what they deliver: results of manual tasks, plans that were asked for by hand."""

    repo_url: str = ""
    """Empty: the code repository."""
    directory: str = "treadle"
    """The folder in it."""
    poll_interval_s: float = POLL_INTERVAL_S

    def plan_path(self, plan: str) -> str:
        """Where a plan that was asked for by hand may be put, from the repository's root."""
        return f"{self.directory}/plan-{plan}.json".lstrip("/")


class ResultPlace(Spec, frozen=True, kw_only=True):
    """Where a manual task's result is looked for."""

    repo_url: str
    path: str
    """Of `result.json`, from the repository's root."""
    poll_interval_s: float = POLL_INTERVAL_S
    blob: str = ""
    """Object id of what lay there when the task was handed out, which is no result of it; empty: nothing did."""


class DeliveryRules(Spec, frozen=True, kw_only=True):
    """What `_deliver` does once the plan's branch is there."""

    kind: Delivery = "branch"
    branch: str = ""
    """What it is merged into; empty: the repository's default branch."""
    command: str = ""
    """For the kind `command`: a shell command, run in a workspace of the branch."""


class PlanSettings(Spec, frozen=True, kw_only=True):
    """A project's settings as they are when one of its plans is finalized: later changes don't reach that plan."""

    task_timeout_minutes: float = TIMEOUT_MINUTES
    max_parallel: int | None = None
    """No plan of the project has more at once; None: no bound."""
    budget_usd: float | None = None
    """The plan may ask for less."""
    setup: tuple[str, ...] = ()
    """Run before the plan's own."""
    env_allow: tuple[str, ...] = ()
    network_allow: tuple[str, ...] = ()
    permissions: tuple[Permission, ...] = ()
    approval_timeout_minutes: float = APPROVAL_TIMEOUT_MINUTES
    verify_rounds: int = VERIFY_ROUNDS
    on_conflict: OnConflict = "report"
    delivery: Delivery = "branch"
    delivery_branch: str = ""
    delivery_command: str = ""
    collab: CollabRules = CollabRules()


def settled(spec: PlanSpec, settings: PlanSettings) -> PlanSpec:
    """The plan with everything filled in that it leaves to its project."""
    timeout = settings.task_timeout_minutes
    tasks = (t if t.timeout_minutes else msgspec.structs.replace(t, timeout_minutes=timeout) for t in spec.tasks)
    bounds = [bound for bound in (spec.max_parallel or MAX_PARALLEL, settings.max_parallel) if bound is not None]
    budgets = [budget for budget in (spec.budget_usd, settings.budget_usd) if budget is not None]
    return msgspec.structs.replace(
        spec,
        tasks=tuple(tasks),
        max_parallel=min(bounds),
        budget_usd=min(budgets, default=None),
        setup=(*settings.setup, *spec.setup),
        env_allow=tuple(dict.fromkeys((*settings.env_allow, *spec.env_allow))),
        network_allow=tuple(dict.fromkeys((*settings.network_allow, *spec.network_allow))),
    )


def encode_spec(spec: PlanSpec) -> bytes:
    """The one spelling of a plan: what its digest and its size are taken from."""
    return msgspec.json.encode(spec, order="deterministic")


def digest(spec: PlanSpec) -> str:
    """SHA-256 of the plan's one spelling, in hex."""
    return sha256(encode_spec(spec)).hexdigest()
