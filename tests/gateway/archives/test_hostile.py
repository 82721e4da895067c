"""Archives that are made to keep a gateway busy: each is refused in words, and nobody else has to wait for long."""

from __future__ import annotations

import asyncio
import threading
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from services.gateway.archives import imported_fold
from services.gateway.archives.imported_fold import ImportedFold, fold_of
from services.gateway.histories.turns import Turns
from services.gateway.projection.imported_view import ImportedFrom
from shared import events as e
from shared.history.event_file import HistoryDamaged
from shared.store import Recorded
from tests.gateway.answers import assert_problem
from tests.gateway.archives.files import archive, imported, lived
from tests.gateway.gateway_process import GatewayProcess
from tests.shared.history import hostile
from tests.shared.history.worlds import written

FROM = ImportedFrom(
    plan="p", by="user:eve", at=datetime(2026, 1, 1, tzinfo=UTC), digest="d", is_redacted=False, left_out=()
)


def fold(records: list[Recorded], path: Path) -> ImportedFold:
    with written(records, path) as file:
        return fold_of("iaaaaaaaaaaaa", file, FROM)


async def test_a_circle_is_refused_however_often_it_comes_and_good_files_are_taken_beside_it(
    gateway: GatewayProcess,
) -> None:
    circle = archive(hostile.circle_that_grows())
    async with gateway.as_user("evi") as evi, gateway.as_user("bob") as bob:
        for _ in range(2):  # hung up on at once, both of the account's
            hung_up = [asyncio.create_task(_sent_and_hung_up(evi, circle.content)) for _ in range(2)]
            await asyncio.gather(*hung_up)
        assert await imported(bob, archive(lived()))

        async def refused() -> httpx.Response:
            async with asyncio.timeout(30):
                while True:  # what was hung up on may still be looked at
                    answer = await evi.post("/api/plans/import-log", content=circle.content)
                    if answer.status_code != 409:
                        return answer

        answer = await refused()
        assert_problem(answer, 422, "damaged_archive")
        assert "its tasks wait for each other: T1 → T2 → T1" in answer.json()["detail"]
        assert await imported(bob, archive(lived(1)))


async def _sent_and_hung_up(client: httpx.AsyncClient, content: bytes) -> None:
    try:
        await client.post("/api/plans/import-log", content=content, timeout=httpx.Timeout(10, read=0.001))
    except httpx.TimeoutException:
        return


async def test_more_left_out_than_any_plan_has_is_refused(gateway: GatewayProcess) -> None:
    async with gateway.as_user("evi") as evi:
        answer = await evi.post("/api/plans/import-log", content=archive(hostile.much_left_out(1001)).content)
        assert_problem(answer, 422, "damaged_archive")
        assert "1001 of its events are left out; 1000 are possible" in answer.json()["detail"]
        assert await imported(evi, archive(hostile.much_left_out(1000)))


def test_a_fold_that_takes_too_long_is_given_up_between_two_events(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = hostile.ever_growing(30)
    assert len(fold(records, tmp_path / "a").board.codes) == 32
    monkeypatch.setattr(imported_fold, "PROCESSOR_MAX_S", 0.0)
    with pytest.raises(HistoryDamaged, match="it takes more than 0 s of a processor's time to fold it up to event 1:"):
        fold(records, tmp_path / "b")


def test_more_tasks_than_any_plan_has_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imported_fold, "ENTITIES_MAX", 50)
    strangers = [hostile.planned(hostile.task(f"X{n}"), 5 + n) for n in range(60)]
    with pytest.raises(HistoryDamaged, match="it is about more than 50 tasks"):
        fold(hostile.finalized(hostile.task("T1"), then=strangers), tmp_path / "a")


def test_texts_that_would_fill_the_memory_are_refused_and_prompts_do_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imported_fold, "KEPT_MAX_BYTES", 20_000)
    tasks = [hostile.task(f"T{n}") for n in range(5)]
    long = [(one.code, e.TaskAbandoned(note="x" * 6_000)) for one in tasks]
    prompts: list[hostile.Told] = [
        (
            one.code,
            e.TaskDispatched(
                dispatch=1,
                attempt=1,
                prompt="x" * 6_000,
                agent=hostile.AGENT,
                project="p",
                repo_url="file:///r",
                base_commit="1" * 40,
                heads=(),
                plan_name="n",
                task_name="t",
                timeout_s=60.0,
                budget_usd=1.0,
            ),
        )
        for one in tasks
    ]
    assert fold(hostile.finalized(*tasks, then=prompts), tmp_path / "a").board.visible
    assert fold(hostile.finalized(*tasks, then=[*long[:1]] * 5), tmp_path / "b").board.visible
    with pytest.raises(HistoryDamaged, match="its tasks hold over 20000 bytes"):
        fold(hostile.finalized(*tasks, then=long), tmp_path / "c")


async def test_one_accounts_questions_wait_for_each_other_and_for_nobody_elses() -> None:
    turns, go_on = Turns(), threading.Event()
    answered: list[str] = []

    def slow(name: str) -> None:
        go_on.wait(30)
        answered.append(name)

    slow_ones = [asyncio.create_task(turns.ask("eve", slow, f"eve {n}")) for n in range(50)]
    async with asyncio.timeout(30):
        await turns.ask("bob", answered.append, "bob")
        assert answered == ["bob"]
        go_on.set()
        await asyncio.gather(*slow_ones)
    assert answered == ["bob", *(f"eve {n}" for n in range(50))]
