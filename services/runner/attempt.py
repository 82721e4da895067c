"""One lease's run: prepare the workspace, set up, let the agent work, verify, store its commit.

Every fault ends in a `Finished` whose message a person can act on; nothing is half done when it does. What the agent
left is kept for the next lease or for a person, however it ends.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from services.runner.agents import Activity, AgentRunner, AgentSession, Asks, Finished, Job, Report, activity, cut
from services.runner.agents.leaves import storable
from services.runner.answers import Answered, Answers, again
from services.runner.attempt_words import files_words, joined, left_out_words, summary_words, tried_words
from services.runner.caches import LeaseCache
from services.runner.checkpoint import Fenced
from services.runner.checks import Checks, refused_words
from services.runner.conflicts import Conflicted, finish_resolution
from services.runner.deliver import push_lease
from services.runner.failed import Failed
from services.runner.git import GitFailed, printable
from services.runner.git_faults import in_git
from services.runner.lease import SAVE_WITHIN_S, Completion, Lease, Parked
from services.runner.leftovers import Outcome
from services.runner.mirror import Mirror, mirror_of
from services.runner.preparation import (
    Place,
    Prepared,
    denied_result,
    enclosed,
    first_words,
    lease_cache,
    make_job,
    prepare,
    scratch_directory,
    setting_up,
)
from services.runner.snapshots import WorkInProgress, wip_ref
from services.runner.workspace import Workspace
from shared.events import FailureKind, Result, Usage
from shared.task import Approval

log = logging.getLogger("treadle.runner")

T = TypeVar("T")

FAULTS_MAX_BYTES = 8 * 1024
"""Of an answer's faults, in the words for people."""
KEEP_WITHIN_S = 120.0
"""What saving the work of an attempt that failed may take."""


class Accepted(msgspec.Struct, frozen=True):
    """What a person is asked to accept, as the approval's input: it must be there when the answer comes."""

    commit: str
    base_commit: str
    summary: str
    artifacts: tuple[str, ...]


@dataclass(frozen=True)
class Agreed:
    """The agent says that it is done, and nothing is wrong with it."""

    outcome: Outcome
    summary: str


