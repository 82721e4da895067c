"""The last task of a plan as a runner does it: the branch, its merge, the project's command, and what each says."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import psutil
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from services.runner.agents import Activity, Finished
from services.runner.credentials import CredentialDesk
from services.runner.delivery_executor import DeliverExecutor
from services.runner.lease import Completion, Key, Lease
from services.runner.sandbox import find_sandbox
from shared.events import Conflict, Head, TaskDispatched
from shared.sealed import SealKey
from shared.spec import DELIVER, DeliveryRules
from shared.task import INITIAL
from tests.runner.repositories import PLAN, PROJECT_ID, Project, git, make_project

BRANCH = f"treadle/{PLAN}"


class Delivery:
    """Delivers as often as wanted, each time with another lease."""

    def __init__(self, project: Project, directory: Path) -> None:
        self.project = project
        self.told: list[Activity] = []
        self.environment = {"PATH": os.environ["PATH"], "FORGE_TOKEN": "t0ken", "OTHER": "not asked for"}
        self._desk = CredentialDesk(Client(), SealKey(), directory / "private")
        self._leases = 0

    async def __call__(self, heads: list[Head], sandboxed: bool = False, **fields: object) -> Completion | Finished:
        self._leases += 1
        dispatch = TaskDispatched(
            dispatch=1,
            attempt=1,
            prompt="",
            agent=None,
            project=PROJECT_ID,
            repo_url=str(self.project.repo),
            base_commit=self.project.base,
            heads=tuple(heads),
            plan_name="A plan",
            task_name="Make the plan's branch",
            timeout_s=600.0,
            budget_usd=0.0,
        )
        key = Key(PLAN, DELIVER, self._leases)
        lease = Lease(
            key,
            1,
            msgspec.structs.replace(dispatch, **fields),
            Msg(Client()),
            "",
            self._desk.of(key.plan, key.task, key.lease),
            INITIAL,
        )
        sandbox = find_sandbox("required", hidden=[self.project.data_dir]) if sandboxed else None
        executor = DeliverExecutor(self.project.data_dir, self.environment, sandbox)
        try:
            return await executor.execute(lease, self.told.append)
        finally:
            left = [
                path for place in ("work", "scratch") for path in (self.project.data_dir / place).glob(f"*/{DELIVER}*")
            ]
            assert not left


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return make_project(tmp_path)


@pytest.fixture
def delivery(project: Project, tmp_path: Path) -> Delivery:
    return Delivery(project, tmp_path)


def one(project: Project) -> list[Head]:
    return [Head("T1", project.work("T1", {"x.txt": "x\n"}))]


def command(text: str) -> DeliveryRules:
    return DeliveryRules(kind="command", command=text)


def tip(project: Project, branch: str) -> str:
    return git(project.repo, "rev-parse", f"refs/heads/{branch}")


async def test_by_default_there_is_a_branch_and_nothing_else_moved(project: Project, delivery: Delivery) -> None:
    heads = one(project)
    done = await delivery(heads)
    assert isinstance(done, Completion)
    assert done.result.summary == f"branch {BRANCH} is at {heads[0].commit[:12]}"
    assert (done.commit, tip(project, BRANCH), tip(project, "main")) == (heads[0].commit, heads[0].commit, project.base)


async def test_a_merge_says_where_the_branch_is_then(project: Project, delivery: Delivery) -> None:
    git(project.repo, "checkout", "-q", "--detach")
    heads = one(project)
    for _ in range(2):  # a redelivery finds it done
        done = await delivery(heads, delivery=DeliveryRules(kind="merge", branch="main"))
        assert isinstance(done, Completion)
        assert done.result.summary.endswith(f"merged into main, which is at {heads[0].commit[:12]}")
    assert tip(project, "main") == heads[0].commit


async def test_a_merge_into_what_a_person_has_checked_out_fails_and_the_branch_is_there(
    project: Project, delivery: Delivery
) -> None:
    heads = one(project)
    done = await delivery(heads, delivery=DeliveryRules(kind="merge"))
    assert isinstance(done, Finished)
    assert done.kind == "setup_failed" and done.message.startswith("The branch main is checked out in ")
    assert (tip(project, BRANCH), tip(project, "main")) == (heads[0].commit, project.base)


async def test_tasks_that_conflict_are_named_for_people_and_for_the_plan(project: Project, delivery: Delivery) -> None:
    heads = [Head(code, project.work(code, {"a.txt": f"{code}\n"})) for code in ("T1", "T2")]
    done = await delivery(heads)
    assert isinstance(done, Finished)
    assert (done.kind, done.conflict) == ("merge_conflict", Conflict(files=("a.txt",), tasks=("T1", "T2")))
    assert done.message.startswith("The work of T2 conflicts with that of T1 in a.txt. ")
    assert f"push that as the branch {BRANCH}" in done.message


async def test_a_conflict_with_a_branch_is_nothing_that_a_task_could_merge(
    project: Project, delivery: Delivery
) -> None:
    heads = [Head("T1", project.work("T1", {"a.txt": "agent's\n"}))]
    (project.repo / "a.txt").write_text("person's\n")
    git(project.repo, "commit", "-qam", "Mine")
    git(project.repo, "checkout", "-q", "--detach")
    done = await delivery(heads, delivery=DeliveryRules(kind="merge", branch="main"))
    assert isinstance(done, Finished)
    assert (done.kind, done.conflict) == ("merge_conflict", None)
    assert "T1 conflicts with what the branch main has by now in a.txt" in done.message


@pytest.mark.parametrize("sandboxed", [False, True])
async def test_the_command_runs_in_a_workspace_of_the_branch_and_is_told_which(
    project: Project, delivery: Delivery, sandboxed: bool
) -> None:
    heads = one(project)
    text = (
        'echo "$TREADLE_PLAN $TREADLE_BRANCH $TREADLE_COMMIT $TREADLE_REPO_URL $FORGE_TOKEN ${OTHER-none}"; cat x.txt; '
        "git log -1 --format=%H; git status --porcelain; echo litter > x.txt"
    )
    for _ in range(2):
        delivery.told.clear()
        done = await delivery(heads, sandboxed, delivery=command(text), env_allow=("FORGE_TOKEN",))
        assert isinstance(done, Completion), done
        assert done.result.summary.endswith("the delivery command was run on it")
        said = "".join(f"{each.text}\n" for each in delivery.told if each.kind == "output")
        commit = heads[0].commit
        assert said == f"{PLAN} {BRANCH} {commit} {project.repo} t0ken none\nx\n{commit}\n"
    assert tip(project, "main") == project.base


async def test_a_command_that_fails_is_the_deliverys_failure_with_its_last_words(
    project: Project, delivery: Delivery
) -> None:
    done = await delivery(one(project), delivery=command("echo no such forge; exit 3"))
    assert isinstance(done, Finished)
    assert done.kind == "agent_error"
    assert f"The branch {BRANCH} is there, but the delivery command" in done.message
    assert "status 3. Its last output:\nno such forge" in done.message


async def test_a_command_that_never_ends_is_stopped(project: Project, delivery: Delivery) -> None:
    done = await delivery(one(project), delivery=command("echo $$; exec sleep 600"), timeout_s=20.0)
    assert isinstance(done, Finished)
    assert done.kind == "timeout"
    (pid,) = (int(each.text) for each in delivery.told if each.kind == "output")
    assert not psutil.pid_exists(pid)


async def test_a_plan_that_changed_nothing_is_not_handed_to_the_command(project: Project, delivery: Delivery) -> None:
    project.mirror.ensure(PLAN, [project.base])
    done = await delivery([Head("T1", project.base)], delivery=command("exit 3"))
    assert isinstance(done, Completion)
    assert done.result.summary.endswith("where the plan began: no task changed a file")
