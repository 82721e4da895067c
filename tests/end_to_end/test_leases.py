"""Runners that die or sleep at the wrong time, on a bus that redelivers after seconds instead of a minute.

The consumers are made beforehand with a short `ack_wait`; the dispatcher and the runners are processes of their own.
"""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shared import commands as c
from shared.streams import EVENTS, pool_consumer_name
from shared.subjects import PLAN
from shared.transact import to_plan
from tests.end_to_end.plans import Gate, git, lease_processes, plan, task
from tests.end_to_end.runner_bench import DEADLINE_S, META, Bench, open_bench, reached
from tests.nats_process import NatsServer


@pytest.fixture
async def bench(tmp_path: Path, repo: Path, own_nats: NatsServer) -> AsyncIterator[Bench]:
    async with open_bench(tmp_path, repo, own_nats) as made:
        yield made


def by_lease(lives: Path, gate: Gate, first: str = "", later: str = "") -> str:
    """A script that notes its lease; lease 1 waits for the gate, every later one goes through."""
    first_words = f"{gate.wait}; {first}" if first else gate.wait
    return (
        f'lease=${{TREADLE_LEASE##*/}}; echo "$lease" >> {lives}\n'
        f'if [ "$lease" = 1 ]; then {first_words}; else true; {later}\nfi; echo "$lease" > lease.txt'
    )


async def test_a_task_of_a_runner_that_is_gone_for_good_goes_to_another_one(
    bench: Bench, repo: Path, tmp_path: Path, gate: Gate
) -> None:
    lives = tmp_path / "lives"
    first = bench.runner("first")
    made = await bench.submit(plan(task("T1", by_lease(lives, gate))))
    await reached(lives.exists, "the agent works")
    bench.runner("second")
    first.kill()
    completed = await bench.event(made, "completed", "T1")
    assert completed.event is not None and getattr(completed.event, "lease", 0) == 2
    started = await bench.event(made, "started", "T1", 2)
    assert (getattr(started.event, "runner", ""), getattr(started.event, "supersedes", 0)) == ("second", 1)
    await bench.event(made, "completed", PLAN)
    assert git(repo, "show", f"treadle/{made}:lease.txt") == "2"
    await reached(lambda: lease_processes(made) == [], "the dead runner's agent is gone")


async def test_a_runner_that_wakes_up_past_its_lease_kills_its_work_and_says_nothing_more(
    bench: Bench, repo: Path, tmp_path: Path, gate: Gate
) -> None:
    lives = tmp_path / "lives"
    sleeper = bench.runner("sleeper")
    made = await bench.submit(plan(task("T1", by_lease(lives, gate))))
    await reached(lives.exists, "the agent works")
    sleeper.send_signal(signal.SIGSTOP)
    second = bench.runner("second")
    await bench.event(made, "completed", "T1")
    await bench.event(made, "completed", PLAN)
    await bench.nothing_pending()
    assert lease_processes(made) != []  # the sleeper's agent does not know yet

    heard = await bench.acknowledgements()
    second.terminate()
    second.wait(DEADLINE_S)
    sleeper.send_signal(signal.SIGCONT)
    await reached(lambda: lease_processes(made) == [], "the woken runner kills its work")
    # Its slot is free again: it takes another task, and speaks of that one only.
    other = await bench.submit(plan(task("T1", "echo y > y.txt")))
    await bench.event(other, "completed", PLAN)
    await bench.nothing_pending()
    first_deliveries = {1, 2}
    assert heard and not first_deliveries & set(heard), heard
    assert await bench.types(made, "T1") == ["planned", "dispatched", "started", "started", "completed"]
    assert git(repo, "show", f"treadle/{made}:lease.txt") == "2"


async def test_the_late_result_of_a_runner_that_slept_past_its_lease_is_refused(
    bench: Bench, repo: Path, tmp_path: Path, gate: Gate
) -> None:
    lives, finished = tmp_path / "lives", tmp_path / "finished"
    # Its agent finishes while it sleeps, and no heartbeat comes before it reports: the log alone refuses it.
    sleeper = bench.runner("sleeper", heartbeat_s=1000)
    made = await bench.submit(plan(task("T1", by_lease(lives, gate, first=f"touch {finished}; echo 1 > lease.txt"))))
    await reached(lives.exists, "the agent works")
    sleeper.send_signal(signal.SIGSTOP)
    gate.open()
    await reached(finished.exists, "the agent has finished")
    second = bench.runner("second")
    await bench.event(made, "completed", PLAN)
    await bench.nothing_pending()
    heard = await bench.acknowledgements()
    second.terminate()
    second.wait(DEADLINE_S)
    sleeper.send_signal(signal.SIGCONT)
    other = await bench.submit(plan(task("T1", "echo y > y.txt")))
    await bench.event(other, "completed", PLAN)
    assert not {1, 2} & set(heard), heard
    completed = [r.event for r in await bench.store.read(made, "T1") if r.type == "completed"]
    assert [getattr(event, "lease", 0) for event in completed] == [2]
    commit = getattr(completed[0], "commit", "")
    assert git(repo, "rev-parse", f"refs/treadle/{made}/T1/head") == commit
    assert git(repo, "show", f"treadle/{made}:lease.txt") == "2"


