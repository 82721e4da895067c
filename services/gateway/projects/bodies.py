"""What is asked and answered about projects, and which values can't be."""

from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec

from services.gateway.database.tables import Mode, Project
from services.gateway.projects.work_rules import BRANCH_MAX_CHARS
from shared.repo_url import ADDRESS_MAX_CHARS
from shared.spec import (
    APPROVAL_TIMEOUT_MAX_MINUTES,
    APPROVAL_TIMEOUT_MIN_MINUTES,
    APPROVAL_TIMEOUT_MINUTES,
    BUDGET_MIN_USD,
    COMMAND_MAX_BYTES,
    COMMANDS_MAX,
    HOSTS_MAX,
    MAX_PARALLEL,
    MAX_PARALLEL_MAX,
    NAME_MAX_CHARS,
    OUTPUT_PATH_MAX_CHARS,
    PERMISSIONS_MAX,
    PLAN_BUDGET_MAX_USD,
    POLL_INTERVAL_MAX_S,
    POLL_INTERVAL_MIN_S,
    POLL_INTERVAL_S,
    TIMEOUT_MAX_MINUTES,
    TIMEOUT_MIN_MINUTES,
    TIMEOUT_MINUTES,
    VERIFY_ROUNDS,
    VERIFY_ROUNDS_MAX,
    Delivery,
    OnConflict,
    Permission,
    PlanningMode,
)

COLLAB_DIR = "treadle"
AGENTS_MAX = 100
"""Of a project, as of a plan."""


def _bounds(**schema: object) -> msgspec.Meta:
    """Bounds that `/schema` tells and `faults_of` checks: a decoder would name only the first fault."""
    return msgspec.Meta(extra_json_schema=schema)


Name = Annotated[str, _bounds(minLength=1, maxLength=NAME_MAX_CHARS)]
RepoUrl = Annotated[str, _bounds(minLength=1, maxLength=ADDRESS_MAX_CHARS)]
Dir = Annotated[str, _bounds(minLength=1, maxLength=OUTPUT_PATH_MAX_CHARS)]
Minutes = Annotated[float, _bounds(minimum=TIMEOUT_MIN_MINUTES, maximum=TIMEOUT_MAX_MINUTES)]
Parallel = Annotated[int, _bounds(minimum=1, maximum=MAX_PARALLEL_MAX)]
Budget = Annotated[float, _bounds(minimum=BUDGET_MIN_USD, maximum=PLAN_BUDGET_MAX_USD)]
Commands = Annotated[list[str], _bounds(maxItems=COMMANDS_MAX)]
Hosts = Annotated[list[str], _bounds(maxItems=HOSTS_MAX, examples=[["packages.example.org", "*.example.com:8443"]])]
Permissions = Annotated[
    list[Permission],
    _bounds(
        maxItems=PERMISSIONS_MAX,
        examples=[
            [
                {"tool": "Bash", "pattern": "git push*", "answer": "never"},
                {"tool": "Bash", "pattern": "pip install *", "answer": "ask"},
                {"tool": "WebFetch", "answer": "always"},
            ]
        ],
    ),
]
AnswerWithin = Annotated[
    float, _bounds(minimum=APPROVAL_TIMEOUT_MIN_MINUTES, maximum=APPROVAL_TIMEOUT_MAX_MINUTES, examples=[60])
]
Seconds = Annotated[float, _bounds(minimum=POLL_INTERVAL_MIN_S, maximum=POLL_INTERVAL_MAX_S)]
Rounds = Annotated[int, _bounds(minimum=0, maximum=VERIFY_ROUNDS_MAX)]
Branch = Annotated[str, _bounds(maxLength=BRANCH_MAX_CHARS, examples=["main"])]
DeliveryCommand = Annotated[str, _bounds(maxLength=COMMAND_MAX_BYTES, examples=["gh pr create --fill"])]
AgentIds = Annotated[list[str], _bounds(maxItems=AGENTS_MAX)]
Unset = msgspec.UnsetType
UNSET = msgspec.UNSET


