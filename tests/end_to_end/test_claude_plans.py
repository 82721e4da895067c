"""Plans for Claude: the real CLI and the whole suite, only the model is scripted. The key is a canary."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.model import Model
from tests.end_to_end.plans import Gate, Plan, files, write
from tests.end_to_end.suite import Suite, ended, types, until
from treadle.scripted_model import Block, Script, ScriptedModel, Turn

CANARY = "sk-ant-canary-b7e1d0c94f22"


def two_tasks() -> Plan:
    """One after the other, by the agent that needs no declaration."""
    return {
        "name": "Two tasks",
        "tasks": [
            {"code": "T1", "name": "Write", "description": "Write a file.", "timeout_minutes": 2},
            {"code": "T2", "name": "Look", "depends_on": ["T1"], "timeout_minutes": 2},
        ],
    }


def held(gate: Gate) -> Script:
    """Writes the file of T1 once the gate is open: until then there is an agent to look at."""
    return [
        [Block(tool="Bash", input={"command": f"{gate.wait}; echo one > one.txt", "description": "write"})],
        [Block(text="I wrote one.txt.")],
    ]


def scripts() -> dict[str, Script]:
    return {
        "T1": [
            [Block(tool="Write", input={"file_path": "one.txt", "content": "one\n"})],
            [Block(text="I wrote one.txt.")],
        ],
        "T2": [
            [Block(tool="Bash", input={"command": "cat one.txt > two.txt; env > env.txt", "description": "look"})],
            [Block(text="I looked at \x1b[31mone.txt.")],
        ],
        "REFUSED": [Turn(fault=401, message="invalid x-api-key")],
    }


def scripted() -> Model:
    """The model that plays these scripts for whoever has the canary."""
    return Model(scripts(), api_key=CANARY)


@pytest.fixture(scope="module")
def model() -> Iterator[ScriptedModel]:
    with scripted() as serving:
        yield serving


@pytest.fixture(scope="module")
def claude_suite(model: ScriptedModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Suite]:
    """A suite that the first `treadle run` starts; its environment holds the canary and the model's address."""
    made = Suite(tmp_path_factory.mktemp("claude"))
    made.environment |= {"ANTHROPIC_API_KEY": CANARY, "ANTHROPIC_BASE_URL": model.base_url}
    made.environment["TREADLE_SANDBOX_READ"] = str(tmp_path_factory.getbasetemp())  # the gate is there
    try:
        yield made
    finally:
        made.down()


def what_processes_tell(pids: list[int]) -> Iterator[tuple[int, bytes]]:
    """Command line and environment of each process."""
    for pid in pids:
        try:
            directory = Path(f"/proc/{pid}")
            yield pid, (directory / "cmdline").read_bytes() + b"\0" + (directory / "environ").read_bytes()
        except OSError:
            continue  # it has ended


def test_a_refused_key_is_reported_at_once_and_not_tried_again(claude_suite: Suite, repo: Path, tmp_path: Path) -> None:
    content = {
        "name": "Refused",
        "tasks": [{"code": "REFUSED", "name": "Nothing", "retry": {"max_attempts": 5, "backoff_s": 0.1}}],
    }
    done = claude_suite.command("run", write(tmp_path, content), "--repo", str(repo), "--json")
    assert done.status == 1
    (failed,) = [event for event in done.events if event["type"] == "failed"]
    assert (failed["kind"], failed.get("retry_at")) == ("authentication_refused", None)
    assert "ANTHROPIC_API_KEY" in failed["message"]
    assert CANARY not in done.out + done.err
    assert types(done.events, "REFUSED").count("started") == 1


def test_a_plan_for_claude_runs_and_its_key_is_nowhere_to_be_found(
    claude_suite: Suite, model: ScriptedModel, repo: Path, tmp_path: Path, gate: Gate
) -> None:
    model.requests.clear()
    model.scripts["T1"] = held(gate)
    running = claude_suite.start("run", write(tmp_path, two_tasks()), "--repo", str(repo), "--json")
    until(lambda: any(request.path == "/v1/messages" for request in model.requests), "the agent asks the model")
    family = claude_suite.family()
    looked_at = dict(what_processes_tell(family))
    assert any(b"ANTHROPIC_BASE_URL=http://127.0.0." in told for told in looked_at.values()), "no agent to look at"
    for pid, told in looked_at.items():
        assert CANARY.encode() not in told, f"the key is in the environment or arguments of process {pid}"
    gate.open()
    done = ended(running)
    assert done.status == 0, done.err
    # The proxy did use it: a canary that nobody carries proves nothing.
    assert {request.headers.get("x-api-key") for request in model.requests if request.method == "POST"} == {CANARY}

    made = done.events[0]["plan"]
    arrived = files(repo, f"treadle/{made}")
    assert arrived["two.txt"] == "one"
    assert "ANTHROPIC_BASE_URL=http://127.0.0." in arrived["env.txt"]
    completed = {event["task"]: event for event in done.events if event["type"] == "completed"}
    for code in ("T1", "T2"):
        usage = completed[code]["usage"]
        assert usage["input_tokens"] > 0 and usage["output_tokens"] > 0 and usage["cost_usd"] > 0
    view = json.loads(claude_suite.command("status", made, "--json").out)
    total = sum(completed[code]["usage"]["cost_usd"] for code in ("T1", "T2"))
    assert view["usage"]["cost_usd"] == pytest.approx(total)
    assert "I looked at" in completed["T2"]["result"]["summary"]
    logs = claude_suite.command("logs", "T2", "--plan", made)
    assert "cat one.txt" in logs.out and "\x1b" not in logs.out

    paths = ["/plans", "/suite", *(f"/plans/{made}{more}" for more in ("", "/tasks", "/events"))]
    paths += [f"/plans/{made}/tasks/T2{more}" for more in ("", "/prompt", "/transcript")]
    assert CANARY not in json.dumps([claude_suite.get(path) for path in paths]) + done.out + done.err + logs.out
    claude_suite.down()  # so that everything is on the disk
    stored = [path for place in (claude_suite.data, repo) for path in place.rglob("*") if path.is_file()]
    assert any("TREADLE_EVENTS" in str(path) for path in stored)
    for path in stored:
        assert CANARY.encode() not in path.read_bytes(), path
