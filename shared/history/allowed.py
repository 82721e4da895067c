"""What a command says of the rest of the plan, compared with what the plan was.

A runner, a watcher and the gateway look at the plan before they say something to a task, and then say what they saw:
its phase, and which abandoned tasks are to run again. These words stand in the log beside the event, so whoever wrote
it could have written anything there. When exactly they looked is not in the log. So whatever was so at any time between
what the command rests on (its dispatch, its lease, what its sender had read) and the event is believed.
"""

from bisect import bisect_right
from typing import Any

import msgspec

from shared import commands as c
from shared import events as e
from shared.board import Board
from shared.store import Recorded
from shared.subjects import PLAN, is_draft
from shared.task import TaskState

_CANDIDATES_MAX = 64
"""Of more candidates that are being made the phase is not followed."""


class NotAllowed(Exception):
    """The command says what was not so; the text says what."""

    def __init__(self, message: str, command: c.Command) -> None:
        super().__init__(message)
        self.command = command
        """With what was so."""


class Unseen(Exception):
    """What was so can't be known; the text says why."""


class _Turns:
    """A value's changes: from which event on it was what."""

    def __init__(self, at_first: Any) -> None:
        self._seqs, self._values = [0], [at_first]

    def turn(self, seq: int, value: Any) -> None:
        if value != self._values[-1]:
            self._seqs.append(seq)
            self._values.append(value)

    def between(self, seq: int, before: int) -> list[Any]:
        """The values right after event `seq` and later, up to right before event `before`; the newest one last."""
        return self._values[bisect_right(self._seqs, seq) - 1 : bisect_right(self._seqs, before - 1)]


class Allowed:
    """Follows one plan. It takes some bytes for each pause, each abandoning, and each task."""

    def __init__(self) -> None:
        self._phases: dict[str, _Turns] = {}
        """The plan's under "", and those of candidates that are being made."""
        self._runs_again: dict[str, _Turns] = {}
        """Of each task that was abandoned at some time: whether it was not, or was to run again."""
        self._dispatched: dict[str, tuple[int, tuple[str, ...]]] = {}
        """By task its newest dispatch, and on whose abandoning that rests."""
        self._leased: dict[str, int] = {}
        """By task the event that began its newest lease."""

    def follow(self, record: Recorded, event: e.Event, board: Board) -> None:
        """Takes in an event that the board has just folded."""
        if record.entity == PLAN:
            self._turn("", record.seq, board.plan.phase)
            if len(board.plan.requests) <= _CANDIDATES_MAX:
                making = (f"_draft-{candidate}" for candidate in board.plan.requests)
                for entity in {*self._phases, *making} - {""}:
                    self._turn(entity, record.seq, board.plan.phase_for(entity))
            return
        match event:
            case e.TaskDispatched():
                self._dispatched[record.entity] = (record.seq, event.abandoned)
            case e.TaskReadied():
                self._dispatched[record.entity] = (record.seq, ())
            case e.TaskStarted():
                self._leased[record.entity] = record.seq
        state = board.tasks.get(record.entity)
        if state is not None and (state.status == "abandoned" or record.entity in self._runs_again):
            turns = self._runs_again.setdefault(record.entity, _Turns(True))
            turns.turn(record.seq, state.status != "abandoned" or state.reopening)

    def _turn(self, entity: str, seq: int, phase: c.PlanPhase) -> None:
        self._phases.setdefault(entity, _Turns("cancelling" if entity else "paused")).turn(seq, phase)

    def check(self, record: Recorded, command: c.Command, before: TaskState, broken: dict[str, int]) -> None:
        """Compares what the command says with what was so. `broken`: what can't be folded from some event on.

        Raises `NotAllowed`, and `Unseen` where it can't be known.
        """
        if not isinstance(command, c.Start | c.HandOut | c.RequestApproval | c.Fail | c.CancelTask):
            return
        since = self._since(record, command)
        if PLAN in broken:
            raise Unseen("what the plan allowed rests on an event that can't be read")
        self._check_phase(record, command, before, since)
        if isinstance(command, c.Start):
            self._check_reopened(record, command, since, broken)

    def _since(self, record: Recorded, command: c.Command) -> int:
        """The event that whoever sent the command had seen at least."""
        dispatched = self._dispatched.get(record.entity, (0, ()))[0]
        leased = self._leased.get(record.entity, 0)
        match command:
            case c.Start():
                since = leased if command.supersede_lease else dispatched
            case c.HandOut():  # the gateway looks at the result's place meanwhile, so `seen` is too late
                return min(dispatched, record.seq - 1)
            case c.CancelTask():
                since = 0
            case _:
                since = leased
        return min(max(since, record.meta.seen), record.seq - 1)

    def _check_phase(
        self,
        record: Recorded,
        command: c.Start | c.HandOut | c.RequestApproval | c.Fail | c.CancelTask,
        before: TaskState,
        since: int,
    ) -> None:
        making = record.entity if is_draft(record.entity) else ""
        if making and (isinstance(command, c.CancelTask) or making not in self._phases):
            return  # the making of a candidate is cancelled for good, whatever the plan's phase
        if not before.is_manual or not isinstance(command, c.Fail) or command.phase != "open":
            held = self._phases[making].between(since, record.seq) if making in self._phases else ["paused"]
            # A pause does not concern what is in a person's hands, so a watcher does not tell it from open.
            also = ("open",) if before.is_manual and isinstance(command, c.Start) and "paused" in held else ()
            if command.phase not in (*held, *also):
                words = (
                    f"the command {record.meta.command} says that the plan was {command.phase}, but it was {held[-1]}"
                )
                raise NotAllowed(words, msgspec.structs.replace(command, phase=held[-1]))

    def _check_reopened(self, record: Recorded, command: c.Start, since: int, broken: dict[str, int]) -> None:
        abandoned = self._dispatched.get(record.entity, (0, ()))[1]
        for code in dict.fromkeys((*abandoned, *command.reopened)):
            if code in broken:
                raise Unseen("which tasks were to run again rests on an event that can't be read")
            known = self._runs_again.get(code)
            held = known.between(since, record.seq) if known and code in abandoned else [False]
            said = code in command.reopened
            if said not in held:
                right = [one for one in abandoned if one in command.reopened and one != code]
                right += [] if said else [code]
                words = "is to run again" if said else "is not to run again"
                raise NotAllowed(
                    f"the command Start says that {code}, on whose abandoning its dispatch rests, {words}; the log has "
                    "it otherwise",
                    msgspec.structs.replace(command, reopened=tuple(right)),
                )
