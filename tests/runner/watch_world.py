"""A log with manual tasks in it, a collaboration repository, and watchers in this process."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
from nats.aio.client import Client
from nats.aio.msg import Msg

from services.runner.git_threads import git_threads
from services.runner.watch.credentials import WatchCredentials
from services.runner.watch.watcher import Watcher
from shared import commands as c
from shared import events as e
from shared.bus import BusSettings, connect
from shared.clock import Clock, new_id, new_plan_id, utc_now
from shared.jetstream import JetStreamStore
from shared.requests import (
    CheckReply,
    CredentialsReply,
    GitCredentials,
    LookReply,
    LookRequest,
    OfferRequest,
    WatchCredentialsRequest,
    watch_context,
)
from shared.sealed import SealKey, seal
from shared.spec import DELIVER, AgentSpec, CollabRules, PlanSettings, PlanSpec, ResultPlace, TaskSpec
from shared.store import Meta, Recorded
from shared.streams import declare_streams
from shared.subjects import PLANNER_OFFER, WATCH_CREDENTIALS, plan_filter
from shared.task import TaskState
from shared.transact import load_plan, load_task, to_plan, to_task
from tests.nats_process import NatsServer
from tests.runner.repositories import git

META = Meta(actor="user:ann")
ANN = AgentSpec(sdk_type=None)
DIRECTORY = "treadle"
INTERVAL_S = 0.3
WITHIN_S = 90.0


class CollabRepository:
    """A bare repository and a person's clone of it."""

    def __init__(self, root: Path, name: str = "collab.git") -> None:
        self.bare, self.clone = root / name, root / f"person-{name}"
        git(root, "init", "-q", "--bare", "-b", "main", str(self.bare))
        git(root, "init", "-q", "-b", "main", str(self.clone))
        (self.clone / "README").write_text("Results\n")
        self.push("Begin")

    @property
    def url(self) -> str:
        return str(self.bare)

    def push(self, message: str = "Deliver") -> str:
        """Commits everything and pushes it; returns the commit."""
        git(self.clone, "add", "--all")
        git(self.clone, "commit", "-q", "--allow-empty", "-m", message)
        git(self.clone, "push", "-q", "--force", str(self.bare), "HEAD:main")
        return git(self.clone, "rev-parse", "HEAD")

    def place(self, plan: str, task: str = "T1") -> Path:
        """The task's folder in the clone; made if it is missing."""
        folder = self.clone / DIRECTORY / plan / task
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def write(self, plan: str, task: str = "T1", content: str | bytes | None = None, **fields: object) -> Path:
        """Writes a result, without pushing it: a valid one with these fields besides, or this content."""
        if content is None:
            content = json.dumps({"task_code": task, "summary": "Done.", "artifacts": ["a.txt"], **fields})
        path = self.place(plan, task) / "result.json"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def deliver(self, plan: str, task: str = "T1", content: str | bytes | None = None, **fields: object) -> str:
        """The same, pushed; returns the blob's id."""
        path = self.write(plan, task, content, **fields)
        self.push()
        return git(self.clone, "hash-object", str(path))


