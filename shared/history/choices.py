"""What the dispatcher chooses is a pure function of the plan: here it is chosen again and compared."""

from datetime import datetime, timedelta
from typing import Any

import msgspec

from shared import commands as c
from shared import events as e
from shared import openings, task_decisions
from shared.board import Board, in_order
from shared.spec import DELIVER, AgentSpec, TaskSpec
from shared.store import Recorded
from shared.subjects import is_draft

AT_ONCE = (e.TaskPlanned, e.TaskInherited, e.PlanFinalized, e.PlanCompleted)
"""What rests on the plan as it is when the event is stored (`check_at`)."""


class ChoiceDiffers(Exception):
    """Today's code chooses otherwise; the text says how."""

    def __init__(self, message: str, decided: Any) -> None:
        super().__init__(message)
        self.decided = decided
        """What it chooses: an event, a struct or words."""


class PlannedTasks:
    """The tasks that a finalized choice has, in their order: worked out once."""

    def __init__(self) -> None:
        self._order: list[TaskSpec] = []
        self.kept: dict[str, e.Kept] = {}
        """What a fork keeps, by task."""
        self._digest = ""

    def at(self, board: Board, index: int) -> TaskSpec | None:
        """The task with that index, of the choice or added later."""
        chosen = board.plan.chosen
        if chosen is None:
            return None
        if self._digest != board.plan.digest or not self._order:
            self._order, self._digest = in_order(chosen.spec), board.plan.digest
            self.kept = {one.task: one for one in chosen.fork.kept} if chosen.fork else {}
        everything = len(self._order) + len(board.plan.added)
        if not 0 <= index < everything:
            return None
        place = index - len(self._order)
        return self._order[index] if place < 0 else board.plan.added[place]


def check_at(record: Recorded, event: e.Event, board: Board, planned: PlannedTasks) -> bool:
    """Compares what rests on the plan as it was right before the event. False: there is nothing to choose in it.

    Raises `ChoiceDiffers`.
    """
    match event:
        case e.TaskPlanned() | e.TaskInherited() if not is_draft(record.entity):
            _check_planned(record, event, board, planned)
        case e.PlanFinalized():
            if len(board.tasks) != board.plan.count:
                missing = f"{len(board.tasks)} of {board.plan.count} tasks are written down"
                raise ChoiceDiffers(f"the plan was finalized although only {missing}", missing)
        case e.PlanCompleted():
            deliver = board.tasks.get(DELIVER)
            if deliver is None or deliver.status != "completed":
                raise ChoiceDiffers(f"the plan was completed before {DELIVER}", "nothing")
            if deliver.commit != event.head_commit:
                decided = e.PlanCompleted(head_commit=deliver.commit)
                raise ChoiceDiffers(f"the plan's head is not the commit of {DELIVER}", decided)
        case _:
            return False
    return True


def _check_planned(
    record: Recorded, event: e.TaskPlanned | e.TaskInherited, board: Board, planned: PlannedTasks
) -> None:
    spec = planned.at(board, event.index)
    if spec is None:
        raise ChoiceDiffers(f"the choice has no task with index {event.index}", "nothing")
    if record.entity != spec.code:
        raise ChoiceDiffers(f"index {event.index} is the place of {spec.code}, not of {record.entity}", spec)
    if event.spec != spec:
        raise ChoiceDiffers(f"{spec.code} is planned otherwise than the choice has it", spec)
    if event.digest != board.plan.digest:
        raise ChoiceDiffers(f"{spec.code} is of another choice", board.plan.digest)
    agent = _agent(board, spec)
    edited = any(state.revision for state in board.tasks.values()) if board.plan.added else False
    if event.agent != agent and not edited:
        raise ChoiceDiffers(f"{spec.code} is given to another agent", agent)
    kept = planned.kept
    if isinstance(event, e.TaskInherited):
        if event.kept != kept.get(spec.code):
            raise ChoiceDiffers(f"{spec.code} is inherited otherwise than the fork keeps it", kept.get(spec.code))
    elif spec.code in kept:
        raise ChoiceDiffers(f"{spec.code} is to be done again although the fork keeps it", kept[spec.code])


