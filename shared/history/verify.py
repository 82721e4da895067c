"""Decides a recorded history again, with today's code: nothing is written, no clock is read.

Threefold. Every event is compared with what its decider makes of the state before it and of the command that led to it
(`shared.given`). What such a command says of the rest of the plan is compared with what that was (`allowed`). And what
the dispatcher chose is compared with what the plan, folded as far as it had read, allows: which task may be dispatched,
which must not be held back, what it is given but the words of its prompt, which tasks a finalized plan has, and which
are added for conflicts and reviews.

What can't be decided again is counted with its reason, never as checked: events from before commands were stored,
and the words that people and models said, which the event itself is the only record of.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any, Literal, Protocol

import msgspec

from shared import commands as c
from shared import events as e
from shared import plan, task, task_decisions
from shared.board import Board
from shared.given import COMMANDS, NotGiven, rebuilt
from shared.history.allowed import Allowed, NotAllowed, Unseen
from shared.history.choices import (
    AT_ONCE,
    ChoiceDiffers,
    PlannedTasks,
    Together,
    check_at,
    check_budget_pause,
    compare_dispatch,
    said_now,
)
from shared.history.held_back import HeldBack
from shared.history.said import as_said
from shared.history.steps import DISPATCHER, Due, Overdue, compare_step, step_of
from shared.store import Recorded
from shared.subjects import PLAN, is_draft


class Events(Protocol):
    """One plan's events, wherever they lie: `shared.history.event_file.EventFile`."""

    def read(self, after: int = 0, limit: int | None = None, entity: str | None = None) -> Iterator[Recorded]:
        """Those with a sequence over `after`, in order; the first `limit`, of one entity or of all."""
        ...


class Unknown(msgspec.Struct, frozen=True):
    """Decisions that can't be made again."""

    reason: str
    count: int
    seq: int
    """The first of them."""
    is_expected: bool = False
    """Nothing is wrong with the record: it is older than the storing of commands, or an operator left it out."""


class Difference(msgspec.Struct, frozen=True):
    """A decision that today's code makes otherwise. Texts are cut: all of this is for people."""

    seq: int
    entity: str
    type: str
    message: str
    """What differs, in a sentence."""
    recorded: dict[str, str]
    decided: dict[str, str]
    command: dict[str, str]
    before: dict[str, str]
    """The state that it was decided from."""


