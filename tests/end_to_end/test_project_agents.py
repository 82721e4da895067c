"""`treadle run` with the agents of a project: the gateway is who knows them, and who says what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.end_to_end.plans import files, shell
from tests.end_to_end.suite import Suite

PLAN = """\
# said by its author
name: By the worker
tasks:
  - code: T1
    name: One
    assignee: worker
    description: Write a file.
"""


@pytest.fixture(scope="module")
def worker(suite: Suite) -> str:
    """The id of an agent of the gateway's that runs a script."""
    made = suite.post("/agent-types", {"name": "script", **shell("echo x > x.txt")})
    return str(suite.post("/agents", {"name": "Worker", "slug": "worker", "agent_type_id": made["id"]})["id"])


def project(suite: Suite, repo: Path, worker: str) -> str:
    body = {"name": "team", "mode": "auto", "code_repo_url": str(repo), "agent_ids": [worker]}
    return str(suite.post("/projects", body)["id"])


def test_a_plan_runs_with_an_agent_of_its_project(suite: Suite, repo: Path, tmp_path: Path, worker: str) -> None:
    project(suite, repo, worker)
    (tmp_path / "plan.yaml").write_text(PLAN)
    done = suite.command("run", str(tmp_path / "plan.yaml"), "--repo", str(repo), "--project", "team")
    assert done.status == 0, done.err
    made = suite.plans()[0]
    assert made["name"] == "By the worker"
    assert files(repo, made["branch"])["x.txt"] == "x"


def test_the_gateways_faults_are_all_told_with_task_field_and_line(
    suite: Suite, repo: Path, tmp_path: Path, worker: str
) -> None:
    wanted = project(suite, repo, worker)
    unknown = "".join(f"  - {{code: X{n}, name: More, assignee: worse, depends_on: [Y{n}]}}\n" for n in range(30))
    (tmp_path / "plan.yaml").write_text(PLAN + unknown)
    before = suite.plans()
    done = suite.command("run", str(tmp_path / "plan.yaml"), "--repo", str(repo), "--project", wanted)
    assert (done.status, done.out) == (2, "")
    told = done.err.splitlines()
    for n in range(30):
        for field, wrong in (("assignee", '"worse"'), ("depends_on", f"Y{n}")):
            lines = [line for line in told if line.startswith(f"task X{n}, {field}")]
            assert any(wrong in line and f"(line {8 + n})" in line for line in lines), done.err
    assert 'did you mean "worker"' in done.err
    assert suite.plans() == before
