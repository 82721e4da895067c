"""What a fork keeps of the plan that it goes on from, and what it runs: pure, from the plan's own events.

    origin_at(records, seq) → Origin    the plan in its author's words, and what of it was completed by then
    sort_out(origin, …)     → Fates     what is kept, what runs and why, what is left out
    fork_plan(…)            → ForkPlan  the new plan

In between whoever wants the fork may edit the plan; that the result is valid is the planner's to say.

A task is kept where it was completed, the edit leaves it alone, and all that it rests on is kept: so a kept task's
commit holds exactly the work that it would hold in the fork. Tasks that the origin added by itself (further rounds of
reviews, merges) are no part of what a person edits: they come along where they were completed and something that is in
the fork rests on them, and otherwise the fork adds its own.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence

import msgspec
from msgspec.structs import replace

from shared import events as e
from shared import plan
from shared.board import Board
from shared.history.times import end_of
from shared.plan import Candidate
from shared.skipped import take, without_skipped
from shared.spec import DELIVER, PlanSettings, PlanSpec, TaskSpec
from shared.store import Recorded
from shared.subjects import PLAN, is_draft
from shared.task import TaskState

END = "end"
BEHIND = ".."
_NAMED_MAX = 10


class CantFork(Exception):
    """There is nothing to fork there; the message says why, and what to do."""


class NotThere(CantFork):
    """What was asked for names something that is not there."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field
        """`at` or `only`."""


class Fate(msgspec.Struct, frozen=True, kw_only=True):
    """Why a task runs, or is left out."""

    code: str
    why: str


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """A plan at a moment of its life, as far as a fork wants to know."""

    plan: str
    seq: int
    """The moment: the newest event of the plan that counts."""
    candidate: Candidate
    """As it was drafted, without what the project's settings made of it."""
    tasks: Mapping[str, TaskSpec]
    """Its author's, as they were edited by then, then those of its own that were completed; each with the edges that
    its author wrote."""
    own: frozenset[str]
    """Tasks that it added by itself, and that were completed."""
    also: Mapping[str, tuple[str, ...]]
    """By task, those of its own that it waited for besides; completed ones only."""
    done: Mapping[str, e.Kept]
    states: Mapping[str, TaskState]
    """How the tasks stood; none before the plan was finalized."""


class Fates(msgspec.Struct, frozen=True, kw_only=True):
    """What becomes of each task."""

    kept: tuple[str, ...]
    runs: tuple[Fate, ...]
    left_out: tuple[Fate, ...]


class ForkPlan(msgspec.Struct, frozen=True, kw_only=True):
    """A plan that goes on from a moment of another one."""

    spec: PlanSpec
    fork: e.ForkOf
    runs: tuple[Fate, ...]
    left_out: tuple[Fate, ...]
    names: Mapping[str, str] = {}
    """By task, also of those that are left out."""

    @property
    def kept(self) -> tuple[e.Kept, ...]:
        """What is completed from its beginning."""
        return self.fork.kept


def seq_at(records: Sequence[Recorded], at: str) -> int:
    """The newest event of the plan at a sequence, a time, or `end`. Raises `CantFork`."""
    if not records:
        raise CantFork("there is no such plan")
    if at in ("", END):
        return records[-1].seq
    first = records[0]
    if at.isascii() and at.isdecimal():
        found = [record.seq for record in records if record.seq <= int(at[:20])]
        begins = f"event {first.seq}"
    else:
        try:
            time = end_of(at)
        except ValueError:
            raise NotThere("at", f"{at[:40]!r} is neither a sequence nor a time such as 2026-05-01T12:00:00Z") from None
        found = [record.seq for record in records if record.time <= time]
        begins = first.time.isoformat()
    if not found:
        raise NotThere("at", f"the plan begins with {begins}: name a later moment")
    return found[-1]


