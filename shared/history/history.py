"""A plan at any of its moments: folded once, and from then on a few thousand events at most from anywhere.

While the events are folded, copies of the board are kept: at most `SNAPSHOTS_MAX`, at even distances that double when
there are too many. What is asked for begins at the nearest one before it. The events themselves stay in the file.

What an operator had left out is known from the file's index before anything is folded. So a fold goes forward only: one
that is without just what was left out by a moment may be gone on with to there, any other is passed over.
"""

from bisect import bisect_right
from threading import RLock

from shared.board import Board
from shared.history import moment as moments
from shared.history.event_file import EventFile, HistoryDamaged
from shared.history.moment import Facts, Moment
from shared.history.times import begin_of, end_of
from shared.store import Recorded
from shared.subjects import PLAN

SNAPSHOTS_MAX = 32
SPACING_MIN = 100
"""Events from one copy to the next, to begin with."""
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
        self.heard = 0
        """It is without what was left out by the time when there were so many events: all of them, often, and then
        nothing that comes later changes it."""

    def copy(self) -> "_Fold":
        other = _Fold()
        other.board, other.facts = self.board.copy(), self.facts.copy()
        other.place, other.heard = self.place, self.heard
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

    def check_order(self) -> None:
        """Folds all of it. Raises `HistoryDamaged` where its tasks have no order: Treadle never ran such a plan.

        Where one is asked for a moment that is a fault of the plan like others.
        """
        with self._lock:
            self._fold_up_to(len(self.file))
            if self._newest.board.no_order:
                raise HistoryDamaged(f"this is no history of a plan that ran: {self._newest.board.no_order}")

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

        That of the newest event by then, which is by the end of that second where the time has no fraction. Raises
        `NoSuchMoment`.
        """
        if not len(self.file):
            raise NoSuchMoment(f"plan {self.plan} has no events")
        wish = at.strip()
        if wish == "end":
            return self.last_seq
        if wish.isascii() and wish.isdecimal():
            return self.file.seq_at_place(self._place(min(int(wish[:20]), 2**63)) - 1)
        try:
            time = end_of(wish)
        except ValueError:
            raise NoSuchMoment(
                f"{at[:80]!r} is no moment: give a sequence such as {self.last_seq}, a time such as "
                f"{self.file.time_of(self.last_seq):%Y-%m-%dT%H:%M:%SZ}, or end"
            ) from None
        seq = self.file.seq_at(time)
        if not seq:
            first = self.file.time_of(self.file.first_seq)
            raise NoSuchMoment(f"{at[:80]} is before the plan's first event, which is of {first:%Y-%m-%dT%H:%M:%S.%fZ}")
        return seq

    def is_behind_end(self, at: str) -> bool:
        """Whether a moment, of which `seq_of` has found one, comes after the newest event."""
        wish = at.strip()
        if wish == "end":
            return False
        if wish.isascii() and wish.isdecimal():
            return int(wish[:20]) > self.last_seq
        return begin_of(wish) > self.file.time_of(self.last_seq)

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
        found = self._newest
        if place != found.place or not self._is_heard(found, place):
            before = bisect_right(self._snapshots, place, key=lambda fold: fold.place)
            fits = (one for one in reversed(self._snapshots[:before]) if self._is_heard(one, place))
            nearest = next(fits, None) or _Fold()
            asked = self._asked
            if asked is None or not nearest.place <= asked.place <= place or not self._is_heard(asked, place):
                asked = self._asked = nearest.copy()
            asked.heard = place
            self._advance(asked, place)
            found = asked
        return found

    def _is_heard(self, fold: _Fold, time: int) -> bool:
        """Whether the fold is without just what was left out by then."""
        return not self.file.reaches_back(min(fold.heard, time), max(fold.heard, time), fold.place)

    def _fold_up_to(self, place: int) -> None:
        heard = len(self.file)
        if not self._is_heard(self._newest, heard):
            self._snapshots = [kept for kept in self._snapshots if self._is_heard(kept, heard)]
            self._newest = self._snapshots[-1].copy() if self._snapshots else _Fold()
        self._newest.heard = heard
        while (done := self._newest.place) < place:
            self._advance(self._newest, min(place, done - done % self._spacing + self._spacing))
            if self._newest.place % self._spacing == 0:
                self._keep(self._newest)

    def _keep(self, fold: _Fold) -> None:
        if self._snapshots and self._snapshots[-1].place >= fold.place:
            return
        self._snapshots.append(fold.copy())
        if len(self._snapshots) > SNAPSHOTS_MAX:
            self._spacing *= 2
            self._snapshots = [
                kept for kept in self._snapshots if kept.place % self._spacing == 0 or kept.place == self._laid_out_at
            ]

    def _advance(self, fold: _Fold, place: int) -> None:
        after = self.file.seq_at_place(fold.place - 1) if fold.place else 0
        for record in self.file.read(after=after, limit=place - fold.place):
            if not self.file.is_left_out(record.entity, record.seq, fold.heard):
                moments.apply(fold.board, fold.facts, record)
            fold.place += 1
            if record.type == "finalized" and record.entity == PLAN and fold is self._newest and not self._laid_out_at:
                self._laid_out_at = fold.place
                self._keep(fold)
