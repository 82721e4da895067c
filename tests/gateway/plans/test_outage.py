"""Without NATS: commands answer 503 in time, and what was accepted before is there after it."""

from __future__ import annotations

from pathlib import Path
from time import monotonic

from tests.gateway.answers import assert_problem
from tests.gateway.conftest import MakeDatabase
from tests.gateway.gateway_process import GatewayProcess
from tests.gateway.plans import made
from tests.gateway.plans.made import COMMIT, ok
from tests.gateway.service_process import service
from tests.nats_process import NatsServer

ANSWER_MAX_S = 25.0
"""The log is waited for for five seconds, a planner that answers for forty."""


async def test_commands_answer_503_and_nothing_accepted_is_lost(
    own_nats: NatsServer, make_database: MakeDatabase, tmp_path: Path
) -> None:
    with (
        make_database("sqlite", tmp_path) as url,
        service("planner", own_nats, tmp_path),
        GatewayProcess(tmp_path, own_nats, url) as gateway,
    ):
        async with gateway.as_user("ann") as ann:
            project = await made.project(ann)
            plan, other = await made.plan(ann, project), await made.plan(ann, project)
            accepted = await made.finalized(ann, plan)
            own_nats.kill()
            body = {"text": made.TWO.replace("WHO", "claude"), "base_commit": COMMIT}
            for path, sent in (
                (f"/api/plans/{plan}/pause", {}),
                (f"/api/plans/{plan}/cancel", {}),
                (f"/api/plans/{other}/finalize", {"candidate": "1"}),
                (f"/api/plans/{other}/candidates", body),
                (f"/api/projects/{project}/plans", body),
            ):
                begun = monotonic()
                answer = await ann.post(path, json=sent)
                assert_problem(answer, 503, "log_unavailable")
                assert int(answer.headers["retry-after"]) >= 1
                assert monotonic() - begun < ANSWER_MAX_S, path
            # What is the gateway's own goes on.
            assert (await ann.patch(f"/api/projects/{project}", json={"name": "meanwhile"})).status_code == 200
            own_nats.start()
            found = await ok(ann.get(f"/api/plans/{plan}", params={"min_seq": accepted["seq"]}))
            assert found["status"] == "finalizing"
            assert found["seq"] == accepted["seq"]

            async def cancelled() -> bool:
                return (await ann.post(f"/api/plans/{plan}/cancel", json={})).status_code == 202

            await made.until(cancelled, "a command after the outage")
