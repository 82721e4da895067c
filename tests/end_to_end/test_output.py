"""What the commands show: lines, JSON, tables, logs and diffs; and the streams behind them."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import httpx
import pytest
from httpx_sse import connect_sse

from tests.end_to_end.plans import Gate, files, git, make_repo, plan, task, write
from tests.end_to_end.suite import Suite, ended, types, until

HOSTILE = (
    r"head -c 200000 /dev/zero | tr '\0' x; echo;"
    r"printf '\033[31mred\033]0;title\007 <b onclick=alert(1)>bold</b> \342\200\256reversed \302\233\n' > bad.txt;"
    r"cat bad.txt"
)
STEERING = ("\x1b", "\x07", "\x9b", "\u202e")


def assert_harmless(text: str) -> None:
    """Nothing in it steers a terminal."""
    for code in STEERING:
        assert code not in text, f"{code!r} in {text[:500]!r}"


@pytest.fixture(scope="module")
def finished(suite: Suite, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A completed plan of three tasks; its agents' output is hostile."""
    repo = make_repo(tmp_path_factory.mktemp("finished") / "repo")
    made = suite.submit(
        plan(
            task("T1", f"echo starts; {HOSTILE}\necho one > one.txt; echo 'the <b>end</b>'", name="<i>first</i>"),
            task("T2", "echo TWO >> a.txt; echo hello two", "T1"),
            task("T3", "echo nothing", "T1"),
            name="A <script>alert(1)</script> plan \U0001f9f5",
        ),
        repo,
    )
    suite.standing(made, "completed")
    return made


def test_piped_output_is_plain_lines_that_tell_the_whole_story(suite: Suite, finished: str) -> None:
    done = suite.command("watch", finished)
    assert done.status == 0
    assert_harmless(done.out + done.err)
    lines = done.out.splitlines()
    assert max(map(len, lines)) < 400
    told = "\n".join(lines)
    for words in ("finalized", "T1            started on runner-1", "T2            completed", "_deliver", finished):
        assert words in told
    assert lines[-1].startswith(f"{finished}  completed  A <script>alert(1)</script> plan")


def test_json_is_one_object_per_event_complete_and_in_order(suite: Suite, finished: str) -> None:
    done = suite.command("watch", finished, "--json")
    assert done.status == 0
    shown = done.events
    assert shown == suite.events(finished)
    assert [event["seq"] for event in shown] == sorted({event["seq"] for event in shown})
    for event in shown:
        assert {"seq", "time", "plan", "task", "type"} <= set(event)
        assert event["plan"] == finished
        assert datetime.fromisoformat(event["time"]).tzinfo is not None
    assert types(shown, None) == ["drafted", "finalizing", "finalized", "completed"]
    for code in ("T1", "T2", "T3", "_deliver"):
        assert types(shown, code) == ["planned", "dispatched", "started", "completed"]
    dispatched = next(e for e in shown if (e["task"], e["type"]) == ("T2", "dispatched"))
    assert dispatched["prompt"].startswith("# Task T2") and dispatched["heads"][0]["task"] == "T1"


def test_status_and_ls_show_plans_and_tasks_as_text_and_as_json(suite: Suite, finished: str) -> None:
    shown = suite.command("status", finished)
    assert shown.status == 0
    assert_harmless(shown.out)
    for words in ("T1", "T2", "T3", "_deliver", "completed", "hello two"):
        assert words in shown.out
    as_json = json.loads(suite.command("status", finished, "--json").out)
    assert {task["code"]: task["status"] for task in as_json["tasks"]} == dict.fromkeys(
        ("T1", "T2", "T3", "_deliver"), "completed"
    )
    listed = suite.command("ls")
    assert finished in listed.out
    assert_harmless(listed.out)
    assert finished in [view["plan"] for view in json.loads(suite.command("ls", "--json").out)]


def test_logs_show_what_the_agent_printed_harmlessly(suite: Suite, finished: str) -> None:
    shown = suite.command("logs", "T1", "--plan", finished)
    assert shown.status == 0
    assert_harmless(shown.out)
    assert "starts" in shown.out and "the <b>end</b>" in shown.out
    assert max(map(len, shown.out.splitlines())) < 20_000
    entries = [json.loads(line) for line in suite.command("logs", "T1", "--plan", finished, "--json").out.splitlines()]
    assert {(entry["task"], entry["lease"]) for entry in entries} == {("T1", 1)}
    assert [entry["seq"] for entry in entries] == sorted({entry["seq"] for entry in entries})
    assert "\x1b[31mred" in "".join(entry["activity"]["text"] for entry in entries)  # JSON keeps what was said


def test_logs_follow_what_an_agent_does_until_its_task_is_over(
    suite: Suite, repo: Path, tmp_path: Path, gate: Gate
) -> None:
    started = tmp_path / "started"
    made = suite.submit(plan(task("T1", f"echo before; touch {started}; {gate.wait}; echo after")), repo)
    until(started.exists, "the task runs")
    following = suite.start("logs", "T1", "--plan", made, "-f")
    assert following.stdout is not None
    assert "before" in following.stdout.readline()
    gate.open()
    done = ended(following)
    assert done.status == 0
    assert "after" in done.out


