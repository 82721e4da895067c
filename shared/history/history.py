"""A plan at any of its moments: folded once, and from then on a few thousand events at most from anywhere.

While the events are folded, copies of the board are kept: at most `SNAPSHOTS_MAX`, at even distances that double when
there are too many. What is asked for begins at the nearest one before it. The events themselves stay in the file.
"""

from bisect import bisect_right
from datetime import UTC, datetime
from threading import RLock

from shared.board import Board
from shared.history import moment as moments
from shared.history.event_file import EventFile
from shared.history.moment import Facts, Moment
from shared.skipped import skipped_seq
from shared.store import Recorded
from shared.subjects import PLAN

SNAPSHOTS_MAX = 32
SPACING_MIN = 100
"""Events from one copy to the next, to begin with."""
MENDED_AT_ONCE = 16
"""Nobody has more events left out than this. A file that came from outside may say so a million times: then all is
folded again only for whoever asks, and no copies are kept."""
TASK_BYTES = 4096
COPY_TASK_BYTES = 500
"""What a task takes in memory: in the plan, and once more in each copy."""


class NoSuchMoment(ValueError):
    """What was asked for is no moment of the plan; the message says why, for people."""


class _Fold:
    """Board and facts as of a number of events."""

    def __init__(self) -> None:
        self.board = Board()
        self.facts = Facts()
        self.place = 0
        """How many events are in it."""
        self.left_out: frozenset[tuple[str, int]] = frozenset()
        """Entity and sequence of the events that an operator had left out by then."""
        self.is_stale = False
        """Something was left out that is folded: board and facts are worth nothing until all is folded again."""

    def copy(self) -> "_Fold":
        other = _Fold()
        other.board, other.facts = self.board.copy(), self.facts.copy()
        other.place, other.left_out = self.place, self.left_out
        return other


