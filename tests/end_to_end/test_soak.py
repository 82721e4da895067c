"""Minutes of work while a runner, the dispatcher or nats-server is killed -9 every few seconds.

`TREADLE_SEED=17` repeats the plan and the killer's choices, `TREADLE_SOAK_S` and `TREADLE_SOAK_TASKS` make it shorter.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.end_to_end.plans import files, git, lease_processes, shell
from tests.end_to_end.suite import Suite, types, until

pytestmark = pytest.mark.soak

SOAK_S = float(os.environ.get("TREADLE_SOAK_S", "600"))
TASKS = int(os.environ.get("TREADLE_SOAK_TASKS", "200"))
SEED = int(os.environ.get("TREADLE_SEED") or random.SystemRandom().randrange(1_000_000))
RUNNERS, SLOTS = 4, 2
KILL_EVERY_S = (2.0, 6.0)
VICTIMS = {"runner": 6, "dispatcher": 2, "nats-server": 2}
"""By how likely each is."""
CLAUDE_EVERY = 10
LENGTHS = 20
"""Every so manieth task is Claude's: its conversations are taken up again, what a command does begins anew."""
FILL = 0.4
"""How much of the time the slots would be at work if nobody killed anything; the rest is for what is done again."""
END_WITHIN_S = 300.0
KEY = "sk-soak-made-up"


@pytest.fixture
def model(tmp_path: Path, work: Work) -> Iterator[str]:
    """The address of a scripted model that plays Claude's tasks."""
    port_file, scripts = tmp_path / "port", tmp_path / "scripts.json"
    scripts.write_text(json.dumps(work.scripts()))
    argv = [sys.executable, "-m", "treadle.scripted_model", "--port-file", str(port_file), "--scripts", str(scripts)]
    with subprocess.Popen(argv) as process:
        until(port_file.exists, "the model serves")
        yield f"http://127.0.0.1:{port_file.read_text()}"
        process.terminate()


class Work:
    """A plan drawn from a seed: each task leaves one line in a file of its own."""

    def __init__(self, chance: random.Random) -> None:
        mean_s = SOAK_S * RUNNERS * SLOTS * FILL / TASKS
        self.codes = [f"T{number}" for number in range(TASKS)]
        # Few lengths, an agent each: a plan has a hundred agents at most.
        lengths_s = [round(mean_s * chance.uniform(0.3, 1.7), 2) for _ in range(LENGTHS)]
        self.works_s = {code: chance.choice(lengths_s) for code in self.codes}
        self.after = {
            code: chance.sample(self.codes[max(0, at - 40) : at], min(at, chance.choice((0, 1, 1, 2, 3))))
            for at, code in enumerate(self.codes)
        }
        self.claudes = self.codes[CLAUDE_EVERY - 1 :: CLAUDE_EVERY]

    def plan(self) -> dict[str, Any]:
        # `>>`: work that came from two lives would show as two lines.
        script = "sleep {}; mkdir -p work; echo $TREADLE_TASK >> work/$TREADLE_TASK.txt"
        agents = {f"for {s}": shell(script.format(s)) for s in set(self.works_s.values())}
        tasks = [
            {
                "code": code,
                "name": f"Task {code}",
                "description": "Write your file.",
                "assignee": "claude" if code in self.claudes else f"for {self.works_s[code]}",
                "depends_on": self.after[code],
                "retry": {"max_attempts": 10, "backoff_s": 1},
            }
            for code in self.codes
        ]
        return {"name": "A soak", "agents": {**agents, "claude": {"sdk_type": "claude"}}, "tasks": tasks}

    def scripts(self) -> dict[str, list[dict[str, Any]]]:
        """Claude's tasks take as long as the others, in five answers; the third one writes."""
        return {code: [self._answer(code, number) for number in range(5)] for code in self.claudes}

    def _answer(self, code: str, number: int) -> dict[str, Any]:
        said: dict[str, Any] = {"text": f"Answer {number}."}
        called: dict[str, Any] = {"tool": "Bash", "input": {"command": "ls"}}
        if number == 2:
            called = {"tool": "Write", "input": {"file_path": f"work/{code}.txt", "content": f"{code}\n"}}
        blocks = [said, called] if number < 4 else [said]
        return {"delay_s": self.works_s[code] / 5, "blocks": blocks}

    def files(self) -> dict[str, str]:
        """What the branch must hold."""
        return {f"work/{code}.txt": code for code in self.codes}


