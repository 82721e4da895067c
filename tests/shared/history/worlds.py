"""Histories to look back at: simulated plans' events, and events that nobody can read."""

from collections import defaultdict
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

import msgspec

from shared import events as e
from shared.board import Board
from shared.history import moment as moments
from shared.history.event_file import EventFile
from shared.history.moment import Facts, Moment
from shared.skipped import without_skipped
from shared.spec import DELIVER, AgentSpec, PlanSpec, TaskSpec
from shared.store import Meta, Recorded, recorded
from shared.subjects import PLAN, Address
from tests.simulation.virtual_time import run_in_virtual_time
from tests.simulation.world import World

SH = AgentSpec(sdk_type="command", command=("true",))
BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
SPEC = PlanSpec(
    name="Woven",
    tasks=(
        TaskSpec(code="A", name="First", assignee="sh"),
        TaskSpec(code="B", name="Second", assignee="sh", depends_on=("A",)),
    ),
    agents={"sh": SH},
)


@cache
def simulated(seed: int) -> dict[str, list[Recorded]]:
    """By plan, everything that happened in a simulated world."""

    async def live() -> list[Recorded]:
        world = World(seed)
        await world.live()
        return world.records()

    plans: dict[str, list[Recorded]] = defaultdict(list)
    for record in run_in_virtual_time(live()):
        plans[record.plan].append(record)
    return dict(plans)


def written(records: list[Recorded], path: Path) -> EventFile:
    """A file of them."""
    file = EventFile.create(path, records[0].plan)
    for record in records:
        file.append(record)
    return file


class Folded:
    """What comes of a plain fold of some events, without any copies."""

    def __init__(self, records: list[Recorded]) -> None:
        self.board, facts = Board(), Facts()
        for record in without_skipped(records):
            moments.apply(self.board, facts, record)
        self.moment: Moment = moments.moment(self.board, facts, records[-1])


class Story:
    """A plan that is told event by event, a second apart, in a log where other plans' events lie between."""

    def __init__(self, plan: str = "pstorystoryst") -> None:
        self.plan = plan
        self.records: list[Recorded] = []

    def tell(self, entity: str, event: e.Event) -> int:
        """The next event; its sequence."""
        return self.put(entity, event.name.partition(".")[2], e.encode(event), event.version)

    def put(self, entity: str, type_: str, body: bytes, version: int = 1) -> int:
        """The next event, whatever it is; its sequence."""
        seq = 10 * (len(self.records) + 1)
        address = Address(self.plan, entity, type_)
        meta = Meta(actor="user:ann", command="Draft", seen=seq - 10)
        self.records.append(recorded(seq, BEGAN + timedelta(seconds=seq), address, version, body, meta))
        return seq

    def finalize(self, spec: PlanSpec = SPEC) -> None:
        """All that makes a plan run."""
        self.tell(PLAN, e.PlanDrafted(candidate="1", spec=spec, repo_url="https://example.org/r.git", base_commit="b"))
        self.tell(PLAN, e.PlanFinalizing(candidate="1", digest="d", count=len(spec.tasks) + 1))
        for index, task in enumerate(spec.tasks):
            self.tell(task.code, e.TaskPlanned(digest="d", index=index, spec=task, agent=SH))
        deliver = TaskSpec(code=DELIVER, name="Make the plan's branch", assignee="", depends_on=(spec.tasks[-1].code,))
        self.tell(DELIVER, e.TaskPlanned(digest="d", index=len(spec.tasks), spec=deliver))
        self.tell(PLAN, e.PlanFinalized(digest="d"))

    def dispatch(self, code: str) -> int:
        """A dispatch of the task."""
        return self.tell(
            code,
            e.TaskDispatched(
                dispatch=1, attempt=1, prompt="Do it.", agent=SH, repo_url="https://example.org/r.git", base_commit="b",
                heads=(), plan_name="Woven", task_name=code, timeout_s=60, budget_usd=1,
            ),
        )  # fmt: skip

    def start(self, code: str) -> int:
        """A runner takes it."""
        return self.tell(code, e.TaskStarted(lease=1, runner="r1", execution="x"))

    def complete(self, code: str, cost_usd: float = 0.0) -> int:
        """And does it."""
        result = e.Result(task_code=code, summary="Done.")
        usage = e.Usage(input_tokens=7, cost_usd=cost_usd)
        return self.tell(
            code, e.TaskCompleted(lease=1, base_commit="b", commit=f"c-{code}", result=result, usage=usage)
        )


def shown(board: Board) -> dict[str, object]:
    """Everything that is in a board."""
    return vars(board)


def changed(record: Recorded, **fields: object) -> Recorded:
    """The same event, but for some fields."""
    return msgspec.structs.replace(record, **fields)
