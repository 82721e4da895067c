"""A plan as a file: what is in it, and who gets it."""

from __future__ import annotations

from pathlib import Path

import httpx

from shared import commands as c
from shared.events import Result, Usage
from shared.history.archive import Archive
from shared.history.history import History
from shared.jetstream import JetStreamStore
from shared.store import Meta
from shared.transact import load_task, to_task
from tests.gateway.answers import assert_problem
from tests.gateway.gateway_process import GatewayProcess
from tests.gateway.plans import made


async def drafted(client: httpx.AsyncClient) -> str:
    """A plan that nobody works on."""
    agent = await made.agent(client)
    return await made.plan(client, await made.project(client, agent), agent["slug"])


async def exported(client: httpx.AsyncClient, plan: str, path: Path, **query: str) -> Path:
    """The plan's file."""
    answer = await client.get(f"/api/plans/{plan}/export", params=query)
    assert answer.status_code == 200, answer.text
    path.write_bytes(answer.content)  # noqa: ASYNC240 - a small file of a test
    return path


async def test_an_export_of_the_events_alone_is_an_archive_of_just_those(
    gateway: GatewayProcess, planner: None, tmp_path: Path
) -> None:
    async with gateway.as_user("ann") as ann:
        plan = await drafted(ann)
        file = await exported(ann, plan, tmp_path / "plan.treadle", parts="events")
        listed = (await made.ok(ann.get(f"/api/plans/{plan}/events")))["events"]
    with Archive.open(file) as archive:
        events = archive.event_file(tmp_path)
        assert archive.names() == ("events.jsonl",)
        assert (archive.plan, archive.manifest.parts) == (plan, "events")
        assert [(r.seq, r.type) for r in events.read()] == [(e["seq"], e["type"]) for e in listed]


async def test_a_running_plan_without_a_runner_is_exported_and_says_what_could_not_be_had(
    gateway: GatewayProcess, planner: None, dispatcher: None, log: JetStreamStore, tmp_path: Path
) -> None:
    async with gateway.as_user("ann") as ann:
        plan = await drafted(ann)
        await made.finalized(ann, plan)
        await made.task_is(ann, plan, "T1", "queued")
        await by_runner(log, plan)
        await made.task_is(ann, plan, "T1", "completed")
        await made.task_is(ann, plan, "T2", "queued")
        file = await exported(ann, plan, tmp_path / "plan.treadle")
        there = await made.ok(ann.get(f"/api/plans/{plan}"))
    with Archive.open(file) as archive:
        manifest = archive.manifest
        assert (manifest.last_seq, manifest.counts.results, manifest.commits) == (there["seq"], 1, None)
        result = archive.result("T1")
        assert result is not None
        assert result.summary == "done"
        assert {said.partition(":")[0] for said in manifest.left_out} == {"diffs, from T1 on", "commits"}
        assert all("no runner answers" in said for said in manifest.left_out)


async def test_what_is_stored_while_it_is_sent_is_not_in_it(
    gateway: GatewayProcess, planner: None, dispatcher: None, log: JetStreamStore, tmp_path: Path
) -> None:
    async with gateway.as_user("ann") as ann:
        plan = await drafted(ann)
        await made.finalized(ann, plan)
        await made.task_is(ann, plan, "T1", "queued")
        fixed = (await made.ok(ann.get(f"/api/plans/{plan}")))["seq"]
        content = bytearray()
        async with ann.stream("GET", f"/api/plans/{plan}/export", params={"parts": "events"}) as answer:
            assert answer.status_code == 200
            paused = await made.ok(ann.post(f"/api/plans/{plan}/pause", json={}))
            async for piece in answer.aiter_bytes():
                content += piece
        file = tmp_path / "plan.treadle"
        file.write_bytes(content)
        with Archive.open(file) as archive:
            assert fixed <= archive.manifest.last_seq < paused["seq"]


async def test_what_is_redacted_tells_no_name_or_text_and_replays_all_the_same(
    gateway: GatewayProcess, planner: None, dispatcher: None, log: JetStreamStore, tmp_path: Path
) -> None:
    async with gateway.as_user("ann") as ann:
        plan = await drafted(ann)
        await made.finalized(ann, plan)
        await made.task_is(ann, plan, "T1", "queued")
        await by_runner(log, plan)
        await made.task_is(ann, plan, "T1", "completed")
        file = await exported(ann, plan, tmp_path / "plan.treadle", redact="1")
        with Archive.open(file) as archive, archive.event_file(tmp_path) as events:
            assert archive.manifest.redacted
            everything = b"".join(piece for name in archive.names() for piece in archive.contents(name) or ())
            for private in (b"Do it.", b"Do more.", b"git.example.com", b"user:ann", b"made.txt", b'"First"'):
                assert private not in everything
            history = History(events)
            tasks = {task.code: task.status for task in history.moment(history.last_seq).tasks}
            assert tasks["T1"] == "completed"
        shown = await made.ok(ann.post("/api/plans/import-log", content=file.read_bytes()))
        assert (await made.ok(ann.get(f"/api/plans/{shown['id']}")))["imported"]["is_redacted"] is True


async def test_somebody_elses_plan_is_exported_to_nobody(gateway: GatewayProcess, planner: None) -> None:
    async with gateway.as_user("ann") as ann, gateway.as_user("bob") as bob, gateway.as_admin() as admin:
        plan = await drafted(ann)
        assert_problem(await bob.get(f"/api/plans/{plan}/export"), 404, "not_found")
        assert_problem(await ann.get(f"/api/plans/{plan}/export?parts=some"), 400, "bad_request")
        assert (await admin.get(f"/api/plans/{plan}/export")).status_code == 200


async def by_runner(store: JetStreamStore, plan: str) -> None:
    """T1 is done, by a runner that has gone since."""
    meta = Meta(actor="runner:r1")
    dispatch = (await load_task(store, plan, "T1")).state.dispatch
    start = c.Start(phase="open", dispatch=dispatch, runner="r1", execution="e1")
    lease = (await to_task(store, plan, "T1", start, meta)).state.lease
    result = Result(task_code="T1", summary="done", artifacts=("made.txt",))
    done = c.Complete(lease=lease, base_commit=made.COMMIT, commit="f" * 40, result=result, usage=Usage())
    await to_task(store, plan, "T1", done, meta)
