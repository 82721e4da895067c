"""What a lease has before its agent begins: its workspace, with a former lease's work in it, and its enclosure."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from services.runner.agents import Enclosure, Job, Report
from services.runner.answer_forms import how_to_answer
from services.runner.caches import LeaseCache, SetupCaches
from services.runner.checkpoint import Checkpoint
from services.runner.conflicts import Conflicted, prepare_conflicted, words_for_agent
from services.runner.failed import Failed
from services.runner.git import MergeConflict, checked_ids
from services.runner.git_faults import in_git
from services.runner.git_threads import in_thread
from services.runner.in_use import in_use, lease_in_use
from services.runner.inherited import ensure_heads
from services.runner.lease import Key, Lease
from services.runner.merge import kept_as, merge_base_commit
from services.runner.mirror import Mirror
from services.runner.redaction import secret_values
from services.runner.repository_shape import repository_shape
from services.runner.sandbox import Sandbox, enclose
from services.runner.snapshots import WorkInProgress, find_saved
from services.runner.workspace import PUSHED, Resumed, Workspace, create_workspace, place_of_plan, remove_tree
from shared.events import TaskDispatched
from shared.host_pattern import BadHostPattern
from shared.requests import AgentCredentials
from shared.spec import AgentSpec
from shared.task import Approval

log = logging.getLogger("treadle.runner")

NO_AGENT = AgentSpec(sdk_type="command", command=("true",))


@dataclass(frozen=True)
class Place:
    """What a runner has for its leases."""

    data_dir: Path
    environment: Mapping[str, str]
    """What a plan's `env_allow` may name."""
    sandbox: Sandbox | None
    threads: ThreadPoolExecutor
    caches: SetupCaches | None = None


@dataclass(frozen=True)
class Prepared:
    """A lease's workspace."""

    workspace: Workspace
    work: WorkInProgress
    conflicted: Conflicted | None
    """What the task is to resolve, if that is what it is for."""
    goes_on: bool
    """With what a former lease left."""
    more_words: str = ""
    """What the prompt says besides."""


async def prepare(
    lease: Lease, place: Place, mirror: Mirror, held: ExitStack, report: Report, tell: Callable[[str], None]
) -> Prepared:
    """Makes the workspace. What keeps it from being swept goes into `held`. Raises `Failed`, `Fenced`."""
    key = lease.key

    def hold() -> tuple[str, Conflicted | None]:
        held.enter_context(lease_in_use(place.data_dir, key.plan, key.task, key.lease))
        held.enter_context(in_use(place_of_plan(place.data_dir, key.plan)))
        held.enter_context(in_use(mirror.path))
        return _base(lease, mirror)

    base, conflicted = await in_git(hold, "setup_failed", place.threads)
    former = await _former(lease, base, mirror, place, tell)
    saved = former[1] if former else None
    former_checkpoint, again = former[0] if former else None, denied_result(lease) is not None

    def make() -> WorkInProgress:
        workspace = create_workspace(place.data_dir, mirror, key.plan, key.task, key.lease, base, saved)
        work = WorkInProgress(workspace, lease.memory, place.threads, report, place.sandbox)
        work.begin(former_checkpoint, saved, again=again)
        if lease.dispatch.rules.answer:
            # Whatever its commands leave in the worktree is nobody's work: it must not be kept for a person.
            (workspace.path / PUSHED).write_text(f"{base}\n")
        return work

    work = await in_git(make, "setup_failed", place.threads)
    words = await in_git(lambda: _more_words(lease.dispatch, work, conflicted), "setup_failed", place.threads)
    return Prepared(work.workspace, work, conflicted, former is not None, words)


def _more_words(dispatch: TaskDispatched, work: WorkInProgress, conflicted: Conflicted | None) -> str:
    rules = dispatch.rules
    by_tool = dispatch.agent is not None and dispatch.agent.sdk_type == "claude"
    shape = repository_shape(work.repo, work.workspace.base) if rules.answer == "plan" else ""
    resolving = words_for_agent(conflicted) if conflicted else ""
    return "\n\n".join(filter(None, (resolving, shape, how_to_answer(rules, by_tool=by_tool))))


def _base(lease: Lease, mirror: Mirror) -> tuple[str, Conflicted | None]:
    """Makes sure that the commits are here and merges them: the commit that the agent starts from."""
    dispatch = lease.dispatch
    ensure_heads(mirror, lease.key.plan, dispatch.base_commit, dispatch.heads)
    if not dispatch.rules.resolves:
        try:
            return merge_base_commit(mirror.path, dispatch.base_commit, dispatch.heads), None
        except MergeConflict as conflict:
            remedy = f"Each is kept: {kept_as(lease.key.plan, conflict.codes, dispatch.heads)}. "
            remedy += "Start a new plan in which one depends on the other. (Where the project says on_conflict: agent, "
            remedy += "an agent merges them in a task before this one, which then runs again by itself.)"
            raise MergeConflict(conflict.files, conflict.codes, remedy=remedy) from None
    conflicted = prepare_conflicted(mirror.path, dispatch.base_commit, dispatch.heads)
    return conflicted.commit, conflicted


