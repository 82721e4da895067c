"""Asks the gateway for the git credentials of a project that has something to be watched. Nothing is kept."""

from __future__ import annotations

from pathlib import Path

import msgspec
from nats.aio.client import Client
from nats.errors import Error as NatsError

from services.runner.git_access import GitAccess
from services.runner.watch.watched import Repository
from shared.repo_url import is_local_path
from shared.requests import CredentialsReply, GitCredentials, WatchCredentialsRequest, watch_context
from shared.sealed import NotForUs, SealKey
from shared.subjects import WATCH_CREDENTIALS

ANSWER_WITHIN_S = 5.0


class CannotLook(Exception):
    """It can't be told what there is in a repository; the text says why, without secrets."""


class WatchCredentials:
    """One runner process's way to them."""

    def __init__(self, nc: Client, seal_key: SealKey, private_dir: Path) -> None:
        """`private_dir` is this runner's alone, and exists."""
        self._nc = nc
        self._seal_key = seal_key
        self._private_dir = private_dir

    async def of(self, repository: Repository) -> GitAccess | None:
        """For that repository; None: the operator's own means are to be used. Raises `CannotLook`."""
        if not repository.project or is_local_path(repository.repo_url):
            return None
        seal_to = self._seal_key.public
        request = WatchCredentialsRequest(project=repository.project, seal_to=seal_to, repo_url=repository.repo_url)
        try:
            message = await self._nc.request(WATCH_CREDENTIALS, msgspec.json.encode(request), timeout=ANSWER_WITHIN_S)
            reply = msgspec.json.decode(message.data, type=CredentialsReply)
        except (NatsError, TimeoutError, OSError, msgspec.DecodeError) as error:
            why = f"no gateway gave out the project's git credentials ({type(error).__name__}): is one running?"
            raise CannotLook(why) from error
        if reply.refused:
            raise CannotLook(f"the gateway does not give out the project's git credentials: {reply.refused}")
        if not reply.sealed:
            return None
        try:
            opened = self._seal_key.open(reply.sealed, watch_context(repository.project, seal_to))
            credentials = msgspec.json.decode(opened, type=GitCredentials)
        except NotForUs as error:
            raise CannotLook("the project's git credentials came sealed to somebody else") from error
        except msgspec.DecodeError:  # its text could quote what is secret
            raise CannotLook("the project's git credentials can't be read: store them again") from None
        return GitAccess(credentials, repository.repo_url, self._private_dir)
