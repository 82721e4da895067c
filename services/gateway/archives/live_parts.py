"""What an archive of a plan in the log is made of: each part in the order in which the archive takes it.

Everything is as of one sequence, which is fixed when the export begins; what is stored later is not in it.
"""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import msgspec
from litestar.datastructures import State

from services.gateway.archives.commits import Bundle, NoBundle, bundle
from services.gateway.archives.diffs import diff_bytes
from services.gateway.direct_get import read_batch, read_events
from services.gateway.plans.diff import ask_for_diff
from services.gateway.plans.lookup import promptly
from services.gateway.plans.transcripts import stored_entry
from services.gateway.problems import ProblemError
from services.gateway.projection.live import log_end
from services.gateway.projection.views import PlanFold
from shared.events import Head, Result, TaskCompleted, TaskInherited, TaskStarted
from shared.history.archive_format import diff_name, result_name, transcript_name
from shared.requests import HEADS_MAX, BundleRequest, DiffReply
from shared.store import Recorded
from shared.streams import TRANSCRIPTS
from shared.subjects import can_be, is_draft, transcript

PAGE = 500
LEFT_OUT_MAX = 20
"""So many diffs that could not be had are told of one by one, and after so many nobody is asked for another."""
WORDS_MAX_CHARS = 300


class Done(msgspec.Struct, frozen=True):
    """A task's newest completion, as of the export."""

    seq: int
    base: str
    commit: str
    plan: str = ""
    """The one that did it, where the task was inherited."""


class LiveParts:
    """One plan's. `events` has to be read to its end before anything else is."""

    def __init__(self, state: State, fold: PlanFold) -> None:
        self._state = state
        self.plan = fold.plan
        self.seq = fold.seq
        """As of which it is exported."""
        self.left_out: list[str] = []
        self.done: dict[str, Done] = {}
        chosen = fold.board.plan.chosen
        self.project = chosen.project if chosen is not None else ""
        self.repo_url = chosen.repo_url if chosen is not None else ""
        self.base = chosen.base_commit if chosen is not None else ""
        self._leases: set[tuple[str, int]] = set()
        self._left: set[tuple[str, int]] = set()
        """Those that did not complete their task, so that files may have been kept of them."""

    async def events(self) -> AsyncIterator[list[Recorded]]:
        """In pages. Raises `StoreUnavailable`."""
        after: int | None = 0
        while after is not None and after < self.seq:
            read = read_events(self._state.nc, self._state.store, self.plan, after=after, limit=PAGE)
            page = await promptly(read)
            records = [r for r in page.records if r.seq <= self.seq and can_be(r.plan, r.entity)]
            for record in records:
                self._note(record)
            if records:
                yield records
            after = page.next_after

    def _note(self, record: Recorded) -> None:
        event = record.event
        if isinstance(event, TaskCompleted):
            self.done[record.entity] = Done(record.seq, event.base_commit, event.commit)
            self._left.discard((record.entity, event.lease))
        elif isinstance(event, TaskInherited):
            kept = event.kept
            self.done[record.entity] = Done(record.seq, kept.base_commit, kept.commit, kept.plan)
        elif isinstance(event, TaskStarted) and event.lease > 0:
            self._leases.add((record.entity, event.lease))
            if not is_draft(record.entity):
                self._left.add((record.entity, event.lease))

    async def results(self) -> AsyncIterator[tuple[str, Result]]:
        """Each with its task. Raises `StoreUnavailable`."""
        for task in sorted(self.done, key=result_name):
            before = self.done[task].seq - 1
            for record in await promptly(self._state.store.read(self.plan, task, after=before, limit=1)):
                if isinstance(record.event, TaskCompleted):
                    yield task, record.event.result
                elif isinstance(record.event, TaskInherited) and record.event.kept.result is not None:
                    yield task, record.event.kept.result

    async def diffs(self) -> AsyncIterator[tuple[str, bytes]]:
        """What tasks changed, each with its task, as far as a runner can tell."""
        refused = 0
        for task, done in self._worked():
            if not (done.base and done.commit):
                continue
            try:
                found = await self._diff(done)
            except ProblemError as error:  # there is no runner, or no key: the next one would fare no better
                self.left_out.append(f"diffs, from {task} on: {error}"[:WORDS_MAX_CHARS])
                return
            if not found.refused:
                yield task, diff_bytes(found)
                continue
            refused += 1
            self.left_out.append(f"the diff of {task}: {found.refused}"[:WORDS_MAX_CHARS])
            if refused == LEFT_OUT_MAX:
                self.left_out.append(f"diffs behind that of {task}: too many could not be read")
                return

    async def _diff(self, done: Done) -> DiffReply:
        plan = done.plan or self.plan
        return await ask_for_diff(self._state, self.project, plan, self.repo_url, done.base, done.commit)

    def _worked(self) -> list[tuple[str, Done]]:
        """What was done of the plan's tasks, in the order of their diffs: the making of a candidate has no commit."""
        worked = [(task, done) for task, done in self.done.items() if not is_draft(task)]
        return sorted(worked, key=lambda one: diff_name(one[0]))

    async def transcripts(self) -> AsyncIterator[tuple[str, AsyncIterator[bytes]]]:
        """The member's name, and its lines, some together, of what is still kept. Raises `StoreUnavailable`."""
        end = await promptly(log_end(self._state.nc, TRANSCRIPTS))
        for name, task, lease in sorted((transcript_name(*one), *one) for one in self._leases):
            lines = self._transcript(task, lease, end)
            first = await anext(lines, None)
            if first is not None:
                yield name, _with(first, lines)

    @asynccontextmanager
    async def bundle(self) -> AsyncIterator[Bundle | None]:
        """The commits of what is done and of what leases left, None where there are none.

        Where they can't be had, too, and that is said.
        """
        heads = tuple(Head(task, one.commit, one.plan) for task, one in self._worked() if one.commit)
        leases = tuple(sorted(self._left))[:HEADS_MAX]
        if not ((heads or leases) and self.base):
            yield None
            return
        async with AsyncExitStack() as held:
            wanted = BundleRequest(
                project=self.project,
                plan=self.plan,
                repo_url=self.repo_url,
                base=self.base,
                heads=heads,
                leases=leases,
            )
            try:
                made = await held.enter_async_context(bundle(self._state, wanted))
                self.left_out += [words[:WORDS_MAX_CHARS] for words in made.left_out] if made else []
            except NoBundle as error:
                made = None
                self.left_out.append(f"commits: {error}"[:WORDS_MAX_CHARS])
            yield made

    async def _transcript(self, task: str, lease: int, end: int) -> AsyncIterator[bytes]:
        after, more = 0, True
        subject = transcript(self.plan, task, lease)
        while more and after < end:
            page, more = await promptly(read_batch(self._state.nc, TRANSCRIPTS, subject, after=after, limit=PAGE))
            lines = [msgspec.json.encode(stored_entry(one)) + b"\n" for one in page if one.seq <= end]
            if lines:
                yield b"".join(lines)
            after = page[-1].seq if page else end


async def _with(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for piece in rest:
        yield piece
