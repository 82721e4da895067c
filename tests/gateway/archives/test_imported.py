"""What an imported plan answers: what it answered where it ran, and nothing that would change it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from services.gateway.projection.views import event_json
from shared.history.archive import Archive
from shared.store import Recorded
from tests.gateway.answers import assert_problem
from tests.gateway.archives.files import File, archive, imported, lived
from tests.gateway.gateway_process import GatewayProcess
from tests.gateway.plans.made import ok
from tests.gateway.test_permissions import MATRIX, routes

ENTRY = {"seq": 0, "time": "2026-01-02T03:04:05Z", "task": "x", "lease": 9, "activity": {"kind": "text", "text": ""}}


def plain(view: object) -> Any:
    """As an answer has it."""
    return msgspec.json.decode(msgspec.json.encode(view))


def entry(seq: int, text: str) -> bytes:
    """A line of a transcript."""
    return msgspec.json.encode({**ENTRY, "seq": seq, "activity": {"kind": "text", "text": text}}) + b"\n"


def completed(file: File) -> str:
    """A task that has a commit."""
    return next(code for code in file.fold.board.codes if file.fold.task(code).commit)


async def test_plan_tasks_and_events_are_what_they_were_where_it_ran(gateway: GatewayProcess) -> None:
    for seed in range(4):
        file = archive(lived(seed))
        async with gateway.as_user("lea") as lea:
            plan = (await imported(lea, file))["id"]
            shown = await ok(lea.get(f"/api/plans/{plan}"))
            was = plain(file.fold.view())
            told = shown.pop("imported")
            assert (told["plan"], told["by"], told["digest"]) == (file.fold.plan, "user:lea", file.digest)
            differs = {name for name, value in shown.items() if value != was[name]}
            assert differs <= {"plan", "is_busy", "is_due"}
            tasks = (await ok(lea.get(f"/api/plans/{plan}/tasks?limit=1000")))["items"]
            assert tasks == [plain(file.fold.task(code)) for code in file.fold.board.codes]
            assert await ok(lea.get(f"/api/plans/{plan}/tasks/{tasks[0]['code']}")) == tasks[0]
            assert await every_event(lea, plan) == [plain(event_json(record)) for record in file.records]


async def every_event(client: Any, plan: str) -> list[Any]:
    found: list[Any] = []
    after: int | None = 0
    while after is not None:
        page = await ok(client.get(f"/api/plans/{plan}/events", params={"after": after, "limit": 7}))
        found += page["events"]
        after = page["next_after"]
    return found


async def test_lists_of_its_tasks_are_filtered_sorted_and_paged_like_others(gateway: GatewayProcess) -> None:
    file = archive(lived())
    async with gateway.as_user("lea") as lea:
        plan = (await imported(lea, file))["id"]
        codes: list[str] = []
        query: dict[str, str] = {"sort": "-code", "limit": "1"}
        while True:
            page = await ok(lea.get(f"/api/plans/{plan}/tasks", params=query))
            codes += [task["code"] for task in page["items"]]
            if page["next"] is None:
                break
            query["cursor"] = page["next"]
        assert codes == sorted(file.fold.board.codes, reverse=True)
        done = (await ok(lea.get(f"/api/plans/{plan}/tasks", params={"status": "completed"})))["items"]
        tasks = [file.fold.task(code) for code in file.fold.board.codes]
        assert [one["code"] for one in done] == [task.code for task in tasks if task.status == "completed"]
        assert_problem(await lea.get(f"/api/plans/{plan}/tasks", params={"sort": "name"}), 400, "bad_sort")


async def test_transcripts_and_diffs_are_read_from_the_archive(gateway: GatewayProcess) -> None:
    records = lived()
    code = completed(archive(records))
    patch = "diff --git a/x b/x\n+\x1b[31mred\n"
    file = archive(
        records,
        {
            f"diffs/{code}.diff": f"Treadle-Diff: (cut)\n x | 1 +\n{patch}".encode(),
            f"transcripts/{code}-1.jsonl": entry(5, "one") + b"{nonsense\n" + entry(9, "three"),
            f"transcripts/{code}-2.jsonl": entry(7, "two") + entry(7, "told before") + entry(11, "four"),
        },
    )
    async with gateway.as_user("lea") as lea:
        plan = (await imported(lea, file))["id"]
        diff = await ok(lea.get(f"/api/plans/{plan}/tasks/{code}/diff"))
        assert (diff["stat"], diff["patch"], diff["cut"]) == (" x | 1 +", patch, True)
        assert diff["commit"] == file.fold.task(code).commit
        said: list[tuple[int, int, str]] = []
        after: int | None = 0
        while after is not None:
            query = {"after": after, "limit": 2}
            page = await ok(lea.get(f"/api/plans/{plan}/tasks/{code}/transcript", params=query))
            said += [(one["seq"], one["lease"], one["activity"]["text"][:24]) for one in page["items"]]
            assert {one["task"] for one in page["items"]} <= {code}
            after = page["next_after"]
        unread = (6, 1, "this entry can't be read")
        assert said == [(5, 1, "one"), unread, (7, 2, "two"), (9, 1, "three"), (11, 2, "four")]


async def test_what_the_archive_was_made_without_is_said_with_the_reason(gateway: GatewayProcess) -> None:
    file = archive(lived(1))
    code = completed(file)
    async with gateway.as_user("lea") as lea:
        plan = (await imported(lea, file))["id"]
        answer = await lea.get(f"/api/plans/{plan}/tasks/{code}/diff")
        assert_problem(answer, 409, "no_diff")
        assert "imported without the diff" in answer.json()["detail"]
        assert (await ok(lea.get(f"/api/plans/{plan}/tasks/{code}/transcript")))["items"] == []


async def test_its_export_is_the_very_file_and_one_of_its_events_is_made_of_it(
    gateway: GatewayProcess, tmp_path: Path
) -> None:
    file = archive(lived(2), {"transcripts/T1-1.jsonl": entry(5, "secret words")})
    async with gateway.as_user("lea") as lea:
        plan = (await imported(lea, file))["id"]
        assert (await lea.get(f"/api/plans/{plan}/export")).content == file.content
        for query, redacted in (({"parts": "events"}, False), ({"redact": "1"}, True)):
            answer = await lea.get(f"/api/plans/{plan}/export", params=query)
            directory = tmp_path / "-".join(query)
            directory.mkdir()
            path = directory / "plan.treadle"
            path.write_bytes(answer.content)
            with Archive.open(path) as opened, opened.event_file(directory) as events:
                assert (opened.plan, opened.manifest.redacted) == (file.fold.plan, redacted)
                assert [(r.seq, r.type) for r in events.read()] == [(r.seq, r.type) for r in file.records]
                if redacted:
                    lines = b"".join(opened.transcript("T1", 1) or ())
                    assert lines
                    assert b"secret" not in lines


async def test_everything_that_would_change_it_is_refused_whatever_the_route(gateway: GatewayProcess) -> None:
    file = archive(lived())
    code = file.fold.board.codes[0]
    commands = [one for one in sorted(routes()) if "/plans/{plan}" in one[1] and one[0] != "GET"]
    assert len(commands) > 15
    async with gateway.as_user("lea") as lea, gateway.as_user("eve") as eve:
        plan = (await imported(lea, file))["id"]
        before = await ok(lea.get(f"/api/plans/{plan}"))
        for method, path in commands:
            row = MATRIX.get((method, path))
            filled = path.replace("{plan}", plan).replace("{code}", code).replace("{seq}", "1")
            body, headers = (row.body, row.headers) if row else ({}, None)
            refused = await lea.request(method, filled, json=body, headers=headers)
            assert_problem(refused, 409, "read_only_plan")
            assert "imported" in refused.json()["detail"]
            assert_problem(await eve.request(method, filled, json=body, headers=headers), 404, "not_found")
        for path in ("stream", f"tasks/{code}/transcript/stream"):
            assert_problem(await lea.get(f"/api/plans/{plan}/{path}"), 409, "read_only_plan")
            assert_problem(await eve.get(f"/api/plans/{plan}/{path}"), 404, "not_found")
        assert await ok(lea.get(f"/api/plans/{plan}")) == before


async def test_no_route_that_reads_a_plan_breaks_on_an_imported_one(gateway: GatewayProcess) -> None:
    file = archive(lived())
    code = completed(file)
    async with gateway.as_user("lea") as lea, gateway.as_user("eve") as eve:
        plan = (await imported(lea, file))["id"]
        for method, path in sorted(routes()):
            if method != "GET" or "/plans/{plan}" not in path:
                continue
            row = MATRIX.get((method, path))
            filled = path.replace("{plan}", plan).replace("{code}", code).replace("{seq}", "1")
            answer = await lea.get(filled, params=row.query if row else None)
            assert answer.status_code in (200, 409), f"{path}: {answer.status_code} {answer.text}"
            assert_problem(await eve.get(filled, params=row.query if row else None), 404, "not_found")


HOSTILE = "\x1b]0;owned\x07<script>alert(1)</script>\u202e"


def renamed(record: Recorded, name: str) -> Recorded:
    """The event with the plan called otherwise."""
    body = msgspec.json.decode(record.body)
    if "spec" in body and "tasks" in body["spec"]:
        body["spec"]["name"] = name
    return msgspec.structs.replace(record, body=msgspec.json.encode(body))


@pytest.mark.parametrize("name", [HOSTILE, "\x00", "n" * 5_000])
async def test_a_hostile_name_is_kept_as_data(gateway: GatewayProcess, name: str) -> None:
    records = [renamed(record, name) if record.type == "drafted" else record for record in lived()]
    async with gateway.as_user("lea") as lea:
        made = await imported(lea, archive(records))
        assert made["name"] == name[:200].replace("\x00", "\ufffd")
        assert (await ok(lea.get(f"/api/plans/{made['id']}")))["name"] == name
