"""What services ask one another over NATS request/reply. Nothing here is stored."""

from datetime import datetime
from typing import Literal

import msgspec

from shared.events import Head, PlanFault
from shared.spec import AgentSpec, Mode, ProjectAgent, SdkType, TaskSpec


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
    mode: Mode = "auto"
    agents: tuple[ProjectAgent, ...] = ()
    """The project's; the plan may declare others of its own in auto mode."""
    template: str = ""
    """Id of the template that the text was made from; empty: somebody wrote it."""
    replaces: str = ""
    """Digest of the candidate that this text replaces; empty: it is a new one."""


class EditRequest(msgspec.Struct, frozen=True, kw_only=True):
    """To the planner: is the task still valid with these changes?"""

    task: TaskSpec
    agent: AgentSpec | None
    """Who has it; None: it is a decision."""
    changes: dict[str, object]
    """Fields of a plan file's task, null for those to be cleared."""
    mode: Mode
    agents: tuple[ProjectAgent, ...]
    declared: dict[str, AgentSpec]
    """The agents of the plan that the task belongs to."""


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


class ForkRequest(msgspec.Struct, frozen=True, kw_only=True):
    """To the planner: make a plan that goes on from a moment of another one."""

    plan: str
    """The new one."""
    candidate: str
    origin: str
    at: str
    """A sequence, a time, or `end`."""
    edit: str = ""
    """A plan file's text with what is to be different: tasks by their code, `remove`; empty: nothing."""
    only: tuple[str, ...] | None = None
    """Codes of the tasks that are to run, `..` behind one for all that wait for it; None: whatever is not kept."""
    name: str = ""
    """Of the new plan; empty: the origin's, or as the edit says."""
    dry_run: bool = False
    """Whether it is only a question: nothing is stored."""
    actor: str
    correlation: str
    project: str
    mode: Mode
    agents: tuple[ProjectAgent, ...]
    """The project's, as they are now."""


