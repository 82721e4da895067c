"""Folds of plans, kept in bounded memory: what was not used for long is dropped and read from the log again."""

from collections import OrderedDict
from collections.abc import AsyncIterator, Callable

from services.gateway.projection.views import PlanFold
from shared.spec import DELIVER, TASK_CODE
from shared.store import EventStore, Recorded
from shared.subjects import PLAN, PLAN_ID
from shared.transact import patiently

PAGE_EVENTS = 500
WEIGHT_MAX = 100_000
"""In tasks; some hundred megabytes at the most."""


class Folds:
    """The newest folds by plan, as many as may weigh `weight_max` together, and those that `is_pinned` says."""

    def __init__(self, is_pinned: Callable[[str], bool] = lambda _: False, weight_max: int = WEIGHT_MAX) -> None:
        self._is_pinned = is_pinned
        self._weight_max = weight_max
        self._folds: OrderedDict[str, PlanFold] = OrderedDict()
        self._weights: dict[str, int] = {}
        self._weight = 0

    def __len__(self) -> int:
        return len(self._folds)

    def get(self, plan: str) -> PlanFold | None:
        """The plan's fold if it is here; it counts as used."""
        fold = self._folds.get(plan)
        if fold is not None:
            self._folds.move_to_end(plan)
        return fold

    def keep(self, fold: PlanFold) -> None:
        """Keeps a fold that is new or has grown, and drops others where that is too much."""
        self._folds[fold.plan] = fold
        self._folds.move_to_end(fold.plan)
        self._weight += fold.weight - self._weights.get(fold.plan, 0)
        self._weights[fold.plan] = fold.weight
        if self._weight > self._weight_max:
            for plan in [plan for plan in self._folds if plan != fold.plan and not self._is_pinned(plan)]:
                self.drop(plan)
                if self._weight <= self._weight_max:
                    break

    def drop(self, plan: str) -> None:
        """Forgets a fold."""
        if self._folds.pop(plan, None) is not None:
            self._weight -= self._weights.pop(plan)


async def plan_events(store: EventStore, plan: str, *, before: int | None = None) -> AsyncIterator[Recorded]:
    """The plan's events from its beginning, to the log's end or to the sequence `before`; outages are waited out."""
    after = 0
    while True:
        page = await patiently(lambda: store.read(plan, after=after, limit=PAGE_EVENTS))  # noqa: B023 - called here
        for record in page:
            if before is not None and record.seq >= before:
                return
            yield record
        if len(page) < PAGE_EVENTS:
            return
        after = page[-1].seq


async def read_fold(store: EventStore, plan: str, *, before: int | None = None) -> PlanFold | None:
    """The plan's fold, read from the log; None where it has no events."""
    fold: PlanFold | None = None
    async for record in plan_events(store, plan, before=before):
        if fold is None:
            fold = PlanFold(plan, record)
        fold.apply(record)
    return fold


def is_ours(record: Recorded) -> bool:
    """Whether the event is of a plan and a task that there can be.

    Somebody else may have put anything on the log's subjects; the deciders and the database know no such names.
    """
    named = record.entity in (PLAN, DELIVER) or TASK_CODE.fullmatch(record.entity)
    return bool(named and PLAN_ID.fullmatch(record.plan))
