"""A small plan's history with known sequences and times, and larger ones, as `.treadle` files."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from shared import events as e
from shared.board import in_order
from shared.history.archive import ArchiveWriter
from shared.history.archive_format import EVENTS, About
from shared.history.event_file import EventFile
from shared.spec import DELIVER, AgentSpec, PlanSpec, TaskSpec
from shared.store import Meta, Recorded, recorded
from shared.subjects import PLAN, Address

PLAN_ID = "p" + "r" * 12
BEGAN = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
SH = AgentSpec(sdk_type="command", command=("true",))
HOSTILE = "\x1b]0;owned\x07\x1b[31mred\u202egnihtemos\x9b1m"


class Story:
    """Events after each other; sequences rise by ten, as those of other plans lie between them."""

    def __init__(self, plan: str = PLAN_ID) -> None:
        self.plan = plan
        self.records: list[Recorded] = []
        self.time = BEGAN

    def tell(self, entity: str, event: e.Event, after_s: float = 1.0) -> int:
        """The event's sequence."""
        self.time += timedelta(seconds=after_s)
        seq = 10 * (len(self.records) + 1)
        address = Address(self.plan, entity, event.name.partition(".")[2])
        meta = Meta(actor="user:ann")
        self.records.append(recorded(seq, self.time, address, event.version, e.encode(event), meta))
        return seq

    def finalized(self, spec: PlanSpec) -> None:
        self.tell(PLAN, e.PlanDrafted(candidate="1", spec=spec, repo_url="https://example.org/r.git", base_commit="ba"))
        ordered = in_order(spec)
        self.tell(PLAN, e.PlanFinalizing(candidate="1", digest="d", count=len(ordered)))
        for index, task in enumerate(ordered):
            agent = None if task.code == DELIVER else SH
            self.tell(task.code, e.TaskPlanned(digest="d", index=index, spec=task, agent=agent), 0.01)
        self.tell(PLAN, e.PlanFinalized(digest="d"))

    def dispatched(self, code: str, attempt: int = 1) -> int:
        return self.tell(
            code,
            e.TaskDispatched(
                dispatch=attempt, attempt=attempt, prompt="p", agent=SH, repo_url="r", base_commit="ba", heads=(),
                plan_name="n", task_name=code, timeout_s=60.0, budget_usd=2.0,
            ),
        )  # fmt: skip

    def started(self, code: str, lease: int = 1, runner: str = "r1") -> int:
        return self.tell(code, e.TaskStarted(lease=lease, runner=runner, execution=f"x{lease}"), 5.0)

    def completed(self, code: str, lease: int = 1, cost_usd: float = 0.0) -> int:
        return self.tell(
            code,
            e.TaskCompleted(
                lease=lease, base_commit="ba", commit=f"c{code}",
                result=e.Result(task_code=code, summary=f"did {code}"),
                usage=e.Usage(input_tokens=100, cost_usd=cost_usd),
            ),
            30.0,
        )  # fmt: skip

    def failed(self, code: str, lease: int, *, retries: bool = False) -> int:
        at = self.time + timedelta(seconds=60) if retries else None
        return self.tell(
            code, e.TaskFailed(lease=lease, kind="agent_error", message=f"broke {HOSTILE}", retry_at=at), 10.0
        )


def story() -> Story:
    """T1 is done; behind it T2 is done too, and T3 failed twice. Sequences: see the tests."""
    told = Story()
    tasks = (
        TaskSpec(code="T1", name="First", assignee="sh"),
        TaskSpec(code="T2", name="Second", assignee="sh", depends_on=("T1",)),
        TaskSpec(code="T3", name="Third", assignee="sh", depends_on=("T1",)),
    )
    told.finalized(PlanSpec(name=f"Woven {HOSTILE}", tasks=tasks, agents={"sh": SH}, budget_usd=9.0))
    told.dispatched("T1")  # 80
    told.started("T1")  # 90
    told.completed("T1", cost_usd=1.5)  # 100
    told.dispatched("T2")  # 110
    told.dispatched("T3")  # 120
    told.started("T2")  # 130
    told.started("T3", runner="r2")  # 140
    told.failed("T3", 1, retries=True)  # 150
    told.completed("T2", cost_usd=1.25)  # 160
    told.dispatched("T3", 2)  # 170
    told.started("T3", 2, runner=f"r{HOSTILE}")  # 180
    told.failed("T3", 2)  # 190
    told.tell(PLAN, e.PlanPaused(reason="a look"), 7_200.0)  # 200
    return told


def wide(count: int) -> Story:
    """One task, then `count` others that all wait for it, of which some run."""
    told = Story()
    first = TaskSpec(code="T0", name="First", assignee="sh")
    others = (TaskSpec(code=f"T{i}", name="x", assignee="sh", depends_on=("T0",)) for i in range(1, count + 1))
    told.finalized(PlanSpec(name="Wide", tasks=(first, *others), agents={"sh": SH}))
    told.dispatched("T0")
    told.started("T0")
    told.completed("T0")
    for code in ("T7", "T500", "T900"):
        told.dispatched(code)
        told.started(code)
    told.failed("T500", 1)
    return told


def archive(records: Iterable[Recorded], directory: Path, plan: str = PLAN_ID) -> Path:
    """The events as `treadle export` would write them."""
    lines = directory / "events.jsonl"
    with EventFile.create(lines, plan) as file:
        for record in records:
            file.append(record)
    path = directory / "plan.treadle"
    writer = ArchiveWriter(About(plan=plan, treadle="0.1.0", exported_at=BEGAN, parts="events"))
    writer.add(EVENTS, lines.read_bytes())
    writer.close()
    path.write_bytes(writer.taken())
    lines.unlink()
    return path