class ForkedTask(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What becomes of a task in a fork."""

    code: str
    name: str
    why: str = ""
    """Why it runs, or is left out."""
    plan: str = ""
    """Of one that is kept: the plan that did it."""
    commit: str = ""
    cost_usd: float = 0.0
    """What it cost there."""


class ForkReply(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """From the planner: the fork, or why there is none."""

    seq: int = 0
    """Of the new plan's `drafted`; 0: nothing was stored."""
    at: int = 0
    """The moment: the origin's newest event that counts."""
    name: str = ""
    kept: tuple[ForkedTask, ...] = ()
    runs: tuple[ForkedTask, ...] = ()
    left_out: tuple[ForkedTask, ...] = ()
    most_usd: float = 0.0
    """What the tasks that run cost at most."""
    faults: tuple[PlanFault, ...] = ()
    refused: str = ""


class ResetRequest(msgspec.Struct, frozen=True, kw_only=True):
    """To a dispatcher, whose consumers the pools' are: let one begin at another place of the log."""

    consumer: str
    seq: int
    """The first message that it may deliver."""


class ResetReply(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """From the dispatcher: how much the consumer has to deliver now, or why nothing was done."""

    pending: int = 0
    refused: str = ""


class CheckRequest(msgspec.Struct, frozen=True, kw_only=True):
    """From a runner to the planner: is the text a valid plan for what the plan's log asks for as that candidate?"""

    plan: str
    candidate: str
    text: str


class CheckReply(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Every fault of it, or why that can't be told."""

    faults: tuple[PlanFault, ...] = ()
    refused: str = ""


class OfferRequest(msgspec.Struct, frozen=True, kw_only=True):
    """From whoever watches a collaboration repository to the planner: a file for a plan that was asked for by hand."""

    plan: str
    text: str
    blob: str
    """Object id of the file: the same one is not looked at twice."""
    fault: str = ""
    """Why it has no text (it is no file, too large, or no UTF-8), in words for whoever put it there."""


class PromptRequest(msgspec.Struct, frozen=True, kw_only=True):
    """To the planner: the words with which a person has a plan made."""

    plan: str


class PromptReply(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The words, or why there are none."""

    prompt: str = ""
    refused: str = ""


class CompareRequest(msgspec.Struct, frozen=True, kw_only=True):
    """To the planner: what tells these two candidates of a plan that is not finalized from one another?"""

    plan: str
    candidates: tuple[str, str]


class ChangedTask(msgspec.Struct, frozen=True, kw_only=True):
    """A task that both candidates have."""

    code: str
    fields: tuple[str, ...]
    """Those that differ."""


class CandidateEstimate(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be expected of a candidate. Without past runs to learn from, its bounds."""

    candidate: str
    tasks: int
    critical_path: tuple[str, ...]
    minutes: float
    """The critical path's length, where every ready task finds a slot."""
    cost_usd: float
    from_past_runs: int
    """Of its tasks, those whose agent has done tasks before; the others count with their limits."""


class CompareReply(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """From the first to the second, or why that can't be told."""

    estimates: tuple[CandidateEstimate, ...] = ()
    """Of both, in the order in which they were named."""
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: tuple[ChangedTask, ...] = ()
    refused: str = ""


InputType = Literal["text", "number", "boolean", "choice"]


class TemplateRole(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A slot that an agent of the project fills."""

    slot: str
    """Such as `agent-1`; the template's tasks have it as their assignee."""
    description: str = ""


class TemplateInput(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What has to be said each time; its place in the plan is `{{name}}`."""

    name: str
    type: InputType = "text"
    description: str = ""
    required: bool = True
    choices: tuple[str, ...] = ()
    """Only of a choice."""
    default: str | float | bool | None = None


class TemplateText(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A plan with slots."""

    text: str
    """YAML or JSON, as a plan file."""
    roles: tuple[TemplateRole, ...] = ()
    inputs: tuple[TemplateInput, ...] = ()


class RenderRequest(msgspec.Struct, frozen=True, kw_only=True):
    """To the planner: fill a template in; or, without roles and inputs, is it one?"""

    template: TemplateText
    check_only: bool = False
    """Whether the template itself is the question: agents and inputs are made up."""
    roles: dict[str, str] = {}
    """By slot, the agent's slug."""
    inputs: dict[str, str | float | bool] = {}


class RenderReply(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The plan file that came out, or everything that is wrong."""

    text: str = ""
    faults: tuple[PlanFault, ...] = ()


# Collaboration repositories ---------------------------------------------------------------------------------------


class LookRequest(msgspec.Struct, frozen=True, kw_only=True):
    """To whoever watches collaboration repositories: fetch this one now, then take what is new."""

    project: str
    repo_url: str
    path: str = ""
    """A file whose object id is wanted."""


class LookReply(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What was found."""

    commit: str = ""
    """The repository's head; empty: it has no commit yet."""
    blob: str = ""
    """Object id of the file that was asked for; empty: there is none."""
    fault: str = ""
    """Why the fetch failed, in words without secrets."""


class WatchCredentialsRequest(msgspec.Struct, frozen=True, kw_only=True):
    """From whoever watches to the gateway: the git credentials of a project that has something to be watched."""

    project: str
    seal_to: str
    repo_url: str = ""
    """What they are to be used for: they are not lent for another host than the project's."""


def watch_context(project: str, seal_to: str) -> bytes:
    """What those are bound to. The answer is a `CredentialsReply`."""
    return f"treadle watch {project} {seal_to}".encode()


class HeadRequest(msgspec.Struct, frozen=True, kw_only=True):
    """To one runner: which commit is the repository's default branch at?"""

    project: str
    repo_url: str
    branch: str = ""
    """Empty: the default branch."""
    sealed: bytes = b""
    """`GitCredentials`, with `test_context` of kind git. Empty: there are none."""


class HeadReply(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The commit, or why it can't be told."""

    commit: str = ""
    branch: str = ""
    refused: str = ""


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


BUNDLE_PART_BYTES = 4 * 1024 * 1024
"""Of a bundle in one reply: what NATS carries, once it is JSON."""


HEADS_MAX = 25_000
"""And as many leases: what one bundle may be asked for."""


class Unfinished(msgspec.Struct, frozen=True):
    """What a lease left of a task's work: the commit of its files under `refs/treadle/<plan>/<task>/<lease>-wip`."""

    task: str
    lease: int
    commit: str


class BundleRequest(msgspec.Struct, frozen=True, kw_only=True):
    """To one runner: make a git bundle of these commits. It is fetched by `BundlePartRequest`s to the same runner."""

    only_look: bool = False
    """Only say which of the commits are missing; no bundle is made."""

    project: str
    plan: str
    repo_url: str
    base: str
    heads: tuple[Head, ...]
    """The tasks' commits; that of `_deliver` becomes the plan's branch."""
    leases: tuple[tuple[str, int], ...] = ()
    """Tasks, each with a lease: what these left unfinished goes with it, where the repository still has it."""
    sealed: bytes = b""
    """`GitCredentials`, with `test_context` of kind git. Empty: there are none."""


class BundleReply(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The bundle that waits to be fetched, or why there is none."""

    bundle: str = ""
    """Its name, for the requests for its parts; it is kept for some minutes after the last of them.

    Empty without a refusal: nothing but leases was asked for, and they left nothing.
    """
    size_bytes: int = 0
    sha256: str = ""
    complete: bool = True
    """False: with all history it would be too large, so it begins after the base."""
    missing: tuple[str, ...] = ()
    """Commits that were asked for and that the repository does not have."""
    unfinished: tuple[Unfinished, ...] = ()
    """What the leases left, as far as it is in the bundle."""
    without_unfinished: str = ""
    """Why some of what they left is not."""
    refused: str = ""


class BundlePartRequest(msgspec.Struct, frozen=True, kw_only=True):
    """To the runner that made it: the bundle's bytes from there on. Asked for its end, it removes the bundle."""

    bundle: str
    offset: int


class BundlePartReply(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """At most `BUNDLE_PART_BYTES`, none at the end; or why there are none."""

    part: bytes = b""
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