async def _former(
    lease: Lease, base: str, mirror: Mirror, place: Place, tell: Callable[[str], None]
) -> tuple[Checkpoint, Resumed | None] | None:
    """What this lease goes on with. Where it should and can't, it starts afresh, and says why."""
    memory = lease.memory
    if memory is None:
        return None
    former, why = memory.former, memory.why_afresh
    if former is not None:
        try:
            # Files without the conversation that made them would be taken for somebody else's.
            if not memory.resumes and denied_result(lease) is None:
                raise Failed("setup_failed", "it has no conversation to go on with")
            saved = await in_git(
                lambda: find_saved(mirror, lease.key.plan, base, former), "setup_failed", place.threads
            )
        except Failed as failed:
            why = f"what lease {former.lease} left can't be taken up: {failed}"
            await memory.start_afresh(why)
        else:
            tell(f"going on where lease {former.lease} was")
            return former, saved
    if why:
        tell(f"starting afresh: {why}")
    return None


def denied_result(lease: Lease) -> Approval | None:
    """A person's no to the result that they were shown.

    Every lease until the next request says it, also where one before it may have: twice does less harm than never.
    """
    approval = lease.approval
    return approval if approval is not None and (approval.kind, approval.answer) == ("result", "denied") else None


def first_words(lease: Lease, prompt: str) -> str:
    """What the agent is told first: its prompt, or what a person has to say of the result that it was asked for."""
    denied, memory = denied_result(lease), lease.memory
    if denied is None:
        return prompt
    said = denied.note.strip()
    words = "A person has looked at your work and does not accept it."
    words += f" They say:\n\n{said}" if said else " They give no reason."
    words += "\n\nMend it, then say what you did."
    resumes = memory is not None and memory.resumes
    return words if resumes else f"{prompt}\n\nYou have worked on this before. {words}"


def scratch_of(data_dir: Path, key: Key) -> Path:
    """A lease's directory for what nobody keeps."""
    checked_ids(key.plan, key.task, key.lease)
    return data_dir / "scratch" / f"{key.plan}-{key.task}-{key.lease}"


@asynccontextmanager
async def enclosed(
    lease: Lease, place: Place, workspace: Workspace, scratch: Path, cache: LeaseCache | None = None
) -> AsyncIterator[Enclosure]:
    """What keeps the lease's processes in: the one place where it is said what they may see and write."""
    try:
        async with enclose(
            place.sandbox,
            workspace_code=workspace.code,
            agents_repo=workspace.agents_repo,
            objects=workspace.mirror.objects,
            scratch=scratch,
            network_allow=lease.dispatch.rules.network_allow,
            read_only=[cache.shared] if cache else [],
            extra_read_write=[cache.view] if cache else [],
        ) as enclosure:
            yield enclosure
    except BadHostPattern as bad:
        raise Failed("setup_failed", f"network_allow: {bad}. Correct it, in the plan or its project.") from bad


@asynccontextmanager
async def lease_cache(place: Place, workspace: Workspace, scratch: Path) -> AsyncIterator[LeaseCache | None]:
    """The lease's part in the caches of its repository; None where the runner has none."""
    caches = place.caches
    if caches is None:
        yield None
        return
    with ExitStack() as held:
        showing = caches.for_lease(workspace.mirror, scratch)
        yield await in_thread(lambda: held.enter_context(showing), place.threads)


@asynccontextmanager
async def setting_up(
    place: Place, dispatch: TaskDispatched, prepared: Prepared, cache: LeaseCache | None
) -> AsyncIterator[None]:
    """Around the lease's set-up commands; to be used where there are none, too."""
    if place.caches is None or cache is None:
        yield
        return
    base = prepared.workspace.base
    # No agent's work is in it yet: what set-up brings is what the plan's author asked for.
    trusted = base == dispatch.base_commit and not prepared.goes_on
    async with place.caches.setting_up(cache, base, dispatch.setup, trusted=trusted):
        yield


@contextlib.contextmanager
def scratch_directory(place: Place, key: Key) -> Iterator[Path]:
    """A private directory, gone at the end of the block."""
    scratch = scratch_of(place.data_dir.resolve(), key)
    remove_tree(scratch)
    scratch.mkdir(mode=0o700, parents=True)
    try:
        yield scratch
    finally:
        drop_scratch(scratch)


def drop_scratch(scratch: Path) -> None:
    """Removes a lease's directory; what is left of one that can't be removed is swept later."""
    try:
        remove_tree(scratch)
    except OSError as error:
        log.warning("%s can't be removed yet: %s", scratch, error)


def make_job(
    lease: Lease,
    place: Place,
    prepared: Prepared,
    scratch: Path,
    enclosure: Enclosure,
    cache: LeaseCache | None,
    credentials: AgentCredentials | None,
) -> Job:
    """What the agent is given."""
    key, dispatch, approval = lease.key, lease.dispatch, lease.approval
    allowed = {name: place.environment[name] for name in dispatch.env_allow if name in place.environment}
    lease.credentials.redactor.learn(*secret_values(allowed))
    return Job(
        plan=key.plan,
        task=key.task,
        attempt=dispatch.attempt,
        lease=key.lease,
        prompt="\n\n".join(filter(None, (dispatch.prompt, prepared.more_words))),
        agent=dispatch.agent or NO_AGENT,
        cwd=prepared.workspace.code,
        enclosure=enclosure,
        rules=dispatch.rules,
        memory=lease.memory,
        # What a person said of a result is told to the agent in words.
        approval=approval if approval is not None and approval.kind != "result" else None,
        use_approval=lease.use_approval,
        scratch=scratch,
        timeout_s=dispatch.timeout_s,
        budget_usd=lease.budget_usd,
        env={**allowed, **(cache.environment if cache else {})},
        credentials=credentials,
        without_secrets=lease.credentials.redactor,
    )
