"""A history event by event: what each of them changed. The fold goes on from event to event, so that it is quick."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from shared.board import Board
from shared.events import PlanSkipped, TaskSkipped, Usage
from shared.history.history import History
from shared.history.moment import Facts, apply
from shared.store import Recorded
from shared.subjects import PLAN, is_draft
from shared.task import INITIAL, TaskState
from treadle.replay.until import Condition


class Change(msgspec.Struct, frozen=True):
    """One field that an event has changed."""

    task: str | None
    """None: of the plan itself."""
    field: str
    before: Any
    after: Any


class Step(msgspec.Struct, frozen=True):
    """An event, and how everything stands right after it."""

    record: Recorded
    board: Board
    """The walk's own, which goes on: to be looked at before the next step is taken."""
    changes: tuple[Change, ...]
    cost_usd: float
    """What all attempts of tasks cost by then."""


def steps(history: History, after: int = 0) -> Iterator[Step]:
    """Every event with a sequence over `after`, in order. Raises `HistoryDamaged`."""
    board = history.board_at(after) if after >= history.file.first_seq else Board()
    facts, before_usd = Facts(), _cost_usd(board)
    for record in history.file.read(after=after):
        task_before, plan_before = _execution(board, record.entity), _of_plan(board)
        if isinstance(record.event, PlanSkipped | TaskSkipped):
            board = history.board_at(record.seq)  # the same events as before, but for one
            facts, before_usd = Facts(), _cost_usd(board)
        else:
            apply(board, facts, record)
        changes = [*_changes(None, plan_before, _of_plan(board))]
        if record.entity != PLAN:
            changes += _changes(record.entity, _of_task(task_before), _of_task(_execution(board, record.entity)))
        yield Step(record, board, tuple(changes), before_usd + facts.usage.cost_usd)


def first_met(history: History, condition: Condition, begin: int = 0) -> int | None:
    """Sequence of the first event, `begin` or a later one, after which the condition holds; None: there is none.

    Raises `BadInput` where it names a task that the plan never has.
    """
    board = history.board_at(history.last_seq)
    condition.check((*board.tasks, *board.drafts))
    met = (s.record.seq for s in steps(history, begin - 1) if condition.met(s.record, s.board, s.cost_usd))
    return next(met, None)


def _cost_usd(board: Board) -> float:
    return sum(state.usage.cost_usd for state in board.tasks.values())


def _execution(board: Board, entity: str) -> TaskState:
    return (board.drafts if is_draft(entity) else board.tasks).get(entity, INITIAL)


def _of_task(state: TaskState) -> dict[str, Any]:
    return {
        "status": state.status,
        "attempt": state.attempt,
        "lease": state.lease,
        "runner": state.runner,
        "commit": state.commit,
        "message": state.message,
        "edits": state.revision,
        "tokens": tokens_of(state.usage),
        "cost_usd": state.usage.cost_usd,
    }


def _of_plan(board: Board) -> dict[str, Any]:
    state = board.plan
    return {
        "status": state.status,
        "standing": board.standing(),
        "reason": state.reason,
        "tasks": state.count,
        "candidates": len(state.candidates),
        "budget_usd": state.chosen.spec.budget_usd if state.chosen else None,
        "head_commit": state.head_commit,
        "forks": len(state.forks),
        "fault": board.fault,
    }


def _changes(task: str | None, before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Change]:
    for field, value in after.items():
        if value != before[field]:
            yield Change(task, field, before[field], value)


def tokens_of(usage: Usage) -> int:
    """All tokens, whatever their kind."""
    return usage.input_tokens + usage.output_tokens + usage.cache_read_tokens + usage.cache_write_tokens
