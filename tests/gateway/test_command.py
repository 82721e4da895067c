"""`treadle` against a gateway: answering what agents ask, settings of projects, following what is said."""

from __future__ import annotations

import asyncio
import os
import pty
import select
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

import msgspec
import pytest

from shared import commands as c
from shared.bus import BusSettings, connect
from shared.jetstream import JetStreamStore
from shared.streams import declare_streams
from shared.subjects import transcript
from shared.transact import to_task
from tests.gateway.gateway_process import GatewayProcess
from tests.gateway.plans import made
from tests.gateway.plans.asking import asks
from tests.gateway.plans.made import ok
from tests.gateway.projection.histories import ANN, spec_of, submit
from tests.nats_process import NatsServer

DEADLINE_S = 60.0
HOSTILE = '{"command":"echo \\u001b[2J\u202e done"}'


class Done(NamedTuple):
    status: int
    out: str
    err: str


class Command:
    """The command as a program, as ann."""

    def __init__(self, gateway: GatewayProcess, home: Path) -> None:
        self.argv = [sys.executable, "-P", "-m", "treadle"]
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "TREADLE_URL": gateway.url,
            "TREADLE_TOKEN": gateway.token_of("ann"),
        }

    def start(self, *arguments: str, stdin: int = subprocess.DEVNULL) -> subprocess.Popen[str]:
        pipes: dict[str, Any] = {"stdin": stdin, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen([*self.argv, *arguments], env=self.environment, text=True, **pipes)

    async def __call__(self, *arguments: str) -> Done:
        process = self.start(*arguments)
        out, err = await asyncio.to_thread(process.communicate, timeout=DEADLINE_S)
        return Done(process.returncode, out, err)

    async def typed(self, text: str, *arguments: str) -> tuple[int, str]:
        """With a person at a terminal who types this when they are asked; the status and what they saw."""
        return await asyncio.to_thread(self._typed, text, *arguments)

    def _typed(self, text: str, *arguments: str) -> tuple[int, str]:
        ours, theirs = pty.openpty()
        try:
            process = subprocess.Popen(
                [*self.argv, *arguments], env=self.environment, stdin=theirs, stdout=theirs, stderr=theirs
            )
            os.close(theirs)
            seen, deadline, is_typed = b"", monotonic() + DEADLINE_S, False
            while monotonic() < deadline:
                if not select.select([ours], [], [], 0.1)[0]:
                    continue
                try:
                    piece = os.read(ours, 65_536)
                except OSError:  # the other end is closed
                    break
                seen += piece
                if not is_typed and (b"[y/N]" in seen or b"your answer" in seen):
                    os.write(ours, text.encode())
                    is_typed = True
            return process.wait(DEADLINE_S), seen.decode()
        finally:
            os.close(ours)


@pytest.fixture
async def store(nats_url: NatsServer) -> AsyncIterator[JetStreamStore]:
    """The log. No dispatcher is there, so nothing happens but what a test does."""
    nc = await connect(BusSettings(nats_url.url, nats_url.user, nats_url.password), "test")
    await declare_streams(nc.jetstream())
    yield JetStreamStore(nc)
    await nc.close()


@pytest.fixture
async def plan(gateway: GatewayProcess, store: JetStreamStore) -> str:
    """A running plan of ann's."""
    async with gateway.as_user("ann") as ann:
        return await submit(store, spec_of({"A": (), "B": ("A",)}), project=await made.project(ann))


@pytest.fixture
def command(gateway: GatewayProcess, plan: str, tmp_path: Path) -> Command:
    return Command(gateway, tmp_path)


async def test_a_person_sees_what_is_asked_and_allows_it(command: Command, store: JetStreamStore, plan: str) -> None:
    await asks(store, plan, "A", input_=HOSTILE)
    stands = await command("status", plan)
    assert f"treadle task approve A --plan {plan}" in stands.out
    status, seen = await command.typed("n\n", "task", "approve", "A", "--plan", plan)
    assert (status, "goes on waiting" in seen) == (2, True)
    status, seen = await command.typed("y\n", "task", "approve", "A", "--plan", plan, "--note", "fine")
    assert status == 0
    for words in ("wants to use Bash", "command: echo", "allowed: it goes on"):
        assert words in seen
    for shown in (stands.out, seen):
        assert not any(ch in shown for ch in "\x1b\u202e")
    granted = [r.event for r in await store.read(plan, "A") if r.type == "approval_granted"]
    assert [getattr(event, "note", "") for event in granted] == ["fine"]
    nothing = await command("task", "deny", "A", "--plan", plan)
    assert (nothing.status, "asks for nothing now; its status: pending" in nothing.err) == (2, True)


async def test_a_script_answers_only_what_it_names(command: Command, store: JetStreamStore, plan: str) -> None:
    approval = await asks(store, plan, "A")
    alone = await command("task", "approve", "A", "--plan", plan)
    assert (alone.status, f"--approval {approval[:12]}" in alone.err) == (2, True)
    for wrong in ("0" * 64, approval[:4]):
        refused = await command("task", "approve", "A", "--plan", plan, "--approval", wrong)
        assert (refused.status, "is not what task A asks for" in refused.err) == (2, True)
    done = await command("task", "approve", "A", "--plan", plan, "--approval", approval[:12])
    assert (done.status, "allowed" in done.err) == (0, True), done.err


async def test_a_question_gets_its_answer(command: Command, store: JetStreamStore, plan: str) -> None:
    asked = '{"questions":[{"question":"Which colour?","options":[{"label":"red"},{"label":"blue"}]}]}'
    await asks(store, plan, "A", "AskUserQuestion", asked, "question")
    silent = await command("task", "approve", "A", "--plan", plan)
    assert (silent.status, "--note with the answer" in silent.err) == (2, True)
    status, seen = await command.typed("blue\n", "task", "approve", "A", "--plan", plan)
    assert status == 0, seen
    assert "Which colour?" in seen
    granted = [r.event for r in await store.read(plan, "A") if r.type == "approval_granted"]
    assert [getattr(event, "note", "") for event in granted] == ["blue"]


async def test_refusing_needs_no_second_word(command: Command, store: JetStreamStore, plan: str) -> None:
    await asks(store, plan, "A")
    done = await command("task", "deny", "A", "--plan", plan, "--note", "not on my watch")
    assert (done.status, "pip install x" in done.out, "refused" in done.err) == (0, True, True)
    assert [r.type for r in await store.read(plan, "A")][-1] == "approval_denied"


async def test_a_project_s_settings_are_shown_and_set(command: Command, gateway: GatewayProcess) -> None:
    async with gateway.as_user("ann") as ann:
        name = made.name("Settings")
        project = await made.project(ann, name=name)
        rules = '[{"tool": "Bash", "pattern": "pip *", "answer": "ask"}]'
        done = await command(
            *("projects", "set", name, f"permissions={rules}", 'network_allow=["Packages.Example.org"]'),
            *("delivery=merge", "delivery_branch=main", "approval_timeout_minutes=60"),
        )
        assert done.status == 0, done.err
        assert '"merge"' in done.out and "max_parallel" not in done.out, "only what has changed"
        kept = await ok(ann.get(f"/api/projects/{project}"))
        assert (kept["delivery"], kept["delivery_branch"], kept["approval_timeout_minutes"]) == ("merge", "main", 60)
        assert (kept["network_allow"], kept["permissions"]) == (["packages.example.org"], msgspec.json.decode(rules))
        shown = await command("projects", "show", project)
        assert '"packages.example.org"' in shown.out and name in shown.out
        assert msgspec.json.decode((await command("projects", "show", name, "--json")).out) == kept
        assert name in (await command("projects")).out
        for wrong, words in (
            ("delivery=command", "delivery_command: is missing"),
            ('network_allow=["https://x.example"]', "it has a scheme"),
            ("delivery", "NAME=VALUE"),
            ("delivery=push", "delivery is one of branch, merge, command"),
            ("on_conflit=agent", "on_conflict"),
        ):
            refused = await command("projects", "set", name, wrong)
            assert (refused.status, words in refused.err) == (2, True), refused.err
        unknown = await command("projects", "show", "no such project")
        assert (unknown.status, "no such project" in unknown.err) == (2, True)


async def test_following_survives_a_gateway_that_is_killed_and_ends_with_the_task(
    own_gateway: GatewayProcess, nats_url: NatsServer, store: JetStreamStore, tmp_path: Path
) -> None:
    async with own_gateway.as_user("ann") as ann:
        plan = await submit(store, spec_of({"A": ()}), project=await made.project(ann))
    nc = await connect(BusSettings(nats_url.url, nats_url.user, nats_url.password), "test")
    command = Command(own_gateway, tmp_path)

    async def say(kind: str, text: str) -> None:
        body = msgspec.json.encode({"kind": kind, "text": text})
        await nc.jetstream().publish(transcript(plan, "A", 1), body)

    await asks(store, plan, "A")
    await say("thinking", "before\x1b[2J")
    following = command.start("logs", "A", "--plan", plan, "-f")
    assert following.stdout is not None and following.stderr is not None
    first = await asyncio.to_thread(following.stdout.readline)
    assert first.split()[1:] == ["thinking", "before\ufffd[2J"]
    hint = await asyncio.to_thread(following.stderr.readline)
    assert f"treadle task approve A --plan {plan}" in hint
    own_gateway.kill()
    await say("diff", "+between")
    own_gateway.start()
    second = await asyncio.to_thread(following.stdout.readline)
    assert second.split()[1:] == ["diff", "+between"]
    await say("verify", "after")
    await to_task(store, plan, "A", c.Abandon(), ANN)
    out, err = await asyncio.to_thread(following.communicate, timeout=DEADLINE_S)
    assert [line.split()[1:] for line in out.splitlines()] == [["verify", "after"]]
    assert (following.returncode, err) == (0, "")
    await nc.close()
