"""What the dispatcher did not dispatch, although today's code would have: a bound or a wait that is gone.

Whenever it says anything about a plan the dispatcher has just taken all that was ready as far as it had read. So a task
that today's board has ready then, that was not taken, and that was dispatched later, was rightly held back by the code
of then. Or a dispatcher died in between, or two were in each other's way. So it takes two such moments to tell, as a
dispatcher that begins takes all at once, and some seconds, in which any of them would have come through.
"""

from datetime import datetime

from shared.board import Board
from shared.store import Recorded

MOMENTS = 2
"""At so many a task has to have been held back."""
WAITED_MIN_S = 5.0
"""From the first of them until it was dispatched, by the log's clock."""
LOOKED_AT_MAX = 20
"""Tasks at a moment: one of those that waited longest comes soon."""


class HeldBack:
    """Follows the dispatcher's moments in the order of what it had read."""

    def __init__(self) -> None:
        self._taken: dict[str, int] = {}
        """Tasks that were dispatched as of then, each with the event that says so: it may come later."""
        self._waited: dict[str, list[tuple[int, datetime]]] = {}
        """Tasks that were not, each with the events that the dispatcher stored at these moments."""
        self._acted: tuple[int, datetime] | None = None

    def act(self, record: Recorded, seen: int, is_dispatch: bool) -> list[int]:
        """The dispatcher, having read up to `seen`, stored an event, which may dispatch its task.

        Returns the events at whose moments the task could have been dispatched before; empty where that is no wonder.
        """
        self._acted = max(self._acted or (0, record.time), (record.seq, record.time))
        if not is_dispatch:
            return []
        self._taken[record.entity] = record.seq
        waited = self._waited.pop(record.entity, [])
        if len(waited) < MOMENTS or waited[-1][0] > seen:
            return []
        waited_s = (record.time - waited[0][1]).total_seconds()
        return [seq for seq, _ in waited] if waited_s >= WAITED_MIN_S else []

    def look(self, board: Board, seen: int) -> None:
        """Call it once all that was done as of the board's moment is told."""
        acted, self._acted = self._acted, None
        if acted is not None:
            for code in board.left_waiting(self._taken, LOOKED_AT_MAX):
                waited = self._waited.setdefault(code, [])
                # Only what it had heard of by the next moment is behind it: else both may be the same one's delay.
                if len(waited) < MOMENTS and (not waited or waited[-1][0] <= seen):
                    waited.append(acted)

    def fold(self, entity: str, seq: int, is_plans: bool) -> None:
        """An event that the board folds next."""
        if is_plans:
            self._waited.clear()  # it may have been paused, extended, or given other bounds
        else:
            self._waited.pop(entity, None)
            if self._taken.get(entity, seq + 1) <= seq:
                del self._taken[entity]
