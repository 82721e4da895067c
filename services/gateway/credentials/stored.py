"""The `credential` table: a secret per holder and kind, written and cleared with an audit entry, never shown.

What is encrypted is the key itself for an agent type, `GitCredentials` in JSON for a project, and for a webhook its
address and secret (`services.gateway.notifications.routes.Secrets`).
"""

from collections.abc import Collection
from datetime import datetime
from typing import Literal

import msgspec
from sqlalchemy import delete, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncSession

from services.gateway.accounts import audit
from services.gateway.credentials.keyring import CredentialUnreadable, Keyring
from services.gateway.database.tables import AgentType, Credential
from shared.requests import AgentCredentials, CredentialKind, GitCredentials

HINT_CHARS = 4
HINTED_MIN_CHARS = 20
"""Four characters of a shorter secret would give too much of it away."""

StoredKind = CredentialKind | Literal["webhook"]
"""Those of webhooks never leave the gateway: nobody can ask for them over the bus."""

_SET = {
    "agent": "agent_type.credential_set",
    "git": "project.git_credentials_set",
    "webhook": "webhook.credential_set",
}
_CLEARED = {
    "agent": "agent_type.credential_cleared",
    "git": "project.git_credentials_cleared",
    "webhook": "webhook.credential_cleared",
}


def hint(secret: str) -> str:
    """The last four characters, by which its owner tells it from another; empty for a short secret."""
    last = secret[-HINT_CHARS:]
    return last if len(secret) >= HINTED_MIN_CHARS and last.isascii() and last.isprintable() else ""


async def set_api_key(
    session: AsyncSession, keyring: Keyring, agent_type_id: str, api_key: str, actor: str, now: datetime
) -> None:
    """Puts an agent type's key in place of the one before."""
    await _put(session, keyring, "agent", agent_type_id, api_key.encode(), hint(api_key), actor, now)


async def set_git_credentials(
    session: AsyncSession, keyring: Keyring, project_id: str, credentials: GitCredentials, actor: str, now: datetime
) -> None:
    """Puts a project's credentials in place of those before. A private key has no hint: all of them end alike."""
    shown = hint(credentials.secret) if credentials.kind == "token" else ""
    await _put(session, keyring, "git", project_id, msgspec.json.encode(credentials), shown, actor, now)


async def set_webhook_secrets(
    session: AsyncSession, keyring: Keyring, webhook_id: str, plaintext: bytes, actor: str, now: datetime
) -> None:
    """Puts a webhook's address and secret in place of those before."""
    await _put(session, keyring, "webhook", webhook_id, plaintext, "", actor, now)


async def read_webhook_secrets(session: AsyncSession, keyring: Keyring, webhook_id: str) -> bytes | None:
    """A webhook's address and secret in clear; None where it is gone. Raises `CredentialUnreadable`."""
    return await _read(session, keyring, "webhook", webhook_id)


async def clear(session: AsyncSession, kind: StoredKind, holder_id: str, actor: str, now: datetime) -> bool:
    """Removes a holder's secret. False where there was none."""
    removed = delete(Credential).where(Credential.holder_id == holder_id, Credential.kind == kind)
    if (await session.execute(removed.returning(Credential.holder_id))).scalar_one_or_none() is None:
        return False
    await audit.record(session, actor, _CLEARED[kind], holder_id, {}, now)
    return True


async def has(session: AsyncSession, kind: CredentialKind, holder_id: str) -> bool:
    """Whether the holder has a secret of that kind."""
    return holder_id in await hints(session, kind, (holder_id,))


async def hints(session: AsyncSession, kind: CredentialKind, holder_ids: Collection[str]) -> dict[str, str]:
    """The hints of those holders that have a secret."""
    rows = select(Credential.holder_id, Credential.hint).where(
        Credential.kind == kind, Credential.holder_id.in_(holder_ids)
    )
    return {row.holder_id: row.hint for row in await session.execute(rows)}


async def read_api_key(session: AsyncSession, keyring: Keyring, agent_type_id: str) -> str | None:
    """An agent type's key in clear; None where none is set. Raises `CredentialUnreadable`."""
    plaintext = await _read(session, keyring, "agent", agent_type_id)
    return plaintext.decode() if plaintext is not None else None


async def read_agent_credentials(
    session: AsyncSession, keyring: Keyring, agent_type: AgentType
) -> AgentCredentials | None:
    """What a runner reaches the type's model with; None where it is to be reached with nothing of ours.

    With an address and without a key the key is empty: no key of anybody else's may be sent to that address.
    """
    api_key = await read_api_key(session, keyring, agent_type.id)
    if api_key is None and agent_type.api_base_url is None:
        return None
    return AgentCredentials(api_key=api_key or "", base_url=agent_type.api_base_url)


async def read_git_credentials(session: AsyncSession, keyring: Keyring, project_id: str) -> GitCredentials | None:
    """A project's credentials in clear; None where none are set. Raises `CredentialUnreadable`."""
    plaintext = await _read(session, keyring, "git", project_id)
    if plaintext is None:
        return None
    try:
        return msgspec.json.decode(plaintext, type=GitCredentials)
    except msgspec.MsgspecError:
        # Without its cause, which could show a part of the secret.
        raise CredentialUnreadable(
            f"the git credentials of {project_id} are not in a form that this version knows: set them anew"
        ) from None


async def _put(
    session: AsyncSession,
    keyring: Keyring,
    kind: StoredKind,
    holder_id: str,
    plaintext: bytes,
    shown: str,
    actor: str,
    now: datetime,
) -> None:
    key_id, sealed = keyring.encrypt(kind, holder_id, plaintext)
    columns = {"key_id": key_id, "sealed": sealed, "hint": shown, "set_at": now, "set_by": actor}
    # All columns in one statement: a key's id and what is encrypted with it must never come from two writers.
    insert = sqlite.insert if session.get_bind().dialect.name == "sqlite" else postgresql.insert
    await session.execute(
        insert(Credential)
        .values(holder_id=holder_id, kind=kind, **columns)
        .on_conflict_do_update(index_elements=[Credential.holder_id, Credential.kind], set_=columns)
    )
    await audit.record(session, actor, _SET[kind], holder_id, {"hint": shown}, now)


async def _read(session: AsyncSession, keyring: Keyring, kind: StoredKind, holder_id: str) -> bytes | None:
    query = select(Credential.key_id, Credential.sealed).where(
        Credential.holder_id == holder_id, Credential.kind == kind
    )
    row = (await session.execute(query)).one_or_none()
    return keyring.decrypt(kind, holder_id, row.key_id, row.sealed) if row is not None else None
