"""A log that nobody can read stops its plan, is shown, and is left out on the record: nothing else notices."""

from __future__ import annotations

import asyncio
import json
import signal
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pytest
from nats.aio.client import Client

from shared.bus import OPERATOR, BusSettings, connect
from tests.damage import KINDS, Kind, store_unreadable
from tests.end_to_end.plans import Gate, plan, task
from tests.end_to_end.suite import Suite, ended, types, until

T = TypeVar("T")


def on_nats(suite: Suite, work: Callable[[Client], Awaitable[T]]) -> T:
    """What the server's operator can do."""

    async def done() -> T:
        password = (suite.data / "nats" / f"{OPERATOR}.password").read_text().strip()
        nc = await connect(BusSettings(suite.info["nats_url"], OPERATOR, password), "test")
        try:
            return await work(nc)
        finally:
            await nc.close()

    return asyncio.run(done())


def damage(suite: Suite, made: str, entity: str, kind: Kind) -> int:
    key = suite.data / "log.key"
    said = key.read_bytes().strip() if key.exists() else None
    return on_nats(suite, lambda nc: store_unreadable(nc, made, entity, kind, said))


def at_work(suite: Suite, made: str, code: str) -> None:
    suite.event(made, "started", code)


@pytest.mark.parametrize("kind", KINDS)
def test_a_plan_stands_still_at_an_unreadable_event_and_goes_on_when_it_is_skipped(
    suite: Suite, repo: Path, gate: Gate, kind: Kind
) -> None:
    made = suite.submit(plan(task("T1", gate.wait), task("T2", "echo x > t2.txt", "T1")), repo)
    at_work(suite, made, "T1")
    seq = damage(suite, made, "T1", kind)
    view = suite.standing(made, "needs_attention")
    assert f"event {seq} " in view["fault"]
    other = suite.submit(plan(task("U1", "echo y > u.txt")), repo)
    suite.standing(other, "completed")

    (shown,) = (e for e in suite.events(made) if e["seq"] == seq)
    assert set(shown["unreadable"]) == {"fault", "version", "size", "bytes", "text"}
    assert (shown["unreadable"]["text"] is None) == (kind == "no text")
    told = suite.command("events", made, "--since", str(seq)).out
    assert "can't be read" in told
    assert f"treadle events skip {made} {seq}" in told
    assert "00000000  " in told
    assert "\x1b" not in told
    for looking in ("status", "replay", "why"):
        stuck = suite.command(looking, *(("--plan",) if looking == "why" else ()), made)
        assert f"treadle events skip {made} {seq}" in stuck.out, looking

    gate.open()  # T1's work ends while nobody can write that down
    skipped = suite.command("events", "skip", made, str(seq), "--reason", "of a build that was never released")
    assert (skipped.status, f"event {seq} is left out from now on" in skipped.err) == (0, True), skipped.err
    suite.standing(made, "completed")
    tasks = suite.tasks(made)
    assert tasks["T1"]["lease"] == 1, "what was at work went on, and was not begun again"
    assert types(suite.events(made), "T1").count("started") == 1
    told = suite.command("events", made, "--since", str(seq)).out
    assert ("left out by user:" in told, "events skip" in told) == (True, False)
    assert "stands still" not in suite.command("replay", made).err
    (word,) = (e for e in suite.events(made) if e["type"] == "skipped")
    assert (word["actor"].startswith("user:"), word["reason"]) == (True, "of a build that was never released")
    audit = suite.every("/audit-log", action="event.skipped", subject=made)
    assert [one["details"]["seq"] for one in audit] == [seq]