class NewProject(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What plans belong to."""

    name: Name
    goal: str = ""
    mode: Mode = "auto"
    """`auto`: runners do the tasks; `manual`: people do, each with an agent of their own."""
    code_repo_url: RepoUrl
    """The clone URL of the repository that is worked on."""
    collab_repo_url: RepoUrl | None = None
    """Where the results of manual tasks are looked for; null: in the code repository."""
    collab_dir: Dir = COLLAB_DIR
    """The folder in it."""
    poll_interval_s: Seconds = POLL_INTERVAL_S
    """Between two looks at it."""
    planning_mode: PlanningMode = "balanced"
    """What plans that are made from a goal are to be good for."""
    auto_finalize: bool = False
    """Whether such a plan, made by an agent or by hand, is finalized by itself as soon as it is there."""
    agent_ids: AgentIds = []
    """Whom tasks can be given to, besides the agents that a plan itself declares."""
    task_timeout_minutes: Minutes = TIMEOUT_MINUTES
    """Of tasks that name none."""
    max_parallel: Parallel = MAX_PARALLEL
    """The most tasks of a plan at once."""
    budget_usd: Budget | None = None
    """The most that one plan may cost; null: no limit."""
    delivery: Delivery = "branch"
    """`branch`: the plan's branch is left as it is; `merge`: it is merged; `command`: a command gets it."""
    delivery_branch: Branch = ""
    """Only for `merge`: what it is merged into; empty: the repository's default branch."""
    delivery_command: DeliveryCommand = ""
    """Only for `command`, and needed there: a shell command that runs in a workspace of the branch."""
    on_conflict: OnConflict = "report"
    """Where tasks' work can't be merged: `report` it to a person, or give it to an `agent` as a task of its own."""
    verify_rounds: Rounds = VERIFY_ROUNDS
    """How often what `verify` found goes back to the agent, in tasks that don't say it."""
    approval_timeout_minutes: AnswerWithin = APPROVAL_TIMEOUT_MINUTES
    """What nobody has answered by then is denied."""
    permissions: Permissions = []
    """What happens when an agent calls a tool; the first rule that fits decides."""
    network_allow: Hosts = []
    """Hosts that set-up, agents and verification may reach: names, names below one, addresses, each with a port."""
    setup: Commands = []
    """Shell commands that run in each fresh workspace first."""
    env_allow: Commands = []
    """Names of the runner's environment variables that agents may see."""
    allow_concurrent_plans: bool = False


class ProjectChanges(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is to be different: a field left out stays, null clears it. Plans that are finalized keep what they have."""

    name: Name | Unset = UNSET
    goal: str | Unset | None = UNSET
    mode: Mode | Unset = UNSET
    code_repo_url: RepoUrl | Unset = UNSET
    collab_repo_url: RepoUrl | Unset | None = UNSET
    collab_dir: Dir | Unset = UNSET
    poll_interval_s: Seconds | Unset | None = UNSET
    planning_mode: PlanningMode | Unset = UNSET
    auto_finalize: bool | Unset = UNSET
    agent_ids: AgentIds | Unset | None = UNSET
    task_timeout_minutes: Minutes | Unset = UNSET
    max_parallel: Parallel | Unset = UNSET
    budget_usd: Budget | Unset | None = UNSET
    delivery: Delivery | Unset = UNSET
    delivery_branch: Branch | Unset | None = UNSET
    delivery_command: DeliveryCommand | Unset | None = UNSET
    on_conflict: OnConflict | Unset = UNSET
    verify_rounds: Rounds | Unset | None = UNSET
    approval_timeout_minutes: AnswerWithin | Unset | None = UNSET
    permissions: Permissions | Unset | None = UNSET
    network_allow: Hosts | Unset | None = UNSET
    setup: Commands | Unset | None = UNSET
    env_allow: Commands | Unset | None = UNSET
    allow_concurrent_plans: bool | Unset = UNSET
    clear_credentials: bool = False
    """Says that repositories on another host may remove the git credentials that are stored."""


class ProjectView(msgspec.Struct, frozen=True, kw_only=True):
    """A project. Of its git credentials only that they are there."""

    id: str
    owner_id: str
    name: str
    goal: str
    mode: Mode
    code_repo_url: str
    collab_repo_url: str | None
    collab_dir: str
    poll_interval_s: float
    planning_mode: str
    auto_finalize: bool
    agent_ids: list[str]
    task_timeout_minutes: float
    max_parallel: int
    budget_usd: float | None
    delivery: str
    delivery_branch: str
    delivery_command: str
    on_conflict: str
    verify_rounds: int
    approval_timeout_minutes: float
    permissions: list[Permission]
    network_allow: list[str]
    setup: list[str]
    env_allow: list[str]
    allow_concurrent_plans: bool
    has_git_credentials: bool
    git_credentials_hint: str | None
    """The token's last four characters; null for a deploy key, for a short token, and where there is none."""
    deleting_since: datetime | None
    """Set while its plans are being cancelled, before it goes."""
    created_at: datetime
    version: int


class ProjectDetails(ProjectView, frozen=True, kw_only=True):
    """A project, and of what kind its git credentials are."""

    git_credentials_kind: Literal["token", "deploy_key", "unreadable"] | None
    """`unreadable`: the key that they are encrypted with is gone; set them anew."""


def view(project: Project, agent_ids: list[str], hint: str | None) -> ProjectView:
    """`hint` is None where there are no git credentials."""
    return ProjectView(**_viewed(project, agent_ids, hint))


def details(
    project: Project,
    agent_ids: list[str],
    hint: str | None,
    kind: Literal["token", "deploy_key", "unreadable"] | None,
) -> ProjectDetails:
    """The same, with the kind of the credentials."""
    return ProjectDetails(**_viewed(project, agent_ids, hint), git_credentials_kind=kind)


def _viewed(project: Project, agent_ids: list[str], hint: str | None) -> dict[str, Any]:
    shown = {name: getattr(project, name) for name in ProjectView.__struct_fields__ if hasattr(Project, name)}
    return {
        **shown,
        "permissions": msgspec.convert(project.permissions, list[Permission]),
        "agent_ids": agent_ids,
        "has_git_credentials": hint is not None,
        "git_credentials_hint": hint or None,
    }
