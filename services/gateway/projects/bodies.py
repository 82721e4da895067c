"""What is asked and answered about projects, and which values can't be."""

import re
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

import msgspec

from services.gateway.database.tables import Mode, Project
from services.gateway.problems import FieldFault, ProblemError
from services.gateway.projects import work_rules
from services.gateway.projects.work_rules import BRANCH_MAX_CHARS
from shared.repo_url import ADDRESS_MAX_CHARS, BadRepoUrl, check_repo_url, is_local_path
from shared.spec import (
    APPROVAL_TIMEOUT_MAX_MINUTES,
    APPROVAL_TIMEOUT_MIN_MINUTES,
    APPROVAL_TIMEOUT_MINUTES,
    BUDGET_MIN_USD,
    COMMAND_MAX_BYTES,
    COMMANDS_MAX,
    DESCRIPTION_MAX_BYTES,
    ENV_NAME,
    ENV_RESERVED,
    HOSTS_MAX,
    MAX_PARALLEL,
    MAX_PARALLEL_MAX,
    NAME_MAX_CHARS,
    OUTPUT_PATH_MAX_CHARS,
    PERMISSIONS_MAX,
    PLAN_BUDGET_MAX_USD,
    TIMEOUT_MAX_MINUTES,
    TIMEOUT_MIN_MINUTES,
    TIMEOUT_MINUTES,
    UNPRINTABLE_LINE,
    UNPRINTABLE_TEXT,
    VERIFY_ROUNDS,
    VERIFY_ROUNDS_MAX,
    Delivery,
    OnConflict,
    Permission,
)

COLLAB_DIR = "treadle"
AGENTS_MAX = 100
"""Of a project, as of a plan."""
PlanningMode = Literal["balanced", "quality", "cost_effective", "speed"]
"""What a plan is to be good for when it is made from a goal; an imported one is as its author wrote it."""


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
    planning_mode: PlanningMode = "balanced"
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
    planning_mode: PlanningMode | Unset = UNSET
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
    planning_mode: str
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


# Values that can't be ---------------------------------------------------------------------------------------------


def cleared(changes: Mapping[str, Any]) -> dict[str, Any]:
    """The changes with what null makes of each field."""
    empty: dict[str, Any] = {
        "goal": "",
        "agent_ids": [],
        "setup": [],
        "env_allow": [],
        "network_allow": [],
        "permissions": [],
        "delivery_branch": "",
        "delivery_command": "",
        "verify_rounds": VERIFY_ROUNDS,
        "approval_timeout_minutes": APPROVAL_TIMEOUT_MINUTES,
    }
    return {name: empty.get(name) if value is None else value for name, value in changes.items()}


def checked(values: Mapping[str, Any], *, local_repositories: bool) -> dict[str, Any]:
    """The values as they are stored. Raises `ProblemError` 400 with every fault at once."""
    stored = dict(values)
    faults: list[tuple[str, str]] = []
    for name in ("code_repo_url", "collab_repo_url"):
        if stored.get(name) is not None:
            try:
                stored[name] = _repo_url(stored[name], local_repositories)
            except BadRepoUrl as error:
                faults.append((name, str(error)))
    for name, check in _CHECKS.items():
        if stored.get(name) is not None:
            faults += [(name, why) for why in check(stored[name])]
    if "network_allow" in stored:
        stored["network_allow"], wrong = work_rules.hosts(stored["network_allow"])
        faults += [("network_allow", why) for why in wrong]
    _raise_if_any(faults)
    if "permissions" in stored:
        stored["permissions"] = msgspec.to_builtins(stored["permissions"])
    return stored


def check_together(project: Project) -> None:
    """Whether the project's fields fit one another. Raises `ProblemError` 400 with every fault at once."""
    names = ("delivery", "delivery_branch", "delivery_command")
    _raise_if_any(work_rules.delivery({name: getattr(project, name) for name in names}))


def _raise_if_any(faults: list[tuple[str, str]]) -> None:
    if faults:
        detail = "; ".join(f"{name}: {why}" for name, why in faults)
        refusal = ProblemError(400, "bad_request", "Bad request", detail)
        refusal.problem.fields = tuple(FieldFault(field=name, source="body", message=why) for name, why in faults)
        raise refusal


def _repo_url(text: str, local: bool) -> str:
    address = check_repo_url(text, allow_local=local, allow_private_hosts=local)
    if is_local_path(address) and not PurePosixPath(address).is_absolute():
        raise BadRepoUrl("a path must be absolute: the gateway does not know your directory")
    return address


