"""When a task ended, by whichever event it did: what counts its time stops there."""

from __future__ import annotations

from datetime import timedelta

import pytest

from services.gateway.projection.views import PlanFold
from shared import commands as c
from shared.clock import utc_now
from shared.events import TaskReadied
from shared.store import MemoryStore
from shared.transact import load_task, to_task
from tests.gateway.projection.histories import ANN, spec_of, submit
from tests.shared.strategies import PERSON

WORDS: dict[str, c.TaskCommand] = {
    "abandoned": c.Abandon(note="no"),
    "marked_complete": c.MarkComplete(note="done"),
    "cancel_requested": c.CancelTask(phase="open"),
}


async def with_its_person() -> tuple[MemoryStore, str]:
    """A plan whose task A has begun, and is a person's."""
    store = MemoryStore()
    plan = await submit(store, spec_of({"A": ()}))
    spec = (await load_task(store, plan, "A")).state.spec
    assert spec is not None
    await to_task(store, plan, "A", c.Edit(spec=spec, agent=PERSON), ANN)
    ready = c.Ready(
        now=utc_now(), revision=1, prompt="p", agent=PERSON, base_commit="0" * 40, heads=(), abandoned=()
    )  # fmt: skip
    await to_task(store, plan, "A", ready, ANN)
    readied = next(record.event for _, record in store._log if record.type == "readied")
    assert isinstance(readied, TaskReadied)
    hand_out = c.HandOut(phase="open", readied=readied, project="", repo_url="u", plan_name="n")
    await to_task(store, plan, "A", hand_out, ANN)
    deadline = utc_now() + timedelta(hours=1)
    start = c.Start(phase="open", dispatch=readied.dispatch, runner="watch", execution="manual-1", deadline=deadline)
    await to_task(store, plan, "A", start, ANN)
    return store, plan


def folded(store: MemoryStore, plan: str) -> PlanFold:
    records = [record for _, record in store._log]
    fold = PlanFold(plan, records[0])
    for record in records:
        fold.apply(record)
    return fold


@pytest.mark.parametrize("type_", WORDS)
async def test_a_begun_task_ends_with_the_word_that_its_person_says(type_: str) -> None:
    store, plan = await with_its_person()
    begun = folded(store, plan).task("A")
    assert begun.started_at is not None and begun.ended_at is None
    await to_task(store, plan, "A", WORDS[type_], ANN)
    last = store._log[-1][1]
    assert last.type == type_ and folded(store, plan).task("A").ended_at == last.time


async def test_what_has_ended_keeps_its_time_when_it_is_given_up_later() -> None:
    store, plan = await with_its_person()
    await to_task(store, plan, "A", WORDS["cancel_requested"], ANN)
    ended = store._log[-1][1].time
    await to_task(store, plan, "A", WORDS["abandoned"], ANN)
    assert folded(store, plan).task("A").ended_at == ended
