"""A plan that went wrong is forked: what was done stays done, the rest runs, and both plans tell of one another."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tests.end_to_end.model import Model
from tests.end_to_end.plans import files, git, plan, shell, task, write
from tests.end_to_end.suite import Suite, types
from treadle.lines import money
from treadle.scripted_model import Block, Script


def diamond(ran: Path, last: str) -> dict[str, object]:
    """Each task notes that it ran, outside of the repository."""

    def noted(code: str, script: str) -> str:
        return f"echo {code} >> {ran}; {script}"

    return plan(
        task("TOP", noted("TOP", "echo top > top.txt")),
        task("LEFT", noted("LEFT", "echo left > left.txt"), "TOP"),
        task("RIGHT", noted("RIGHT", "echo right > right.txt"), "TOP"),
        task("LAST", noted("LAST", last), "LEFT", "RIGHT"),
    )


def test_a_diamond_whose_last_task_failed_goes_on_in_a_fork_with_a_mended_description(
    suite: Suite, repo: Path, tmp_path: Path
) -> None:
    ran = tmp_path / "ran"
    origin = suite.submit(diamond(ran, "exit 3"), repo)
    suite.standing(origin, "needs_attention")
    assert sorted(ran.read_text().split()) == ["LAST", "LEFT", "RIGHT", "TOP"]

    joined = shell(f"echo AGAIN >> {ran}; cat top.txt left.txt right.txt > last.txt")
    edit = {"agents": {"LAST": joined}, "tasks": [{"code": "LAST", "description": "Join them all."}]}
    changes = write(tmp_path, edit, "edit.json")
    looked = suite.command("fork", origin, "--edit", changes, "--dry-run", "--json")
    assert looked.status == 0, looked.err
    told = json.loads(looked.out)
    assert [one["code"] for one in told["kept"]] == ["TOP", "LEFT", "RIGHT"]
    assert [(one["code"], one["why"]) for one in told["runs"]] == [("LAST", "changed: description")]
    shown = suite.command("fork", origin, "--edit", changes, "--dry-run").out
    assert "kept: 3 tasks" in shown and "changed: description" in shown
    assert len(suite.get(f"/plans/{origin}")["forks"]) == 0
    for option, value in (("--at", "0"), ("--only", "T9")):
        refused = suite.command("fork", origin, option, value, "--dry-run")
        assert (refused.status, f"plan {origin} can't be forked so:\n" in refused.err) == (2, True), refused.err

    done = suite.command("fork", origin, "--edit", changes, "--name", "Mended", "--json")
    assert done.status == 0, done.err
    made = done.events[-1]["plan"]
    assert ran.read_text().split()[-1] == "AGAIN" and len(ran.read_text().split()) == 5
    assert files(repo, f"treadle/{made}")["last.txt"] == "top\nleft\nright"

    status = json.loads(suite.command("status", made, "--json").out)
    assert (status["name"], status["forked_from"]["plan"], status["forked_from"]["kept"]) == ("Mended", origin, 3)
    tasks = {one["code"]: one for one in status["tasks"]}
    before = suite.tasks(origin)
    assert {code: tasks[code]["commit"] for code in ("TOP", "LEFT", "RIGHT")} == {
        code: before[code]["commit"] for code in ("TOP", "LEFT", "RIGHT")
    }
    assert tasks["LEFT"]["inherited"]["plan"] == origin and tasks["LAST"]["inherited"] is None
    assert types(suite.events(made), "LEFT") == ["inherited"]
    (forked,) = json.loads(suite.command("status", origin, "--json").out)["forks"]
    assert forked == {"plan": made, "seq": status["forked_from"]["seq"]}
    assert f"a fork of plan {origin}" in suite.command("status", made).out
    assert f"plan {made}" in suite.command("status", origin).out

    # What a fork inherited is its origin's for its own forks too, and a diff finds the commits there.
    again = suite.post(f"/plans/{made}/fork", {"only": ["LAST"]})
    assert {one["plan"] for one in again["kept"]} == {origin}
    assert "left.txt" in suite.get(f"/plans/{made}/tasks/LEFT/diff")["patch"]


def test_where_everything_was_completed_only_the_delivery_runs(suite: Suite, repo: Path, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    origin = suite.submit(diamond(ran, "echo last > last.txt"), repo)
    suite.standing(origin, "completed")
    made = suite.post(f"/plans/{origin}/fork", {})
    assert (len(made["kept"]), made["runs"]) == (4, [])
    suite.post(f"/plans/{made['plan']}/finalize", {"candidate": made["candidate"]})
    suite.standing(made["plan"], "completed")
    assert len(ran.read_text().split()) == 4
    assert git(repo, "rev-parse", f"treadle/{made['plan']}") == git(repo, "rev-parse", f"treadle/{origin}")


def test_what_is_wrong_with_a_fork_is_said_with_its_place(suite: Suite, repo: Path, tmp_path: Path) -> None:
    origin = suite.submit(diamond(tmp_path / "ran", "exit 3"), repo)
    suite.standing(origin, "needs_attention")
    edit = tmp_path / "edit.yaml"
    edit.write_text("tasks:\n- code: TOP\n  depends_on: [LAST]\n- code: NEW\n  depends_on: [NOPE]\n  assignee: TOP\n")
    done = suite.command("fork", origin, "--edit", str(edit))
    assert done.status == 2
    assert "wait for one another" in done.err and "line 3" in done.err
    assert '"NOPE" is not a task of this plan' in done.err and "line 5" in done.err
    assert suite.command("fork", origin, "--only", "NOPE").status == 2
    assert suite.command("fork", origin, "--at", "yesterday").status == 2
    assert suite.get(f"/plans/{origin}")["forks"] == []


def test_what_can_not_be_kept_any_more_is_said_before_a_fork_is_made(
    own_suite: Suite, repo: Path, tmp_path: Path
) -> None:
    ran = tmp_path / "ran"
    own_suite.up("--runners", "1")
    origin = own_suite.submit(diamond(ran, "test -e mended"), repo)
    own_suite.standing(origin, "needs_attention")
    assert own_suite.command("cancel", origin).status == 0
    own_suite.standing(origin, "cancelled")
    looked = json.loads(own_suite.command("fork", origin, "--dry-run", "--json").out)
    assert (len(looked["kept"]), looked["not_looked"]) == (3, "")

    # As `treadle clean` does some days later, and git's own housekeeping after that.
    for ref in git(repo, "for-each-ref", "--format=%(refname)", f"refs/treadle/{origin}").split():
        git(repo, "update-ref", "-d", ref)
    git(repo, "gc", "--quiet", "--prune=now")
    for mirror in (own_suite.data / "mirrors").glob("*.git"):
        shutil.rmtree(mirror)
    for options in (("--dry-run",), ("--detach",)):
        refused = own_suite.command("fork", origin, *options)
        assert refused.status == 2, refused.out + refused.err
        assert "does not have the work of TOP" in refused.err and "treadle clean" in refused.err
        assert "--only TOP..,LEFT..,RIGHT..,LAST" in refused.err
    assert own_suite.get(f"/plans/{origin}")["forks"] == []
    edit = write(tmp_path, {"agents": {"LAST": shell("cat top.txt left.txt right.txt > last.txt")}}, "edit.json")
    anew = own_suite.command("fork", origin, "--only", "TOP..,LEFT..,RIGHT..,LAST", "--edit", edit, "--json")
    assert anew.status == 0, anew.err
    assert files(repo, f"treadle/{anew.events[-1]['plan']}")["last.txt"] == "top\nleft\nright"

    own_suite.down()
    own_suite.up("--runners", "0")
    unknown = own_suite.command("fork", origin, "--dry-run")
    assert unknown.status == 0 and "not checked whether the commits" in unknown.err, unknown.err
    assert "no runner answers" in unknown.err


KEY = "sk-ant-made-up-for-forks"
WRITES: Script = [
    [Block(tool="Write", input={"file_path": "one.txt", "content": "one\n"})],
    [Block(text="I wrote one.txt.")],
]


def test_what_was_paid_for_is_the_origins(own_suite: Suite, repo: Path, tmp_path: Path) -> None:
    with Model({"T1": WRITES, "T2": WRITES}, api_key=KEY) as model:
        own_suite.environment |= {"ANTHROPIC_API_KEY": KEY, "ANTHROPIC_BASE_URL": model.base_url}
        both = {"timeout_minutes": 2, "allow_no_change": True}
        tasks = [
            {"code": "T1", "name": "Write", "description": "Write a file.", **both},
            {"code": "T2", "name": "Check", "depends_on": ["T1"], "verify": ["false"], "verify_rounds": 0, **both},
        ]
        paid = {"name": "Paid", "tasks": tasks, "budget_usd": 6}
        done = own_suite.command("run", write(tmp_path, paid), "--repo", str(repo), "--json")
        assert done.status == 1, done.err
        origin = done.events[-1]["plan"]
        cost = own_suite.tasks(origin)["T1"]["usage"]["cost_usd"]
        assert cost > 0
        edit = write(tmp_path, {"tasks": [{"code": "T2", "verify": ["true"]}]}, "edit.json")
        forked = own_suite.command("fork", origin, "--edit", edit, "--json")
        assert forked.status == 0, forked.err
        made = forked.events[-1]["plan"]
        shown, of_fork = own_suite.get(f"/plans/{made}"), own_suite.tasks(made)
        t1, t2 = of_fork["T1"], of_fork["T2"]
        assert shown["forked_from"]["usage"]["cost_usd"] == cost == t1["inherited"]["usage"]["cost_usd"]
        assert t1["usage"].get("cost_usd", 0) == 0
        assert shown["usage"]["cost_usd"] == t2["usage"]["cost_usd"] > 0
        assert f"which cost {money(cost)} there" in own_suite.command("status", made).out
