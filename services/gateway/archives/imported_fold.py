"""An imported plan as the API shows it: made by what makes every plan's views, and said to be imported."""

from collections import Counter

import msgspec

from services.gateway.projection.imported_view import ImportedFrom
from services.gateway.projection.plan_view import PlanView
from services.gateway.projection.views import PlanFold
from shared.events import PlanDrafted, PlanExtended
from shared.history.event_file import EventFile, HistoryDamaged
from shared.skipped import skipped_seq
from shared.spec import TASKS_MAX
from shared.store import Recorded
from shared.subjects import PLAN

ADDED_MAX = TASKS_MAX
"""Tasks that extensions may have added: rounds of reviews, merges."""
ENTITY_EVENTS_MAX = 100_000
WEIGHT_MAX_BYTES = 256 * 1024**2
"""Of a plan in memory."""
_FAULTS = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)
"""What folding a history can raise that no decider has made: it came from outside, and may say anything."""


class ImportedFold(PlanFold):
    """Its fold. It never changes."""

    def __init__(self, plan: str, first: Recorded, imported: ImportedFrom) -> None:
        super().__init__(plan, first)
        self.imported = imported

    @property
    def is_busy(self) -> bool:
        return False

    @property
    def is_due(self) -> bool:
        return False

    def view(self) -> PlanView:
        """See `PlanFold.view`."""
        branch = f"treadle/{self.imported.plan}"
        return msgspec.structs.replace(super().view(), branch=branch, imported=self.imported)


def fold_of(plan: str, events: EventFile, imported: ImportedFrom) -> ImportedFold:
    """The fold of all its events. Every view of it can be made. Raises `HistoryDamaged`; takes long: in a thread."""
    try:
        fold = _folded(plan, events, imported)
        fold.view()
        for code in fold.board.codes:
            fold.task(code)
    except _FAULTS as error:
        raise HistoryDamaged(f"its events don't follow from one another: {error!r}"[:500]) from error
    return fold


def _folded(plan: str, events: EventFile, imported: ImportedFrom) -> ImportedFold:
    left_out = {(record.entity, seq) for record in events.read() if (seq := skipped_seq(record))}
    fold: ImportedFold | None = None
    added = 0
    counts: Counter[str] = Counter()
    for record in events.read():
        if (record.entity, record.seq) in left_out:
            continue
        event = record.event
        if isinstance(event, PlanDrafted) and len(event.spec.tasks) > TASKS_MAX:
            raise HistoryDamaged(f"event {record.seq} plans {len(event.spec.tasks)} tasks; {TASKS_MAX} are possible")
        added += len(event.tasks) if isinstance(event, PlanExtended) else 0
        if added > ADDED_MAX:
            raise HistoryDamaged(f"up to event {record.seq}, {added} tasks were added; {ADDED_MAX} are possible")
        counts[record.entity] += 1
        if counts[record.entity] > ENTITY_EVENTS_MAX:
            raise HistoryDamaged(f"{record.entity} has more than {ENTITY_EVENTS_MAX} events")
        if fold is None:
            fold = ImportedFold(plan, record, imported)
        fold.apply(record)
        if record.entity == PLAN and fold.weight_bytes > WEIGHT_MAX_BYTES:
            raise HistoryDamaged(f"up to event {record.seq}, the plan takes over {WEIGHT_MAX_BYTES} bytes of memory")
    if fold is None:
        raise HistoryDamaged("it holds no events")
    return fold
