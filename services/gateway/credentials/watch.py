"""Lends whoever watches collaboration repositories a project's git credentials, sealed to that process.

A runner asks on `treadle.rpc.gateway.watch_credentials`; any gateway answers. There is no lease to rest on: what is
looked for is a person's. So the questions are whether the project has anything to be watched at all (it is manual, or a
plan was asked for by hand), whether its owner still stands for it, and whether the repository is on its own hosts.
"""

import msgspec
from nats.aio.client import Client

from services.gateway.credentials import stored
from services.gateway.credentials.answering import Answering
from services.gateway.credentials.keyring import Keyring
from services.gateway.credentials.lease import standing_project
from services.gateway.credentials.origins import origin
from services.gateway.database.engine import Database
from services.gateway.database.tables import Project
from services.gateway.projects.repositories import repo_urls
from shared.commands import Refused
from shared.requests import CredentialsReply, GitCredentials, WatchCredentialsRequest, watch_context
from shared.sealed import seal
from shared.store import EventStore
from shared.subjects import WATCH_CREDENTIALS
from shared.transact import load_plan


class WatchLeases(Answering[WatchCredentialsRequest]):
    """The answerer."""

    subject = WATCH_CREDENTIALS
    question = WatchCredentialsRequest

    def __init__(self, nc: Client, store: EventStore, db: Database, keyring: Keyring) -> None:
        super().__init__(nc)
        self._store = store
        self._db = db
        self._keyring = keyring

    def named(self, question: WatchCredentialsRequest) -> str:
        """The project."""
        return f"for watching {question.project[:80]!r}"

    async def lend(self, question: WatchCredentialsRequest) -> CredentialsReply:
        """The project's git credentials; nothing where it has none."""
        lent = await self._lent(question)
        if lent is None:
            return CredentialsReply()
        context = watch_context(question.project, question.seal_to)
        try:
            sealed = seal(question.seal_to, msgspec.json.encode(lent), context)
        except ValueError:
            raise Refused("whoever asks gave no key that credentials could be sealed to") from None
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
