"""The histories of plans that somebody looks back at: their events in files of this machine, as many as may be.

A file has no name on the disk once it is open, so nothing is left of one that is dropped, or of a gateway that was
killed. Whoever still works on a history that was dropped may go on; with them it goes.
"""

import asyncio
import tempfile
from collections import OrderedDict
from pathlib import Path

from services.gateway.projection.folds import is_ours, plan_events
from shared.history.event_file import EventFile, HistoryDamaged
from shared.history.history import History
from shared.store import EventStore, Recorded, StoreUnavailable

HISTORIES_MAX = 32
SIZE_MAX_BYTES = 1024**3
"""On the disk."""
WEIGHT_MAX_BYTES = 256 * 1024**2
"""In memory."""
STEP_EVENTS = 500
"""Written and folded in one go, in a thread."""
PATIENCE_S = 5.0
"""How long the log may be silent in the middle of a history."""


class _Spooled:
    """One plan's history, and whose turn it is to make it longer."""

    def __init__(self, history: History) -> None:
        self.history = history
        self.lock = asyncio.Lock()


class Histories:
    """Those of one gateway."""

    def __init__(
        self,
        store: EventStore,
        *,
        count_max: int = HISTORIES_MAX,
        size_max_bytes: int = SIZE_MAX_BYTES,
        weight_max_bytes: int = WEIGHT_MAX_BYTES,
    ) -> None:
        self._store = store
        self._count_max = count_max
        self._size_max_bytes = size_max_bytes
        self._weight_max_bytes = weight_max_bytes
        self._spooled: OrderedDict[str, _Spooled] = OrderedDict()
        self._extending: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._spooled)

    async def up_to_date(self, plan: str) -> History:
        """The plan's history with everything that was stored when this was called.

        Not to be called for a plan that the caller may not read. Raises `StoreUnavailable`.
        """
        spooled = self._spooled.get(plan)
        if spooled is None:
            spooled = self._spooled[plan] = _Spooled(_new_history(plan))
        self._spooled.move_to_end(plan)
        # Not cut short where the caller goes away: somebody else may want it, and the file must stay in order.
        extending = asyncio.create_task(self._extend(spooled))
        self._extending.add(extending)
        extending.add_done_callback(self._extending.discard)
        await asyncio.shield(extending)
        self._drop_others(plan)
        return spooled.history

    async def _extend(self, spooled: _Spooled) -> None:
        history = spooled.history
        async with spooled.lock:
            try:
                async with asyncio.timeout(PATIENCE_S) as deadline:
                    step: list[Recorded] = []
                    async for record in plan_events(self._store, history.plan, after=history.last_seq):
                        step.append(record)
                        if len(step) == STEP_EVENTS:
                            deadline.reschedule(None)
                            await asyncio.to_thread(_take, history, step)
                            step = []
                            deadline.reschedule(asyncio.get_running_loop().time() + PATIENCE_S)
                    deadline.reschedule(None)
                    await asyncio.to_thread(_take, history, step)
            except TimeoutError as error:
                raise StoreUnavailable(f"the event log was silent for {PATIENCE_S:.0f} s") from error
            except (OSError, HistoryDamaged):  # such as a full disk: what is in the file now is anybody's guess
                self._spooled.pop(history.plan, None)
                raise

    def _drop_others(self, plan: str) -> None:
        for other in [other for other in self._spooled if other != plan]:
            if not self._are_too_many():
                return
            del self._spooled[other]

    def _are_too_many(self) -> bool:
        held = [one.history for one in self._spooled.values()]
        return (
            len(held) > self._count_max
            or sum(one.file.size_bytes for one in held) > self._size_max_bytes
            or sum(one.weight_bytes for one in held) > self._weight_max_bytes
        )

    async def stop(self) -> None:
        """Ends what is being read."""
        for extending in self._extending:
            extending.cancel()
        await asyncio.gather(*self._extending, return_exceptions=True)


def _new_history(plan: str) -> History:
    with tempfile.TemporaryDirectory(prefix="treadle-history-") as directory:
        return History(EventFile.create(Path(directory) / f"{plan}.jsonl", plan))


def _take(history: History, step: list[Recorded]) -> None:
    for record in filter(is_ours, step):
        history.file.append(record)
    history.extend()
