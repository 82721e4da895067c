"""What is waited for in collaboration repositories: a fold of the log, and of nothing else.

Pure. Of a log of any length it keeps what waits now: the tasks that are in people's hands, or whose result would still
be welcome, and the plans that were asked for by hand.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import Literal, NamedTuple

import msgspec

from shared import events as e
from shared.spec import POLL_INTERVAL_S, ResultPlace
from shared.subjects import MANUAL_POOL, PLAN, pool, pool_filter, type_filter

FILTERS = (
    pool_filter(MANUAL_POOL),
    *(
        type_filter(type_)
        for type_ in (
            *("readied", "started", "released", "completed", "failed", "cancelled", "cancel_requested"),
            *("marked_complete", "abandoned", "redispatch_requested", "watch_failed", "watch_restored"),
            *("requested", "finalizing"),  # of plans, as `failed`, `cancelled` and `cancel_requested` are too
        )
    ),
)
"""What of the log this fold follows. Not `drafted`, which can be megabytes: `services.runner.watch.watcher` asks for
those of the few plans that it waits for."""
EVERYBODYS = frozenset({"dispatched", "requested"})
"""The types with which something begins to be waited for; all others matter only where something is."""


class Repository(NamedTuple):
    """A collaboration repository, as one project reaches it."""

    project: str
    repo_url: str


class Waiting(msgspec.Struct, frozen=True, kw_only=True):
    """A manual task whose result is looked for."""

    plan: str
    task: str
    seq: int
    """Of its dispatch."""
    status: Literal["handed_out", "running", "late"]
    """`late`: it needs attention, but a result would complete it."""
    dispatch: e.TaskDispatched
    """Without its prompt."""
    place: ResultPlace
    lease: int = 0
    invalid: str = ""
    """Object id of what was looked at last and was no result."""
    fault_since: datetime | None = None
    """Set while the log says that nobody can look."""

    @property
    def repository(self) -> Repository:
        return Repository(self.dispatch.project, self.place.repo_url)

    @property
    def usage_path(self) -> str:
        """Of what may lie beside the result."""
        return self.place.path.removesuffix("result.json") + "usage.json"

    def is_new(self, blob: str) -> bool:
        """Whether what lies at the place was put there since, and not looked at yet."""
        return blob not in ("", self.place.blob, self.invalid)


class PlanFile(msgspec.Struct, frozen=True, kw_only=True):
    """A plan that was asked for by hand, and is not there yet."""

    plan: str
    candidate: str
    seq: int
    """The newest event of the plan's that this is folded from."""
    repository: Repository
    path: str
    poll_interval_s: float
    blob: str = ""
    """Object id of what was looked at last and was no plan."""


