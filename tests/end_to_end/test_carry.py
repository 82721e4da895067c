"""A plan is carried as a file to where neither its repository nor its server is, and looks the same there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest

from tests.end_to_end.plans import git, plan, task
from tests.end_to_end.suite import Suite, until

FAILS_ONCE = "if [ $TREADLE_ATTEMPT = 1 ]; then echo no; exit 3; fi"

ITS_ID = ("plan", "before_plan", "after_plan")


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Suite]:
    """Another, empty suite."""
    made = Suite(tmp_path / "elsewhere", sandboxed=False)
    made.up("--runners", "1")
    try:
        yield made
    finally:
        made.down()


def story() -> dict[str, Any]:
    """A task that fails once, and two behind it."""
    return plan(
        task("T1", f"{FAILS_ONCE}; echo one > one.txt; echo said by T1", retry={"max_attempts": 2, "backoff_s": 0.1}),
        task("T2", "echo two > two.txt; echo said by T2", "T1"),
        task("T3", "echo three > three.txt; echo said by T3", "T1"),
        name="To be carried",
    )


def looked_at(suite: Suite, plan: str, tasks: list[str], seqs: list[int]) -> dict[str, Any]:
    """All that the API tells of the plan's past, but for the id that it has here."""
    with suite.http(60) as http:

        def get(path: str, **params: Any) -> Any:
            answer = http.get(f"/plans/{plan}{path}", params=params)
            assert answer.is_success, f"{path} {params}: {answer.text}"
            body = answer.json()
            return {name: value for name, value in body.items() if name not in ITS_ID}

        told: dict[str, Any] = {f"state at {seq}": get("/state", at=seq) for seq in seqs}
        told["between"] = get("/state", at="end", against=seqs[0])
        told["why"] = get("/why")
        told["tasks"] = get("/tasks", limit=1000)
        for code in tasks:
            told[f"task {code}"] = get(f"/tasks/{code}")
            told[f"why {code}"] = get(f"/why/{code}")
            told[f"prompt of {code}"] = get(f"/tasks/{code}/prompt")
            told[f"transcript of {code}"] = get(f"/tasks/{code}/transcript")
            told[f"diff of {code}"] = get(f"/tasks/{code}/diff")
        return told


def said_all(suite: Suite, plan: str, code: str) -> bool:
    """Whether the last that the task says is stored."""
    items = suite.get(f"/plans/{plan}/tasks/{code}/transcript")["items"]
    return any(f"said by {code}" in item["activity"]["text"] for item in items)


def test_a_plan_looks_the_same_where_neither_its_repository_nor_its_server_is(
    own_suite: Suite, elsewhere: Suite, repo: Path, tmp_path: Path
) -> None:
    own_suite.up("--runners", "1")
    origin = own_suite.submit(story(), repo)
    own_suite.standing(origin, "completed")
    events = own_suite.events(origin)
    tasks, seqs = ["T1", "T2", "T3"], [event["seq"] for event in events]
    # What an agent said is stored behind its end, without anybody waiting for it.
    for code in tasks:
        until(partial(said_all, own_suite, origin, code), f"the transcript of {code} is stored")
    before = looked_at(own_suite, origin, tasks, seqs)
    view = own_suite.get(f"/plans/{origin}")
    assert all(before[f"transcript of {code}"]["items"] for code in tasks)

    file = tmp_path / "plan.treadle"
    exported = own_suite.command("export", origin, "-o", str(file), "--json")
    assert exported.status == 0, exported.err
    told = json.loads(exported.out)
    assert (told["plan"], told["counts"]["events"], told.get("left_out")) == (origin, len(events), [])
    assert {head["task"] for head in told["commits"]["heads"]} == {*tasks, "_deliver"}
    own_suite.down()
    head = git(repo, "rev-parse", f"treadle/{origin}")
    with ZipFile(file) as opened:
        opened.extract("commits.bundle", tmp_path)
    shutil.rmtree(repo)

    came = elsewhere.command("import", str(file), "--digest", told["digest"], "--json")
    assert came.status == 0, came.err
    imported = json.loads(came.out)["id"]
    assert imported != origin
    assert looked_at(elsewhere, imported, tasks, seqs) == before
    assert elsewhere.events(imported) == events
    listed = elsewhere.command("ls").out
    assert f"{imported}  " in listed and f"imported from {origin}" in listed
    assert json.loads(elsewhere.command("status", imported[:6], "--json").out)["plan"] == imported
    here = elsewhere.get(f"/plans/{imported}")
    assert {name for name in view if here[name] != view[name]} == {"plan", "imported"}
    assert (here["imported"]["plan"], here["imported"]["digest"]) == (origin, told["digest"])

    for looked in (imported, str(file)):
        verified = elsewhere.command("replay", looked, "--verify")
        assert verified.status == 0, verified.out + verified.err
    replayed = elsewhere.command("replay", imported, "--at", "end", "--json")
    assert replayed.status == 0, replayed.err
    refused = elsewhere.command("cancel", imported)
    assert refused.status != 0
    assert "imported" in refused.err

    # The commits are in the file: nobody needs the repository for them.
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "--quiet", "--branch", f"treadle/{origin}", str(tmp_path / "commits.bundle"), str(clone))
    assert git(clone, "rev-parse", "HEAD") == head
    assert (clone / "one.txt").read_text() == "one\n"

    again = tmp_path / "again.treadle"
    assert elsewhere.command("export", imported, "-o", str(again)).status == 0
    assert again.read_bytes() == file.read_bytes()
