"""Whatever happens to a plan, `why` has an answer at every moment, and what it says is so."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from random import Random

import msgspec
import pytest

from shared import task
from shared.board import Board
from shared.events import Usage
from shared.history.event_file import EventFile
from shared.history.history import History
from shared.history.why import Why, why, why_told
from shared.history.why_ran import leases
from shared.history.why_sentence import NoSuchTask
from shared.history.why_story import Story
from shared.plan import ENDED
from shared.skipped import take
from shared.spec import AgentSpec, PlanSpec
from shared.store import Recorded
from tests.simulation.virtual_time import run_in_virtual_time
from tests.simulation.world import World

SEEDS = [int(os.environ["TREADLE_SEED"])] if "TREADLE_SEED" in os.environ else list(range(24))
EVERY_TASK_EACH = 40
"""Events between two moments at which every task is asked about; at the others, those that changed and one more."""

BY_STATUS = {
    "readied": {"readied"},
    "queued": {"queued", "with_person"},
    "running": {"running", "with_person"},
    "awaiting_approval": {"approval"},
    "retry_wait": {"retry"},
    "needs_attention": {"needs_attention"},
    "cancelling": {"cancelling"},
    "completed": {"completed", "inherited"},
    "cancelled": {"cancelled"},
    "abandoned": {"abandoned", "reopening"},
}
PLAN_KINDS = {
    "absent": {"drafted"},
    "requested": {"requested"},
    "failed": {"failed"},
    "drafted": {"drafted"},
    "finalizing": {"finalizing"},
    "active": {"running", "needs_attention", "waits_for_people"},
    "paused": {"paused"},
    "cancelling": {"plan_cancelling"},
    "cancelled": {"plan_cancelled"},
    "completed": {"plan_completed"},
}


class Growing:
    """`why_story.Log`: the events of one plan so far."""

    def __init__(self) -> None:
        self.board = Board()
        self.records: list[Recorded] = []
        self._by_entity: defaultdict[str, list[Recorded]] = defaultdict(list)

    def add(self, record: Recorded) -> None:
        self.records.append(record)
        self._by_entity[record.entity].append(record)
        take(self.board, record)

    def of(self, entity: str) -> Iterable[Recorded]:
        return self._by_entity[entity]

    def first_seq(self, entity: str) -> int:
        return self._by_entity[entity][0].seq if self._by_entity[entity] else 0

    def story(self) -> Story:
        newest = self.records[-1]
        return Story(self.board.copy(), self, newest.seq, newest.time)


def with_money(spec: PlanSpec, rng: Random) -> PlanSpec:
    """The same plan, of agents that cost something and with a budget that may be too small."""
    agents = {**spec.agents, "sh": AgentSpec(sdk_type="claude", model="m")}
    budget_usd = rng.choice((None, 4.0, 12.0, 40.0))
    return msgspec.structs.replace(spec, agents=agents, budget_usd=budget_usd, max_parallel=rng.choice((1, 2, 8)))


@cache
def lived(seed: int) -> list[Recorded]:
    """The log of a world."""
    world = World(seed)
    if seed % 2:
        world.specs = {plan: with_money(spec, world.rng) for plan, spec in world.specs.items()}
    run_in_virtual_time(world.live())
    return world.records()


@pytest.mark.parametrize("seed", SEEDS)
def test_at_every_moment_every_sentence_is_so(seed: int) -> None:
    rng = Random(seed)  # noqa: S311 - which tasks are looked at
    logs: defaultdict[str, Growing] = defaultdict(Growing)
    for record in lived(seed):
        log = logs[record.plan]
        log.add(record)
        for code in asked_about(log, record, rng):
            try:
                check(log, code)
            except Exception as error:
                error.add_note(f"TREADLE_SEED={seed}, plan {record.plan}, task {code}, at event {record.seq}")
                raise


def asked_about(log: Growing, record: Recorded, rng: Random) -> list[str | None]:
    board = log.board
    known = [*board.tasks, *board.drafts] if board.visible else [*board.drafts]
    if len(log.records) % EVERY_TASK_EACH == 0:
        return [None, *known]
    changed = [record.entity] if record.entity in known else []
    return [*changed, *([rng.choice(known)] if known else []), *([None] if rng.random() < 0.3 else [])]


def check(log: Growing, code: str | None) -> None:
    answer = why_told(log.story(), log.records[-1].plan, code)
    seqs = {record.seq for record in log.records}
    for said in answer.sentences:
        assert said.text and "\n" not in said.text
        assert said.seqs, f"nothing says so: {said.text}"
        assert set(said.seqs) <= seqs, f"no such events: {set(said.seqs) - seqs}, for: {said.text}"
        assert list(said.seqs) == sorted(set(said.seqs))
    for root in answer.roots:
        state = log.board.tasks.get(root)
        assert state is None or not is_over(state), f"{root} is {state and state.status}, and named as a root"
        assert root in log.board.tasks or any(t.code == root for t in log.board.plan.added)
    kinds = kinds_of_plan(log.board) if code is None else kinds_of_task(log.board, code)
    assert answer.sentences[0].kind in kinds, f"{answer.sentences[0]}, not one of {kinds}"
    if code is not None:
        check_task(log, code, answer)


@pytest.mark.parametrize("seed", SEEDS)
def test_an_event_that_nobody_can_read_is_named_and_raises_nowhere(seed: int) -> None:
    rng = Random(seed)  # noqa: S311 - which event it is
    logs: defaultdict[str, Growing] = defaultdict(Growing)
    records = lived(seed)
    damaged = rng.choice(records)
    for record in records:
        log = logs[record.plan]
        unreadable = msgspec.structs.replace(record, event=None, fault="of a newer version")
        log.add(unreadable if record is damaged else record)
        if log.board.fault and record.seq - damaged.seq < 200:
            ended = log.board.plan.status in ENDED
            for code in (None, *(log.board.tasks if log.board.visible else ()), *log.board.drafts):
                answer = why_told(log.story(), record.plan, code)
                assert {seq for said in answer.sentences for seq in said.seqs} <= {r.seq for r in log.records}
                if not ended and (code is None or not is_over(log.story().state(code))):
                    assert answer.sentences[0].kind == "fault"
                    assert answer.sentences[0].seqs == (damaged.seq,)
    assert any(log.board.fault for log in logs.values())


def check_task(log: Growing, code: str, answer: Why) -> None:
    story = log.story()
    state = story.state(code)
    told = sum((lease.usage for lease in leases(story.steps(code))), Usage())
    assert msgspec.structs.astuple(told) == pytest.approx(msgspec.structs.astuple(state.usage))
    if answer.sentences[0].kind in ("waits", "reviews"):
        assert answer.roots, f"{code} waits for nothing in the end"
    if is_over(state):
        assert not answer.roots


def kinds_of_plan(board: Board) -> set[str]:
    kinds = PLAN_KINDS[board.plan.status]
    if board.plan.status != "active":
        return kinds
    return {"needs_attention": {"needs_attention"}, "waiting": {"waits_for_people"}}.get(board.standing(), {"running"})


def kinds_of_task(board: Board, code: str) -> set[str]:
    """What the first sentence may be: of its own accord, without asking what the answer asks."""
    state = board.tasks.get(code) or board.drafts[code]
    if state.status != "pending":
        return BY_STATUS[state.status]
    if code in board.drafts:
        return {"ready"}
    if board.plan.status in ("cancelling", *ENDED):
        return {"plan_cancelling"}
    assert state.spec is not None
    depends_on = [*state.spec.depends_on, *board.plan.also_before.get(code, ())]
    if code not in board.codes:
        return {"adding"}
    if any(c in board.tasks and not is_clear(board, c) for c in depends_on):
        return {"reviews" if state.is_decision else "waits"}
    if any(c not in board.tasks for c in depends_on):
        return {"adding"}
    if board.plan.status == "paused":
        return {"paused"}
    if state.is_manual or state.is_decision:
        return {"ready"}
    chosen = board.plan.chosen
    assert chosen is not None and chosen.spec.max_parallel is not None
    busy = sum(s.status in task.IN_FLIGHT and not s.is_by_hand for s in board.tasks.values())
    kinds = {"ready"} if busy < chosen.spec.max_parallel else set()
    kinds |= {"budget"} if chosen.spec.budget_usd is not None else set()
    waiting = sum(s.status in ("pending", "retry_wait") or s.reopening for s in board.tasks.values())
    return kinds | ({"slots"} if busy + waiting > chosen.spec.max_parallel else set())


def is_over(state: task.TaskState) -> bool:
    return state.status in ("completed", "cancelled") or (state.status == "abandoned" and not state.reopening)


def is_clear(board: Board, code: str) -> bool:
    state = board.tasks[code]
    if not state.satisfied or state.commit:
        return state.satisfied
    assert state.spec is not None
    return all(is_clear(board, c) for c in (*state.spec.depends_on, *board.plan.also_before.get(code, ())))


def test_a_history_on_disk_gives_the_answers_of_the_events_themselves(tmp_path: Path) -> None:
    longest = max((lived(seed) for seed in range(6)), key=len)
    logs: defaultdict[str, Growing] = defaultdict(Growing)
    said: dict[tuple[str, str | None, int], Why] = {}
    for record in longest:
        log = logs[record.plan]
        log.add(record)
        if len(log.records) % 10 == 0:
            for code in (None, *(log.board.tasks if log.board.visible else ())):
                said[record.plan, code, record.seq] = why_told(log.story(), record.plan, code)
    assert len(said) > 20
    for plan, log in logs.items():
        with EventFile.create(tmp_path / plan, plan) as file:
            for record in log.records:
                file.append(record)
            history = History(file)
            for (of, code, seq), answer in said.items():
                if of == plan:
                    assert why(history, code, seq) == answer
            with pytest.raises(NoSuchTask):
                why(history, "T99", log.records[-1].seq)
