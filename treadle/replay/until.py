"""`--until`: a moment that is named by what happens in it. Four forms, parsed here and never evaluated as code."""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol, get_args

from shared.board import Board, Standing
from shared.events import REGISTRY
from shared.plan import PlanStatus
from shared.spec import DELIVER, TASK_CODE
from shared.store import Recorded
from shared.subjects import PLAN, is_draft
from shared.task import TaskStatus
from treadle.bad_input import BadInput
from treadle.plain_text import one_line

FORMS = "'task CODE EVENT-OR-STATUS', 'plan EVENT-OR-STATUS', 'seq NUMBER' or 'cost > USD'"

_COST = re.compile(r"cost\s*(>=?)\s*\$?([0-9]{1,9}(?:\.[0-9]{1,9})?)")
_SEQ = re.compile(r"seq\s+([0-9]{1,19})")


def _events(kind: str) -> frozenset[str]:
    return frozenset(name.partition(".")[2] for name in REGISTRY if name.startswith(f"{kind}."))


TASK_EVENTS = _events("task")
TASK_STATUSES: frozenset[str] = frozenset(get_args(TaskStatus)) - {"absent"}
PLAN_EVENTS = _events("plan")
PLAN_STATUSES: frozenset[str] = frozenset((*get_args(PlanStatus), *get_args(Standing))) - {"absent"}


class Condition(Protocol):
    """What is waited for."""

    def met(self, record: Recorded, board: Board, cost_usd: float) -> bool:
        """Whether it is so right after `record`, which `board` has folded; `cost_usd` is all that was spent by then."""
        ...

    def check(self, codes: Collection[str]) -> None:
        """Raises `BadInput` where it names a task that the plan never has."""
        ...


@dataclass(frozen=True)
class _OfTask:
    code: str
    word: str

    def met(self, record: Recorded, board: Board, cost_usd: float) -> bool:
        if record.entity == self.code and record.type == self.word:
            return True
        state = (board.drafts if is_draft(self.code) else board.tasks).get(self.code)
        return state is not None and state.status == self.word

    def check(self, codes: Collection[str]) -> None:
        if self.code in codes:
            return
        alike = [code for code in codes if code.casefold() == self.code.casefold()]
        shown = alike or list(codes)[:10]
        more = f" and {len(codes) - len(shown)} more" if not alike and len(codes) > len(shown) else ""
        named = f": it has {', '.join(shown)}{more}" if shown else ", and none at all"
        raise BadInput(f"--until: the plan has no task {self.code}{named}")


@dataclass(frozen=True)
class _OfPlan:
    word: str

    def met(self, record: Recorded, board: Board, cost_usd: float) -> bool:
        if record.entity == PLAN and record.type == self.word:
            return True
        return self.word in (board.plan.status, board.standing())

    def check(self, codes: Collection[str]) -> None:
        """Every plan has itself."""


@dataclass(frozen=True)
class _Seq:
    seq: int

    def met(self, record: Recorded, board: Board, cost_usd: float) -> bool:
        return record.seq >= self.seq

    def check(self, codes: Collection[str]) -> None:
        """Names no task."""


@dataclass(frozen=True)
class _Cost:
    usd: float
    or_equal: bool

    def met(self, record: Recorded, board: Board, cost_usd: float) -> bool:
        return cost_usd > self.usd or (self.or_equal and math.isclose(cost_usd, self.usd, abs_tol=1e-9))

    def check(self, codes: Collection[str]) -> None:
        """Names no task."""


def parse_condition(text: str) -> Condition:
    """The condition that a person wrote. Raises `BadInput` that names what is allowed."""
    words = text.split()
    match words:
        case ["task", code, _, *_]:
            return _task(code, "_".join(words[2:]))  # as people say it: needs attention
        case ["plan", _, *_]:
            return _OfPlan(_known("_".join(words[1:]), PLAN_STATUSES, PLAN_EVENTS, "a plan"))
    trimmed = " ".join(words)
    if found := _SEQ.fullmatch(trimmed):
        return _Seq(int(found[1]))
    if found := _COST.fullmatch(trimmed):
        return _Cost(float(found[2]), found[1] == ">=")
    raise BadInput(f"--until {one_line(text, 60)!r} is no condition: it wants {FORMS}")


def _task(code: str, word: str) -> Condition:
    if not (TASK_CODE.fullmatch(code) or code == DELIVER or is_draft(code)):
        raise BadInput(f"--until: {one_line(code, 40)!r} is not a task code; it wants {FORMS}")
    return _OfTask(code, _known(word, TASK_STATUSES, TASK_EVENTS, "a task"))


def _known(word: str, statuses: frozenset[str], events: frozenset[str], what: str) -> str:
    if word in statuses or word in events:
        return word
    raise BadInput(
        f"--until: {one_line(word, 40)!r} is neither a status of {what} ({', '.join(sorted(statuses))}) "
        f"nor an event of it ({', '.join(sorted(events))})"
    )
