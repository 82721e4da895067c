"""Folds of plans, kept in bounded memory: what was not used for long is dropped and read from the log again."""

from collections import OrderedDict
from collections.abc import AsyncIterator, Callable

from services.gateway.projection.views import PlanFold
from shared.skipped import skipped_seq
from shared.store import EventStore, Recorded
from shared.subjects import PLAN, can_be, is_draft
from shared.transact import patiently

PAGE_EVENTS = 500
PAGE_DRAFTS = 4
"""Of a plan that is still drafted each event can be as large as a message may be."""
WEIGHT_MAX_BYTES = 128 * 1024**2


class Folds:
    """The newest folds by plan, as many as may weigh `weight_max_bytes` together, and those that `is_pinned` says."""

    def __init__(
        self, is_pinned: Callable[[str], bool] = lambda _: False, weight_max_bytes: int = WEIGHT_MAX_BYTES
    ) -> None:
        self._is_pinned = is_pinned
        self._weight_max_bytes = weight_max_bytes
        self._folds: OrderedDict[str, PlanFold] = OrderedDict()
        self._weights_bytes: dict[str, int] = {}
        self._weight_bytes = 0

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
        weight_bytes = fold.weight_bytes
        self._weight_bytes += weight_bytes - self._weights_bytes.get(fold.plan, 0)
        self._weights_bytes[fold.plan] = weight_bytes
        if self._weight_bytes > self._weight_max_bytes:
            for plan in [plan for plan in self._folds if plan != fold.plan and not self._is_pinned(plan)]:
                self.drop(plan)
                if self._weight_bytes <= self._weight_max_bytes:
                    break

    def drop(self, plan: str) -> None:
        """Forgets a fold."""
        if self._folds.pop(plan, None) is not None:
            self._weight_bytes -= self._weights_bytes.pop(plan)


async def plan_events(
    store: EventStore, plan: str, *, after: int = 0, before: int | None = None
) -> AsyncIterator[Recorded]:
    """The plan's events behind a sequence, to the log's end or to the sequence `before`; outages are waited out."""
    limit = PAGE_DRAFTS
    while True:
        page = await patiently(lambda: store.read(plan, after=after, limit=limit))  # noqa: B023 - called here
        for record in page:
            if before is not None and record.seq >= before:
                return
            yield record
        if len(page) < limit:
            return
        after = page[-1].seq
        limit = PAGE_DRAFTS if _may_be_large(page[-1]) else PAGE_EVENTS


def _may_be_large(record: Recorded) -> bool:
    """Whether the plan was still drafted then: candidates, and what was said to make them."""
    return is_draft(record.entity) or (record.entity == PLAN and record.type in ("requested", "drafted", "failed"))


async def read_fold(store: EventStore, plan: str, *, before: int | None = None) -> PlanFold | None:
    """The plan's fold, read from the log, without what was skipped by then; None where it has no events."""
    left_out: set[tuple[str, int]] = set()
    while True:
        fold: PlanFold | None = None
        is_whole = True
        async for record in plan_events(store, plan, before=before):
            key = (record.entity, skipped_seq(record))
            if key[1] and key not in left_out:
                left_out.add(key)
                is_whole = False  # it was folded a moment ago: once more, as soon as all such words are known
            if (record.entity, record.seq) in left_out:
                continue
            if fold is None:
                fold = PlanFold(plan, record)
            fold.apply(record)
        if is_whole:
            return fold


def is_ours(record: Recorded) -> bool:
    """Whether the event is of a plan and a task that there can be: the deciders and the database know no others."""
    return can_be(record.plan, record.entity)