class Attempt:
    """One lease's run."""

    def __init__(self, lease: Lease, agent: AgentRunner, place: Place, report: Report) -> None:
        self.mirror: Mirror | None = None
        self.in_use = ExitStack()
        """Held until the lease was tidied up."""
        self._lease = lease
        self._agent = agent
        self._place = place
        self._report_to = report
        self._usage = Usage()
        self._prepared: Prepared | None = None
        self._hosts_told = 0
        self._answers: Answers | None = None

    @property
    def workspace(self) -> Workspace | None:
        """Once there is one."""
        return self._prepared.workspace if self._prepared else None

    def wip_refs(self) -> list[str]:
        """The refs of unfinished work that this lease knows of: its own, and that of the lease it goes on with."""
        key, memory = self._lease.key, self._lease.memory
        leases = [memory.former.lease] if memory and memory.former and memory.former.wip else []
        if self._prepared and self._prepared.work.is_pushed:
            leases.append(key.lease)
        return [wip_ref(key.plan, key.task, lease) for lease in leases]

    async def run(self) -> Completion | Finished | Parked:
        """Does it all. Cancelled, it keeps what there is if the runner only stops. Raises `Fenced`."""
        try:
            async with asyncio.timeout(self._lease.dispatch.timeout_s):
                ending = await self._run()
        except Failed as failed:
            ending = Finished(
                kind=failed.kind,
                message=str(failed),
                usage=self._usage,
                conflict=failed.conflict,
                faults=failed.faults,
            )
        except TimeoutError:
            ending = Finished(kind="timeout", message=self._too_late(), usage=self._usage)
        except asyncio.CancelledError:
            if self._lease.hands_back:
                await self._keep(SAVE_WITHIN_S)
            raise
        finally:
            if self._prepared is not None:
                await self._prepared.work.pause()
        if isinstance(ending, Finished) and not self._lease.stale:
            words = await self._keep(KEEP_WITHIN_S)
            ending = msgspec.structs.replace(ending, message=joined(ending.message, words))
        return ending

    async def _run(self) -> Completion | Finished | Parked:
        lease, dispatch = self._lease, self._lease.dispatch
        access = await lease.credentials.git(dispatch)
        mirror = self.mirror = mirror_of(self._place.data_dir, dispatch.repo_url, dispatch.project, access)
        if (approval := lease.approval) and approval.kind == "result" and approval.answer == "granted":
            return self._accepted(approval)
        self._check_worth_it()
        # Before all else: what it must do without is better known before minutes of set-up than behind them.
        credentials = await lease.credentials.agent(dispatch) if self._agent.needs_credentials else None
        prepared = self._prepared = await prepare(lease, self._place, mirror, self.in_use, self._report, self._tell)
        if lease.memory is not None:
            lease.memory.on_turn_ended = self._turn_ended
        if prepared.conflicted is not None and not prepared.conflicted.files:
            return await self._merged(prepared.workspace, prepared.conflicted)
        with scratch_directory(self._place, lease.key) as scratch:
            async with (
                lease_cache(self._place, prepared.workspace, scratch) as cache,
                enclosed(lease, self._place, prepared.workspace, scratch, cache) as enclosure,
            ):
                job = make_job(lease, self._place, prepared, scratch, enclosure, cache, credentials)
                return await self._run_agent(job, prepared, cache)

    def _check_worth_it(self) -> None:
        """Raises `Failed` where an agent need not even begin."""
        lease, dispatch = self._lease, self._lease.dispatch
        if (denied := denied_result(lease)) is not None and denied.expired:
            words = f"Nobody accepted the result in time. It is stored as the commit {denied.commit}:"
            raise Failed("timeout", f"{words} look at it, then mark the task complete, or redispatch it.")
        costs = dispatch.agent is not None and dispatch.agent.sdk_type == "claude"
        if costs and lease.budget_usd <= 0:
            words = f"The attempt's {dispatch.budget_usd:g} USD were spent by the leases before this one."
            raise Failed("budget_spent", f"{words} Raise the task's budget_usd, then redispatch it.")

    async def _run_agent(
        self, job: Job, prepared: Prepared, cache: LeaseCache | None
    ) -> Completion | Finished | Parked:
        work, checks = prepared.work, Checks(self._lease.dispatch, job, self._report, self._place.threads, cache)
        if unknown := [name for name in self._lease.dispatch.env_allow if name not in self._place.environment]:
            self._tell(f"env_allow names what this runner does not have: {', '.join(unknown)}")
        async with setting_up(self._place, self._lease.dispatch, prepared, cache):
            await checks.set_up()
        if self._lease.dispatch.setup:
            await self._in_git(work.note_traces)
        if self._agent.resumes and not prepared.goes_on:
            await work.save()  # from now on a next lease knows what the work rests on, also if it finds nothing else
        async with self._agent.open(job, self._report) as session:
            if job.rules.answer:
                agreed: Agreed | Answered | Finished | Parked = await self._be_answered(session, job, prepared)
            else:
                agreed = await self._converse(session, job, prepared, checks)
        if isinstance(agreed, Parked):
            await self._save(work)
        if isinstance(agreed, Answered):
            return await self._store_answer(prepared, agreed)
        return await self._store(prepared, agreed) if isinstance(agreed, Agreed) else agreed

    async def _converse(
        self, session: AgentSession, job: Job, prepared: Prepared, checks: Checks
    ) -> Agreed | Finished | Parked:
        """Lets the agent work, and work again, until nothing is wrong with it or the rounds are over."""
        work, dispatch = prepared.work, self._lease.dispatch
        rounds, message = job.rules.verify_rounds, first_words(self._lease, job.prompt)
        while True:
            work.turn_begins()
            end = await self._turn(session, message, job, work)
            if isinstance(end, Parked) or end.kind != "completed":
                return end
            outcome = await self._in_git(lambda: work.turn_is_over(dispatch.task_name))
            if self._agent.resumes and dispatch.verify:
                work.wish()
            fault = await self._fault(prepared, checks, outcome)
            if fault is None:
                return Agreed(outcome, end.summary)
            if work.verify_round >= rounds:
                raise Failed("verification_failed", joined(fault, tried_words(dispatch.agent, rounds)))
            work.verify_round += 1
            self._tell(f"not accepted, round {work.verify_round} of {rounds}: {fault}")
            message = f"Your work was checked, and it is not done yet. {fault}\n\nMend it, then say what you did."

    async def _turn(self, session: AgentSession, message: str, job: Job, work: WorkInProgress) -> Finished | Parked:
        end = await session.turn(message)
        await work.pause()
        self._usage = work.usage = end.usage
        refused = self._tell_refused(job)
        if isinstance(end, Asks):
            return Parked(
                kind=end.kind,
                tool=storable(end.tool),
                input=storable(end.input),
                why=storable(end.why),
                usage=end.usage,
            )
        if end.kind != "completed":
            return msgspec.structs.replace(end, message="\n".join(filter(None, (end.message, refused))))
        return end

    async def _be_answered(self, session: AgentSession, job: Job, prepared: Prepared) -> Answered | Finished | Parked:
        """As `_converse`, where what it says counts. The worktree is nobody's turn: what is in it is not looked at."""
        work, lease, rounds, message = prepared.work, self._lease, job.rules.verify_rounds, job.prompt
        if lease.ask_planner is None:
            raise ValueError("a lease that answers has somebody to ask")
        if lease.dispatch.verify:
            self._tell("what this task says is its result, and it changes nothing: its verify commands are not run")
        by_tool = job.agent.sdk_type == "claude"
        redactor = lease.credentials.redactor
        answers = self._answers = Answers(
            lease.key, lease.dispatch, job.worktree, prepared.workspace.base, lease.ask_planner, redactor, self._tell
        )
        while True:
            end = await self._turn(session, message, job, work)
            if isinstance(end, Parked) or end.kind != "completed":
                return end
            judged = await answers.judge(end)
            if isinstance(judged, Answered):
                return judged
            if work.verify_round >= rounds:
                words = cut(judged.words, FAULTS_MAX_BYTES)
                raise Failed("verification_failed", joined(words, tried_words(job.agent, rounds)), faults=judged.faults)
            work.verify_round += 1
            self._tell(f"not accepted, round {work.verify_round} of {rounds}: {judged.words}")
            message = again(judged, by_tool=by_tool)

    async def _fault(self, prepared: Prepared, checks: Checks, outcome: Outcome) -> str | None:
        """What is wrong with the work of a turn, in words for the agent and for people."""
        work = prepared.work
        if (found := await self._in_git(lambda: checks.of_commit(work.repo, outcome, prepared.conflicted))) is not None:
            return found
        if (found := await checks.verify()) is not None:
            # It would else be taken for the agent's with its next turn.
            await self._in_git(work.note_traces)
        return found

    # Behind the agent --------------------------------------------------------------------------------------------

    async def _store(self, prepared: Prepared, agreed: Agreed) -> Completion | Parked:
        """Pushes the commit under the lease's ref. After this the work can't be lost."""
        workspace, outcome, conflicted = prepared.workspace, agreed.outcome, prepared.conflicted

        def push() -> Accepted:
            commit, base = outcome.commit, workspace.base
            if conflicted is not None:
                subject = printable(f"{workspace.task}: {self._lease.dispatch.task_name}")
                commit = finish_resolution(workspace.runners_repo, conflicted, commit, subject)
                base = conflicted.parents[0]
            push_lease(workspace, commit)
            return Accepted(commit, base, summary_words(outcome, agreed.summary), outcome.files)

        result = await self._in_git(push)
        if prepared.work.keep_left_out(outcome.left_out):
            self._tell(
                f"{left_out_words(outcome)}: they are kept in {workspace.code}, until `treadle clean` removes them"
            )
        if not self._lease.dispatch.rules.requires_approval:
            return self._completion(result)
        changed = f"{files_words(outcome.files_changed)} changed, +{outcome.insertions} -{outcome.deletions} lines"
        await self._save(prepared.work)
        return Parked(
            kind="result",
            input=msgspec.to_builtins(result),
            why=f"{result.summary}\n\n{changed}",
            commit=result.commit,
            base_commit=result.base_commit,
            usage=self._usage,
        )

    async def _store_answer(self, prepared: Prepared, answered: Answered) -> Completion:
        """An answer is in the log; in git there is nothing new, but a base that is merged only here."""
        workspace = prepared.workspace
        if workspace.base != self._lease.dispatch.base_commit:
            await self._in_git(lambda: push_lease(workspace, workspace.base))
        told = Result(task_code=self._lease.key.task, summary=answered.summary, review=answered.review)
        return Completion(
            base_commit=workspace.base,
            commit=workspace.base,
            result=told,
            answer=answered.text,
            usage=self._usage,
        )

    async def _merged(self, workspace: Workspace, conflicted: Conflicted) -> Completion:
        """What was to be resolved can be merged after all."""
        await self._in_git(lambda: push_lease(workspace, conflicted.commit))
        return self._completion(Accepted(conflicted.commit, conflicted.parents[0], "merged without a conflict", ()))

    def _accepted(self, approval: Approval) -> Completion:
        """A person has said yes to what a former lease stored."""
        return self._completion(msgspec.json.decode(approval.input, type=Accepted))

    def _completion(self, result: Accepted) -> Completion:
        told = Result(task_code=self._lease.key.task, summary=result.summary, artifacts=result.artifacts)
        return Completion(base_commit=result.base_commit, commit=result.commit, result=told, usage=self._usage)

    async def _save(self, work: WorkInProgress) -> None:
        """Before the lease is given up for a person's answer: no other lease finds what is not saved now."""
        try:
            await work.save_last()
        except (GitFailed, OSError) as fault:
            where = f"Its files are in {work.place}."
            raise Failed("unavailable", f"The work so far could not be saved: {fault}. {where}") from fault

    async def _keep(self, within_s: float) -> str:
        """Saves what there is, for a next lease or for a person; returns where, in words."""
        if self._prepared is None:
            return ""
        work = self._prepared.work
        await work.pause()
        work.usage = self._usage
        try:
            async with asyncio.timeout(within_s):
                await work.save_last()
        except Fenced:
            return ""
        except (GitFailed, OSError, TimeoutError) as fault:
            log.warning("%s: its files could not be saved: %s", self._lease.key, fault or "it took too long")
            return f"Its files could not be saved; they are in {work.place}."
        return f"Its files so far are kept as {work.ref}." if work.is_pushed else ""

    def _turn_ended(self) -> None:
        if self._lease.memory is not None and self._prepared is not None:
            self._usage = self._prepared.work.usage = self._lease.memory.usage
            self._prepared.work.wish()

    def _report(self, said: Activity) -> None:
        if said.usage is not None:
            self._usage = said.usage
        self._report_to(said)

    def _tell(self, words: str) -> None:
        self._report_to(activity("treadle", words))

    def _tell_refused(self, job: Job) -> str:
        """Says, once for each, what a turn was not let reach; returns the words for all of them."""
        hosts = job.enclosure.refused_hosts()
        words = refused_words(hosts)
        if len(hosts) > self._hosts_told:
            self._hosts_told = len(hosts)
            self._tell(words)
        return words

    def _too_late(self) -> str:
        minutes = self._lease.dispatch.timeout_s / 60
        if self._answers is not None and self._answers.held_up:
            return f"It did not finish within {minutes:g} minutes. {self._answers.held_up} Then redispatch it."
        words = f"It did not finish within {minutes:g} minutes, set-up and verification included."
        return f"{words} Raise timeout_minutes, or make the task smaller."

    async def _in_git(self, work: Callable[[], T], kind: FailureKind = "agent_error") -> T:
        return await in_git(work, kind, self._place.threads)
