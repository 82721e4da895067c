"""Asks the gateway for the credentials of a lease: sealed to this process, and opened nowhere else.

Nothing is kept: they live as long as the lease that they were asked for.
"""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from time import monotonic
from typing import TypeVar

import msgspec
from nats.aio.client import Client
from nats.errors import Error as NatsError

from services.runner.failed import Failed
from services.runner.git_access import GitAccess
from services.runner.redaction import Redactor
from shared.events import TaskDispatched
from shared.repo_url import is_local_path
from shared.requests import (
    AgentCredentials,
    CredentialKind,
    CredentialsReply,
    CredentialsRequest,
    GitCredentials,
    lease_context,
)
from shared.sealed import NotForUs, SealKey
from shared.subjects import CREDENTIALS

T = TypeVar("T")

ANSWER_WITHIN_S = 5.0
"""Of one request; a gateway answers in milliseconds."""
ASK_FOR_S = 30.0
"""For so long gateways may be gone: a rolling restart takes less."""
AGAIN_S = 0.25


class CredentialDesk:
    """One runner process's way to credentials."""

    def __init__(self, nc: Client, seal_key: SealKey, private_dir: Path, *, ask_for_s: float = ASK_FOR_S) -> None:
        """`private_dir` is this runner's alone; what a former life left in it is removed."""
        self._nc = nc
        self._seal_key = seal_key
        self._ask_for_s = ask_for_s
        self.private_dir = private_dir
        shutil.rmtree(private_dir, ignore_errors=True)
        private_dir.mkdir(mode=0o700, parents=True)

    @property
    def seal_to(self) -> str:
        """What `started` carries: others seal to it."""
        return self._seal_key.public

    def of(self, plan: str, task: str, lease: int) -> LeaseCredentials:
        """Those of a lease that this process holds."""
        return LeaseCredentials(self, plan, task, lease)

    async def ask(self, plan: str, task: str, lease: int, kind: CredentialKind) -> bytes | None:
        """The opened credentials; None where none are set. Raises `Failed`."""
        body = msgspec.json.encode(CredentialsRequest(plan=plan, task=task, lease=lease, kind=kind))
        reply = await self._answer(body, kind)
        if reply.refused:
            words = f"The gateway does not give this attempt its {_WHAT[kind]}: {reply.refused}"
            raise Failed("authentication_refused", words)
        if not reply.sealed:
            return None
        try:
            return self._seal_key.open(reply.sealed, lease_context(plan, task, lease, kind))
        except NotForUs as error:
            words = f"The {_WHAT[kind]} came sealed to somebody else than the runner that holds the lease."
            raise Failed("authentication_refused", f"{words} Redispatch the task.") from error

    async def _answer(self, body: bytes, kind: CredentialKind) -> CredentialsReply:
        deadline = monotonic() + self._ask_for_s
        while True:
            try:
                answer = await self._nc.request(CREDENTIALS, body, timeout=ANSWER_WITHIN_S)
                return msgspec.json.decode(answer.data, type=CredentialsReply)
            except (NatsError, TimeoutError, OSError, msgspec.DecodeError) as error:
                if monotonic() > deadline:
                    words = f"No gateway gave out the {_WHAT[kind]} within {self._ask_for_s:g} seconds"
                    why = f"{words} ({type(error).__name__}): is one running?"
                    raise Failed("unavailable", why) from error
            await asyncio.sleep(AGAIN_S)


class LeaseCredentials:
    """What the holder of one lease may use."""

    def __init__(self, desk: CredentialDesk, plan: str, task: str, lease: int) -> None:
        self._desk = desk
        self._lease = (plan, task, lease)
        self.redactor = Redactor()
        """Takes what the lease must keep secret out of what is published."""

    async def agent(self, dispatch: TaskDispatched) -> AgentCredentials | None:
        """The agent type's; None for an agent of the plan's own, which works with the runner's. Raises `Failed`."""
        if dispatch.agent is None or not dispatch.agent.agent_type_id:
            return None
        opened = await self._desk.ask(*self._lease, "agent")
        if opened is None:
            words = "The task's agent type has no API key: put one into the agent type, then redispatch the task."
            raise Failed("authentication_refused", words)
        credentials = _decoded(opened, AgentCredentials, "agent")
        self.redactor.learn(credentials.api_key)
        return credentials

    async def git(self, dispatch: TaskDispatched) -> GitAccess | None:
        """The project's, for the code repository; None: the operator's own means are to be used. Raises `Failed`."""
        if not dispatch.project or is_local_path(dispatch.repo_url):
            return None
        opened = await self._desk.ask(*self._lease, "git")
        if opened is None:
            return None
        credentials = _decoded(opened, GitCredentials, "git")
        self.redactor.learn(credentials.secret)
        return GitAccess(credentials, dispatch.repo_url, self._desk.private_dir)


_WHAT: dict[CredentialKind, str] = {"agent": "agent type's API key", "git": "project's git credentials"}


def _decoded(opened: bytes, type_: type[T], kind: CredentialKind) -> T:
    try:
        return msgspec.json.decode(opened, type=type_)
    except msgspec.DecodeError:
        # Its text could quote what is secret.
        raise Failed("authentication_refused", f"The {_WHAT[kind]} can't be read: store them again.") from None
