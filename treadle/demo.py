"""`treadle demo`: a whole plan on a repository made for it, with the real model or with a scripted one."""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.resources import as_file, files
from pathlib import Path

import git

from services.planner.estimate import estimate
from treadle import repository
from treadle.api import Resource
from treadle.instance import Instance
from treadle.lines import money
from treadle.plain_text import plain
from treadle.plan_file import read_plan_file
from treadle.run import say, submit, watch_plan
from treadle.supervision.data_dir import DataDir
from treadle.supervision.ensure import stop_suite
from treadle.supervision.environment import Secrets
from treadle.supervision.processes import die_with_parent
from treadle.supervision.suite_info import SuiteOptions

SCRIPTED_MODEL_WITHIN_S = 20.0


def demo(*, as_json: bool) -> int:
    """Runs the demo and shows the branch that came out; returns the exit status of the plan."""
    data = files("treadle") / "demo_data"
    with as_file(data.joinpath("plan.yaml")) as path:
        file = read_plan_file(path)
    place = Path(tempfile.mkdtemp(prefix="treadle-demo-"))
    repo = _make_repository(place / "repository")
    with contextlib.ExitStack() as held:
        keys = Secrets.of(os.environ)
        if keys.anthropic_api_key:
            most = money(estimate(file.alone()).most_usd)
            say(
                f"the real model: this costs at most {most} (Ctrl-C stops it; without ANTHROPIC_API_KEY it is scripted)"
            )
        else:
            url = held.enter_context(_scripted_model(place, data.joinpath("scripts.json").read_bytes()))
            keys = Secrets(f"sk-demo-{secrets.token_hex(16)}", url)
            say("scripted model: ANTHROPIC_API_KEY is not set, so the real Claude CLI talks to a model on this machine")
            say("that plays a script, for nothing. All else is real: NATS, git, worktrees, the CLI and its tools.")
        data_dir = DataDir(place / "data")
        instance = Instance(data_dir, keys=keys)
        options = SuiteOptions(data_dir=str(data_dir.path), slots=2)
        say(f"in {place}: starting NATS, planner, dispatcher, gateway and a runner\n")
        with instance.reach(options) as reached:
            held.callback(stop_suite, data_dir)
            plan = submit(reached.gateway(), file, repository.choose(str(repo.working_dir)))
            status = watch_plan(plan, reached, instance, options, as_json=as_json)
            view = reached.gateway().get(f"/plans/{plan}", Resource)
    if status == 0:
        branch = view["branch"]
        _show_branch(repo, branch, as_json=as_json)
        say(f"\nThe repository is {repo.working_dir}; nobody's checked-out files were touched. To look around:")
        say(f"  git -C {repo.working_dir} switch {branch}")
        say(f"  treadle --data {data_dir.path} status        (logs TASK, diff TASK, …)")
    return status


def _make_repository(path: Path) -> git.Repo:
    repo = git.Repo.init(path, initial_branch="main")
    (path / "README.md").write_text("# Loom\n\nDraws woven patterns as text.\n")
    (path / ".gitignore").write_text("__pycache__/\n")
    repo.index.add(["README.md", ".gitignore"])
    actor = git.Actor("Demo", "demo@localhost")
    repo.index.commit("Begin", author=actor, committer=actor)
    return repo


@contextlib.contextmanager
def _scripted_model(place: Path, scripts: bytes) -> Iterator[str]:
    """Its own process, which ends with ours; gives its address."""
    script_file, port_file = place / "scripts.json", place / "model.port"
    script_file.write_bytes(scripts)
    command = [sys.executable, "-P", "-m", "treadle.scripted_model"]
    arguments = ["--port-file", str(port_file), "--scripts", str(script_file)]
    process = subprocess.Popen([*command, *arguments], start_new_session=True, preexec_fn=die_with_parent())
    try:
        deadline_s = time.monotonic() + SCRIPTED_MODEL_WITHIN_S
        while not port_file.exists():
            if process.poll() is not None or time.monotonic() > deadline_s:
                raise RuntimeError("the scripted model did not start")
            time.sleep(0.02)
        yield f"http://127.0.0.1:{int(port_file.read_text())}"
    finally:
        process.terminate()
        process.wait(10)


def _show_branch(repo: git.Repo, branch: str, *, as_json: bool) -> None:
    """The branch, its log and its diffstat."""
    out = sys.stderr if as_json else sys.stdout
    out.write(f"\nbranch {branch}\n\n")
    out.write(plain(repo.git.log("--graph", "--oneline", "--no-color", branch)) + "\n\n")
    out.write(plain(repo.git.diff("--stat", "--no-color", "--no-ext-diff", "--no-textconv", f"main...{branch}")) + "\n")
    out.flush()
