"""Events that can't be read, and those of them that an operator has had left out.

An event that this code can't read, or can't fold, stops its plan: nothing may be decided on half a state. An operator
who has looked at it says that it is to be left out; that word is an event of the same entity (`skipped`), and from
then on everybody folds as if the other one had never been stored. The log itself is not touched.

    unreadable → the plan's board has a fault → `skipped(seq)` is stored → read again from the log, folded without it

Whoever follows the log has folded the beginning already when the word comes: they read that plan again.
"""

import re
from collections.abc import Iterable

from shared.board import Board
from shared.events import PlanSkipped, TaskSkipped
from shared.store import Recorded

_FAULT = "event {seq} ({type}) can't be read: {why}"
_FAULT_SEQ = re.compile(r"event (\d+) \(")


def skipped_seq(record: Recorded) -> int:
    """The sequence that this event has left out; 0 where it is no such word."""
    return record.event.seq if isinstance(record.event, PlanSkipped | TaskSkipped) else 0


def without_skipped(records: Iterable[Recorded]) -> list[Recorded]:
    """A plan's events, or one entity's, without those that a later one of them has left out."""
    read = list(records)
    left_out = {(record.entity, seq) for record in read if (seq := skipped_seq(record))}
    return [record for record in read if (record.entity, record.seq) not in left_out] if left_out else read


def reaches_back(records: Iterable[Recorded], seq: int) -> bool:
    """Whether one of these leaves out an event up to `seq`: what was folded up to there is to be folded again."""
    return any(0 < skipped_seq(record) <= seq for record in records)


def take(board: Board, record: Recorded) -> bool:
    """Folds the plan's next event. The first one that can't be read or folded is the board's fault: then False.

    What follows a fault is folded as far as that goes, for people to see; nothing is decided on it. Nothing is logged:
    whoever looks back folds a fault also where it was left out long ago.
    """
    if record.event is None:
        _stop(board, record, record.fault)
        return False
    try:
        board.apply(record.entity, record.event, record.seq)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is this plan's alone, and is shown as its fault
        _stop(board, record, f"{type(error).__name__}: {error}")
        return False
    return True


def _stop(board: Board, record: Recorded, why: str) -> None:
    if board.fault:
        return
    board.fault_seq = record.seq
    board.fault = _FAULT.format(seq=record.seq, type=record.type, why=why)


def what_to_do(plan: str, fault: str) -> str:
    """What a person does about a plan's fault (`Board.fault`), in words."""
    found = _FAULT_SEQ.match(fault)
    seq = found[1] if found else "SEQ"
    since = f" --since {seq}" if found else ""
    return (
        f"`treadle events {plan}{since}` shows it; `treadle events skip {plan} {seq} --reason …` has it left out, for "
        "an admin"
    )