class History:
    """One plan's history. It may be asked from several threads; each waits for the other."""

    def __init__(self, file: EventFile) -> None:
        self.file = file
        self._lock = RLock()
        self._spacing = SPACING_MIN
        self._snapshots: list[_Fold] = []
        """In the order of the events."""
        self._laid_out_at = 0
        """How many events there were when the plan was finalized: a copy from then stays. Its layout takes longer to
        make than all else on the way from any copy."""
        self._newest = _Fold()
        """As far as the events were folded."""
        self._asked: _Fold | None = None
        """Where somebody looked last: whoever goes on from there, step by step, need not begin at a copy."""

    @property
    def plan(self) -> str:
        """The plan's id."""
        return self.file.plan

    @property
    def last_seq(self) -> int:
        """Sequence of the newest event; 0 where there is none."""
        return self.file.last_seq

    @property
    def weight_bytes(self) -> int:
        """How much memory it takes, about; the file's size is beside that."""
        board = self._newest.board
        tasks = 1 + len(board.tasks) + len(board.drafts)
        return 16 * len(self.file) + tasks * (TASK_BYTES + COPY_TASK_BYTES * len(self._snapshots))

    def extend(self) -> None:
        """Folds what was appended to the file since. Asking does it too, as far as it needs."""
        with self._lock:
            self._fold_up_to(len(self.file))

    def board_at(self, seq: int) -> Board:
        """The board with everything up to that sequence: a copy of its own, which may be changed.

        Raises `NoSuchMoment`, `HistoryDamaged`.
        """
        with self._lock:
            return self._at(self._place(seq)).board.copy()

    def moment(self, seq: int) -> Moment:
        """How the plan stood after the newest event up to that sequence. Raises `NoSuchMoment`, `HistoryDamaged`."""
        with self._lock:
            place = self._place(seq)
            fold = self._at(place)
            return moments.moment(fold.board, fold.facts, self._record(place))

    def seq_of(self, at: str) -> int:
        """The sequence that is meant by `123`, `end`, or a time (RFC 3339; without a zone it is UTC).

        That of the newest event by then. Raises `NoSuchMoment`.
        """
        if not len(self.file):
            raise NoSuchMoment(f"plan {self.plan} has no events")
        wish = at.strip()
        if wish == "end":
            return self.last_seq
        if wish.isascii() and wish.isdecimal():
            return self.file.seq_at_place(self._place(min(int(wish[:20]), 2**63)) - 1)
        try:
            time = datetime.fromisoformat(wish)
        except ValueError:
            raise NoSuchMoment(
                f"{at[:80]!r} is no moment: give a sequence such as {self.last_seq}, a time such as "
                f"{self.file.time_of(self.last_seq):%Y-%m-%dT%H:%M:%SZ}, or end"
            ) from None
        seq = self.file.seq_at(time if time.tzinfo else time.replace(tzinfo=UTC))
        if not seq:
            first = self.file.time_of(self.file.first_seq)
            raise NoSuchMoment(f"{at[:80]} is before the plan's first event, which is of {first:%Y-%m-%dT%H:%M:%S.%fZ}")
        return seq

    def _place(self, seq: int) -> int:
        place = self.file.place_of(seq)
        if place == 0:
            raise NoSuchMoment(
                f"{seq} is before the plan's first event, which is {self.file.first_seq}"
                if len(self.file)
                else f"plan {self.plan} has no events"
            )
        return place

    def _record(self, place: int) -> Recorded:
        return next(self.file.read(after=self.file.seq_at_place(place - 1) - 1, limit=1))

    def _at(self, place: int) -> _Fold:
        """The fold of so many events; only to be looked at."""
        self._fold_up_to(place)
        if place == self._newest.place:
            self._newest = self._mended(self._newest)
            return self._newest
        before = bisect_right(self._snapshots, place, key=lambda fold: fold.place)
        nearest = self._snapshots[before - 1] if before else _Fold()
        if self._asked is None or not nearest.place <= self._asked.place <= place:
            self._asked = nearest.copy()
        self._asked = self._mended(self._advanced(self._asked, place))
        return self._asked

    def _fold_up_to(self, place: int) -> None:
        while (done := self._newest.place) < place:
            self._newest = self._advanced(self._newest, min(place, done - done % self._spacing + self._spacing))
            if self._newest.place % self._spacing == 0:
                self._keep(self._newest)

    def _keep(self, fold: _Fold) -> None:
        if fold.is_stale or (self._snapshots and self._snapshots[-1].place >= fold.place):
            return
        self._snapshots.append(fold.copy())
        if len(self._snapshots) > SNAPSHOTS_MAX:
            self._spacing *= 2
            self._snapshots = [
                kept for kept in self._snapshots if kept.place % self._spacing == 0 or kept.place == self._laid_out_at
            ]

    def _advanced(self, fold: _Fold, place: int) -> _Fold:
        after = self.file.seq_at_place(fold.place - 1) if fold.place else 0
        for record in self.file.read(after=after, limit=place - fold.place):
            if (left_out := skipped_seq(record)) and (record.entity, left_out) not in fold.left_out:
                fold.left_out |= {(record.entity, left_out)}
                fold.is_stale = True
                if len(fold.left_out) <= MENDED_AT_ONCE:
                    fold = self._mended(fold)
            if not fold.is_stale:
                moments.apply(fold.board, fold.facts, record)
            fold.place += 1
            if record.type == "finalized" and record.entity == PLAN and not self._laid_out_at:
                self._laid_out_at = fold.place
                self._keep(fold)
        return fold

    def _mended(self, fold: _Fold) -> _Fold:
        """The same events once more, without those that are left out now."""
        if not fold.is_stale:
            return fold
        again = _Fold()
        again.left_out = fold.left_out
        for record in self.file.read(limit=fold.place):
            if (record.entity, record.seq) not in again.left_out:
                moments.apply(again.board, again.facts, record)
        again.place = fold.place
        return again
