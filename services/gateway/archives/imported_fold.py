"""An imported plan as the API shows it: made by what makes every plan's views, and said to be imported.

Its events came from outside, and may say anything. So what folding them may take is bounded: looked at between events
and between views, none of which takes long by itself.
"""

from collections import Counter
from time import thread_time

import msgspec

from services.gateway.projection.imported_view import ImportedFrom
from services.gateway.projection.plan_view import PlanView
from services.gateway.projection.views import PlanFold
from shared.events import PlanDrafted, PlanExtended
from shared.history.event_file import EventFile, HistoryDamaged
from shared.spec import TASKS_MAX
from shared.store import Recorded
from shared.subjects import DRAFTS_MAX, PLAN

ADDED_MAX = TASKS_MAX
"""Tasks that extensions may have added: rounds of reviews, merges."""
ENTITIES_MAX = 1 + TASKS_MAX + 1 + ADDED_MAX + DRAFTS_MAX
ENTITY_EVENTS_MAX = 100_000
EVENT_MAX_BYTES = 8 * 1024**2
"""No log takes a larger one."""
LEFT_OUT_MAX = 1000
"""Events that may be left out by an operator's word."""
KEPT_MAX_BYTES = 256 * 1024**2
"""Of the largest events of each kind that each task has: what of them is kept in memory is at most that."""
WEIGHT_MAX_BYTES = 256 * 1024**2
"""Of a plan in memory."""
PROCESSOR_MAX_S = 60.0
"""100,000 events of a plan of 1,000 tasks take two; more, where tasks were added hundreds of times. Waiting does not
count, so a busy gateway refuses nothing that an idle one takes."""
_NOT_KEPT = ("dispatched", "readied", "started", "released")
"""Prompts are long, and the fold has no use for them."""
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
    bounds = _Bounds()
    try:
        fold = _folded(plan, events, imported, bounds)
        fold.view()
        for code in fold.board.codes:
            bounds.check_time("to show its tasks")
            fold.task(code)
    except _FAULTS as error:
        raise HistoryDamaged(f"its events don't follow from one another: {error!r}"[:500]) from error
    return fold


def _folded(plan: str, events: EventFile, imported: ImportedFrom, bounds: "_Bounds") -> ImportedFold:
    if events.words > LEFT_OUT_MAX:
        raise HistoryDamaged(f"{events.words} of its events are left out; {LEFT_OUT_MAX} are possible")
    fold: ImportedFold | None = None
    for record in events.read():
        if events.is_left_out(record.entity, record.seq, len(events)):
            continue
        bounds.check(record)
        if fold is None:
            fold = ImportedFold(plan, record, imported)
        fold.apply(record)
        if fold.board.no_order:
            raise HistoryDamaged(f"at event {record.seq} {fold.board.no_order}")
        if record.entity == PLAN and fold.weight_bytes > WEIGHT_MAX_BYTES:
            raise HistoryDamaged(f"up to event {record.seq}, the plan takes over {WEIGHT_MAX_BYTES} bytes of memory")
    if fold is None:
        raise HistoryDamaged("it holds no events")
    return fold


class _Bounds:
    """What one fold has taken."""

    def __init__(self) -> None:
        self._began_s = thread_time()
        self._added = 0
        self._counts: Counter[str] = Counter()
        self._kept: dict[tuple[str, str], int] = {}
        """By entity and type, the bytes of the largest event."""
        self._kept_bytes = 0

    def check_time(self, what: str) -> None:
        """Raises `HistoryDamaged`."""
        if thread_time() - self._began_s > PROCESSOR_MAX_S:
            raise HistoryDamaged(f"it takes more than {PROCESSOR_MAX_S:g} s of a processor's time {what}: no plan does")

    def check(self, record: Recorded) -> None:
        """Notes the event that is folded next. Raises `HistoryDamaged`."""
        self.check_time(f"to fold it up to event {record.seq}")
        event = record.event
        if isinstance(event, PlanDrafted) and len(event.spec.tasks) > TASKS_MAX:
            raise HistoryDamaged(f"event {record.seq} plans {len(event.spec.tasks)} tasks; {TASKS_MAX} are possible")
        self._added += len(event.tasks) if isinstance(event, PlanExtended) else 0
        if self._added > ADDED_MAX:
            raise HistoryDamaged(f"up to event {record.seq}, {self._added} tasks were added; {ADDED_MAX} are possible")
        self._counts[record.entity] += 1
        if self._counts[record.entity] > ENTITY_EVENTS_MAX:
            raise HistoryDamaged(f"{record.entity} has more than {ENTITY_EVENTS_MAX} events")
        if len(self._counts) > ENTITIES_MAX:
            raise HistoryDamaged(f"up to event {record.seq}, it is about more than {ENTITIES_MAX} tasks")
        self._check_size(record)

    def _check_size(self, record: Recorded) -> None:
        size = len(record.body)
        if size > EVENT_MAX_BYTES:
            raise HistoryDamaged(f"event {record.seq} is over {EVENT_MAX_BYTES} bytes")
        kind = (record.entity, record.type)
        if record.type not in _NOT_KEPT and size > (known := self._kept.get(kind, 0)):
            self._kept[kind] = size
            self._kept_bytes += size - known
            if self._kept_bytes > KEPT_MAX_BYTES:
                raise HistoryDamaged(f"up to event {record.seq}, its tasks hold over {KEPT_MAX_BYTES} bytes")
