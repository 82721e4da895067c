"""What a deleted project leaves on a runner's machine goes, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from services.runner.deleted import DeletedProjects, remove_project
from services.runner.in_use import in_use
from services.runner.mirror import mirror_of, write_bare_repository
from services.runner.workspace import create_workspace, place_of_plan
from shared.clock import new_plan_id
from shared.requests import PresentLease, ProjectDeleted
from shared.subjects import project_deleted
from tests.nats_process import NatsServer
from tests.runner.bench import Bench, Recorder, open_bench, reached
from tests.runner.repositories import PLAN, PROJECT_ID, Project, git, make_project

OTHER = "potherother23"


@pytest.fixture
def project(tmp_path: Path) -> Project:
    (tmp_path / "p").mkdir()
    return make_project(tmp_path / "p")


def deleted(project: Project, *plans: str) -> ProjectDeleted:
    return ProjectDeleted(project=PROJECT_ID, plans=plans, repo_urls=(str(project.repo),))


def copied_refs(project: Project) -> list[str]:
    return git(project.mirror.path, "for-each-ref", "--format=%(refname)").splitlines()


def use(project: Project, plan: str) -> Path:
    """A workspace with unsaved work, scratch and refs of the plan; returns the workspace."""
    project.mirror.ensure(plan, [project.base])
    git(project.mirror.path, "update-ref", f"refs/treadle/{plan}/T1/1", project.base)
    git(project.mirror.path, "update-ref", f"refs/heads/treadle/{plan}", project.base)
    git(project.mirror.path, "update-ref", f"refs/fetched/{plan}/0", project.base)
    workspace = create_workspace(project.data_dir, project.mirror, plan, "T1", 1, project.base)
    (workspace.code / "unsaved.txt").write_text("unsaved\n")
    (project.data_dir / "scratch" / f"{plan}-T1-1/home").mkdir(parents=True)
    return workspace.path


def test_workspaces_scratch_refs_and_the_mirror_go(project: Project) -> None:
    workspace = use(project, PLAN)
    sealed = workspace / "code/sealed"
    (sealed / "in").mkdir(parents=True)
    sealed.chmod(0)  # an agent may leave what not even its owner may change
    remove_project(project.data_dir, deleted(project, PLAN))
    assert [path.name for path in project.data_dir.rglob("*") if PLAN in path.name] == []
    assert not project.mirror.path.exists()
    assert git(project.repo, "rev-parse", "HEAD") == project.base
    remove_project(project.data_dir, deleted(project, PLAN))  # again, as another runner of the machine does


def test_the_deleted_projects_own_mirror_goes_and_another_projects_stays(tmp_path: Path) -> None:
    address = "https://git.example.com/owner/name.git"
    own, old, others = (mirror_of(tmp_path, address, project) for project in (PROJECT_ID, "", "0" * 24))
    for mirror in (own, old, others):
        write_bare_repository(mirror.path)
    remove_project(tmp_path, ProjectDeleted(project=PROJECT_ID, plans=(), repo_urls=(address,)))
    # The one from before each project had its own may hold what was this project's.
    assert [mirror.path.exists() for mirror in (own, old, others)] == [False, False, True]


def test_another_plan_and_the_mirror_that_it_borrows_from_stay(project: Project) -> None:
    use(project, PLAN)
    others = use(project, OTHER)
    remove_project(project.data_dir, deleted(project, PLAN))
    assert not place_of_plan(project.data_dir, PLAN).exists()
    assert (others / "code/unsaved.txt").exists()
    assert git(others / "code", "log", "-1", "--format=%s") == "Start"
    assert all(PLAN not in ref for ref in copied_refs(project))
    assert len([ref for ref in copied_refs(project) if OTHER in ref]) == 3
    assert (project.data_dir / "scratch" / f"{OTHER}-T1-1").exists()


def test_a_mirror_that_a_task_works_with_stays(project: Project) -> None:
    project.mirror.ensure(OTHER, [project.base])
    with in_use(project.mirror.path):
        remove_project(project.data_dir, deleted(project, PLAN))
        assert project.mirror.path.exists()
    remove_project(project.data_dir, deleted(project, PLAN))
    assert not project.mirror.path.exists()


@pytest.mark.parametrize("plan", ["..", "", ".", "*", "../..", f"{PLAN}/..", f"{PLAN}*", "/etc", f"{PLAN}\n"])
def test_ids_that_are_none_remove_nothing(project: Project, plan: str, caplog: pytest.LogCaptureFixture) -> None:
    use(project, PLAN)
    strange = ProjectDeleted(project=PROJECT_ID, plans=(plan,), repo_urls=("", "..", "../../p", "./x"))
    before = sorted(project.data_dir.rglob("*"))
    remove_project(project.data_dir, strange)
    assert [path for path in before if not path.exists() and not path.is_symlink()] == []
    assert "a plan that is none" in caplog.text


def test_a_link_in_a_plans_place_is_not_followed(project: Project, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    (precious / "T1-1").mkdir(parents=True)
    place = place_of_plan(project.data_dir, PLAN)
    place.parent.mkdir(parents=True)
    place.symlink_to(precious)
    remove_project(project.data_dir, deleted(project, PLAN))
    assert (precious / "T1-1").exists()
    assert not place.is_symlink()


# Over the bus -----------------------------------------------------------------------------------------------------


@pytest.fixture
async def bench(own_nats: NatsServer, tmp_path: Path) -> AsyncIterator[Bench]:
    async with open_bench(own_nats, tmp_path) as made:
        yield made


Follow = Callable[[], Coroutine[None, None, None]]


@pytest.fixture
async def follow(bench: Bench, project: Project, tmp_path: Path) -> AsyncIterator[Follow]:
    """Starts following the stream, ending whoever did before."""
    following: list[asyncio.Task[None]] = []

    async def end() -> None:
        for task in following:
            task.cancel()
        await asyncio.gather(*following, return_exceptions=True)
        following.clear()

    with ThreadPoolExecutor(2) as threads:

        async def begin() -> None:
            await end()
            one = DeletedProjects(bench.nc, project.data_dir, tmp_path / "position", threads)
            following.append(asyncio.create_task(one.run()))

        yield begin
        await end()


async def tell(bench: Bench, event: ProjectDeleted, project_id: str = PROJECT_ID) -> None:
    await bench.nc.jetstream().publish(project_deleted(project_id), msgspec.json.encode(event))


async def test_a_runner_hears_of_it_and_catches_up_once(
    bench: Bench, project: Project, follow: Follow, tmp_path: Path
) -> None:
    use(project, PLAN)
    await tell(bench, deleted(project, PLAN))  # before it is there
    await follow()
    await reached(lambda: not project.mirror.path.exists())
    position = tmp_path / "position"
    await reached(lambda: position.exists() and position.read_text().strip() == "1")
    # In its next life it begins behind what it has handled: the same plan's things, were they there again, stay.
    again = use(project, PLAN)
    others = use(project, OTHER)
    await follow()
    await tell(bench, ProjectDeleted(project="a" * 24, plans=(OTHER,), repo_urls=()), "a" * 24)
    await reached(lambda: not others.exists())
    assert again.exists()


async def test_what_can_not_be_read_or_removed_holds_up_nothing(
    bench: Bench, project: Project, follow: Follow, caplog: pytest.LogCaptureFixture
) -> None:
    await bench.nc.jetstream().publish(project_deleted("b" * 24), b"\xffnonsense")
    broken = project.data_dir / "mirrors/broken.git"
    broken.mkdir(parents=True)
    (broken / "HEAD").write_text("no repository\n")
    await tell(bench, ProjectDeleted(project="c" * 24, plans=(OTHER,), repo_urls=()), "c" * 24)
    await follow()
    await reached(lambda: "if it is broken" in caplog.text)
    sealed = project.data_dir / "mirrors/sealed.git"
    sealed.mkdir()
    (sealed / "HEAD").write_text("ref: refs/heads/main\n")
    sealed.with_suffix(".lock").mkdir()  # where a file should be
    await tell(bench, ProjectDeleted(project="d" * 24, plans=(OTHER,), repo_urls=()), "d" * 24)
    await reached(lambda: "sealed.git may hold more" in caplog.text)
    use(project, PLAN)
    await tell(bench, deleted(project, PLAN))
    await reached(lambda: not project.mirror.path.exists())
    assert "is skipped" in caplog.text


async def test_a_position_of_another_bus_is_forgotten(
    bench: Bench, project: Project, follow: Follow, tmp_path: Path
) -> None:
    (tmp_path / "position").write_text("1000\n")
    use(project, PLAN)
    await tell(bench, deleted(project, PLAN))
    await follow()
    await reached(lambda: not project.mirror.path.exists())


async def test_a_live_lease_is_waited_for(bench: Bench, project: Project, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    bench.data_dir = project.data_dir
    agent = Recorder()
    agent.needs_credentials = False
    agent.goes_on.clear()
    async with bench.runner(agent) as runner:
        plan = await bench.dispatch(str(project.repo), project.base)
        await asyncio.wait_for(agent.works.wait(), 60)
        present = runner.presence()
        assert (present.busy, present.slots, present.leases) == (1, 2, (PresentLease(plan, "T1", 1),))
        work = place_of_plan(project.data_dir, plan)
        removing = asyncio.create_task(asyncio.to_thread(remove_project, project.data_dir, deleted(project, plan)))
        # Another project's removal goes ahead meanwhile, and finds the mirror at work.
        await asyncio.to_thread(remove_project, project.data_dir, deleted(project, new_plan_id()))
        assert "a task of another one works with it" in caplog.text
        assert not removing.done() and (work / "T1-1/code").exists()
        agent.goes_on.set()
        await bench.event(plan, "completed")
        await asyncio.wait_for(removing, 60)
    assert not work.exists()
    assert not mirror_of(project.data_dir, str(project.repo), PROJECT_ID).path.exists()
