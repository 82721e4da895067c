"""Lends a runner the credentials of a lease that it holds, sealed to the process that opened the lease.

A runner asks on `treadle.rpc.gateway.credentials`; any gateway answers. Who asks does not matter: the answer is sealed
to the public key in the log's `started` of that lease, and whoever else gets it can't open it. The questions here are
whether the lease is live, and whether the owner of its agent type or project still stands for it.
"""

import logging
from collections.abc import Sequence

import msgspec
from nats.aio.client import Client
from sqlalchemy.ext.asyncio import AsyncSession

from services.gateway.credentials import stored
from services.gateway.credentials.answering import Answering
from services.gateway.credentials.keyring import Keyring
from services.gateway.credentials.origins import origin
from services.gateway.database.engine import Database
from services.gateway.database.tables import AgentType, Project, User
from services.gateway.projects.repositories import repo_urls
from shared import task
from shared.commands import Refused
from shared.events import TaskDispatched, TaskStarted
from shared.requests import AgentCredentials, CredentialsReply, CredentialsRequest, GitCredentials, lease_context
from shared.sealed import seal
from shared.skipped import without_skipped
from shared.store import EventStore, Recorded
from shared.subjects import CREDENTIALS, PLAN
from shared.transact import fold

log = logging.getLogger("treadle.gateway.credentials")

Lent = AgentCredentials | GitCredentials | None


class CredentialLeases(Answering[CredentialsRequest]):
    """The answerer."""

    subject = CREDENTIALS
    question = CredentialsRequest

    def __init__(self, nc: Client, store: EventStore, db: Database, keyring: Keyring) -> None:
        super().__init__(nc)
        self._store = store
        self._db = db
        self._keyring = keyring

    def named(self, question: CredentialsRequest) -> str:
        """The lease."""
        return f"of {question.plan[:80]!r} {question.task[:80]!r} lease {question.lease}"

    async def lend(self, question: CredentialsRequest) -> CredentialsReply:
        """The key of the lease's agent, or its project's git credentials; nothing where there are none."""
        dispatched, started = await self._live_lease(question)
        async with self._db.read() as session:
            if question.kind == "agent":
                lent: Lent = await self._agents(session, dispatched)
            else:
                lent = await self._gits(session, dispatched)
        if lent is None:
            return CredentialsReply()
        context = lease_context(question.plan, question.task, question.lease, question.kind)
        try:
            sealed = seal(started.seal_to, msgspec.json.encode(lent), context)
        except ValueError:
            raise Refused(f"{started.runner} gave no key that credentials could be sealed to") from None
        log.info("%s credentials %s lent to %s", question.kind, self.named(question), started.runner)
        return CredentialsReply(sealed=sealed)

    async def _live_lease(self, request: CredentialsRequest) -> tuple[TaskDispatched, TaskStarted]:
        """What the lease does and who holds it. Raises `Refused`, and ValueError for what is no plan or task."""
        if request.task == PLAN:
            raise Refused("a plan has no lease, only its tasks have")
        events = without_skipped(await self._store.read(request.plan, request.task))
        state = fold(task.INITIAL, task.evolve, events).state
        _check_starts(events)
        if state.status not in task.LEASED or state.lease != request.lease:
            raise Refused(
                f"lease {request.lease} of {request.plan} {request.task} is not live: the task is {state.status}, its "
                f"newest lease is {state.lease}"
            )
        history = [record.event for record in reversed(events)]
        dispatched = next((event for event in history if isinstance(event, TaskDispatched)), None)
        if dispatched is None:  # a runner may store a start, but not what it would be a start of
            raise Refused(f"{request.plan} {request.task} was never dispatched")
        started = next(event for event in history if isinstance(event, TaskStarted))
        if not started.seal_to:
            raise Refused(
                f"{started.runner} gave no key that credentials could be sealed to: it is of an older version"
            )
        return dispatched, started

    async def _agents(self, session: AsyncSession, dispatched: TaskDispatched) -> AgentCredentials | None:
        if dispatched.agent is None or not dispatched.agent.agent_type_id:
            return None
        found = await session.get(AgentType, dispatched.agent.agent_type_id)
        if found is None:
            raise Refused(f"agent type {dispatched.agent.agent_type_id} was deleted: give the task to another agent")
        if found.sdk_type is None:
            raise Refused(f"agent type {found.name} is for people now and has no key: give the task to another agent")
        owner = await _active(session, found.owner_id, f"agent type {found.name}")
        if not dispatched.project:
            raise Refused(f"the plan belongs to no project: nobody may lend it the key of agent type {found.name}")
        project, project_owner = await standing_project(session, dispatched.project)
        if owner.id != project_owner.id and owner.role != "admin":
            raise Refused(f"agent type {found.name} is not for project {project.name} any more")
        return await stored.read_agent_credentials(session, self._keyring, found)

    async def _gits(self, session: AsyncSession, dispatched: TaskDispatched) -> GitCredentials | None:
        if not dispatched.project:
            return None
        project, _ = await standing_project(session, dispatched.project)
        lent = await stored.read_git_credentials(session, self._keyring, project.id)
        if lent is not None and origin(dispatched.repo_url) not in map(origin, repo_urls(project)):
            raise Refused(f"project {project.name} has moved to another host since this plan was made: make it anew")
        return lent


async def standing_project(session: AsyncSession, project_id: str) -> tuple[Project, User]:
    """The project and its owner, who must not be frozen. Raises `Refused`."""
    project = await session.get(Project, project_id)
    if project is None:
        raise Refused(f"project {project_id} was deleted")
    return project, await _active(session, project.owner_id, f"project {project.name}")


async def _active(session: AsyncSession, user_id: str, what: str) -> User:
    """The owner, who must not be frozen."""
    owner = await session.get(User, user_id)
    if owner is None or owner.is_frozen:
        raise Refused(f"the owner of {what} is frozen: an admin can lift that")
    return owner


def _check_starts(events: Sequence[Recorded]) -> None:
    """Raises `Refused` where a start was stored that no decider would have made: a runner may store any.

    Folding believes what is stored; what is lent must not hang on that. A start needs a task that was dispatched and
    not begun, or a lease before it that it supersedes by name.
    """
    state = task.INITIAL
    for record in events:
        event = record.event
        if event is None:
            continue
        if isinstance(event, TaskStarted):
            takes = state.status == "queued" and event.supersedes is None
            takes_over = state.status in task.LEASED and event.supersedes == state.lease
            if event.lease != state.lease + 1 or not (takes or takes_over):
                raise Refused(
                    f"the start at event {record.seq} of {record.plan} {record.entity} was not decided by the log: "
                    f"the task was {state.status}"
                )
        state = task.evolve(state, event)