def test_diff_shows_what_one_task_changed(suite: Suite, finished: str) -> None:
    shown = suite.command("diff", "T2", "--plan", finished)
    assert shown.status == 0
    added = [line for line in shown.out.splitlines() if line.startswith("+") and not line.startswith("+++")]
    assert added == ["+TWO"]
    stat = suite.command("diff", "T2", "--stat", "--plan", finished)
    assert "a.txt" in stat.out and "1 file changed" in stat.out and "+TWO" not in stat.out
    hostile = suite.command("diff", "T1", "--plan", finished)
    assert "one.txt" in hostile.out
    assert_harmless(hostile.out)


def test_a_failure_message_from_an_agent_is_shown_harmlessly_everywhere(
    suite: Suite, repo: Path, tmp_path: Path
) -> None:
    bad = write(tmp_path, plan(task("T1", f"({HOSTILE}) >&2; exit 1")))
    done = suite.command("run", bad, "--repo", str(repo))
    assert done.status == 1
    assert_harmless(done.out + done.err)
    assert "exit status 1" in done.out
    assert max(map(len, done.out.splitlines())) < 500
    status = suite.command("status")
    assert_harmless(status.out)
    assert "<b onclick=alert(1)>bold</b>" in status.out


def test_hostile_file_names_are_committed_and_shown_harmlessly(suite: Suite, repo: Path, tmp_path: Path) -> None:
    name = r"$(printf '\033[2Jx\nnew')"
    conflicting = plan(task("L", f'echo l > "{name}"'), task("R", f'echo r > "{name}"'), task("J", "true", "L", "R"))
    done = suite.command("run", write(tmp_path, conflicting), "--repo", str(repo))
    assert done.status == 1
    assert_harmless(done.out + done.err)
    assert "merge conflict" in done.out
    made = suite.plans()[0]["plan"]
    shown = suite.command("diff", "L", "--plan", made)
    assert_harmless(shown.out)
    assert "+l" in shown.out


def test_the_persons_branch_index_and_files_are_untouched_by_a_run(suite: Suite, repo: Path, tmp_path: Path) -> None:
    (repo / "a.txt").write_text("changed, not staged\n")
    (repo / "staged.txt").write_text("staged\n")
    git(repo, "add", "staged.txt")
    (repo / "untracked.txt").write_text("untracked\n")
    before = (git(repo, "status", "--porcelain"), git(repo, "rev-parse", "HEAD", "main"), git(repo, "branch"))
    index = (repo / ".git" / "index").read_bytes()
    done = suite.command("run", write(tmp_path, plan(task("T1", "echo x > a.txt"))), "--repo", str(repo))
    assert done.status == 0
    assert "uncommitted changes" in done.err
    (branch,) = git(repo, "branch", "--list", "treadle/*", "--format=%(refname:short)").splitlines()
    git(repo, "update-ref", "-d", f"refs/heads/{branch}")
    assert (git(repo, "status", "--porcelain"), git(repo, "rev-parse", "HEAD", "main"), git(repo, "branch")) == before
    assert (repo / ".git" / "index").read_bytes() == index
    assert (repo / "a.txt").read_text() == "changed, not staged\n"


def test_a_detached_head_and_a_bare_repository_are_fine(suite: Suite, repo: Path, tmp_path: Path) -> None:
    git(repo, "checkout", "-q", "--detach")
    bare = tmp_path / "bare.git"
    git(tmp_path, "clone", "-q", "--bare", str(repo), str(bare))
    content = write(tmp_path, plan(task("T1", "echo x > x.txt")))
    for place in (repo, bare):
        assert suite.command("run", content, "--repo", str(place)).status == 0
        assert files(place, suite.plans()[0]["branch"])["x.txt"] == "x"


def test_a_stream_resumes_at_the_last_event_without_gap_or_duplicate(suite: Suite, finished: str) -> None:
    whole = [event["seq"] for event in suite.events(finished)]
    for seen in (0, whole[0], whole[len(whole) // 2], whole[-2]):
        with (
            suite.http() as http,
            connect_sse(http, "GET", f"/plans/{finished}/stream", headers={"Last-Event-ID": str(seen)}) as source,
        ):
            told = []
            for message in source.iter_sse():
                if message.event == "log":
                    told.append(int(message.id))
                if message.event == "live":
                    break
        assert told == [seq for seq in whole if seq > seen]


def test_nobody_is_answered_without_the_token(suite: Suite, finished: str) -> None:
    url = suite.info["gateway_url"]
    for path in ("/api/plans", f"/api/plans/{finished}", f"/api/plans/{finished}/stream", "/api/suite"):
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic eDp5"}):
            answer = httpx.get(f"{url}{path}", headers=headers, timeout=60, trust_env=False)
            assert answer.status_code == 401, path
            assert answer.headers["content-type"].startswith("application/problem+json")
            assert answer.json()["code"] == "unauthorized"
    assert httpx.post(f"{url}/api/plans/{finished}/cancel", json={}, timeout=60, trust_env=False).status_code == 401
    assert (suite.data / "gateway.token").stat().st_mode & 0o077 == 0


def test_a_reader_that_goes_away_is_no_error(suite: Suite, finished: str) -> None:
    watching = suite.start("watch", finished, "--json")
    assert watching.stdout is not None
    watching.stdout.readline()
    watching.stdout.close()
    assert watching.stderr is not None
    said = watching.stderr.read()
    assert watching.wait(90) in (0, 141)
    assert "Traceback" not in said