class Watched:
    """The fold."""

    def __init__(self) -> None:
        self._tasks: dict[tuple[str, str], Waiting] = {}
        self._plans: dict[str, PlanFile] = {}
        self._of: dict[Repository, dict[tuple[str, str], Waiting | PlanFile]] = {}
        self._handed_out: dict[tuple[str, str], Waiting] = {}

    # Folding ------------------------------------------------------------------------------------------------------

    def concerns(self, plan: str, entity: str, type_: str) -> bool:
        """Whether an event of that subject may change anything."""
        if type_ in EVERYBODYS:
            return True
        return plan in self._plans if entity == PLAN else (plan, entity) in self._tasks

    def apply(self, plan: str, entity: str, event: e.Event, seq: int) -> None:
        """Folds the next event; one of a plan's that was folded before changes nothing."""
        if entity == PLAN:
            if plan in self._plans and seq <= self._plans[plan].seq:
                return
            self._put((plan, PLAN), _plan_after(self._plans.get(plan), plan, event, seq))
        else:
            self._put((plan, entity), _task_after(self._tasks.get((plan, entity)), plan, entity, event, seq))

    def _put(self, key: tuple[str, str], now: Waiting | PlanFile | None) -> None:
        before = self._plans.get(key[0]) if key[1] == PLAN else self._tasks.get(key)
        if before is not None:
            others = self._of[before.repository]
            del others[key]
            if not others:
                del self._of[before.repository]
        self._handed_out.pop(key, None)
        if isinstance(now, Waiting) and now.status == "handed_out":
            self._handed_out[key] = now
        if now is not None:
            self._of.setdefault(now.repository, {})[key] = now
        if isinstance(now, Waiting):
            self._tasks[key] = now
        elif isinstance(now, PlanFile):
            self._plans[key[0]] = now
        elif key[1] == PLAN:
            self._plans.pop(key[0], None)
        else:
            self._tasks.pop(key, None)

    # Asking -------------------------------------------------------------------------------------------------------

    @property
    def repositories(self) -> Collection[Repository]:
        """Those in which something is waited for."""
        return self._of.keys()

    def tasks(self, repository: Repository) -> list[Waiting]:
        """Whose result is looked for there."""
        return [one for one in self._of.get(repository, {}).values() if isinstance(one, Waiting)]

    def plan_files(self, repository: Repository) -> list[PlanFile]:
        """The plans that are looked for there."""
        return [one for one in self._of.get(repository, {}).values() if isinstance(one, PlanFile)]

    def task(self, plan: str, task: str) -> Waiting | None:
        """The task as it waits now."""
        return self._tasks.get((plan, task))

    def handed_out(self) -> list[Waiting]:
        """The tasks that their person has begun, and that do not run yet."""
        return list(self._handed_out.values())

    def poll_interval_s(self, repository: Repository) -> float:
        """Between two looks: the shortest that anybody wants who waits there."""
        found = (
            one.place.poll_interval_s if isinstance(one, Waiting) else one.poll_interval_s
            for one in self._of.get(repository, {}).values()
        )
        return min(found, default=POLL_INTERVAL_S)


def _task_after(waiting: Waiting | None, plan: str, task: str, event: e.Event, seq: int) -> Waiting | None:
    if isinstance(event, e.TaskDispatched):
        if event.place is None or pool(event) != MANUAL_POOL:
            return None
        dispatch = msgspec.structs.replace(event, prompt="")
        return Waiting(plan=plan, task=task, seq=seq, status="handed_out", dispatch=dispatch, place=event.place)
    if waiting is None:
        return None
    match event:
        case e.TaskStarted():
            return msgspec.structs.replace(waiting, status="running", lease=event.lease)
        case e.TaskFailed(kind="cancelled"):
            return None
        case e.TaskFailed() if event.retry_at is None and waiting.lease:
            return msgspec.structs.replace(waiting, status="late", invalid=event.blob or waiting.invalid)
        case e.TaskWatchFailed():
            return msgspec.structs.replace(waiting, fault_since=event.since)
        case e.TaskWatchRestored():
            return msgspec.structs.replace(waiting, fault_since=None)
        case _:
            # It ended, was given up or is to begin anew: what is delivered now is nobody's any more.
            return None


def _plan_after(file: PlanFile | None, plan: str, event: e.Event, seq: int) -> PlanFile | None:
    match event:
        case e.PlanRequested() if event.by_hand and event.candidates:
            repository = Repository(event.project, event.collab.repo_url or event.repo_url)
            return PlanFile(
                plan=plan,
                candidate=event.candidates[0],
                seq=seq,
                repository=repository,
                path=event.collab.plan_path(plan),
                poll_interval_s=event.collab.poll_interval_s,
            )
        case e.PlanFailed() if file is not None and event.candidate == file.candidate:
            return msgspec.structs.replace(file, seq=seq, blob=event.origin.blob or file.blob)
        case e.PlanDrafted() if file is not None and event.candidate == file.candidate:
            return None
        case e.PlanFinalizing() | e.PlanCancelRequested() | e.PlanCancelled():
            return None
    return file and msgspec.structs.replace(file, seq=seq)