def test_a_plan_s_own_unreadable_event_is_skipped_after_a_restart_and_holds_over_the_next_one(
    own_suite: Suite, repo: Path, gate: Gate
) -> None:
    own_suite.up()
    made = own_suite.submit(plan(task("T1", gate.wait), task("T2", "true", "T1")), repo)
    at_work(own_suite, made, "T1")
    seq = damage(own_suite, made, "_plan", "unknown name")
    own_suite.standing(made, "needs_attention")
    for service in ("dispatcher", "gateway", "planner"):
        own_suite.kill(own_suite.pid(service))
    own_suite.standing(made, "needs_attention")
    gate.open()
    assert own_suite.command("events", "skip", made, str(seq), "--reason", "x").status == 0
    own_suite.standing(made, "completed")
    for service in ("dispatcher", "gateway", "planner"):
        own_suite.kill(own_suite.pid(service))
    assert own_suite.standing(made, "completed")["fault"] == ""
    assert own_suite.command("projection", "verify").status == 0


def test_what_can_be_read_can_not_be_skipped(suite: Suite, repo: Path) -> None:
    made = suite.submit(plan(task("T1", "true")), repo)
    suite.standing(made, "completed")
    first = suite.events(made)[0]["seq"]
    refused = suite.command("events", "skip", made, str(first), "--reason", "I don't like it")
    assert (refused.status, "can be read" in refused.err) == (2, True)
    nowhere = suite.command("events", "skip", made, "999999999", "--reason", "x")
    assert (nowhere.status, "does not exist" in nowhere.err) == (2, True)