def _agent(board: Board, spec: TaskSpec) -> AgentSpec | None:
    if spec.code == DELIVER or spec.is_decision or board.plan.chosen is None:
        return None
    return board.plan.chosen.spec.agents.get(spec.assignee)


def compare_dispatch(record: Recorded, event: e.TaskDispatched | e.TaskReadied, board: Board) -> None:
    """Whether the task was ready, and is opened as today's code would, but for the words of its prompt; `board` as the
    dispatcher had it.

    Raises `ChoiceDiffers`.
    """
    code = record.entity
    board.wake(said_now(record))
    if refusal := board.refusal(code):
        raise ChoiceDiffers(f"{code} was {record.type}, but {refusal}", f"nothing: {refusal}")
    right = _opened(record, event, board)
    wrong = [name for name in event.__struct_fields__ if getattr(event, name) != getattr(right, name)]
    if wrong:
        raise ChoiceDiffers(f"{code} was {record.type} with another {', '.join(wrong)}", right)


def _opened(record: Recorded, event: e.TaskDispatched | e.TaskReadied, board: Board) -> e.Event:
    """What today's code makes of the task, with the event's own prompt, numbers and note. Raises `ChoiceDiffers`."""
    code = record.entity
    try:
        command = openings.opening(board, record.plan, code, said_now(record), event.prompt)
        right = task_decisions.decide(board.tasks[code], command)
    except (c.Refused, ValueError) as refusal:
        raise ChoiceDiffers(f"{code} was {record.type}, but {refusal}", f"nothing: {refusal}") from refusal
    # Which dispatch and attempt it is was decided from the task as it was then, and is compared there.
    if isinstance(event, e.TaskDispatched) and isinstance(right, e.TaskDispatched):
        return msgspec.structs.replace(right, dispatch=event.dispatch, attempt=event.attempt, note=event.note)
    if isinstance(event, e.TaskReadied) and isinstance(right, e.TaskReadied):
        right = msgspec.structs.replace(right, dispatch=event.dispatch, attempt=event.attempt)
        if event.place and right.place and "/" not in event.place.path:  # it is redacted: a path of ours has folders
            right = msgspec.structs.replace(right, place=msgspec.structs.replace(right.place, path=event.place.path))
        return right if event.place else msgspec.structs.replace(right, place=None)  # older than the looking
    raise ChoiceDiffers(f"{code} was {record.type}, decided {right.name if right else 'nothing'}", right)


class Together:
    """What a dispatcher took at once: each of these counts against the bounds of the next."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._now: datetime | None = None
        self._codes: list[str] = []

    def begin(self, now: datetime) -> None:
        """Another clock's word is another dispatcher's, or a later time."""
        if now != self._now:
            self.end()
            self._now = now

    def add(self, code: str) -> None:
        self._board.claim(code)
        self._codes.append(code)

    def end(self) -> None:
        for code in self._codes:
            self._board.give_back(code)
        self._now, self._codes = None, []


BUDGET_PAUSE = "the plan's budget is "
"""So begins the dispatcher's reason where nothing that is ready may be dispatched for want of money."""
_CLOCKS_APART = timedelta(hours=1)


def check_budget_pause(record: Recorded, event: e.PlanPaused, board: Board) -> bool:
    """Whether there was no money for what was ready, where the dispatcher said so. False: it paused for another reason.

    Raises `ChoiceDiffers`.
    """
    if not event.reason.startswith(BUDGET_PAUSE):
        return False
    if not board.over_budget():
        later = board.copy()
        later.wake(record.time + _CLOCKS_APART)  # what it was that was ready may have been so by its clock alone
        if not later.over_budget():
            raise ChoiceDiffers("the plan was paused for its budget, which is not spent", "nothing")
    return True


def said_now(record: Recorded) -> datetime:
    """What the dispatcher's clock said: the command's own word, else the log's time."""
    try:
        return msgspec.json.decode(record.meta.given, type=_Given).now or record.time
    except msgspec.MsgspecError:
        return record.time


class _Given(msgspec.Struct):
    now: datetime | None = None
