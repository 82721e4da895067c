"""Histories that no Treadle has written, and that only somebody with bad intentions makes."""

from __future__ import annotations

from collections.abc import Iterable

from shared import events as e
from shared.spec import DELIVER, AgentSpec, PlanSpec, TaskSpec
from shared.store import Recorded
from shared.subjects import PLAN
from tests.shared.history.archives import record

AGENT = AgentSpec(sdk_type="claude")
Told = tuple[str, e.Event]


def task(code: str, *depends_on: str) -> TaskSpec:
    return TaskSpec(code=code, name=code, assignee="a", depends_on=depends_on)


def planned(spec: TaskSpec, index: int) -> Told:
    return spec.code, e.TaskPlanned(digest="d", index=index, spec=spec, agent=AGENT)


def finalized(*tasks: TaskSpec, then: Iterable[Told] = ()) -> list[Recorded]:
    """A plan of these tasks, however they hang together, and what comes after it is finalized."""
    spec = PlanSpec(name="hostile", tasks=tasks, agents={"a": AGENT})
    deliver = TaskSpec(code=DELIVER, name="d", assignee="")
    told: list[Told] = [
        (PLAN, e.PlanDrafted(candidate="1", spec=spec, repo_url="file:///r", base_commit="1" * 40, project="p")),
        (PLAN, e.PlanFinalizing(candidate="1", digest="d", count=len(tasks) + 1)),
        *(planned(one, index) for index, one in enumerate((*tasks, deliver))),
        (PLAN, e.PlanFinalized(digest="d")),
        *then,
    ]
    return [record(seq, event, entity) for seq, (entity, event) in enumerate(told, start=1)]


def circle_that_grows() -> list[Recorded]:
    """Two tasks that wait for each other, and a third one that is added."""
    new = task("N1")
    return finalized(
        task("T1", "T2"),
        task("T2", "T1"),
        then=[(PLAN, e.PlanExtended(tasks=(new,), before="", reason="r")), planned(new, 3)],
    )


def much_left_out(words: int) -> list[Recorded]:
    """One task, and words that leave out what is not there."""
    return finalized(task("T1"), then=[("T1", e.TaskSkipped(seq=2**62 + n, reason="r")) for n in range(words)])


def ever_growing(rounds: int) -> list[Recorded]:
    """A plan that is laid out anew with each of its tasks."""
    told: list[Told] = []
    for number in range(rounds):
        new = task(f"N{number}")
        told += [(PLAN, e.PlanExtended(tasks=(new,), before="T1", reason="r")), planned(new, 2 + number)]
    return finalized(task("T1"), then=told)
