"""A real suite in a directory of its own, used as a person uses it: through the command, or through the API."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

import httpx
import psutil
import pytest
from httpx_sse import connect_sse

from tests.end_to_end.plans import git

TREADLE = str(Path(sys.executable).with_name("treadle"))
DEADLINE_S = 90.0
"""More than `ack_wait`: a message that was lost on its way to a runner is sent again after a minute."""
ENDS_WITHIN_S = 150.0
"""For a command, which may start a suite and wait for agents."""

Event = dict[str, Any]
T = TypeVar("T")


@dataclass(frozen=True)
class Ended:
    """What a command said and how it ended."""

    status: int
    out: str
    err: str

    @property
    def events(self) -> list[Event]:
        """The output of `--json`."""
        return [json.loads(line) for line in self.out.splitlines()]


def until(what: Callable[[], T], why: str, deadline_s: float = DEADLINE_S) -> T:
    """The first result that counts as true; fails with `why` when there is none in time."""
    end_s = time.monotonic() + deadline_s
    while not (result := what()):
        if time.monotonic() > end_s:
            pytest.fail(f"not within {deadline_s:g} s: {why}")
        time.sleep(0.01)
    return result


class Suite:
    """One data directory, and everything that runs on it."""

    def __init__(self, directory: Path, *, sandboxed: bool = True) -> None:
        """`sandboxed` False is for tasks that meet at files of the test's own, which a sandbox would keep them from."""
        home = directory / "home"
        home.mkdir(parents=True)
        self.data = directory / "data"
        # From nothing: neither this machine's keys nor its settings take part.
        self.environment = {"PATH": os.environ["PATH"], "HOME": str(home), "LANG": "C.UTF-8", "COLUMNS": "120"}
        self.environment["TREADLE_SANDBOX"] = "required" if sandboxed else "off"
        self._up: subprocess.Popen[str] | None = None
        self._log = directory / "up.log"
        self._seen = 0
        """The newest sequence that this test has heard of: what it reads must be as fresh."""
        self._projects: dict[Path, str] = {}

    # The command ---------------------------------------------------------------------------------------------------

    def start(
        self, *args: str, env: Mapping[str, str] | None = None, stdin: int | IO[Any] = subprocess.DEVNULL, **more: Any
    ) -> subprocess.Popen[str]:
        """Starts `treadle` and returns at once."""
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": stdin, "text": True}
        return subprocess.Popen(
            [TREADLE, "--data", str(self.data), *args], env={**self.environment, **(env or {})}, **{**pipes, **more}
        )

    def command(self, *args: str, deadline_s: float = ENDS_WITHIN_S, text: str | None = None, **more: Any) -> Ended:
        """Runs `treadle` to its end. A traceback is a fault whatever the test looks at."""
        process = self.start(*args, stdin=subprocess.DEVNULL if text is None else subprocess.PIPE, **more)
        return ended(process, deadline_s, text)

    def up(self, *args: str) -> None:
        """Starts the suite by `treadle up`, and waits until it is ready."""
        with self._log.open("w") as log:
            self._up = self.start("up", *args, stdout=log, stderr=log)
        process = self._up
        until(lambda: "ready:" in self._log.read_text() or process.poll() is not None, "treadle up is ready")
        assert process.poll() is None, self._log.read_text()

    def down(self) -> None:
        """Stops whatever runs, if anything does; nothing may be left."""
        family = self.family()
        assert self.command("down").status == 0
        if self._up is not None:
            assert self._up.wait(DEADLINE_S) == 0, self._log.read_text()
            self._up = None
        until(lambda: not any(alive(pid) for pid in family), "every process of the suite is gone")
        for log in (self.data / "logs").glob("*.log"):
            assert "NATS denies" not in log.read_text(errors="replace"), f"{log}: a permission is missing"

    # Its processes -------------------------------------------------------------------------------------------------

    @property
    def info(self) -> dict[str, Any]:
        """What the running suite tells about itself; waits until there is one."""

        def read() -> dict[str, Any] | None:
            try:
                found: dict[str, Any] = json.loads((self.data / "suite.json").read_bytes())
            except (FileNotFoundError, json.JSONDecodeError):
                return None
            return found if alive(found["pid"]) else None

        return until(lambda: read() or {}, "a suite runs")

    def pids(self, program: str) -> list[int]:
        """The living processes of a service, or of `nats-server`; waits until there is one."""

        def find() -> list[int]:
            return [pid for pid, line in _children(self.info["pid"]) if _is(program, line)]

        return until(find, f"{program} runs")

    def pid(self, program: str) -> int:
        """The only process of that service."""
        (pid,) = self.pids(program)
        return pid

    def kill(self, pid: int) -> None:
        """kill -9, and the process is gone."""
        os.kill(pid, signal.SIGKILL)
        until(lambda: not alive(pid), f"process {pid} is gone")

    def family(self) -> list[int]:
        """The supervisor and everything below it, agents included; none where nothing runs."""
        try:
            supervisor = psutil.Process(json.loads((self.data / "suite.json").read_bytes())["pid"])
            return [supervisor.pid, *(child.pid for child in supervisor.children(recursive=True))]
        except (FileNotFoundError, json.JSONDecodeError, psutil.NoSuchProcess):
            return []

    def log(self, service: str) -> str:
        """What a service has logged."""
        return (self.data / "logs" / f"{service}.log").read_text(errors="replace")

    # The API -------------------------------------------------------------------------------------------------------

    def http(self, timeout_s: float = 60.0) -> httpx.Client:
        """A client with the token."""
        url = f"{self.info['gateway_url']}/api"
        token = (self.data / "gateway.token").read_text().strip()
        headers = {"Authorization": f"Bearer {token}"}
        # Plain HTTP on loopback: loading the machine's certificates for each of a thousand questions takes longer.
        plain: dict[str, Any] = {"trust_env": False, "verify": False}
        return httpx.Client(base_url=url, headers=headers, timeout=timeout_s, **plain)

    def get(self, path: str, **params: Any) -> Any:
        """A resource, no older than what was heard of; a gateway that is not that far yet is asked again."""

        def answer() -> httpx.Response | None:
            with self.http() as http:
                got = http.get(path, params={"min_seq": self._seen, **params})
            is_late = got.status_code == 503 and got.json()["code"] == "not_fresh"
            return None if is_late else got.raise_for_status()

        found = until(answer, f"{path} is fresh")
        assert found is not None
        return found.json()

    def every(self, path: str, **params: Any) -> list[dict[str, Any]]:
        """A whole list."""
        items: list[dict[str, Any]] = []
        page: dict[str, Any] = {"next": ""}
        while page["next"] is not None:
            more = {"cursor": page["next"]} if page["next"] else {}
            page = self.get(path, limit=200, **params, **more)
            items += page["items"]
        return items

    def plans(self) -> list[dict[str, Any]]:
        """All plans, the newest first."""
        return self.every("/plans")

    def post(self, path: str, body: object = None) -> Any:
        """A command."""
        with self.http() as http:
            answer = http.post(path, json={} if body is None else body).raise_for_status().json()
        self._seen = max(self._seen, answer.get("seq", 0))
        return answer

    def use_project(self, repo: Path, project: str) -> None:
        """Lets `submit` put plans for the repository there."""
        self._projects[repo] = project

    def project(self, repo: Path) -> str:
        """A project of the repository, the same each time."""
        if repo not in self._projects:
            body = {"name": repo.name, "mode": "auto", "code_repo_url": str(repo), "allow_concurrent_plans": True}
            self._projects[repo] = self.post("/projects", body)["id"]
        return self._projects[repo]

    def submit(self, plan: Mapping[str, Any], repo: Path, commit: str | None = None) -> str:
        """Makes a plan and lets it run; returns its id."""
        text = json.dumps(plan)
        commit = commit or git(repo, "rev-parse", "HEAD")
        made = self.post(f"/projects/{self.project(repo)}/plans", {"text": text, "base_commit": commit})
        self.post(f"/plans/{made['plan']}/finalize", {"candidate": made["candidate"]})
        return str(made["plan"])

    def events(self, plan: str) -> list[Event]:
        """Everything that the log holds of a plan."""
        events: list[Event] = []
        after: int | None = 0
        while after is not None:
            page = self.get(f"/plans/{plan}/events", after=after, limit=1000)
            events += page["events"]
            after = page["next_after"]
        return events

    def follow(self, plan: str, after: int = 0, deadline_s: float = DEADLINE_S) -> Iterator[tuple[str, dict[str, Any]]]:
        """The plan's stream as (name, body), across restarts of the suite; ends at the deadline."""
        end_s = time.monotonic() + deadline_s
        while (left_s := end_s - time.monotonic()) > 0:
            try:
                with (
                    self.http(left_s) as http,
                    connect_sse(http, "GET", f"/plans/{plan}/stream", params={"after": after}) as source,
                ):
                    source.response.raise_for_status()
                    for message in source.iter_sse():
                        body = json.loads(message.data) if message.data else {}
                        after = body["seq"] if message.event == "log" else after
                        self._seen = max(self._seen, after)
                        yield message.event, body
            except httpx.HTTPError:
                time.sleep(0.05)  # the gateway, or the whole suite, is being started again

    def event(self, plan: str, type_: str, task: str | None = None, *, after: int = 0, **fields: Any) -> Event:
        """Waits for an event of the log with these fields; returns it."""
        for name, body in self.follow(plan, after):
            if (
                name == "log"
                and (body["type"], body["task"]) == (type_, task)
                and all(body.get(key) == value for key, value in fields.items())
            ):
                return body
        pytest.fail(f"no {type_} of {task or 'the plan'} {fields or ''}; the log holds:\n{self.told(plan)}")

    def standing(self, plan: str, wanted: str, deadline_s: float = DEADLINE_S) -> dict[str, Any]:
        """Waits until the plan stands so; returns its view."""
        for name, body in self.follow(plan, 0, deadline_s):
            if name == "plan" and body["standing"] == wanted:
                return body
        pytest.fail(f"plan {plan} is not {wanted}; the log holds:\n{self.told(plan)}")

    def tasks(self, plan: str) -> dict[str, dict[str, Any]]:
        """How each task stands."""
        return {task["code"]: task for task in self.every(f"/plans/{plan}/tasks")}

    def told(self, plan: str) -> str:
        """The plan's history, for a failed assertion."""
        return "\n".join(
            f"{e['seq']} {e['task'] or 'plan'} {e['type']} {e.get('kind', '')} {e.get('reason', '')}"
            for e in self.events(plan)
        )


def ended(process: subprocess.Popen[str], deadline_s: float = ENDS_WITHIN_S, text: str | None = None) -> Ended:
    """Waits for a command's end."""
    try:
        out, err = process.communicate(text, timeout=deadline_s)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        pytest.fail(f"{process.args!r} has not ended within {deadline_s:g} s; it said:\n{out[-3000:]}\n{err[-3000:]}")
    assert "Traceback" not in err, err
    return Ended(process.returncode, out, err)


def types(events: list[Event], task: str | None) -> list[str]:
    """The names of one task's events (None: the plan's own), in order."""
    return [event["type"] for event in events if event["task"] == task]


def alive(pid: int) -> bool:
    """Whether such a process runs; one that nobody has waited for yet does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _children(supervisor: int) -> list[tuple[int, list[str]]]:
    found = []
    try:
        for child in psutil.Process(supervisor).children():
            if alive(child.pid):
                found.append((child.pid, child.cmdline()))
    except psutil.NoSuchProcess:
        return []
    return found


def _is(program: str, line: list[str]) -> bool:
    return f"services.{program}" in line or (bool(line) and Path(line[0]).name == program)