class World:
    """The bus, and what a test does with it."""

    def __init__(self, nc: Client, directory: Path) -> None:
        self.nc = nc
        self.store = JetStreamStore(nc)
        self.directory = directory
        self.data_dir = directory / "data"
        self.project = new_id()
        self.credentials: GitCredentials | None = None
        self.lent: list[WatchCredentialsRequest] = []
        self.offered: list[OfferRequest] = []
        self.no_planner = False

    async def open(self) -> None:
        await self.nc.subscribe(WATCH_CREDENTIALS, cb=self._lend)
        await self.nc.subscribe(PLANNER_OFFER, cb=self._hear_offer)
        await self.nc.flush()

    async def _lend(self, message: Msg) -> None:
        request = msgspec.json.decode(message.data, type=WatchCredentialsRequest)
        self.lent.append(request)
        reply = CredentialsReply()
        if self.credentials is not None:
            context = watch_context(request.project, request.seal_to)
            reply = CredentialsReply(sealed=seal(request.seal_to, msgspec.json.encode(self.credentials), context))
        await message.respond(msgspec.json.encode(reply))

    async def _hear_offer(self, message: Msg) -> None:
        self.offered.append(msgspec.json.decode(message.data, type=OfferRequest))
        if not self.no_planner:
            await message.respond(msgspec.json.encode(CheckReply()))

    # The log ------------------------------------------------------------------------------------------------------

    async def plan(self, *tasks: TaskSpec, repo_url: str = "/nowhere") -> str:
        """A finalized plan of manual tasks; without any it has T1."""
        plan = new_plan_id()
        tasks = tasks or (spec_of("T1"),)
        spec = PlanSpec(name="By hand", tasks=tasks, agents={"ann": ANN})
        draft = c.Draft(candidate="1", spec=spec, repo_url=repo_url, base_commit="0" * 40, project=self.project)
        for command in (draft, c.Finalize(candidate="1", settings=PlanSettings())):
            await to_plan(self.store, plan, command, META)
        digest = (await load_plan(self.store, plan)).state.digest
        deliver = TaskSpec(code=DELIVER, name="Deliver", assignee="", budget_usd=0.0)
        for index, task in enumerate((*tasks, deliver)):
            agent = None if task is deliver else ANN
            planned = c.PlanTask(digest=digest, index=index, spec=task, agent=agent)
            await to_task(self.store, plan, task.code, planned, META)
        await to_plan(self.store, plan, c.ConfirmFinalized(digest=digest), META)
        return plan

    async def hand_out(
        self,
        plan: str,
        collab_url: str,
        task: str = "T1",
        *,
        blob: str = "",
        interval_s: float = INTERVAL_S,
        code_url: str = "/nowhere",
        base_commit: str = "",
        heads: Sequence[e.Head] = (),
    ) -> None:
        """What the dispatcher does with a ready manual task, and then its person."""
        state = (await load_task(self.store, plan, task)).state
        ready = c.Ready(
            now=utc_now(), revision=state.revision, prompt="Do it.", agent=ANN, base_commit=base_commit,
            heads=tuple(heads), abandoned=(),
        )  # fmt: skip
        decided = await to_task(self.store, plan, task, ready, META)
        assert isinstance(decided.event, e.TaskReadied)
        path = f"{DIRECTORY}/{plan}/{task}/result.json"
        place = ResultPlace(repo_url=collab_url, path=path, poll_interval_s=interval_s, blob=blob)
        handed_out = c.HandOut(
            phase="open", readied=decided.event, project=self.project, repo_url=code_url, plan_name="By hand",
            place=place,
        )  # fmt: skip
        await to_task(self.store, plan, task, handed_out, META)

    async def request_plan(self, collab_url: str, plan: str | None = None) -> str:
        """A plan that is asked for by hand."""
        plan = plan or new_plan_id()
        request = c.Request(
            by_hand=True, goal="Better", project=self.project, mode="manual", planning_mode="balanced", agents=(),
            repo_url="/nowhere", base_commit="0" * 40,
            collab=CollabRules(repo_url=collab_url, directory=DIRECTORY, poll_interval_s=INTERVAL_S),
        )  # fmt: skip
        await to_plan(self.store, plan, request, META)
        return plan

    async def tell(self, plan: str, command: c.TaskCommand, task: str = "T1") -> TaskState:
        return (await to_task(self.store, plan, task, command, META)).state

    async def state(self, plan: str, task: str = "T1") -> TaskState:
        return (await load_task(self.store, plan, task)).state

    async def event(self, plan: str, *types: str, task: str = "T1", number: int = 1) -> Recorded:
        """Waits for the first (or a later) event of one of the types."""
        async with asyncio.timeout(WITHIN_S):
            async for batch in self.store.follow(filters=(plan_filter(plan),)):
                for record in batch.events:
                    if record.entity == task and record.type in types:
                        number -= 1
                        if not number:
                            return record
        raise AssertionError("the log never ends")

    async def types(self, plan: str, task: str = "T1") -> list[str]:
        """The task's events so far."""
        return [record.type for record in await self.store.read(plan, task)]

    # Watching -----------------------------------------------------------------------------------------------------

    def make_watcher(self, name: str = "r1", clock: Clock = utc_now, data_dir: Path | None = None) -> Watcher:
        private = self.directory / f"private-{name}"
        private.mkdir(mode=0o700, exist_ok=True)
        credentials = WatchCredentials(self.nc, SealKey(), private)
        return Watcher(self.nc, name, data_dir or self.data_dir, credentials, git_threads(), clock)

    @asynccontextmanager
    async def watching(self, name: str = "r1", **more: Any) -> AsyncIterator[Watcher]:
        """A watcher that runs for the length of the block."""
        watcher = self.make_watcher(name, **more)
        running = asyncio.create_task(watcher.run())
        try:
            yield watcher
        finally:
            failed = running.done()
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running
            assert not failed

    async def looked(self, watcher: Watcher, collab_url: str, path: str = "") -> LookReply:
        """Asks a watcher to look now."""
        return await watcher.look(LookRequest(project=self.project, repo_url=collab_url, path=path))


def spec_of(code: str, **fields: Any) -> TaskSpec:
    return TaskSpec(code=code, name=f"Task {code}", assignee="ann", timeout_minutes=10, **fields)


async def until_looks(watcher: Watcher, more: int) -> None:
    """Returns once the watcher has asked its repositories so many times more."""
    wanted = watcher.looks + more
    async with asyncio.timeout(WITHIN_S):
        while watcher.looks < wanted:  # noqa: ASYNC110 - what is looked at does not tell
            await asyncio.sleep(0.02)


@asynccontextmanager
async def open_world(server: NatsServer, directory: Path) -> AsyncIterator[World]:
    """A world on a server of its own."""
    nc = await connect(BusSettings(server.url, server.user, server.password), "test")
    try:
        await declare_streams(nc.jetstream())
        world = World(nc, directory)
        await world.open()
        yield world
    finally:
        await nc.close()