def test_events_are_filtered_by_the_gateway(suite: Suite, repo: Path) -> None:
    made = suite.submit(plan(task("T1", "true"), task("T2", "true", "T1")), repo)
    suite.standing(made, "completed")
    whole = suite.events(made)

    def shown(*options: str) -> list[int]:
        return [e["seq"] for e in suite.command("events", made, "--json", *options).events]

    def having(**fields: object) -> list[int]:
        return [e["seq"] for e in whole if all(e[name] == value for name, value in fields.items())]

    assert shown() == [e["seq"] for e in whole]
    assert shown("--task", "T1") == having(task="T1")
    assert shown("--task", "_plan") == having(task=None)
    assert shown("--type", "completed", "--task", "T2") == having(type="completed", task="T2")
    assert shown("--actor", "dispatcher") == having(actor="dispatcher")
    runners = [e["seq"] for e in whole if e["actor"].startswith("runner:")]
    assert shown("--actor", "runner") == runners
    middle = whole[len(whole) // 2]
    assert shown("--since", str(middle["seq"])) == [e["seq"] for e in whole if e["seq"] >= middle["seq"]]
    assert shown("--until", str(middle["seq"])) == [e["seq"] for e in whole if e["seq"] <= middle["seq"]]
    assert shown("--since", middle["time"]) == [e["seq"] for e in whole if e["time"] >= middle["time"]]
    assert shown("--until", middle["time"]) == [e["seq"] for e in whole if e["time"] <= middle["time"]]
    lines = suite.command("events", made, "--type", "started").out.splitlines()
    assert [int(line.split()[0]) for line in lines] == having(type="started")
    assert "neither a sequence nor a time" in suite.command("events", made, "--since", "tomorrow").err
    for options, status, words in (
        (("--type", "bogus"), 2, "no type of an event: give one of abandoned,"),
        (("--task", "T9"), 2, "has no task T9"),
        (("--actor", "nobody"), 0, "no event matches"),
        (("--task", "T1", "--type", "skipped"), 0, "no event matches"),
    ):
        nothing = suite.command("events", made, *options)
        assert (nothing.status, nothing.out, words in nothing.err) == (status, "", True), nothing.err


def test_events_that_are_followed_survive_a_restart_of_gateway_and_log_and_end_with_ctrl_c(
    own_suite: Suite, repo: Path, gate: Gate
) -> None:
    own_suite.up()
    made = own_suite.submit(plan(task("T1", gate.wait), task("T2", "true", "T1")), repo)
    at_work(own_suite, made, "T1")
    following = own_suite.start("events", made, "--follow", "--json")
    assert following.stdout is not None
    heard = [json.loads(following.stdout.readline())]
    while heard[-1]["type"] != "started":
        heard.append(json.loads(following.stdout.readline()))
    own_suite.kill(own_suite.pid("gateway"))
    own_suite.kill(own_suite.pid("nats-server"))
    gate.open()
    own_suite.standing(made, "completed")
    while not (heard[-1]["type"] == "completed" and heard[-1]["task"] is None):
        heard.append(json.loads(following.stdout.readline()))
    following.send_signal(signal.SIGINT)
    done = ended(following)
    # It may have said before that it waited for the gateway.
    assert (done.status, done.out, done.err.strip().splitlines()[-1]) == (130, "", "interrupted")
    assert "Traceback" not in done.err
    assert [e["seq"] for e in heard] == [e["seq"] for e in own_suite.events(made)]


def test_a_pool_that_begins_again_delivers_everything_and_nothing_runs_twice(
    suite: Suite, repo: Path, tmp_path: Path, gate: Gate
) -> None:
    ran = tmp_path / "ran"
    ran.mkdir()
    tell = f"echo x >> {ran}/$TREADLE_TASK"
    done = suite.submit(plan(task("T1", tell), task("T2", tell, "T1")), repo)
    suite.standing(done, "completed")
    running = suite.submit(plan(task("R1", f"{tell}; {gate.wait}")), repo)
    at_work(suite, running, "R1")

    def pool() -> dict[str, int]:
        (one,) = (one for one in suite.get("/consumers")["items"] if one["name"] == "pool_command")
        return {name: one[name] for name in ("position", "pending", "unacknowledged")}

    before = pool()
    assert before["unacknowledged"] >= 1
    refused = suite.command("consumers", "reset", "pool_command", "--to", "end", "--reason", "x")
    assert (refused.status, "Say --yes" in refused.err) == (2, True)
    reset = suite.command("consumers", "reset", "pool_command", "--to", "start", "--reason", "to see what happens")
    assert (reset.status, "nothing runs twice" in reset.err) == (0, True), reset.err
    # Everything was delivered once more, found out of date, and acknowledged; R1's is in its runner's hands.
    until(lambda: (now := pool())["pending"] == 0 and now["unacknowledged"] == 1, "all is delivered again")
    assert pool()["position"] == before["position"]
    gate.open()
    suite.standing(running, "completed")
    until(lambda: pool()["unacknowledged"] == 0, "R1 is acknowledged")
    assert {file.name: file.read_text() for file in ran.iterdir()} == {"T1": "x\n", "T2": "x\n", "R1": "x\n"}
    for made, codes in ((done, ("T1", "T2")), (running, ("R1",))):
        for code in codes:
            assert types(suite.events(made), code).count("started") == 1
    audit = suite.every("/audit-log", action="consumer.reset", subject="pool_command")
    assert audit[0]["details"]["reason"] == "to see what happens"
    assert "pool_command" in suite.command("consumers").out


def test_the_projection_is_verified_and_a_row_that_was_changed_by_hand_is_named(own_suite: Suite, repo: Path) -> None:
    own_suite.up()
    made = own_suite.submit(plan(task("T1", "true")), repo)
    own_suite.standing(made, "completed")
    agrees = own_suite.command("projection", "verify")
    assert (agrees.status, "the tables are what the log says" in agrees.out) == (0, True), agrees.out
    (file,) = own_suite.data.rglob("*.sqlite")
    with sqlite3.connect(file) as database:
        database.execute("UPDATE task SET status = 'odd' WHERE code = 'T1'")
    database.close()
    differs = own_suite.command("projection", "verify")
    assert differs.status == 1
    assert f'{made}/T1  status: is "odd", the log says "completed"' in differs.out
    assert own_suite.command("projection", "verify", "--replace").status == 1
    assert own_suite.command("projection", "verify").status == 0
    assert "events are in the tables" in own_suite.command("projection", "show").out