def origin_at(records: Sequence[Recorded], seq: int) -> Origin:
    """The plan whose events these are, as it was at `seq`. Raises `CantFork`.

    `records` are all of its events, also later ones: which candidate was chosen is known from the end.
    """
    candidate = _drafted(records)
    board = Board()
    inherited = candidate.fork.kept if candidate.fork is not None else ()
    done = {kept.task: kept for kept in inherited}
    for record in without_skipped(records):
        if record.seq > seq:
            break
        take(board, record)
        if board.fault or record.event is None:
            raise CantFork(f"{board.fault}: fork before it, or have it left out")
        if record.entity != PLAN and not is_draft(record.entity):
            _note_end(done, record, record.event, board.tasks[record.entity])
    done.pop(DELIVER, None)  # a fork has a branch of its own
    states = board.tasks if board.visible else {}
    written, edges = _in_its_authors_words(candidate, board, states)
    own = frozenset(task.code for task in written.values() if _is_own(task))
    tasks = {code: task for code, task in written.items() if code not in own or code in done}
    return Origin(
        plan=records[0].plan,
        seq=seq,
        candidate=candidate,
        tasks=tasks,
        own=own & done.keys(),
        also={code: tuple(c for c in also if c in own and c in done) for code, also in edges.items() if code in tasks},
        done=done,
        states=states,
    )


def sort_out(
    origin: Origin,
    needs: Mapping[str, Collection[str]],
    changed: Mapping[str, str],
    only: Sequence[str] | None = None,
) -> Fates:
    """What becomes of the tasks of the edited plan, and of those of the origin that it does not have any more.

    `needs` has the edited plan's tasks, each with what it depends on, in its author's words; it may name what is not
    there. `changed` says of those that are new or otherwise than before how that is. `only` are codes; with `..` behind
    one, all that waits for it too. Raises `CantFork` for a code that is not there.
    """
    edges = {code: (*of, *origin.also.get(code, ())) for code, of in needs.items()}
    named = _named(origin, edges, only)
    again = named if named is not None else set()
    kept = _unaffected(edges, [c for c in edges if c in origin.done and c not in changed and c not in again])
    kept = _wanted(origin, needs, edges, changed, kept)
    of_people = [code for code in needs if code not in origin.own]
    to_run = of_people if named is None else _reached(edges, named) - origin.own
    runs = {code for code in to_run if code not in kept}
    return Fates(
        kept=tuple(code for code in edges if code in kept),
        runs=tuple(
            Fate(code=c, why=_why_it_runs(origin, c, edges, kept, changed, again)) for c in of_people if c in runs
        ),
        left_out=(
            *(
                Fate(code=c, why=_why_left_out(origin, c, edges, kept))
                for c in edges
                if c not in kept and c not in runs
            ),
            *(Fate(code=code, why="removed") for code in origin.tasks if code not in needs),
        ),
    )


def fork_plan(origin: Origin, edited: PlanSpec, fates: Fates) -> ForkPlan:
    """The new plan. `edited` is valid, and has the kept tasks and those that run, in their author's words."""
    there = {task.code for task in edited.tasks}
    tasks = []
    for task in edited.tasks:
        also = [code for code in origin.also.get(task.code, ()) if code in there and code not in task.depends_on]
        if task.code in origin.own:
            before = origin.tasks[task.code]
            task = replace(task, resolves=before.resolves, round=before.round)
        tasks.append(replace(task, depends_on=(*task.depends_on, *also)) if also else task)
    kept = tuple(origin.done[code] for code in fates.kept)
    return ForkPlan(
        spec=replace(edited, tasks=tuple(tasks)),
        fork=e.ForkOf(plan=origin.plan, seq=origin.seq, kept=kept),
        runs=fates.runs,
        left_out=fates.left_out,
    )


# The origin -------------------------------------------------------------------------------------------------------


