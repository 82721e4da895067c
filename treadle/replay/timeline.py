"""Attempts as bars over time, one row for each task. Read once from the whole history, then shown as of any moment."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from shared.store import Recorded
from shared.subjects import PLAN
from treadle.lines import duration

ENDS = {
    "completed": "✓",
    "failed": "✗",
    "released": "<",
    "approval_requested": "?",
    "cancelled": "✕",
    "marked_complete": "✓",
    "abandoned": "–",
}
"""Events that end a lease, and the sign that stands there. `<`: it was handed back."""
IDLE_SHOWN_S = 30.0
"""What is longer, and in which nobody worked, is cut to this: a night would leave no room for the work."""
LOST = "!"
"""A lease that another one took the place of."""
OPEN = "▶"


@dataclass(slots=True)
class Bar:
    """One lease of a task: from its start to what ended it."""

    began_seq: int
    began: datetime
    ended_seq: int = 0
    """0: it never ended."""
    ended: datetime | None = None
    sign: str = OPEN
    is_persons: bool = False


class Timeline:
    """The bars of a whole history."""

    def __init__(self, records: Iterable[Recorded]) -> None:
        self.bars: dict[str, list[Bar]] = {}
        """By task, in the order in which they began."""
        self.began: datetime | None = None
        self._began_seqs: dict[str, list[int]] = {}
        self._open: set[str] = set()
        self._newest: datetime | None = None
        self._idle: list[tuple[datetime, float, float]] = []
        """Spans in which nobody worked: when each began, how long it was, and how long those before it were, in s."""
        for record in records:
            self.take(record)

    def take(self, record: Recorded) -> None:
        """Goes on with the history's next event."""
        if self.began is None:
            self.began = record.time
        self._leave_out_idle(record.time)
        if record.entity == PLAN:
            return
        if record.type == "started":
            self._end(record, LOST)
            is_persons = getattr(record.event, "deadline", None) is not None
            self.bars.setdefault(record.entity, []).append(Bar(record.seq, record.time, is_persons=is_persons))
            self._began_seqs.setdefault(record.entity, []).append(record.seq)
            self._open.add(record.entity)
        elif record.type in ENDS:
            lost = record.type == "released" and getattr(record.event, "lost", False)
            self._end(record, LOST if lost else ENDS[record.type])
        elif record.type == "cancel_requested" and self._is_with_person(record.entity):
            self._end(record, ENDS["cancelled"])  # a runner ends its lease itself

    def _is_with_person(self, code: str) -> bool:
        bars = self.bars.get(code)
        return bool(bars and bars[-1].is_persons)

    def _leave_out_idle(self, now: datetime) -> None:
        idle_s = (now - self._newest).total_seconds() - IDLE_SHOWN_S if self._newest is not None else 0.0
        if idle_s > 0 and not self._open and self._newest is not None:
            before_s = sum(self._idle[-1][1:]) if self._idle else 0.0
            self._idle.append((self._newest, idle_s, before_s))
        self._newest = now

    def elapsed_s(self, at: datetime) -> float:
        """Seconds since the beginning, without those that were left out because nobody worked."""
        if self.began is None:
            return 0.0
        return (at - self.began).total_seconds() - self.idle_s(at)

    def idle_s(self, at: datetime) -> float:
        """How much was left out up to then, in seconds."""
        place = bisect_left(self._idle, at, key=lambda span: span[0])
        if place == 0:
            return 0.0
        began, idle_s, before_s = self._idle[place - 1]
        return before_s + min(idle_s, (at - began).total_seconds())

    def _end(self, record: Recorded, sign: str) -> None:
        bars = self.bars.get(record.entity)
        self._open.discard(record.entity)
        if bars and bars[-1].ended is None:
            bars[-1].ended_seq, bars[-1].ended, bars[-1].sign = record.seq, record.time, sign

    def as_of(self, code: str, seq: int) -> list[Bar]:
        """The task's bars as they were right after that event: what ended later has not ended."""
        bars = self.bars.get(code, [])[: bisect_right(self._began_seqs.get(code, []), seq)]
        if bars and bars[-1].ended_seq > seq:
            return [*bars[:-1], Bar(bars[-1].began_seq, bars[-1].began)]
        return bars

    def drawn(self, code: str, seq: int, now: datetime, until: datetime, width: int) -> str:
        """The task's bars as of that event, on one line of exactly `width` characters that ends at `until`.

        What has not ended goes on to `now`.
        """
        cells = [" "] * width
        span_s = max(self.elapsed_s(until), 1e-6)

        def place(at: datetime) -> int:
            return min(width - 1, max(0, int(self.elapsed_s(at) / span_s * (width - 1))))

        for bar in self.as_of(code, seq):
            first, last = place(bar.began), place(bar.ended or now)
            cells[first:last] = "━" * (last - first)
            cells[last] = bar.sign
        return "".join(cells)

    def axis(self, until: datetime, width: int) -> str:
        """The line above the bars: when they begin, when they end, and how much was left out."""
        began = self.began or until
        form = "%Y-%m-%d %H:%M" if until - began > timedelta(days=1) else "%H:%M:%S"
        left, right = began.astimezone().strftime(form), until.astimezone().strftime(form)
        gap = width - len(left) - len(right) - 2
        idle = f" {duration(idle_s)} idle left out " if (idle_s := self.idle_s(until)) >= 1 else ""
        if gap < 1:
            return right[:width]
        return f"{left} {idle if len(idle) <= gap else '':─^{gap}} {right}"
