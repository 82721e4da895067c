"""Lends whoever watches collaboration repositories a project's git credentials, sealed to that process.

A runner asks on `treadle.rpc.gateway.watch_credentials`; any gateway answers. There is no lease to rest on: what is
looked for is a person's. So the questions are whether the project has anything to be watched at all (it is manual, or a
plan was asked for by hand), whether its owner still stands for it, and whether the repository is on its own hosts.

As with leases, what is wrong is answered as `refused`, and what may pass is not answered at all.
"""

import asyncio
import logging

import msgspec
from nats.aio.client import Client
from nats.aio.msg import Msg
from sqlalchemy.exc import SQLAlchemyError

from services.gateway.credentials import stored
from services.gateway.credentials.answering import ANSWER_MAX_S, Answering
from services.gateway.credentials.keyring import CredentialUnreadable, Keyring
from services.gateway.credentials.lease import standing_project
from services.gateway.credentials.origins import origin
from services.gateway.database.engine import Database
from services.gateway.database.tables import Project
from services.gateway.projects.repositories import repo_urls
from shared.commands import Refused
from shared.requests import CredentialsReply, GitCredentials, WatchCredentialsRequest, watch_context
from shared.sealed import seal
from shared.store import EventStore, StoreUnavailable
from shared.subjects import WATCH_CREDENTIALS
from shared.transact import load_plan

log = logging.getLogger("treadle.gateway.credentials")


class WatchLeases:
    """The answerer."""

    def __init__(self, nc: Client, store: EventStore, db: Database, keyring: Keyring) -> None:
        self._store = store
        self._db = db
        self._keyring = keyring
        self._answering = Answering(nc, WATCH_CREDENTIALS, self._answer)

    async def start(self) -> None:
        """Answers from now on."""
        await self._answering.start()

    async def stop(self) -> None:
        """Takes no more questions, and finishes the answers at hand."""
        await self._answering.stop()

    async def _answer(self, message: Msg) -> None:
        try:
            request = msgspec.json.decode(message.data, type=WatchCredentialsRequest)
        except (msgspec.MsgspecError, RecursionError, UnicodeError):
            await message.respond(msgspec.json.encode(CredentialsReply(refused="this is no request for credentials")))
            return
        try:
            async with asyncio.timeout(ANSWER_MAX_S):
                reply = await self._reply(request)
        except (StoreUnavailable, SQLAlchemyError, OSError, TimeoutError) as error:
            # By its kind alone: a database's message may quote the statement with its values.
            log.error("credentials for watching %.80r wait: %s", request.project, type(error).__name__)
            return
        await message.respond(msgspec.json.encode(reply))

    async def _reply(self, request: WatchCredentialsRequest) -> CredentialsReply:
        try:
            lent = await self._lent(request)
        except (Refused, CredentialUnreadable, ValueError) as error:
            log.warning("credentials for watching %.80r are refused: %s", request.project, error)
            return CredentialsReply(refused=str(error))
        if lent is None:
            return CredentialsReply()
        context = watch_context(request.project, request.seal_to)
        try:
            sealed = seal(request.seal_to, msgspec.json.encode(lent), context)
        except ValueError:
            return CredentialsReply(refused="whoever asks gave no key that credentials could be sealed to")
        return CredentialsReply(sealed=sealed)

    async def _lent(self, request: WatchCredentialsRequest) -> GitCredentials | None:
        async with self._db.read() as session:
            project, _ = await standing_project(session, request.project)
            lent = await stored.read_git_credentials(session, self._keyring, project.id)
        if not await self._is_watched(project):
            raise Refused(f"project {project.name} has nothing to be watched: its tasks are done by runners")
        if lent is not None and origin(request.repo_url) not in map(origin, repo_urls(project)):
            raise Refused(f"project {project.name} has moved to another host since this plan was made: make it anew")
        return lent

    async def _is_watched(self, project: Project) -> bool:
        if project.mode == "manual":
            return True
        if project.prompt_plan_id is None:
            return False
        plan = (await load_plan(self._store, project.prompt_plan_id)).state
        return any(asked.request.by_hand for asked in plan.requests.values())
