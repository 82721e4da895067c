"""What a task does to its runner, and what it may see of the person's environment."""

from __future__ import annotations

from pathlib import Path

from tests.end_to_end.plans import files, plan, task, write
from tests.end_to_end.suite import Suite

# The first ancestor that is a runner: found by its command line, whatever wrappers are between.
KILL_RUNNER = (
    "p=$$; while [ $p -gt 1 ]; do p=$(awk '/^PPid/{print $2}' /proc/$p/status); "
    "tr '\\0' ' ' </proc/$p/cmdline | grep -q services.runner && break; done; [ $p -gt 1 ] && kill -9 $p; sleep 30"
)


def test_a_task_that_kills_its_runner_is_given_up_after_three_leases(
    own_suite: Suite, repo: Path, tmp_path: Path
) -> None:
    done = own_suite.command("run", write(tmp_path, plan(task("K", KILL_RUNNER))), "--repo", str(repo), deadline_s=200)
    assert done.status == 1, done.err
    assert done.out.count("K             started") == 3
    assert "failed (runner lost), needs attention: 3 runners were lost" in done.out


def test_env_allow_shows_an_agent_the_named_variables_of_the_person_and_no_other(
    own_suite: Suite, repo: Path, tmp_path: Path
) -> None:
    wanted = plan(task("E", 'echo "$SHOWN/$HIDDEN" > seen.txt'), env_allow=["SHOWN"])
    environment = {"SHOWN": "yes", "HIDDEN": "no"}
    done = own_suite.command("run", write(tmp_path, wanted), "--repo", str(repo), env=environment)
    assert done.status == 0, done.err
    branch = next(word for word in done.out.split() if word.startswith("treadle/"))
    assert files(repo, branch)["seen.txt"] == "yes/"
