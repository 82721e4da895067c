"""What the dispatcher did about conflicts and reviews (the tasks it added, what it decided), chosen again and compared.

The functions that choose are those that the dispatcher itself uses (`shared.conflicts`, `shared.reviews`). Names,
descriptions and reasons are not compared: they are words, which may change with every version.
"""

from datetime import datetime
from heapq import heappop, heappush

import msgspec

from shared import commands as c
from shared import conflicts, reviews, task
from shared import events as e
from shared.board import Board
from shared.history.choices import ChoiceDiffers
from shared.history.said import cut
from shared.spec import TaskSpec
from shared.store import Recorded
from shared.subjects import PLAN

DISPATCHER = "dispatcher"
Step = e.PlanExtended | e.TaskDecided | e.TaskRedispatchRequested
"""Tasks are added before another one; a decision is settled; what was merged is tried again."""


def step_of(record: Recorded) -> tuple[str, Step] | None:
    """The task that the event is a step of, and the event; None where it is none, or a person's."""
    event, meta = record.event, record.meta
    match event:
        case e.PlanExtended() if meta.command == "Extend":
            return event.before, event
        case e.TaskDecided() if meta.command == "Decide":
            return record.entity, event
        case e.TaskRedispatchRequested() if meta.command == "Redispatch" and meta.actor == DISPATCHER:
            return record.entity, event
    return None


def next_step_now(board: Board, code: str) -> Step | None:
    """The step that is to be taken now; None: there is none, or somebody is at it.

    Raises `ChoiceDiffers` where today's code does not bear the plan.
    """
    if code not in board.tasks:
        return None
    try:
        if board.tasks[code].is_decision:
            command: c.Command | None = None if board.refusal(code) else reviews.weigh(board, code)
        else:
            command = conflicts.next_step(board, code)
    except Exception as error:
        words = f"today's code fails: {type(error).__name__}: {error}"
        raise ChoiceDiffers(f"what follows for {code} can't be chosen: {words}", words) from error
    match command:
        case c.Extend():
            return e.PlanExtended(tasks=command.tasks, before=command.before, reason=command.reason)
        case c.Decide():
            return e.TaskDecided(approved=command.approved, round=command.round, reason=command.reason)
        case c.Redispatch():
            return e.TaskRedispatchRequested(note=command.note)
    return None


def compare_step(code: str, event: Step, board: Board) -> None:
    """Whether today's code takes this very step; `board` as the dispatcher had it. Raises `ChoiceDiffers`."""
    right = next_step_now(board, code)
    if right is None:
        why = board.refusal(code) if code in board.tasks and board.tasks[code].is_decision else ""
        words = f"nothing: {why}" if why else "nothing"
        raise ChoiceDiffers(f"{code or 'no task'}: recorded {_named(event)}, decided {words}", words)
    if _without_words(right) != _without_words(event):
        raise ChoiceDiffers(f"{code}: {_what_differs(event, right)}", right)


def _named(event: Step) -> str:
    match event:
        case e.PlanExtended():
            return f"{event.name} by {', '.join(spec.code for spec in event.tasks) or 'nothing'}"
        case e.TaskDecided():
            return f"{event.name} ({'approved' if event.approved else 'not approved'}, round {event.round})"
    return event.name


def _what_differs(event: Step, right: Step) -> str:
    if not isinstance(event, e.PlanExtended) or not isinstance(right, e.PlanExtended):
        return f"recorded {_named(event)}, decided {_named(right)}"
    if [spec.code for spec in event.tasks] != [spec.code for spec in right.tasks]:
        return f"recorded {_named(event)}, decided {_named(right)}"
    for was, now in zip(map(_bare, event.tasks), map(_bare, right.tasks), strict=True):
        fields = [name for name in was.__struct_fields__ if getattr(was, name) != getattr(now, name)]
        if fields:
            told = (f"{name} ({_json(was, name)}, decided {_json(now, name)})" for name in fields)
            return f"{was.code} is added with another {', '.join(told)}"
    return f"{event.name} is decided before {right.before}, not {event.before}"


def _json(spec: TaskSpec, name: str) -> str:
    return cut(msgspec.json.encode(getattr(spec, name)).decode())


def _without_words(event: Step) -> Step:
    match event:
        case e.PlanExtended():
            return msgspec.structs.replace(event, tasks=tuple(map(_bare, event.tasks)), reason="")
        case e.TaskDecided():
            return msgspec.structs.replace(event, reason="")
    return msgspec.structs.replace(event, note="")


def _bare(spec: TaskSpec) -> TaskSpec:
    return msgspec.structs.replace(spec, name="", description="")


# What was due and never came --------------------------------------------------------------------------------------

MOMENTS = 2
"""At so many the step has to have been due without being taken, and then at one more."""
WAITED_MIN_S = 15.0
"""From the first of these moments to the last one, by the log's clock. A dispatcher looks again after some seconds
where another loop had taken the names of what it adds."""