def _name(name: str) -> list[str]:
    if not name.strip() or len(name) > NAME_MAX_CHARS:
        return [f"has {len(name):,} characters; 1 to {NAME_MAX_CHARS}, not all blank"]
    return _odd(name, UNPRINTABLE_LINE)


def _goal(goal: str) -> list[str]:
    size = len(goal.encode(errors="replace"))
    too_long = [f"has {size:,} bytes; at most {DESCRIPTION_MAX_BYTES:,}"] if size > DESCRIPTION_MAX_BYTES else []
    return too_long + _odd(goal, UNPRINTABLE_TEXT)


def _collab_dir(path: str) -> list[str]:
    if not path.strip() or len(path) > OUTPUT_PATH_MAX_CHARS:
        return [f"has {len(path):,} characters; 1 to {OUTPUT_PATH_MAX_CHARS}, not all blank"]
    parts = path.split("/")
    why = None
    if path.startswith(("/", "~", "-")) or re.match(r"[A-Za-z]:", path):
        why = "a folder inside the repository begins with its name"
    elif "\\" in path:
        why = 'it has a backslash; write "/"'
    elif any(part in ("", ".", "..") for part in parts):
        why = 'it has an empty part, "." or ".."'
    elif ".git" in (part.lower() for part in parts):
        why = "it lies in git's own folder"
    return [f"{path[:60]!r} is not a folder inside the repository: {why}"] if why else _odd(path, UNPRINTABLE_LINE)


def _between(low: float, high: float, unit: str) -> Callable[[float], list[str]]:
    def check(value: float) -> list[str]:
        return [] if low <= value <= high else [f"{str(value)[:20]} is out of range: {low:g} to {high:,.0f} {unit}"]

    return check


def _setup(commands: list[str]) -> list[str]:
    faults = (
        [f"{len(commands):,} are too many: at most {COMMANDS_MAX} commands"] if len(commands) > COMMANDS_MAX else []
    )
    for command in commands[:COMMANDS_MAX]:
        size = len(command.encode(errors="replace"))
        if not command.strip():
            faults.append("an item is blank")
        elif size > COMMAND_MAX_BYTES:
            faults.append(f"has {size:,} bytes; at most {COMMAND_MAX_BYTES:,}")
        faults += _odd(command, UNPRINTABLE_TEXT)
    return faults


def _env_allow(names: list[str]) -> list[str]:
    faults = [f"{len(names):,} are too many: at most {COMMANDS_MAX} names"] if len(names) > COMMANDS_MAX else []
    for name in names[:COMMANDS_MAX]:
        if not ENV_NAME.fullmatch(name):
            faults.append(f"{name[:60]!r} is no name of an environment variable")
        elif name.upper().startswith(ENV_RESERVED):
            faults.append(f"{name[:60]!r} can't be passed on: the runner sets such variables itself")
    return faults


def _agent_ids(ids: list[str]) -> list[str]:
    return [f"{len(ids):,} are too many: at most {AGENTS_MAX} agents"] if len(ids) > AGENTS_MAX else []


def _odd(text: str, pattern: re.Pattern[str]) -> list[str]:
    odd = pattern.search(text)
    return [f"holds the control character U+{ord(odd.group()):04X}"] if odd else []


_CHECKS: dict[str, Callable[[Any], list[str]]] = {
    "name": _name,
    "goal": _goal,
    "collab_dir": _collab_dir,
    "task_timeout_minutes": _between(TIMEOUT_MIN_MINUTES, TIMEOUT_MAX_MINUTES, "minutes"),
    "max_parallel": _between(1, MAX_PARALLEL_MAX, "tasks"),
    "budget_usd": _between(BUDGET_MIN_USD, PLAN_BUDGET_MAX_USD, "US dollars for one plan"),
    "setup": _setup,
    "env_allow": _env_allow,
    "agent_ids": _agent_ids,
    "permissions": work_rules.permissions,
    "approval_timeout_minutes": _between(APPROVAL_TIMEOUT_MIN_MINUTES, APPROVAL_TIMEOUT_MAX_MINUTES, "minutes"),
    "verify_rounds": _between(0, VERIFY_ROUNDS_MAX, "rounds"),
    "delivery_branch": work_rules.branch,
    "delivery_command": work_rules.command,
}
