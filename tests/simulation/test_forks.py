"""Forks of plans that had a hard life: each comes to its end, with the same invariants, while its origin goes on."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from random import Random

import pytest

from shared import commands as c
from shared import events as e
from shared.board import Board
from shared.history.fork import CantFork, ForkPlan
from shared.spec import PlanSettings, PlanSpec
from shared.transact import to_plan
from tests.shared.history.test_fork import codes, forked
from tests.simulation.invariants import History
from tests.simulation.virtual_time import run_in_virtual_time
from tests.simulation.world import PEOPLE, World


class ForkHistory(History):
    """The invariants, where a plan may begin with what others have done."""

    def __init__(self) -> None:
        super().__init__()
        self.origins: dict[str, History] = {}

    def _check_plan(self, event: e.Event) -> None:
        if not isinstance(event, e.PlanForked):  # it says nothing of the plan that is forked
            super()._check_plan(event)

    def _check_task(self, code: str, before: object, event: e.Event) -> None:
        super()._check_task(code, before, event)  # type: ignore[arg-type]  # as it is called
        if isinstance(event, e.TaskInherited):
            assert before.status == "absent"  # type: ignore[attr-defined]
            done = self.origins[event.kept.plan].tasks[code]
            assert (done.status, done.commit) == ("completed", event.kept.commit)
            if event.kept.commit:
                contents = self.origins[event.kept.plan].brought[event.kept.commit]
                self.brought.setdefault(event.kept.commit, set()).update(contents)


class ForkWorld(World):
    """Another stretch of time over the same log: what was forked begins, what is unfinished goes on."""

    def __init__(self, seed: int, before: World, forks: dict[str, ForkPlan]) -> None:
        super().__init__(seed)
        self.log = before.log
        self.forks = forks
        self.specs = {**before.specs, **{plan: made.spec for plan, made in forks.items()}}

    async def _submit(self, plan: str, spec: PlanSpec) -> None:
        if (made := self.forks.get(plan)) is None:
            return
        store = self._store()
        draft = c.Draft(
            candidate="1", spec=spec, repo_url="https://example.org/r.git", base_commit="base", fork=made.fork
        )
        with contextlib.suppress(c.Refused):  # somebody cancelled it first
            await to_plan(store, plan, draft, PEOPLE)
            settings = PlanSettings(on_conflict=self.rng.choice(("report", "agent")))
            await to_plan(store, plan, c.Finalize(candidate="1", settings=settings), PEOPLE)


def some_fork(world: World, plan: str, rng: Random) -> ForkPlan | None:
    """Of any moment, with anything changed, or only a part of it."""
    records = [record for record in world.records() if record.plan == plan]
    try:
        whole = forked(records, records[-1].seq, {})
    except (CantFork, IndexError):
        return None  # it was never finalized
    people = [code for code in (*codes(whole.kept), *codes(whole.runs)) if "merge-" not in code and "-2" not in code]
    at = rng.choice([records[-1].seq, rng.choice(records).seq])
    changed = {code: "changed" for code in people if rng.random() < rng.choice((0.0, 0.3))}
    only = rng.choice((None, None, [rng.choice([t.code for t in world.specs[plan].tasks])]))
    return forked(records, at, changed, only)


async def live_and_fork(seed: int) -> tuple[int, int]:
    """How many forks ran, and how many of their tasks were inherited."""
    rng = Random(seed)  # noqa: S311 - to be seen again
    first = World(seed)
    await first.live()
    forks = {f"pfork{plan[1] * 8}": made for plan in first.specs if (made := some_fork(first, plan, rng)) is not None}
    second = ForkWorld(seed + 10_000, first, forks)
    await second.live()
    histories: defaultdict[str, ForkHistory] = defaultdict(ForkHistory)
    boards: defaultdict[str, Board] = defaultdict(Board)
    for record in second.records():
        assert record.event is not None
        histories[record.plan].origins = dict(histories)
        histories[record.plan].add(record)
        boards[record.plan].apply(record.entity, record.event, record.seq)
    for plan, made in forks.items():
        assert not histories[plan].unexplained(), f"fork {plan} rests with {histories[plan].unexplained()}"
        if not histories[plan].finalized:
            continue
        told = [one.plan for one in histories[made.fork.plan].plan.forks]
        assert told == [plan], "its origin was not told of it, or twice"
        inherited = {code: state.inherited for code, state in histories[plan].tasks.items() if state.inherited}
        assert inherited == {one.task: one.plan for one in made.kept}
        assert all(not histories[plan].tasks[code].lease for code in inherited), "what was done is done again"
    return sum(histories[plan].finalized for plan in forks), sum(len(made.kept) for made in forks.values())


@pytest.mark.parametrize("first", range(0, 60, 10))
def test_forks_keep_the_invariants_and_come_to_rest(first: int) -> None:
    ran = inherited = 0
    for seed in range(first, first + 10):
        try:
            of_this = run_in_virtual_time(live_and_fork(seed))
        except Exception as error:
            error.add_note(f"seed {seed}")
            raise
        ran, inherited = ran + of_this[0], inherited + of_this[1]
    assert ran > 1 and inherited > 1, "nothing was forked: the test shows nothing"
