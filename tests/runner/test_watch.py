"""What people push to a collaboration repository completes their tasks: real git, a real log."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest

from shared import commands as c
from shared import events as e
from shared.clock import utc_now
from shared.events import Head
from shared.transact import load_plan, to_plan
from tests.nats_process import NatsServer
from tests.runner.bench import reached
from tests.runner.repositories import git
from tests.runner.watch_world import DIRECTORY, META, CollabRepository, World, open_world, spec_of, until_looks


@pytest.fixture
async def world(own_nats: NatsServer, tmp_path: Path) -> AsyncIterator[World]:
    async with open_world(own_nats, tmp_path) as opened:
        yield opened


@pytest.fixture
def collab(tmp_path: Path) -> CollabRepository:
    return CollabRepository(tmp_path)


async def test_a_task_that_was_handed_out_runs_and_completes_with_what_its_person_pushed(
    world: World, collab: CollabRepository
) -> None:
    plan = await world.plan()
    await world.hand_out(plan, collab.url)
    async with world.watching():
        started = (await world.event(plan, "started")).event
        assert isinstance(started, e.TaskStarted) and started.deadline is not None
        assert (started.runner, started.execution) == ("watch", "manual-1")
        assert timedelta(minutes=9) < started.deadline - utc_now() <= timedelta(minutes=10)
        (collab.place(plan) / "usage.json").write_text('{"input_tokens": 10, "output_tokens": 5, "cost_usd": 0.5}')
        collab.deliver(plan, summary="Did it.", more="is let pass")
        record = await world.event(plan, "completed")
    done = record.event
    assert isinstance(done, e.TaskCompleted)
    assert done.result == e.Result(task_code="T1", summary="Did it.", artifacts=("a.txt",))
    assert (done.commit, done.base_commit, done.usage.cost_usd) == ("", "", 0.5)
    assert record.meta.actor == "runner:r1"


async def test_what_lay_there_when_the_task_was_handed_out_is_no_result_of_it(
    world: World, collab: CollabRepository
) -> None:
    plan = await world.plan()
    old = collab.deliver(plan, summary="Of an earlier attempt")
    await world.hand_out(plan, collab.url, blob=old)
    async with world.watching() as watcher:
        await world.event(plan, "started")
        await until_looks(watcher, 2)
        assert (await world.state(plan)).status == "running"
        collab.deliver(plan, summary="Of this one")
        await world.event(plan, "completed")
    assert (await world.state(plan)).summary == "Of this one"


async def test_what_lay_there_at_the_handing_out_counts_once_any_byte_of_it_differs_and_the_log_says_so(
    world: World, collab: CollabRepository, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "treadle.runner.watch")
    plan = await world.plan()
    path = collab.write(plan, summary="Still true")
    collab.push()
    await world.hand_out(plan, collab.url, blob=git(collab.clone, "hash-object", str(path)))
    async with world.watching() as watcher:
        await until_looks(watcher, 3)
        told = [record.getMessage() for record in caplog.records if "was there when" in record.getMessage()]
        assert len(told) == 1 and plan in told[0]
        path.write_bytes(path.read_bytes() + b"\n")
        collab.push()
        await world.event(plan, "completed")
    assert "failed" not in await world.types(plan)


async def test_a_file_that_was_no_result_is_none_when_it_is_put_there_again_after_a_redispatch(
    world: World, collab: CollabRepository
) -> None:
    plan = await world.plan()
    await world.hand_out(plan, collab.url)
    async with world.watching():
        bad = collab.deliver(plan, content="[]")
        await world.event(plan, "failed")
        collab.place(plan).joinpath("result.json").unlink()
        collab.push()
        await world.tell(plan, c.Redispatch())
        await world.hand_out(plan, collab.url)
        await world.event(plan, "started", number=2)
        assert collab.deliver(plan, content="[]") == bad
        again = (await world.event(plan, "failed", number=2)).event
    assert isinstance(again, e.TaskFailed) and (again.blob, again.kind) == (bad, "invalid_result")


async def test_an_invalid_result_is_told_once_with_all_its_faults_and_a_better_one_completes_the_task(
    world: World, collab: CollabRepository
) -> None:
    plan = await world.plan()
    await world.hand_out(plan, collab.url)
    async with world.watching() as watcher:
        blob = collab.deliver(plan, content='{"task_code": "T2", "artifacts": ["/etc/passwd", "a\\\\b", "../x"]}')
        failed = (await world.event(plan, "failed")).event
        assert isinstance(failed, e.TaskFailed)
        assert (failed.kind, failed.blob, failed.retry_at) == ("invalid_result", blob, None)
        for word in ("task_code", "summary", "/etc/passwd", "backslash", "`..`", f"{DIRECTORY}/{plan}/T1/result.json"):
            assert word in failed.message
        await until_looks(watcher, 3)
        assert (await world.types(plan)).count("failed") == 1
        second = collab.deliver(plan, content="[]")
        again = (await world.event(plan, "failed", number=2)).event
        assert isinstance(again, e.TaskFailed) and again.blob == second
        collab.deliver(plan)
        await world.event(plan, "completed")
    assert (await world.types(plan)).count("failed") == 2


async def test_a_result_that_comes_after_the_deadline_completes_the_task(
    world: World, collab: CollabRepository
) -> None:
    plan = await world.plan()
    await world.hand_out(plan, collab.url)
    async with world.watching():
        started = await world.event(plan, "started")
        late = c.Fail(
            now=utc_now() + timedelta(hours=1), phase="open", lease=1, kind="timeout", message="late", usage=e.Usage()
        )
        assert isinstance(started.event, e.TaskStarted)
        assert (await world.tell(plan, late)).status == "needs_attention"
        collab.deliver(plan)
        await world.event(plan, "completed")


async def test_what_a_person_cancelled_is_not_completed_by_a_push(world: World, collab: CollabRepository) -> None:
    plan = await world.plan(spec_of("T1"), spec_of("T2"))
    for task in ("T1", "T2"):
        await world.hand_out(plan, collab.url, task)
    async with world.watching():
        await world.event(plan, "started")
        await world.tell(plan, c.CancelTask(phase="open", reason="not any more"))
        collab.write(plan, "T1")
        collab.deliver(plan, "T2")
        await world.event(plan, "completed", task="T2")
    assert (await world.state(plan)).status == "needs_attention"


async def test_several_tasks_of_several_plans_in_one_push_all_complete_once(
    world: World, collab: CollabRepository
) -> None:
    tasks = [spec_of(f"T{n}") for n in range(1, 6)]
    plans = [await world.plan(*tasks), await world.plan(*tasks)]
    for plan in plans:
        for task in tasks:
            await world.hand_out(plan, collab.url, task.code)
    async with world.watching() as watcher:
        for plan in plans:
            for task in tasks:
                await world.event(plan, "started", task=task.code)
                collab.write(plan, task.code)
        collab.push()
        for plan in plans:
            for task in tasks:
                await world.event(plan, "completed", task=task.code)
        # The same is pushed again, and looked at again.
        collab.push("Nothing new")
        await world.looked(watcher, collab.url)
    for plan in plans:
        for task in tasks:
            assert (await world.types(plan, task.code)).count("completed") == 1


async def test_a_result_names_the_commit_of_the_work_which_the_code_repository_must_have(
    world: World, collab: CollabRepository, tmp_path: Path
) -> None:
    code = CollabRepository(tmp_path, "code.git")
    base = git(code.clone, "rev-parse", "HEAD")
    commit = code.push("The work")
    plan = await world.plan()
    await world.hand_out(plan, collab.url, code_url=code.url, base_commit=base)
    async with world.watching():
        collab.deliver(plan, commit="a" * 40)
        failed = (await world.event(plan, "failed")).event
        assert isinstance(failed, e.TaskFailed)
        assert "a" * 40 in failed.message and "push it there" in failed.message
        collab.deliver(plan, commit=git(code.clone, "rev-parse", "HEAD^{tree}"))
        tree = (await world.event(plan, "failed", number=2)).event
        assert isinstance(tree, e.TaskFailed)
        assert "does not have" in tree.message or "no commit but" in tree.message
        collab.deliver(plan, commit=commit.upper())
        done = (await world.event(plan, "completed")).event
    assert isinstance(done, e.TaskCompleted) and done.commit == commit


async def test_the_commit_of_the_work_must_contain_what_the_task_was_handed_out_with(
    world: World, collab: CollabRepository, tmp_path: Path
) -> None:
    code = CollabRepository(tmp_path, "code.git")
    base = git(code.clone, "rev-parse", "HEAD")
    before = code.push("The work of T1")
    git(code.clone, "reset", "-q", "--hard", base)
    forgot = code.push("Forgot it")
    git(code.clone, "push", "-q", str(code.bare), f"{before}:refs/heads/t1")
    plan = await world.plan()
    await world.hand_out(plan, collab.url, code_url=code.url, base_commit=base, heads=[Head("T1", before)])
    async with world.watching():
        collab.deliver(plan, commit=forgot)
        failed = (await world.event(plan, "failed")).event
        assert isinstance(failed, e.TaskFailed) and failed.kind == "invalid_result"
        assert f"merge commit {before} (the work of T1) into yours" in failed.message
        git(code.clone, "merge", "-q", "-m", "With T1", before)
        merged = code.push("And more")
        collab.deliver(plan, commit=merged)
        done = (await world.event(plan, "completed")).event
    assert isinstance(done, e.TaskCompleted) and done.commit == merged


async def test_a_code_repository_that_cannot_be_reached_is_no_fault_of_the_result(
    world: World, collab: CollabRepository, tmp_path: Path
) -> None:
    code = CollabRepository(tmp_path, "code.git")
    commit = code.push("The work")
    gone = tmp_path / "gone.git"
    code.bare.rename(gone)
    plan = await world.plan()
    await world.hand_out(plan, collab.url, code_url=code.url)
    async with world.watching():
        collab.deliver(plan, commit=commit)
        fault = (await world.event(plan, "watch_failed")).event
        assert isinstance(fault, e.TaskWatchFailed) and "code repository" in fault.reason
        gone.rename(code.bare)
        await world.event(plan, "completed")
    assert "failed" not in await world.types(plan)


async def test_a_review_is_filled_in_with_its_round_and_the_commit_that_it_judges(
    world: World, collab: CollabRepository
) -> None:
    plan = await world.plan(spec_of("T1"), spec_of("R1", reviews="T1", depends_on=("T1",), round=2))
    head = Head("T1", "b" * 40)
    await world.hand_out(plan, collab.url, "R1", heads=[head])
    async with world.watching():
        collab.deliver(plan, "R1")
        missing = (await world.event(plan, "failed", task="R1")).event
        assert isinstance(missing, e.TaskFailed) and "`review` is missing" in missing.message
        collab.deliver(plan, "R1", review={"approve": True, "round": 1, "commit": "c" * 40})
        stale = (await world.event(plan, "failed", task="R1", number=2)).event
        assert isinstance(stale, e.TaskFailed)
        assert "this is round 2" in stale.message and head.commit in stale.message
        finding = {"message": "No test.", "severity": "major", "file": "a.py", "line": 3}
        collab.deliver(plan, "R1", review={"approve": False, "findings": [finding]})
        done = (await world.event(plan, "completed", task="R1")).event
    assert isinstance(done, e.TaskCompleted)
    expected = e.Finding(message="No test.", severity="major", file="a.py", line=3)
    assert done.result.review == e.Review(approve=False, findings=(expected,), round=2, commit=head.commit)
    assert msgspec.json.decode(done.answer, type=e.Review) == done.result.review


async def test_a_watcher_that_starts_late_finds_in_the_log_what_is_waited_for(
    world: World, collab: CollabRepository
) -> None:
    plan = await world.plan(spec_of("T1"), spec_of("T2"))
    await world.hand_out(plan, collab.url)
    await world.hand_out(plan, collab.url, "T2")
    async with world.watching("first"):
        bad = collab.deliver(plan, content="no JSON")
        await world.event(plan, "failed")
        await world.event(plan, "started", task="T2")
    async with world.watching("second") as watcher:
        await until_looks(watcher, 1)
        collab.deliver(plan, "T2")
        await world.event(plan, "completed", task="T2")
        state = await world.state(plan)
        assert (state.status, state.blob) == ("needs_attention", bad)
        collab.deliver(plan)
        await world.event(plan, "completed")
    assert (await world.types(plan)).count("failed") == 1


async def test_a_person_who_asks_is_told_the_newest_commit_and_blob_and_what_is_new_is_taken(
    world: World, collab: CollabRepository
) -> None:
    plan = await world.plan()
    await world.hand_out(plan, collab.url, interval_s=3600)
    path = f"{DIRECTORY}/{plan}/T1/result.json"
    async with world.watching() as watcher:
        await world.event(plan, "started")
        empty = await world.looked(watcher, collab.url, path)
        assert (empty.blob, empty.fault, len(empty.commit)) == ("", "", 40)
        blob = collab.deliver(plan)
        reply = await world.looked(watcher, collab.url, path)
        assert (await world.state(plan)).status == "completed"  # before the answer
        assert reply.blob == blob and reply.commit == git(collab.clone, "rev-parse", "HEAD")


async def test_one_can_look_where_nothing_is_waited_for_and_into_an_empty_repository(
    world: World, collab: CollabRepository, tmp_path: Path
) -> None:
    git(tmp_path, "init", "-q", "--bare", str(tmp_path / "empty.git"))
    async with world.watching() as watcher:
        readme = await world.looked(watcher, collab.url, "README")
        assert readme.blob == git(collab.clone, "rev-parse", "HEAD:README")
        empty = await world.looked(watcher, str(tmp_path / "empty.git"), "README")
        assert (empty.commit, empty.blob, empty.fault) == ("", "", "")
        missing = await world.looked(watcher, str(tmp_path / "nowhere.git"))
        assert "nowhere.git" in missing.fault
        odd = await world.looked(watcher, "relative/path")
        assert "absolute" in odd.fault


async def test_who_asks_at_once_shares_a_look(world: World, collab: CollabRepository) -> None:
    async with world.watching() as watcher:
        await world.looked(watcher, collab.url)
        before = watcher.looks
        replies = await asyncio.gather(*(world.looked(watcher, collab.url, "README") for _ in range(20)))
        assert {reply.blob for reply in replies} == {git(collab.clone, "rev-parse", "HEAD:README")}
        assert watcher.looks - before <= 2


async def test_a_plan_file_is_offered_once_until_it_changes_and_no_more_once_there_is_a_candidate(
    world: World, collab: CollabRepository
) -> None:
    plan = await world.request_plan(collab.url)
    file = collab.clone / DIRECTORY / f"plan-{plan}.json"
    file.parent.mkdir()
    async with world.watching() as watcher:
        await until_looks(watcher, 1)
        file.write_text('{"name": "P"}')
        collab.push()
        await reached(lambda: len(world.offered) == 1)
        first = world.offered[0]
        assert (first.plan, first.text, first.fault) == (plan, '{"name": "P"}', "")
        assert first.blob == git(collab.clone, "hash-object", str(file))
        await until_looks(watcher, 2)
        assert len(world.offered) == 1
        file.write_bytes(b"\xff\xfe\x00")
        collab.push()
        await reached(lambda: len(world.offered) == 2)
        assert world.offered[1].text == "" and "UTF-8" in world.offered[1].fault
        spec = (await load_plan(world.store, await world.plan())).state.chosen
        assert spec is not None
        draft = c.Draft(candidate="1", spec=spec.spec, repo_url="/nowhere", base_commit="0" * 40, project=world.project)
        await to_plan(world.store, plan, draft, META)
        file.write_text('{"name": "Too late"}')
        collab.push()
        await reached(lambda: not watcher.repositories)
    assert len(world.offered) == 2


async def test_a_plan_file_that_no_planner_took_is_offered_again_after_a_restart_too(
    world: World, collab: CollabRepository
) -> None:
    plan = await world.request_plan(collab.url)
    file = collab.clone / DIRECTORY / f"plan-{plan}.json"
    file.parent.mkdir()
    file.write_text("{}")
    collab.push()
    async with world.watching():
        await reached(lambda: len(world.offered) == 1)
    origin = e.DraftOrigin(blob=world.offered[0].blob)
    async with world.watching():
        await reached(lambda: len(world.offered) == 2)
        await to_plan(world.store, plan, c.FailDraft(candidate="1", message="no tasks", origin=origin), META)
    async with world.watching() as third:
        await until_looks(third, 2)
    assert len(world.offered) == 2
