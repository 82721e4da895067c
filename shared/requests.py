"""What services ask one another over NATS request/reply. Nothing here is stored."""

from datetime import datetime
from typing import Literal

import msgspec

from shared.spec import AgentSpec, SdkType, TaskSpec


class ProjectAgent(msgspec.Struct, frozen=True, kw_only=True):
    """An agent that a project's tasks may be given to."""

    slug: str
    name: str
    type_name: str
    spec: AgentSpec
    unusable: str = ""
    """Why no task may be given to it now (inactive, expired); empty: they may."""


class ImportRequest(msgspec.Struct, frozen=True, kw_only=True):
    """To the planner: make this text a candidate of that plan."""

    plan: str
    candidate: str
    text: str
    repo_url: str
    base_commit: str
    actor: str
    correlation: str
    project: str = ""
    mode: Literal["auto", "manual"] = "auto"
    agents: tuple[ProjectAgent, ...] = ()
    """The project's; the plan may declare others of its own in auto mode."""
    replaces: str = ""
    """Digest of the candidate that this text replaces; empty: it is a new one."""


class EditRequest(msgspec.Struct, frozen=True, kw_only=True):
    """To the planner: is the task still valid with these changes?"""

    task: TaskSpec
    agent: AgentSpec
    changes: dict[str, object]
    """Fields of a plan file's task, null for those to be cleared."""
    mode: Literal["auto", "manual"]
    agents: tuple[ProjectAgent, ...]
    declared: dict[str, AgentSpec]
    """The agents of the plan that the task belongs to."""


class PlanFault(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One thing that is wrong with a plan."""

    message: str
    task: str | None = None
    field: str | None = None
    line: int | None = None


class ImportReply(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """From the planner: where `drafted` is stored, or why nothing was."""

    seq: int = 0
    faults: tuple[PlanFault, ...] = ()
    refused: str = ""
    changed: bool = False
    """Refused because the candidate is not what the sender saw any more."""


class EditReply(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """From the planner: the whole task as it would be, or what is wrong with it."""

    task: TaskSpec | None = None
    agent: AgentSpec | None = None
    faults: tuple[PlanFault, ...] = ()


# Credentials ------------------------------------------------------------------------------------------------------


class AgentCredentials(msgspec.Struct, frozen=True, kw_only=True):
    """What an agent's model is reached with. Travels sealed only."""

    api_key: str
    base_url: str | None = None
    """None: the model's own."""

    def __repr__(self) -> str:
        return "AgentCredentials(…)"


class GitCredentials(msgspec.Struct, frozen=True, kw_only=True):
    """What a project's repositories are reached with. Travels sealed only."""

    kind: Literal["token", "deploy_key"]
    secret: str
    """The token, or the private key in OpenSSH's form."""
    username: str = "git"
    """For a token over https; hosts that want none take any."""
    known_hosts: str = ""
    """Lines of OpenSSH's known_hosts. Needed with a deploy key: an unknown host is refused."""

    def __repr__(self) -> str:
        return "GitCredentials(…)"


CredentialKind = Literal["agent", "git"]


class CredentialsRequest(msgspec.Struct, frozen=True, kw_only=True):
    """From a runner: the credentials of a lease that it holds."""

    plan: str
    task: str
    lease: int
    kind: CredentialKind


class CredentialsReply(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """To the runner: sealed to the `seal_to` of the lease's `started`, with `lease_context`; or why not."""

    sealed: bytes = b""
    """Empty and not refused: none are set."""
    refused: str = ""


def lease_context(plan: str, task: str, lease: int, kind: CredentialKind) -> bytes:
    """What a lease's sealed credentials are bound to."""
    return f"treadle lease {plan} {task} {lease} {kind}".encode()


class Introduction(msgspec.Struct, frozen=True, kw_only=True):
    """From any runner: what it is called, and the public key to seal a test's credentials to."""

    runner: str
    seal_to: str


class TestRequest(msgspec.Struct, frozen=True, kw_only=True):
    """To one runner: try these credentials out with one minimal request."""

    kind: CredentialKind
    sealed: bytes
    """`AgentCredentials` or `GitCredentials`, with `test_context`. Empty: there are none."""
    sdk_type: SdkType | None = None
    model: str = ""
    repo_urls: tuple[str, ...] = ()
    """Only of kind `git`."""


TEST_CODES = Literal["ok", "wrong_key", "no_route", "unknown_model", "unknown_repository", "refused"]


class TestReply(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it."""

    code: TEST_CODES
    message: str
    """For people: what happened, and what to do now."""
    runner: str
    duration_s: float


def test_context(runner: str, kind: CredentialKind) -> bytes:
    """What a test's sealed credentials are bound to."""
    return f"treadle test {runner} {kind}".encode()


class DiffRequest(msgspec.Struct, frozen=True, kw_only=True):
    """To one runner: what changed between these commits?"""

    project: str
    plan: str
    repo_url: str
    base: str
    commit: str
    sealed: bytes = b""
    """`GitCredentials`, with `test_context` of kind git. Empty: there are none."""


class DiffReply(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What changed, or why it can't be told."""

    stat: str = ""
    patch: str = ""
    cut: bool = False
    """Whether the patch was cut."""
    refused: str = ""


class ProjectDeleted(msgspec.Struct, frozen=True, kw_only=True):
    """Stored in the stream of projects: runners remove what they keep of it."""

    project: str
    plans: tuple[str, ...]
    repo_urls: tuple[str, ...]
    """Repositories that no other project uses."""


# Presence ---------------------------------------------------------------------------------------------------------


PRESENCE_LEASES_MAX = 50


class PresentLease(msgspec.Struct, frozen=True):
    """A lease in a runner's hands."""

    plan: str
    task: str
    lease: int


class RunnerPresence(msgspec.Struct, frozen=True, kw_only=True):
    """What a runner says of itself every few seconds, in the bucket `shared.streams.RUNNERS` under its name."""

    runner: str
    pools: tuple[str, ...]
    slots: int
    busy: int
    """Slots at work."""
    leases: tuple[PresentLease, ...]
    """The first `PRESENCE_LEASES_MAX`."""
    started: datetime
    version: str
    full: str = ""
    """Why it takes no new work just now: its disk; empty when it does."""
    without_key: bool = False
    """Whether it has left a task to others, or waiting, because it has no key of its own for Claude."""
    sandbox: str = ""
    """What keeps agents in: the sandbox's name and version; "none" where none can be had, "off" where none is wanted.
    Empty where an older runner doesn't say."""