class Verified(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it."""

    plan: str
    events: int
    checked: int
    """Decisions that were made again by their decider."""
    choices: int
    """Choices of the dispatcher that were made again; some events are both."""
    unknown: tuple[Unknown, ...] = ()
    differences: int = 0
    first: Difference | None = None
    """By sequence."""

    @property
    def verdict(self) -> Literal["same", "different", "not verified"]:
        """What it comes to.

        `not verified`: nothing could be decided again, or something could not that must be possible, such as an event
        without its command among others that have theirs.
        """
        if self.differences:
            return "different"
        return "same" if self.checked and all(u.is_expected for u in self.unknown) else "not verified"


def verify(events: Events) -> Verified:
    """Reads the history twice, in memory for one plan's state and a few bytes for each dispatch."""
    found = _Findings(frozenset())
    hole = _decisions(events, found)
    if found.skips:  # known only at the end, and so rare that once more does no harm
        found = _Findings(frozenset(found.skips))
        hole = _decisions(events, found)
    _choices(events, found, hole)
    return Verified(
        plan=found.plan,
        events=found.events,
        checked=found.checked,
        choices=found.choices,
        unknown=tuple(
            Unknown(reason, n, found.first_unknown[reason, is_expected], is_expected)
            for (reason, is_expected), n in found.unknown.most_common()
        ),
        differences=len(found.differing),
        first=found.first,
    )


class _Findings:
    def __init__(self, left_out: frozenset[tuple[str, int]]) -> None:
        self.left_out = left_out
        """Entity and sequence of the events that an operator has left out."""
        self.skips: set[tuple[str, int]] = set()
        """Those that were met."""
        self.plan = ""
        self.events = self.checked = self.choices = 0
        self.unknown: Counter[tuple[str, bool]] = Counter()
        """By reason, and whether that is to be expected."""
        self.first_unknown: dict[tuple[str, bool], int] = {}
        self.is_old = True
        """No event so far says what its command said: they are from before that was stored."""
        self.differing: set[int] = set()
        self.first: Difference | None = None
        self.later: list[tuple[int, int]] = []
        """(how far the dispatcher had read, the event that it led to)"""

    def cannot(self, record: Recorded, reason: str, is_expected: bool = False) -> None:
        self.unknown[reason, is_expected] += 1
        self.first_unknown.setdefault((reason, is_expected), record.seq)

    def lacks(self, record: Recorded, reason: str) -> None:
        """The event lacks what is stored today."""
        self.cannot(record, reason, self.is_old)

    def misses(self, record: Recorded, overdue: Overdue) -> None:
        """By that event of the dispatcher's a step should have come that did not."""
        code, moments = overdue.code, ", ".join(map(str, overdue.seqs))
        message = f"{code}: today's code takes the next step before (the dispatcher acted without it: events {moments})"
        self.differs(record, message, overdue.step, None, overdue.before, f"no {overdue.step.name} for {code} by then")

    def differs(
        self, record: Recorded, message: str, decided: Any, command: Any, before: Any, recorded: Any = None
    ) -> None:
        """`recorded` where that is not the event itself."""
        self.differing.add(record.seq)
        if self.first is not None and self.first.seq <= record.seq:
            return
        self.first = Difference(
            seq=record.seq,
            entity=record.entity,
            type=record.type,
            message=message,
            recorded=as_said(record.event if recorded is None else recorded),
            decided=as_said(decided),
            command=as_said(command),
            before=as_said(before),
        )


# What the deciders said -------------------------------------------------------------------------------------------


def _decisions(events: Events, found: _Findings) -> int:
    """Returns the sequence from which on the plan as a whole can't be folded; 0: it can."""
    board, readied = Board(), dict[str, e.TaskReadied]()
    broken: dict[str, int] = {}
    planned, allowed = PlannedTasks(), Allowed()
    for record in events.read():
        found.plan = record.plan
        found.events += 1
        found.is_old = found.is_old and not record.meta.given
        if isinstance(record.event, e.PlanSkipped | e.TaskSkipped):
            found.skips.add((record.entity, record.event.seq))
        if (record.entity, record.seq) in found.left_out:
            found.cannot(record, "an operator has left the event out", is_expected=True)
            continue
        if record.event is None:
            broken.setdefault(record.entity, record.seq)
            found.cannot(record, f"the event can't be read ({record.fault})")
            continue
        if record.entity in broken:
            found.cannot(record, f"event {broken[record.entity]} before it can't be read")
        else:
            _decide_again(record, record.event, board, readied.get(record.entity), allowed, broken, found)
            _check_choice(record, record.event, board, planned, bool(broken), found)
        if isinstance(record.event, e.TaskReadied):
            readied[record.entity] = record.event
        try:
            board.apply(record.entity, record.event, record.seq)
        except Exception as error:  # noqa: BLE001 - whatever today's code does not bear is what is looked for
            if not broken:
                message = f"today's code can't fold the event: {type(error).__name__}: {error}"
                found.differs(record, message, None, None, _before(board, record.entity))
            broken.setdefault(record.entity, record.seq)
        else:
            allowed.follow(record, record.event, board)
    return min(broken.values(), default=0)


def _before(board: Board, entity: str) -> plan.PlanState | task.TaskState:
    if entity == PLAN:
        return board.plan
    return (board.drafts if is_draft(entity) else board.tasks).get(entity, task.INITIAL)


def _decide_again(
    record: Recorded,
    event: e.Event,
    board: Board,
    readied: e.TaskReadied | None,
    allowed: Allowed,
    broken: dict[str, int],
    found: _Findings,
) -> None:
    name, given = record.meta.command, record.meta.given
    if not name:
        found.lacks(record, "the event does not say which command led to it")
        return
    if not given and not found.is_old:
        found.lacks(record, f"what the command {name} said is missing, although earlier events say theirs")
        return
    before = _before(board, record.entity)
    try:
        command = rebuilt(name, event, given, readied)
        if isinstance(before, task.TaskState):
            allowed.check(record, command, before, broken)
    except NotGiven as error:
        found.lacks(record, str(error))
        return
    except Unseen as error:
        found.cannot(record, str(error))
        return
    except NotAllowed as error:
        found.checked += 1
        found.differs(record, str(error), _decided(before, error.command), error.command, before)
        return
    decided = _decided(before, command)
    if decided == event:
        found.checked += 1
    elif not given and _may_lack(COMMANDS[name], event):
        found.lacks(record, f"what the command {name} said may be missing: the event is older than its storing")
    else:
        found.checked += 1
        found.differs(record, _what_differs(event, decided), decided, command, before)


def _decided(before: Any, command: c.Command) -> e.Event | str | None:
    """The event, or in words why there is none."""
    try:
        if isinstance(before, plan.PlanState):
            return plan.decide(before, command)  # type: ignore[arg-type]  # an event's command may be of the wrong kind
        return task_decisions.decide(before, command)  # type: ignore[arg-type]  # likewise: it is answered below
    except c.Refused as refusal:
        return f"refused: {refusal}"
    except Exception as error:  # noqa: BLE001 - whatever today's code does not bear is what is looked for
        return f"today's code fails: {type(error).__name__}: {error}"


def _may_lack(command: type[c.Command], event: e.Event) -> bool:
    """Whether the command says more than the event, so that a default may stand for what was not stored."""
    return any(not hasattr(event, field.name) for field in msgspec.structs.fields(command))


def _what_differs(event: e.Event, decided: e.Event | str | None) -> str:
    if decided is None:
        return f"recorded {event.name}, decided nothing"
    if isinstance(decided, str):
        return f"recorded {event.name}, {decided}"
    if type(decided) is not type(event):
        return f"recorded {event.name}, decided {decided.name}"
    fields = [n for n in event.__struct_fields__ if getattr(event, n) != getattr(decided, n)]
    return f"{event.name} is decided with another {', '.join(fields)}"


# What the dispatcher chose ----------------------------------------------------------------------------------------

_CHOSEN = {"Dispatch", "Ready", "ConfirmCancelled", "Extend", "Decide"}
"""Commands that rest on the plan as far as their sender had read it."""
_TORN = "the dispatcher's choice rests on an event that can't be read"


def _check_choice(
    record: Recorded, event: e.Event, board: Board, planned: PlannedTasks, torn: bool, found: _Findings
) -> None:
    if record.meta.command in _CHOSEN and not is_draft(record.entity):
        if record.meta.seen:
            found.later.append((min(record.meta.seen, record.seq - 1), record.seq))
        else:
            found.lacks(record, "the event does not say how far the dispatcher had read")
        return
    if record.meta.actor == DISPATCHER and record.meta.seen and not is_draft(record.entity):
        found.later.append((min(record.meta.seen, record.seq - 1), record.seq))
    if torn:
        if isinstance(event, AT_ONCE):
            found.cannot(record, _TORN)
        return
    try:
        if check_at(record, event, board, planned):
            found.choices += 1
    except ChoiceDiffers as differs:
        found.choices += 1
        found.differs(record, str(differs), differs.decided, None, _before(board, record.entity))


def _choices(events: Events, found: _Findings, hole: int) -> None:
    """Those that rest on the plan at an earlier moment, in the order of these moments."""
    later = iter(sorted(found.later))
    found.later = []
    board, held_back, due = Board(), HeldBack(), Due()
    at = next(later, None)
    together = Together(board)
    for record in events.read():
        seen = 0
        while at is not None and at[0] < record.seq:
            seen = at[0]
            _choice(events, at, board, together, held_back, due, hole and seen >= hole, found)
            at = next(later, None)
        if seen:
            held_back.look(board, seen)
            for overdue in due.look(board, seen):
                found.choices += 1
                found.misses(next(events.read(after=overdue.seqs[-1] - 1, limit=1)), overdue)
        if at is None:
            return
        if record.event is None or (record.entity, record.seq) in found.left_out:
            continue
        if not hole or record.seq < hole:
            together.end()
            board.apply(record.entity, record.event, record.seq)
            held_back.fold(record.entity, record.seq, record.entity == PLAN)
            due.fold(record, board)


def _choice(
    events: Events,
    at: tuple[int, int],
    board: Board,
    together: Together,
    held_back: HeldBack,
    due: Due,
    unknown: bool | int,
    found: _Findings,
) -> None:
    record = next(events.read(after=at[1] - 1, limit=1))
    event, is_chosen = record.event, record.meta.command in _CHOSEN
    if unknown or event is None:
        if is_chosen:
            found.cannot(record, _TORN)
        return
    waited = held_back.act(record, at[0], is_dispatch=isinstance(event, e.TaskDispatched | e.TaskReadied))
    due.act(record)
    step = step_of(record)
    found.choices += is_chosen or step is not None
    waits = step[0] if step is not None else record.entity
    try:
        if step is not None:
            compare_step(*step, board)
        elif isinstance(event, e.TaskDispatched | e.TaskReadied):
            together.begin(said_now(record))
            compare_dispatch(record, event, board)
            together.add(record.entity)
            if waited:
                moments = " and ".join(map(str, waited))
                raise ChoiceDiffers(
                    f"{record.entity} was held back: today's code dispatches it before (the dispatcher acted without "
                    f"it: events {moments})",
                    f"{event.name} by event {waited[0]}",
                )
        elif isinstance(event, e.PlanPaused):
            together.end()
            found.choices += check_budget_pause(record, event, board)
        elif is_chosen and not board.settled:
            raise ChoiceDiffers("the plan was ended although not all of its tasks had", None)
    except ChoiceDiffers as differs:
        found.differs(record, str(differs), differs.decided, None, _before(board, waits))