class Overdue(msgspec.Struct, frozen=True):
    """A step that today's code would have taken before some event, and that nobody took."""

    code: str
    step: Step
    before: task.TaskState
    seqs: tuple[int, ...]
    """The dispatcher's events at the moments at which it was due; it should have come by the last one."""


class Due:
    """Follows the dispatcher's moments in the order of what it had read, as `HeldBack` does, for steps.

    A look costs what changed since the last one, and what is due and not taken: never the plan.
    """

    def __init__(self) -> None:
        self._decisions: dict[str, None] = {}
        """Those that wait."""
        self._conflicts: dict[str, None] = {}
        """Tasks that stand still for one."""
        self._open: dict[str, None] = {}
        """Of both, those for which a step may be due: it was at the last look, or something changed for them since."""
        self._steps: dict[str, Step] = {}
        """What is due for these, as far as it was worked out since."""
        self._taken: dict[str, int] = {}
        """Tasks whose step was taken as of then, each with the event that says so: it may come later."""
        self._ends: list[tuple[int, str]] = []
        """The same as a heap: events, each with the task whose taking ends with it."""
        self._waited: dict[str, list[tuple[int, datetime]]] = {}
        """Those whose step was not, each with the events that the dispatcher stored at these moments."""
        self._told: set[str] = set()
        self._acted: tuple[int, datetime] | None = None

    def act(self, record: Recorded) -> None:
        """The dispatcher, at the moment that is looked at next, stored an event, which may be a step."""
        self._acted = max(self._acted or (0, record.time), (record.seq, record.time))
        if (step := step_of(record)) is not None:
            self._taken[step[0]] = record.seq
            heappush(self._ends, (record.seq, step[0]))
            self._waited.pop(step[0], None)

    def look(self, board: Board, seen: int) -> list[Overdue]:
        """Call it once all that was done as of the board's moment is told. A task's step is overdue once."""
        acted, self._acted = self._acted, None
        overdue: list[Overdue] = []
        if acted is None:
            return overdue
        for code in list(self._open):
            if code in self._taken or code in self._told:
                del self._open[code]  # until that ends
                continue
            step = self._step(board, code)
            if step is None:
                self._waited.pop(code, None)
                del self._open[code]
                continue
            waited = self._waited.setdefault(code, [])
            # Only what it had heard of by the next moment is behind it: else both may be the same one's delay.
            if waited and waited[-1][0] > seen:
                continue
            if len(waited) < MOMENTS:
                waited.append(acted)
            elif (acted[1] - waited[0][1]).total_seconds() >= WAITED_MIN_S:
                seqs = (*(seq for seq, _ in waited), acted[0])
                overdue.append(Overdue(code, step, board.tasks[code], seqs))
                self._told.add(code)
        return overdue

    def _step(self, board: Board, code: str) -> Step | None:
        if code in self._steps:
            return self._steps[code]
        try:
            step = next_step_now(board, code)
        except ChoiceDiffers:
            return None  # what was done instead is compared, and says so
        if step is not None:
            self._steps[code] = step
        return step

    def fold(self, record: Recorded, board: Board) -> None:
        """An event that the board has just folded."""
        code, state = record.entity, board.tasks.get(record.entity)
        while self._ends and self._ends[0][0] <= record.seq:
            _, taken = heappop(self._ends)
            if self._taken.get(taken, record.seq + 1) <= record.seq:
                del self._taken[taken]
                self._touch(taken)
        if code == PLAN or isinstance(record.event, e.TaskEdited):
            self._waited.clear()  # it may have been paused, or extended
            self._steps.clear()
            self._touch_all(record.event)
        if state is None or state.spec is None:
            return
        self._waited.pop(code, None)
        self._told.discard(code)
        self._watch(self._decisions, code, state.is_decision and state.status == "pending")
        self._watch(self._conflicts, code, state.status == "needs_attention" and state.conflict is not None)
        for one in (code, state.spec.resolves):
            self._touch(one)
        if state.satisfied:
            self._touch_behind(board, code)

    def _watch(self, among: dict[str, None], code: str, is_one: bool) -> None:
        if is_one:
            among[code] = None
        else:
            among.pop(code, None)

    def _touch(self, code: str) -> None:
        """What is due for it has to be worked out again, if anything can be."""
        self._steps.pop(code, None)
        if code in self._decisions or code in self._conflicts:
            self._open[code] = None
        else:
            self._open.pop(code, None)

    def _touch_all(self, event: e.Event | None) -> None:
        """Those for which an event of the plan, or other words in a task, may have made a step due."""
        match event:
            case e.PlanExtended():
                self._touch(event.before)
            case e.TaskEdited():  # who merges may be another one now
                self._open.update(self._conflicts)
            case _:
                self._open.update(self._decisions | self._conflicts)

    def _touch_behind(self, board: Board, code: str) -> None:
        """The decisions that may go ahead now that this one is done; what has no commit stands for what was before."""
        ways, met = [code], {code}
        while ways:
            for successor in board.successors(ways.pop()):
                state = board.tasks[successor]
                if state.is_decision:
                    self._touch(successor)
                if successor not in met and state.satisfied and not state.commit:
                    met.add(successor)
                    ways.append(successor)