def _drafted(records: Sequence[Recorded]) -> Candidate:
    """The chosen candidate as it was drafted, with a budget that was raised since. Raises `CantFork`."""
    drafts: dict[str, Candidate] = {}
    chosen: Candidate | None = None
    is_final, budget_usd = False, None
    for record in records:
        match record.event:
            case e.PlanDrafted() as drafted if chosen is None:
                drafts[drafted.candidate] = plan.evolve(plan.INITIAL, drafted).candidates[drafted.candidate]
            case e.PlanFinalizing() as finalizing:
                chosen = drafts.get(finalizing.candidate)
            case e.PlanFinalized():
                is_final = True
            case e.PlanResumed() as resumed if resumed.budget_usd is not None:
                budget_usd = resumed.budget_usd
    if chosen is None or not is_final:
        raise CantFork("there is nothing to fork: the plan is not finalized")
    if budget_usd is not None:
        chosen = replace(chosen, spec=replace(chosen.spec, budget_usd=budget_usd))
    return chosen


def _in_its_authors_words(
    candidate: Candidate, board: Board, states: Mapping[str, TaskState]
) -> tuple[dict[str, TaskSpec], dict[str, tuple[str, ...]]]:
    """All tasks with the edges that their author wrote; and those that each waited for besides."""
    settings = board.plan.settings
    written = {task.code: _as_edited(task, states.get(task.code), settings) for task in candidate.spec.tasks}
    written |= {task.code: task for task in board.plan.added if task.code in states}
    also: dict[str, tuple[str, ...]] = {
        code: tuple(c for c in before if c in states) for code, before in board.plan.also_before.items()
    }
    # A fork has what its origin added among its own tasks: there it is told by words that no author can write.
    for code, task in written.items():
        besides = tuple(c for c in task.depends_on if c in written and _was_added_before(written[c], task))
        if besides:
            written[code] = replace(task, depends_on=tuple(c for c in task.depends_on if c not in besides))
            also[code] = (*besides, *also.get(code, ()))
    return written, also


def _as_edited(task: TaskSpec, state: TaskState | None, settings: PlanSettings) -> TaskSpec:
    """With what a person changed in it; what the project's settings filled in is not theirs."""
    if state is None or state.spec is None or not state.revision:
        return task
    edited = state.spec
    if task.timeout_minutes is None and edited.timeout_minutes == settings.task_timeout_minutes:
        return replace(edited, timeout_minutes=None)
    return edited


def _is_own(task: TaskSpec) -> bool:
    """Whether the plan added it by itself."""
    return bool(task.resolves) or task.round > 1


def _was_added_before(one: TaskSpec, task: TaskSpec) -> bool:
    return one.resolves == task.code or (task.is_decision and one.round > 1)


def _note_end(done: dict[str, e.Kept], record: Recorded, event: e.Event, state: TaskState) -> None:
    """Notes what can be taken over of a task, where this very event completed it."""
    by_then = e.Kept(task=record.entity, plan=record.plan, seq=record.seq, usage=state.usage)
    match event:
        case e.TaskInherited():
            done[record.entity] = event.kept
        case e.TaskCompleted():
            done[record.entity] = replace(
                by_then, base_commit=event.base_commit, commit=event.commit, result=event.result, answer=event.answer
            )
        case e.TaskMarkedComplete() | e.TaskDecided() if state.status == "completed":
            said = e.Result(task_code=record.entity, summary=state.summary) if state.summary else None
            done[record.entity] = replace(by_then, commit=state.commit, result=said)


# Sorting ----------------------------------------------------------------------------------------------------------


def _named(origin: Origin, edges: Mapping[str, Collection[str]], only: Sequence[str] | None) -> set[str] | None:
    """The tasks that are to run whatever they were; None: not said. Raises `CantFork`."""
    if only is None:
        return None
    named: set[str] = set()
    for word in only:
        code = word.removesuffix(BEHIND)
        if code in origin.own:
            raise NotThere("only", f"only: {code} was added by the plan itself: name a task of its author's")
        if code not in edges:
            raise NotThere("only", f"only: the plan has no task {code[:64]}: it has {_some(edges.keys() - origin.own)}")
        named.add(code)
        if word.endswith(BEHIND):
            named |= _behind(edges, code)
    return named - origin.own


