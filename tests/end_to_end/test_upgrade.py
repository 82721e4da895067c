"""A data directory of the version before accounts and projects is taken over as it is."""

from __future__ import annotations

import json
from pathlib import Path

from services.planner.parse import read_plan
from shared import commands as c
from shared.bus import BusSettings, connect
from shared.clock import new_plan_id
from shared.jetstream import JetStreamStore
from shared.store import Meta
from shared.transact import to_plan
from tests.end_to_end.plans import Plan, files, git, plan, task
from tests.end_to_end.suite import Suite

META = Meta(actor="user:local", correlation="test")


async def made_as_before(suite: Suite, content: Plan, repo: Path) -> str:
    """A plan that is of no project, as the former version wrote it."""
    password = (suite.data / "nats" / "operator.password").read_text()
    nc = await connect(BusSettings(suite.info["nats_url"], "operator", password), "test")
    try:
        made, store = new_plan_id(), JetStreamStore(nc)
        spec = read_plan(json.dumps(content).encode())
        commit = git(repo, "rev-parse", "HEAD")
        draft = c.Draft(candidate="1", spec=spec, repo_url=str(repo), base_commit=commit)
        await to_plan(store, made, draft, META)
        await to_plan(store, made, c.Finalize(candidate="1"), META)
        return made
    finally:
        await nc.close()


def make_old(data: Path) -> None:
    """Takes away what the former version did not have, and puts its one password back."""
    for path in [*data.glob("treadle.sqlite*"), data / "gateway.secret", data / "keyring.json"]:
        path.unlink()
    for path in (data / "nats").glob("*.password"):
        path.unlink()
    (data / "nats" / "password").write_text("x" * 43)


async def test_a_directory_of_the_former_version_keeps_its_plans_and_its_token(own_suite: Suite, repo: Path) -> None:
    own_suite.up()
    content = plan(task("T1", "echo x > x.txt"))
    old = await made_as_before(own_suite, content, repo)
    own_suite.standing(old, "completed")
    events, token = own_suite.events(old), (own_suite.data / "gateway.token").read_bytes()
    own_suite.down()
    make_old(own_suite.data)

    own_suite.up()
    assert (own_suite.data / "gateway.token").read_bytes() == token
    listed = own_suite.command("ls")
    assert listed.out.startswith(f"{old}  completed")
    assert json.loads(own_suite.command("status", old, "--json").out)["project"] == ""
    assert own_suite.events(old) == events
    assert files(repo, f"treadle/{old}")["x.txt"] == "x"
    assert not (own_suite.data / "nats" / "password").exists()
    # And on it goes, in a project now.
    new = own_suite.submit(content, repo)
    assert own_suite.standing(new, "completed")["project"] != ""
    assert [p["plan"] for p in own_suite.plans()] == [new, old]
