"""Plans of shell scripts, gates that hold a task until a test lets it go, and repositories to work on."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

Plan = dict[str, Any]

_GIT_ENV = {
    "PATH": os.environ["PATH"],
    "HOME": "/dev/null",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_AUTHOR_NAME": "Person",
    "GIT_AUTHOR_EMAIL": "person@example.com",
    "GIT_COMMITTER_NAME": "Person",
    "GIT_COMMITTER_EMAIL": "person@example.com",
}


def shell(script: str) -> dict[str, Any]:
    """An agent that runs a script in its worktree; the prompt is thrown away."""
    return {"sdk_type": "command", "command": ["sh", "-ec", f"cat > /dev/null\n{script}"]}


def task(code: str, script: str, *after: str, **more: Any) -> dict[str, Any]:
    """A task that runs a script: `plan` makes an agent of it. It need not change a file."""
    fixed = {"code": code, "name": f"Task {code}", "script": script, "depends_on": list(after)}
    return {**fixed, "allow_no_change": True, **more}


def plan(*tasks: Mapping[str, Any], **more: Any) -> Plan:
    """A plan of such tasks."""
    agents = {t["code"]: shell(t["script"]) for t in tasks if "script" in t}
    listed = [{"assignee": t["code"], **{k: v for k, v in t.items() if k != "script"}} for t in tasks]
    return {"name": "A plan", "agents": agents, "tasks": listed, **more}


def write(directory: Path, content: object, name: str = "plan.json") -> str:
    """Stores a plan as a file; returns its path."""
    path = directory / name
    path.write_text(json.dumps(content))
    return str(path)


class Gate:
    """Holds whoever runs `wait` until the test opens it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def wait(self) -> str:
        """The shell's words."""
        return f"while [ ! -e {self._path} ]; do sleep 0.02; done"

    def open(self) -> None:
        """Lets everybody through."""
        self._path.touch()


def git(where: Path, *args: str) -> str:
    """Runs git as a person would; returns what it prints."""
    done = subprocess.run(["git", *args], cwd=where, env=_GIT_ENV, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"git {' '.join(args)}: {done.stderr}"
    return done.stdout.strip()


def make_repo(path: Path) -> Path:
    """A repository with one commit, checked out at `main`."""
    path.mkdir(parents=True)
    git(path, "init", "-q", "-b", "main")
    (path / "a.txt").write_text("one\ntwo\nthree\n")
    git(path, "add", "--all")
    git(path, "commit", "-q", "-m", "Start")
    return path


def files(repo: Path, revision: str) -> dict[str, str]:
    """Every file of a commit."""
    names = git(repo, "ls-tree", "-r", "--name-only", revision).splitlines()
    return {name: git(repo, "show", f"{revision}:{name}") for name in names}


def lease_processes(plan_id: str) -> list[int]:
    """Every living process of an agent of that plan, found by its mark."""
    mark = f"TREADLE_LEASE={plan_id}/"
    found = []
    for process in psutil.process_iter():
        try:
            variables = Path(f"/proc/{process.pid}/environ").read_bytes().decode(errors="replace").split("\0")
            if any(v.startswith(mark) for v in variables) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except (OSError, psutil.NoSuchProcess):
            continue
    return found