async def test_a_live_holder_keeps_its_lease_however_often_the_message_is_redelivered(
    bench: Bench, tmp_path: Path, gate: Gate
) -> None:
    lives = tmp_path / "lives"
    # It never says that it is alive, so the server hands the message out again and again.
    bench.runner("holder", heartbeat_s=1000)
    made = await bench.submit(plan(task("T1", by_lease(lives, gate))))
    await reached(lives.exists, "the agent works")
    bench.runner("other")

    async def delivered_often() -> bool:
        info = await bench.nc.jetstream().consumer_info(EVENTS, pool_consumer_name("command"))
        return info.delivered is not None and info.delivered.consumer_seq >= 4

    await reached(delivered_often, "the message is delivered four times")
    gate.open()
    await bench.event(made, "completed", PLAN)
    await bench.nothing_pending()
    assert await bench.types(made, "T1") == ["planned", "dispatched", "started", "completed"]
    assert lives.read_text().split() == ["1"]


@pytest.mark.parametrize("where", ["taking", "executing"])
async def test_a_runner_that_comes_back_gives_back_at_once_whatever_it_had_in_its_hands(
    bench: Bench, where: str
) -> None:
    await bench.set_ack_wait(60)  # so that no redelivery helps
    dies = bench.runner("dies", TEST_DIES=where)
    made = await bench.submit(plan(task("T1", "echo x > x.txt")))
    await reached(lambda: dies.poll() == -signal.SIGKILL, "the runner has killed itself")
    bench.runner("dies")
    await bench.event(made, "completed", PLAN)
    told = await bench.types(made, "T1")
    assert told == [
        "planned", "dispatched", *(["started"] if where == "executing" else []),
        "released", "dispatched", "started", "completed",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["dies", "another"])
async def test_a_crash_between_completed_and_the_move_of_the_head_ref_is_made_good(
    bench: Bench, repo: Path, name: str
) -> None:
    dies = bench.runner("dies", TEST_DIES="settling")
    made = await bench.submit(plan(task("T1", "echo x > x.txt"), task("T2", "cat x.txt > y.txt", "T1")))
    completed = await bench.event(made, "completed", "T1")
    commit = getattr(completed.event, "commit", "")
    await reached(lambda: dies.poll() == -signal.SIGKILL, "the runner has killed itself")
    assert git(repo, "for-each-ref", f"refs/treadle/{made}/T1/head") == ""
    bench.runner(name)
    # The successor needs the commit only; the head ref follows with the redelivery.
    await bench.event(made, "completed", PLAN)
    await bench.nothing_pending()
    assert git(repo, "rev-parse", f"refs/treadle/{made}/T1/head") == commit
    assert await bench.types(made, "T1") == ["planned", "dispatched", "started", "completed"]


async def test_a_task_that_loses_too_many_runners_needs_a_person(bench: Bench, tmp_path: Path, gate: Gate) -> None:
    lives = tmp_path / "lives"
    first = bench.runner("first")
    made = await bench.submit(plan(task("T1", by_lease(lives, gate), retry={"max_attempts": 1})))
    await reached(lambda: lives.exists() and lives.read_text().split() == ["1"], "the agent works")
    first.kill()
    bench.runner("second")
    failed = await bench.event(made, "failed", "T1")
    assert getattr(failed.event, "kind", "") == "runner_lost"
    assert "first" in getattr(failed.event, "message", "")
    assert lives.read_text().split() == ["1"]


async def test_a_plan_that_is_cancelled_while_its_runner_is_gone_ends_all_the_same(
    bench: Bench, tmp_path: Path, gate: Gate
) -> None:
    lives = tmp_path / "lives"
    first = bench.runner("first")
    made = await bench.submit(plan(task("T1", by_lease(lives, gate)), task("T2", "true", "T1")))
    await reached(lives.exists, "the agent works")
    first.kill()
    await to_plan(bench.store, made, c.CancelPlan(reason="no"), META)
    bench.runner("second")
    await bench.event(made, "cancelled", PLAN)
    assert (await bench.types(made, "T1"))[-2:] == ["cancel_requested", "cancelled"]
    await bench.nothing_pending()