def _some(codes: Collection[str]) -> str:
    more = f" and {len(codes) - _NAMED_MAX} more" if len(codes) > _NAMED_MAX else ""
    return f"{', '.join(sorted(codes)[:_NAMED_MAX])}{more}"


def _successors(edges: Mapping[str, Collection[str]]) -> dict[str, list[str]]:
    successors: dict[str, list[str]] = {code: [] for code in edges}
    for code, needs in edges.items():
        for need in needs:
            if need in successors:
                successors[need].append(code)
    return successors


def _behind(edges: Mapping[str, Collection[str]], code: str) -> set[str]:
    return _reached(_successors(edges), [code]) - {code}


def _reached(edges: Mapping[str, Collection[str]], codes: Iterable[str]) -> set[str]:
    """These, and all that they lead to."""
    found: set[str] = set()
    open_ = list(codes)
    while open_:
        code = open_.pop()
        if code not in found and code in edges:
            found.add(code)
            open_ += edges[code]
    return found


def _unaffected(edges: Mapping[str, Collection[str]], candidates: Iterable[str]) -> set[str]:
    """Those all of whose predecessors are among them too."""
    kept = set(candidates)
    successors = _successors(edges)
    open_ = [code for code in kept if any(need not in kept for need in edges[code])]
    while open_:
        code = open_.pop()
        if code in kept:
            kept.discard(code)
            open_ += [successor for successor in successors[code] if successor in kept]
    return kept


def _wanted(
    origin: Origin,
    needs: Mapping[str, Collection[str]],
    edges: Mapping[str, Collection[str]],
    changed: Mapping[str, str],
    kept: set[str],
) -> set[str]:
    """Without those of the plan's own that nothing in the fork rests on."""
    roots = [code for code in kept if code not in origin.own]
    for code in origin.own & kept:
        task = origin.tasks[code]
        before = origin.tasks.get(task.resolves)
        goes_on = before is not None and set(needs.get(task.resolves, ())) == set(before.depends_on)
        if task.resolves == DELIVER or goes_on:
            roots.append(code)
    roots += [need for code, of in needs.items() if code in changed for need in of if need in kept]
    return _reached(edges, roots) & kept


def _why_it_runs(
    origin: Origin,
    code: str,
    edges: Mapping[str, Collection[str]],
    kept: set[str],
    changed: Mapping[str, str],
    again: set[str],
) -> str:
    if code in changed:
        return changed[code]
    if code not in origin.done:
        return _how_it_stood(origin, code)
    if code in again:
        return "it was completed, and is to run again"
    before = next(need for need in edges[code] if need not in kept)
    return f"it was completed, but rests on {before}, which is not kept"


def _why_left_out(origin: Origin, code: str, edges: Mapping[str, Collection[str]], kept: set[str]) -> str:
    if code not in origin.done:
        return f"{_how_it_stood(origin, code)}, and is not among those to run"
    before = next((need for need in edges[code] if need not in kept), "")
    if not before:
        return "the plan added it by itself, and nothing that is kept rests on it"
    return f"it was completed, but rests on {before}, which is not kept"


_STOOD: Mapping[str, str] = {
    "pending": "it had not begun",
    "readied": "it waited for its person",
    "queued": "it waited for a runner",
    "running": "it was running",
    "awaiting_approval": "it waited for an approval",
    "retry_wait": "it had failed",
    "needs_attention": "it had failed",
    "cancelling": "it was being cancelled",
    "cancelled": "it was cancelled",
    "abandoned": "it was given up",
}


def _how_it_stood(origin: Origin, code: str) -> str:
    state = origin.states.get(code)
    return _STOOD.get(state.status if state else "pending", "it was not completed")
