"""Histories that say just what a test is about: events after each other, as the deciders would write them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from shared import events as e
from shared.board import Board, in_order
from shared.history.why import Why, why_told
from shared.history.why_sentence import Kind, Sentence
from shared.history.why_story import Story
from shared.skipped import take
from shared.spec import AgentSpec, PlanSettings, PlanSpec, ResultPlace, TaskSpec
from shared.store import Meta, Recorded, recorded
from shared.subjects import PLAN, Address

PLAN_ID = "ptoldtoldtold"
BEGAN = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
CLAUDE = AgentSpec(sdk_type="claude", model="m")
SH = AgentSpec(sdk_type="command", command=("true",))
PERSON = AgentSpec(sdk_type=None)
PLACE = ResultPlace(repo_url="https://example.org/r.git", path="treadle/p/T1/result.json")


def task(code: str, *depends_on: str, **fields: Any) -> TaskSpec:
    return TaskSpec(**{"code": code, "name": code, "assignee": "claude", "depends_on": depends_on, **fields})


class Told:
    """One plan's history, event by event; also what `why_story.Log` wants. Sequences rise by ten."""

    def __init__(self) -> None:
        self.records: list[Recorded] = []
        self.time = BEGAN
        self._leases: dict[str, int] = {}
        self._dispatches: dict[str, int] = {}
        self._attempts: dict[str, int] = {}

    def tell(self, entity: str, event: e.Event, actor: str = "user:ann", after_s: float = 1.0) -> int:
        """Adds an event; its sequence."""
        self.time += timedelta(seconds=after_s)
        seq = 10 * (len(self.records) + 1)
        address = Address(PLAN_ID, entity, event.name.partition(".")[2])
        self.records.append(
            recorded(seq, self.time, address, event.version, e.encode(event), Meta(actor=actor))
        )  # fmt: skip
        return seq

    def unreadable(self, entity: str) -> int:
        """An event of a newer version."""
        seq = self.tell(entity, e.TaskApprovalUsed(approval="a", lease=1))
        self.records[-1] = msgspec.structs.replace(
            self.records[-1], event=None, fault="version 9 is unknown", version=9
        )
        return seq

    def finalized(
        self,
        *tasks: TaskSpec,
        agents: dict[str, AgentSpec] | None = None,
        settings: PlanSettings | None = None,
        **plan: Any,
    ) -> int:
        """A plan that runs."""
        known = {"claude": CLAUDE, "sh": SH, "ann": PERSON, **(agents or {})}
        fork = plan.pop("fork", None)
        spec = PlanSpec(name="told", tasks=tasks, agents=known, **plan)
        drafted = e.PlanDrafted(candidate="1", spec=spec, repo_url="https://example.org/r.git", base_commit="b" * 40)
        self.tell(PLAN, msgspec.structs.replace(drafted, fork=fork))
        ordered = in_order(spec)
        settings = settings or PlanSettings()
        self.tell(PLAN, e.PlanFinalizing(candidate="1", digest="d", count=len(ordered), settings=settings))
        kept = {one.task: one for one in fork.kept} if fork else {}
        for index, one in enumerate(ordered):
            fields: dict[str, Any] = {"digest": "d", "index": index, "spec": one, "agent": known.get(one.assignee)}
            if one.code in kept:
                self.tell(one.code, e.TaskInherited(kept=kept[one.code], **fields), "dispatcher")
            else:
                self.tell(one.code, e.TaskPlanned(**fields), "dispatcher")
        return self.tell(PLAN, e.PlanFinalized(digest="d"), "dispatcher")

    def dispatched(self, code: str, *, again: bool = False, agent: AgentSpec = CLAUDE, **fields: Any) -> int:
        """`again`: the attempt that was handed back goes on."""
        self._dispatches[code] = self._dispatches.get(code, 0) + 1
        self._attempts[code] = self._attempts.get(code, 0) + (not again)
        heads = self.board().heads(code)
        event = e.TaskDispatched(
            dispatch=self._dispatches[code], attempt=self._attempts[code], prompt="p", agent=agent, repo_url="r",
            base_commit="b" * 40, plan_name="n", task_name=code, timeout_s=60.0, budget_usd=5.0,
            **{"heads": heads, **fields},
        )  # fmt: skip
        return self.tell(code, event, "dispatcher")

    def started(self, code: str, runner: str = "r1", after_s: float = 1.0, **fields: Any) -> int:
        lease = self._leases[code] = self._leases.get(code, 0) + 1
        event = e.TaskStarted(lease=lease, runner=runner, execution=f"{runner}-{lease}", **fields)
        return self.tell(code, event, f"runner:{runner}", after_s)

    def completed(self, code: str, cost_usd: float = 0.0, commit: str = "", runner: str = "r1") -> int:
        event = e.TaskCompleted(
            lease=self._leases[code], base_commit="f" * 40, commit=commit or f"{code}-commit",
            result=e.Result(task_code=code, summary="did it"), usage=e.Usage(input_tokens=7, cost_usd=cost_usd),
        )  # fmt: skip
        return self.tell(code, event, f"runner:{runner}", 30.0)

    def failed(self, code: str, kind: e.FailureKind = "agent_error", runner: str = "r1", **fields: Any) -> int:
        event = e.TaskFailed(**{"lease": self._leases[code], "kind": kind, "message": "it broke", **fields})
        return self.tell(code, event, f"runner:{runner}", 10.0)

    def done(self, code: str, cost_usd: float = 0.0) -> int:
        """Dispatched, started, completed."""
        self.dispatched(code)
        self.started(code)
        return self.completed(code, cost_usd)

    # Asking -------------------------------------------------------------------------------------------------------

    def board(self) -> Board:
        """As `shared.history.history` folds it: without what was left out."""
        left_out = {(r.entity, r.event.seq) for r in self.records if isinstance(r.event, e.TaskSkipped | e.PlanSkipped)}
        board = Board()
        for record in self.records:
            if (record.entity, record.seq) not in left_out:
                take(board, record)
        return board

    def of(self, entity: str) -> Iterable[Recorded]:
        by_entity: defaultdict[str, list[Recorded]] = defaultdict(list)
        for record in self.records:
            by_entity[record.entity].append(record)
        return by_entity[entity]

    def first_seq(self, entity: str) -> int:
        return next((r.seq for r in self.of(entity)), 0)

    def why(self, code: str | None = None) -> Why:
        newest = self.records[-1]
        return why_told(Story(self.board(), self, newest.seq, newest.time), PLAN_ID, code)

    def said(self, code: str | None, kind: Kind) -> Sentence:
        """The one sentence of that kind."""
        [found] = [one for one in self.why(code).sentences if one.kind == kind]
        return found
