"""A person who does what prompts say and knows nothing else: where to push to, and what, is read out of their words."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from tests.end_to_end.plans import git
from tests.end_to_end.suite import Suite, until

_CODE = re.compile(r"^Repository: (\S+)$", re.MULTILINE)
_START = re.compile(r"^Start from commit ([0-9a-f]{40})", re.MULTILINE)
_MERGED = re.compile(r"^- commit ([0-9a-f]{40}), the work of ", re.MULTILINE)
_OUTPUT = re.compile(r"^## What to deliver\n\n`(.+)`", re.MULTILINE)
_COLLAB = re.compile(r"^- repository: (\S+), on its default branch$", re.MULTILINE)
_PATH = re.compile(r"^- path: `(.+)`$", re.MULTILINE)
_RESULT = re.compile(r"^```json\n(.+?)\n```$", re.MULTILINE | re.DOTALL)


class Person:
    """Does a plan's tasks with clones of their own, and talks to Treadle over the API."""

    def __init__(self, suite: Suite, plan: str, home: Path) -> None:
        self._suite, self._plan, self._home = suite, plan, home
        home.mkdir(exist_ok=True)

    def begin(self, code: str) -> str:
        """Fetches the prompt of a task that waits for its person, and says that they begin; returns the prompt."""
        self.sees(code, status="readied")
        told = self._suite.get(f"/plans/{self._plan}/tasks/{code}/prompt")
        assert not told["dispatched"]
        self._suite.post(f"/plans/{self._plan}/tasks/{code}/dispatch")
        return str(told["prompt"])

    def sees(self, code: str, **fields: Any) -> dict[str, Any]:
        """Waits until the task looks so; returns it."""

        def look() -> dict[str, Any] | None:
            task = self._suite.tasks(self._plan).get(code)  # none is shown before all are planned
            return task if task and all(task[name] == value for name, value in fields.items()) else None

        return until(lambda: look() or {}, f"{code} is {fields}; the log holds:\n{self._suite.told(self._plan)}")

    def work(self, prompt: str, name: str) -> str:
        """Writes the file that is wanted, from where the prompt says to start, and pushes it; returns the commit."""
        clone = self._clone(_only(_CODE, prompt))
        git(clone, "switch", "-q", "--detach", _only(_START, prompt))
        for commit in _MERGED.findall(prompt):
            git(clone, "merge", "-q", commit)
        file = clone / _only(_OUTPUT, prompt)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{name}\n")
        commit = _committed(clone, name)
        git(clone, "push", "-q", "origin", f"HEAD:refs/heads/person/{self._plan}/{name}")
        return commit

    def hand_in(self, prompt: str, **changes: Any) -> str:
        """Pushes the result that the prompt shows, filled in; returns its blob. What is changed to None is left out."""
        result = json.loads(_only(_RESULT, prompt)) | changes
        text = json.dumps({name: value for name, value in result.items() if value is not None})
        return self.push(_only(_COLLAB, prompt), _only(_PATH, prompt), text)

    def push(self, repo_url: str, path: str, text: str) -> str:
        """Puts a file on a repository's default branch; returns its blob."""
        clone = self._clone(repo_url)
        file = clone / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        _committed(clone, path)
        git(clone, "push", "-q", "origin", "HEAD")
        return git(clone, "rev-parse", f"HEAD:{path}")

    def _clone(self, repo_url: str) -> Path:
        clone = self._home / Path(repo_url).name
        if not clone.exists():
            git(self._home, "clone", "-q", repo_url, str(clone))
        git(clone, "fetch", "-q", "origin")
        return clone


def _committed(clone: Path, message: str) -> str:
    git(clone, "add", "--all")
    git(clone, "commit", "-q", "-m", message)
    return git(clone, "rev-parse", "HEAD")


def _only(pattern: re.Pattern[str], prompt: str) -> str:
    found = pattern.findall(prompt)
    assert len(found) == 1, f"{pattern.pattern} is there {len(found)} times in:\n{prompt}"
    return str(found[0])
