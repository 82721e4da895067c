"""Which values a project's fields can't have. Every fault is named at once."""

import re
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath
from typing import Any

import msgspec

from services.gateway.database.tables import Project
from services.gateway.problems import FieldFault, ProblemError
from services.gateway.projects import work_rules
from services.gateway.projects.bodies import AGENTS_MAX
from shared.repo_url import BadRepoUrl, check_repo_url, is_local_path
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
    MAX_PARALLEL_MAX,
    NAME_MAX_CHARS,
    OUTPUT_PATH_MAX_CHARS,
    PLAN_BUDGET_MAX_USD,
    POLL_INTERVAL_MAX_S,
    POLL_INTERVAL_MIN_S,
    POLL_INTERVAL_S,
    TIMEOUT_MAX_MINUTES,
    TIMEOUT_MIN_MINUTES,
    UNPRINTABLE_LINE,
    UNPRINTABLE_TEXT,
    VERIFY_ROUNDS,
    VERIFY_ROUNDS_MAX,
)


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
        "poll_interval_s": POLL_INTERVAL_S,
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


def goal_faults(goal: str) -> list[str]:
    """What is wrong with a goal; empty is none."""
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
    "goal": goal_faults,
    "collab_dir": _collab_dir,
    "task_timeout_minutes": _between(TIMEOUT_MIN_MINUTES, TIMEOUT_MAX_MINUTES, "minutes"),
    "max_parallel": _between(1, MAX_PARALLEL_MAX, "tasks"),
    "budget_usd": _between(BUDGET_MIN_USD, PLAN_BUDGET_MAX_USD, "US dollars for one plan"),
    "setup": _setup,
    "env_allow": _env_allow,
    "agent_ids": _agent_ids,
    "permissions": work_rules.permissions,
    "approval_timeout_minutes": _between(APPROVAL_TIMEOUT_MIN_MINUTES, APPROVAL_TIMEOUT_MAX_MINUTES, "minutes"),
    "poll_interval_s": _between(POLL_INTERVAL_MIN_S, POLL_INTERVAL_MAX_S, "seconds"),
    "verify_rounds": _between(0, VERIFY_ROUNDS_MAX, "rounds"),
    "delivery_branch": work_rules.branch,
    "delivery_command": work_rules.command,
}
