"""Plans that come as files: what is taken, and what is not."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from random import Random

import httpx
import pytest

from tests.gateway.answers import assert_problem
from tests.gateway.archives.files import archive, imported, lived
from tests.gateway.gateway_process import GatewayProcess
from tests.gateway.plans.made import ok
from tests.nats_process import NatsServer

MIB = 1024**2


@pytest.fixture
def small_gateway(migrated_url: str, nats_url: NatsServer, tmp_path: Path) -> Iterator[GatewayProcess]:
    """One that takes files of one MiB, and so eight MiB of an account."""
    settings = {"TREADLE_IMPORT_MAX_MB": "1", "TMPDIR": str(tmp_path)}
    with GatewayProcess(tmp_path, nats_url, migrated_url, settings, is_migrated=True) as running:
        yield running


@pytest.fixture
def nothing_is_left_behind(small_gateway: GatewayProcess, tmp_path: Path) -> Iterator[None]:
    yield
    assert not list(tmp_path.glob("treadle-import*"))


async def test_the_same_file_is_the_same_plan_for_one_account_and_another_for_another(gateway: GatewayProcess) -> None:
    file = archive(lived())
    async with gateway.as_user("ida") as ida, gateway.as_user("ole") as ole:
        first = await imported(ida, file, status=201)
        again = await imported(ida, file, status=200)
        others = await imported(ole, file)
        assert first == again
        assert re.fullmatch("i[a-z2-7]{12}", first["id"])
        assert others["id"] != first["id"]
        assert (first["origin_plan"], first["digest"]) == (file.fold.plan, file.digest)
        assert (first["events"], first["size_bytes"]) == (len(file.records), len(file.content))
        assert (first["imported_by"], first["owner_id"]) == ("user:ida", gateway.id_of("ida"))


async def test_what_is_imported_is_its_owners_and_the_admins_until_it_is_removed(gateway: GatewayProcess) -> None:
    file = archive(lived(1))
    async with gateway.as_user("una") as una, gateway.as_user("eve") as eve, gateway.as_admin() as admin:
        plan = (await imported(una, file))["id"]
        for client, is_there in ((una, True), (admin, True), (eve, False)):
            listed = [one["id"] for one in (await ok(client.get("/api/imported-plans?limit=200")))["items"]]
            assert (plan in listed) == is_there
            assert (await client.get(f"/api/plans/{plan}")).status_code == (200 if is_there else 404)
        assert_problem(await eve.delete(f"/api/imported-plans/{plan}"), 404, "not_found")
        await ok(una.delete(f"/api/imported-plans/{plan}"), 204)
        for path in (f"/api/plans/{plan}", f"/api/plans/{plan}/events", f"/api/plans/{plan}/export"):
            assert_problem(await una.get(path), 404, "not_found")
        assert_problem(await una.delete(f"/api/imported-plans/{plan}"), 404, "not_found")
        entries = (await ok(admin.get("/api/audit-log", params={"subject": plan})))["items"]
        assert [one["action"] for one in entries] == ["imported_plan.deleted", "plan.imported"]
        assert (await imported(una, file))["id"] == plan


@pytest.mark.parametrize("seed", [0, 2])
async def test_a_file_that_is_cut_off_or_changed_anywhere_is_refused_with_what_is_wrong(
    gateway: GatewayProcess, seed: int
) -> None:
    file = archive(lived(seed))
    size = len(file.content)
    async with gateway.as_user("zoe") as zoe:
        for place in range(0, size, max(1, size // 12)):
            changed = bytearray(file.content)
            changed[place] ^= 1
            for content in (file.content[:place], bytes(changed)):
                answer = await zoe.post("/api/plans/import-log", content=content)
                assert_problem(answer, 422, "damaged_archive")
                assert len(answer.json()["detail"]) > len("upload.treadle: ")
        assert_problem(await zoe.post("/api/plans/import-log", content=file.content + b"x"), 422, "damaged_archive")
        assert (await ok(zoe.get("/api/imported-plans")))["items"] == []


async def test_another_file_than_was_announced_is_refused(gateway: GatewayProcess) -> None:
    file = archive(lived())
    async with gateway.as_user("pia") as pia:

        async def sent(digest: str) -> httpx.Response:
            return await pia.post("/api/plans/import-log", content=file.content, params={"digest": digest})

        assert_problem(await sent("0" * 64), 422, "other_digest")
        assert_problem(await sent("0" * 63), 400, "bad_request")
        assert (await sent(file.digest)).status_code == 201


@pytest.mark.usefixtures("nothing_is_left_behind")
async def test_no_account_takes_more_room_than_it_has(small_gateway: GatewayProcess) -> None:
    def noise(number: int, size: int) -> dict[str, bytes]:
        return {f"transcripts/T{number}-1.jsonl": _dense(number, size)}

    async with small_gateway.as_user("max") as heavy, small_gateway.as_user("moe") as other:
        too_large = archive(lived(), noise(1, 3 * MIB))
        assert_problem(await heavy.post("/api/plans/import-log", content=too_large.content), 413, "body_too_large")
        files = [archive(lived(), noise(number, 1_800_000)) for number in range(1, 12)]
        answers = [await heavy.post("/api/plans/import-log", content=file.content) for file in files]
        assert {answer.status_code for answer in answers} == {201, 409}
        assert_problem(answers[-1], 409, "too_many_imported")
        fit = sum(answer.status_code == 201 for answer in answers)
        assert fit == 8 * MIB // len(files[0].content)
        await ok(heavy.delete(f"/api/imported-plans/{answers[0].json()['id']}"), 204)
        await imported(heavy, files[-1])
        await imported(other, files[-1])


async def test_an_imported_plan_is_there_at_every_gateway_and_after_a_restart(
    own_gateway: GatewayProcess, nats_url: NatsServer, tmp_path: Path
) -> None:
    file = archive(lived())
    second = GatewayProcess(tmp_path, nats_url, own_gateway.database_url, is_migrated=True)
    with second:
        async with own_gateway.as_admin() as here, second.as_admin() as there:
            plan = (await imported(here, file))["id"]
            assert await imported(there, file, status=200)
            seen = await ok(there.get(f"/api/plans/{plan}"))
            assert seen == await ok(here.get(f"/api/plans/{plan}"))
            own_gateway.kill()
            own_gateway.start()
            assert await ok(here.get(f"/api/plans/{plan}")) == seen
            await ok(here.delete(f"/api/imported-plans/{plan}"), 204)
            assert_problem(await there.get(f"/api/plans/{plan}"), 404, "not_found")
            assert_problem(await there.get(f"/api/plans/{plan}/tasks"), 404, "not_found")


def _dense(seed: int, size: int) -> bytes:
    """Lines that packing makes hardly shorter than the noise that they spell."""
    noise = Random(seed).randbytes(size // 2).hex().encode()  # noqa: S311 - made again, it has to be the same
    return b"\n".join(b'"%b"' % noise[place : place + 10_000] for place in range(0, len(noise), 10_000)) + b"\n"