@pytest.fixture
def work() -> Work:
    return Work(random.Random(SEED))  # noqa: S311 - repeatable on purpose


@pytest.mark.timeout(SOAK_S + END_WITHIN_S + 120)
def test_every_task_ends_once_and_nothing_is_left_behind(own_suite: Suite, repo: Path, work: Work, model: str) -> None:
    print(f"to see it again: TREADLE_SEED={SEED} TREADLE_SOAK_S={SOAK_S:g} TREADLE_SOAK_TASKS={TASKS}")  # noqa: T201
    del own_suite.environment["TREADLE_SANDBOX"]  # as on a person's machine
    own_suite.environment |= {"ANTHROPIC_API_KEY": KEY, "ANTHROPIC_BASE_URL": model}
    own_suite.up("--runners", str(RUNNERS), "--slots", str(SLOTS))
    made = own_suite.submit(work.plan(), repo)
    killed = kill_at_random(own_suite, time.monotonic() + SOAK_S)
    print(f"killed {dict(killed)}")  # noqa: T201 - shown with a failure
    assert all(killed[name] for name in VICTIMS) or SOAK_S < 120, "the soak was too short to mean anything"
    own_suite.standing(made, "completed", END_WITHIN_S)
    assert_each_ended_once(own_suite, made, work)
    assert_branch_holds_every_change_once(repo, f"treadle/{made}", work)
    until(lambda: lease_processes(made) == [], "no process of an agent is left")
    places = own_suite.data / "work"
    until(lambda: not [*places.glob("*/*"), *places.glob("*/.*")], f"no workspace is left: {[*places.glob('*/*')]}")
    own_suite.down()
    strays = [words for process in psutil.process_iter() if str(own_suite.data) in str(words := _words(process))]
    assert not strays


def kill_at_random(suite: Suite, end_s: float) -> Counter[str]:
    """Kills until the time is over; returns how many of each."""
    chance = random.Random(SEED + 1)  # noqa: S311 - repeatable on purpose
    killed: Counter[str] = Counter()
    while (left_s := end_s - time.monotonic()) > 0:
        time.sleep(min(left_s, chance.uniform(*KILL_EVERY_S)))  # the pace of the killing, not a wait for anything
        (name,) = chance.choices(list(VICTIMS), list(VICTIMS.values()))
        suite.kill(chance.choice(sorted(suite.pids(name))))
        killed[name] += 1
    return killed


def assert_each_ended_once(suite: Suite, made: str, work: Work) -> None:
    events = suite.events(made)
    for code in (*work.codes, "_deliver"):
        told = types(events, code)
        assert told.count("completed") == 1, (code, told)
        assert told[-1] == "completed", (code, told)
    assert types(events, None).count("completed") == 1
    ends = {event["task"]: event["seq"] for event in events if event["type"] == "completed"}
    starts = {event["task"]: event["seq"] for event in events if event["type"] == "started"}
    for code in work.codes:
        early = [before for before in work.after[code] if ends[before] > starts[code]]
        assert not early, f"{code} was started before {early} were completed"


def assert_branch_holds_every_change_once(repo: Path, branch: str, work: Work) -> None:
    found = files(repo, branch)
    assert {name: text for name, text in found.items() if name.startswith("work/")} == work.files()
    format_ = "--format=%(trailers:key=Treadle-Task,valueonly,separator=%x20)"
    commits = Counter(git(repo, "log", "--no-merges", format_, f"main..{branch}").split())
    assert commits == Counter(work.codes)
    assert git(repo, "status", "--porcelain") == ""


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
