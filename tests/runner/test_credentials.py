"""A lease's credentials: asked for, opened by the lease's holder, and used for that lease only."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from services.runner.credentials import CredentialDesk
from services.runner.failed import Failed
from shared.events import TaskCompleted, TaskFailed, TaskStarted
from shared.requests import AgentCredentials, CredentialsReply, GitCredentials, lease_context
from shared.sealed import SealKey, seal
from shared.spec import DELIVER, AgentSpec
from shared.subjects import CREDENTIALS
from tests.nats_process import NatsServer
from tests.runner.bench import AGENT, Bench, Recorder, open_bench, reached
from tests.runner.conftest import TOKEN, USERNAME
from tests.runner.git_server import GitServer
from tests.runner.repositories import PLAN, git, make_project

KEY = AgentCredentials(api_key="sk-canary-0123456789", base_url="https://model.example")
GIT = GitCredentials(kind="token", secret=TOKEN, username=USERNAME)


@pytest.fixture
async def bench(own_nats: NatsServer, tmp_path: Path) -> AsyncIterator[Bench]:
    async with open_bench(own_nats, tmp_path) as made:
        yield made


@pytest.fixture
def local(tmp_path: Path) -> tuple[str, str]:
    """A repository on this machine, and its commit."""
    (tmp_path / "local").mkdir()
    project = make_project(tmp_path / "local")
    return str(project.repo), project.base


async def test_an_agents_credentials_come_with_its_lease_and_show_nowhere(bench: Bench, local: tuple[str, str]) -> None:
    bench.gateway.secrets["agent"] = KEY
    await bench.open_gateway()
    agent = Recorder()
    async with bench.runner(agent):
        plan = await bench.dispatch(*local)
        await bench.event(plan, "completed")
    (job,) = agent.jobs
    assert job.credentials == KEY
    assert "canary" not in repr(job)
    started = (await bench.event(plan, "started")).event
    assert isinstance(started, TaskStarted) and started.seal_to == bench.seal_key.public
    assert [(asked.kind, asked.lease) for asked in bench.gateway.asked] == [("agent", 1)]  # none for a local path
    log = await bench.store.read(plan)
    assert "canary" not in repr(log) + repr(job.env)


async def test_an_agent_of_the_plans_own_asks_for_nothing(bench: Bench, local: tuple[str, str]) -> None:
    agent = Recorder()
    async with bench.runner(agent):  # and nobody would answer
        await bench.event(await bench.dispatch(*local, agent=AgentSpec(sdk_type="claude")), "completed")
    assert agent.jobs[0].credentials is None


async def test_an_agent_that_needs_no_key_is_sent_none(bench: Bench, local: tuple[str, str]) -> None:
    bench.gateway.secrets["agent"] = KEY
    await bench.open_gateway()
    agent = Recorder()
    agent.needs_credentials = False
    async with bench.runner(agent):
        await bench.event(await bench.dispatch(*local), "completed")
    assert (agent.jobs[0].credentials, bench.gateway.asked) == (None, [])


@pytest.mark.parametrize("refusal", ["The lease is over.", ""])
async def test_without_a_key_the_attempt_ends_with_words_for_a_person(
    bench: Bench, local: tuple[str, str], refusal: str
) -> None:
    bench.gateway.refusal = refusal
    await bench.open_gateway()
    agent = Recorder()
    async with bench.runner(agent):
        failed = (await bench.event(await bench.dispatch(*local), "failed")).event
    assert isinstance(failed, TaskFailed) and failed.kind == "authentication_refused"
    assert (refusal or "put one into the agent type") in failed.message
    assert agent.jobs == []


async def test_a_gateway_that_is_away_for_a_moment_is_waited_for(bench: Bench, local: tuple[str, str]) -> None:
    bench.gateway.secrets["agent"] = KEY
    agent = Recorder()
    async with bench.runner(agent):
        plan = await bench.dispatch(*local)
        await bench.event(plan, "started")
        await bench.open_gateway()
        await bench.event(plan, "completed")
    assert agent.jobs[0].credentials == KEY


async def test_a_gateway_that_stays_away_is_an_outage_and_nobodys_fault(bench: Bench, local: tuple[str, str]) -> None:
    async with bench.runner(Recorder(), ask_for_s=0.3):
        failed = (await bench.event(await bench.dispatch(*local), "failed")).event
    assert isinstance(failed, TaskFailed) and failed.kind == "unavailable"
    assert "No gateway" in failed.message


@pytest.mark.parametrize("to", ["another key", "another lease"])
async def test_what_was_sealed_for_somebody_else_is_not_used(bench: Bench, to: str) -> None:
    plan = "pabcdefghij23"

    async def answer(message: object) -> None:
        key = SealKey() if to == "another key" else bench.seal_key
        lease = 2 if to == "another lease" else 1
        sealed = seal(key.public, msgspec.json.encode(KEY), lease_context(plan, "T1", lease, "agent"))
        await message.respond(msgspec.json.encode(CredentialsReply(sealed=sealed)))  # type: ignore[attr-defined] # a Msg

    await bench.nc.subscribe(CREDENTIALS, cb=answer)
    with pytest.raises(Failed, match="sealed to somebody else") as refused:
        await bench.desk().ask(plan, "T1", 1, "agent")
    assert refused.value.kind == "authentication_refused"


async def test_a_task_works_in_a_repository_that_wants_the_projects_token(
    bench: Bench, git_server: GitServer, served: Path
) -> None:
    bench.gateway.secrets |= {"agent": KEY, "git": GIT}
    await bench.open_gateway()
    main = git(served / "repo.git", "rev-parse", "main")
    async with bench.runner(Recorder()):
        plan = await bench.dispatch(git_server.url("repo.git"), main)
        completed = (await bench.event(plan, "completed")).event
        assert isinstance(completed, TaskCompleted)
        # With the lease's credentials the head ref moves too, before the message is acknowledged.
        head = f"refs/treadle/{plan}/T1/head"
        await reached(lambda: git(served / "repo.git", "for-each-ref", "--format=%(objectname)", head))
        assert git(served / "repo.git", "rev-parse", head) == completed.commit
        delivery = await bench.dispatch(git_server.url("repo.git"), main, agent=None, task=DELIVER)
        await bench.event(delivery, "completed", task=DELIVER)
    assert git(served / "repo.git", "rev-parse", f"treadle/{delivery}") == main
    assert sorted(asked.kind for asked in bench.gateway.asked) == ["agent", "git", "git"]
    assert list((bench.directory / "private").iterdir()) == []
    on_disk = [path for path in bench.data_dir.rglob("*") if path.is_file()]
    assert on_disk and not any(TOKEN.encode() in path.read_bytes() for path in on_disk)
    assert TOKEN not in repr(await bench.store.read(plan))


async def test_a_project_without_git_credentials_goes_by_the_operators_settings(
    bench: Bench, git_server: GitServer, served: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.gateway.secrets["agent"] = KEY
    await bench.open_gateway()
    url = git_server.url("repo.git")
    (tmp_path / "config").write_text("[credential]\n\thelper = store\n")
    (tmp_path / ".git-credentials").write_text(url.replace("https://", f"https://{USERNAME}:{TOKEN}@"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "config"))
    async with bench.runner(Recorder()):
        plan = await bench.dispatch(url, git(served / "repo.git", "rev-parse", "main"))
        await bench.event(plan, "completed")
    assert sorted(asked.kind for asked in bench.gateway.asked) == ["agent", "git"]


async def test_a_runner_forgets_the_private_files_of_its_former_life(bench: Bench) -> None:
    left = bench.directory / "private/x/key"
    left.parent.mkdir(parents=True)
    left.write_text("a deploy key")
    desk = bench.desk()
    assert list(desk.private_dir.iterdir()) == []
    assert desk.private_dir.stat().st_mode & 0o777 == 0o700


class AnswersAsWeAreCancelled(Client):
    """A client whose asker is cancelled in the very moment at which the bus answers."""

    async def request(self, *args: Any, **options: Any) -> Msg:
        asker = asyncio.current_task()
        assert asker is not None
        answering = asyncio.create_task(super().request(*args, **options))
        answering.add_done_callback(lambda _: asker.cancel())
        return await asyncio.wait_for(answering, 60)  # as the client's own one does


@pytest.mark.parametrize("somebody_answers", [False, True])
async def test_asking_ends_with_the_work_even_if_an_answer_comes_at_that_moment(
    bench: Bench, own_nats: NatsServer, tmp_path: Path, somebody_answers: bool
) -> None:
    if somebody_answers:
        await bench.open_gateway()
    client = AnswersAsWeAreCancelled()
    await client.connect(own_nats.url, user=own_nats.user, password=own_nats.password)
    desk = CredentialDesk(client, bench.seal_key, tmp_path / "own", ask_for_s=600)
    asking = asyncio.create_task(desk.ask(PLAN, "T1", 1, "agent"))
    await asyncio.wait([asking], timeout=90)
    await client.close()
    assert asking.cancelled()


async def test_asking_ends_with_the_work_that_asked(bench: Bench, local: tuple[str, str]) -> None:
    agent = Recorder()
    async with asyncio.timeout(60), bench.runner(agent, ask_for_s=3600):
        plan = await bench.dispatch(*local)
        await bench.event(plan, "started")
    assert (await bench.event(plan, "released")).type == "released"
    assert AGENT.agent_type_id and agent.jobs == []
