"""Routes of the keyring: which keys there are, and putting every credential under the current one."""

from typing import Any

import msgspec
from litestar import Request, Router, get, post
from litestar.datastructures import State
from sqlalchemy import func, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncSession

from services.gateway.accounts import audit
from services.gateway.accounts.access import Caller, admin_only
from services.gateway.credentials.keyring import CredentialUnreadable, Keyring
from services.gateway.database.engine import Database
from services.gateway.database.tables import Credential
from services.gateway.problems import Problem, ProblemError, documented
from shared.clock import utc_now

BATCH_ROWS = 100
"""Few enough that on SQLite other writers wait for milliseconds."""

_UNUSABLE = Problem(
    status=409,
    code="keyring_unusable",
    title="The keyring can't be used",
    detail="the keyring's file names 'k2' as its current key, but holds no such key; the keys of before stay in use",
)


class KeyView(msgspec.Struct, frozen=True, kw_only=True):
    """A key of the keyring, without the key."""

    id: str
    is_current: bool
    is_present: bool
    """False: credentials need it and the keyring's file does not hold it."""
    credentials: int
    """How many are encrypted with it. At 0 it may leave the file."""


class Keys(msgspec.Struct, frozen=True, kw_only=True):
    """All keys."""

    current: str
    keys: list[KeyView]


class Unreadable(msgspec.Struct, frozen=True, kw_only=True):
    """A credential that stays under its key."""

    holder_id: str
    kind: str
    reason: str


class Reencrypted(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it."""

    current_key: str
    reencrypted: int
    changed_meanwhile: int
    """Were set or cleared by somebody else just then, which counts."""
    unreadable: list[Unreadable]


class _Counts(msgspec.Struct):
    reencrypted: int = 0
    changed_meanwhile: int = 0
    unreadable: list[Unreadable] = msgspec.field(default_factory=list)


@get("/keys", guards=[admin_only], responses=documented(401, 403))
async def list_keys(state: State) -> Keys:
    """The keyring's keys, and how many credentials each has. Admins only."""
    keyring: Keyring = state.keyring
    async with state.db.read() as session:
        rows = await session.execute(select(Credential.key_id, func.count()).group_by(Credential.key_id))
        counts = dict(rows.all())
    current, present = keyring.current, keyring.key_ids
    views = [
        KeyView(id=id_, is_current=id_ == current, is_present=id_ in present, credentials=counts.get(id_, 0))
        for id_ in sorted({*present, *counts})
    ]
    return Keys(current=current, keys=views)


@post("/keys/reencrypt", status_code=200, guards=[admin_only], responses=documented(401, 403, _UNUSABLE))
async def reencrypt(state: State, request: Request[Caller, Any, Any]) -> Reencrypted:
    """Puts every credential under the current key, while everything goes on. May be repeated. Admins only."""
    keyring: Keyring = state.keyring
    try:
        keyring.reload()
    except (OSError, ValueError) as error:
        detail = f"{error}; the keys of before stay in use"
        raise ProblemError(_UNUSABLE.status, _UNUSABLE.code, _UNUSABLE.title, detail) from error
    counts = await reencrypt_all(state.db, keyring, request.user.actor)
    return Reencrypted(
        current_key=keyring.current,
        reencrypted=counts.reencrypted,
        changed_meanwhile=counts.changed_meanwhile,
        unreadable=counts.unreadable,
    )


async def reencrypt_all(db: Database, keyring: Keyring, actor: str) -> _Counts:
    """In batches, each a transaction of its own with its audit entry."""
    counts = _Counts()
    last = ("", "")
    while True:
        async with db.write() as session:
            key = tuple_(Credential.holder_id, Credential.kind)
            query = select(Credential.holder_id, Credential.kind, Credential.key_id, Credential.sealed).where(
                Credential.key_id != keyring.current, key > last
            )
            rows = list(await session.execute(query.order_by(Credential.holder_id, Credential.kind).limit(BATCH_ROWS)))
            done_before = counts.reencrypted
            for holder_id, kind, key_id, sealed in rows:
                await _reencrypt_one(session, keyring, counts, holder_id, kind, key_id, sealed)
            if done := counts.reencrypted - done_before:
                details = {"reencrypted": done}
                await audit.record(session, actor, "keyring.rotated", keyring.current, details, utc_now())
        if len(rows) < BATCH_ROWS:
            return counts
        last = (rows[-1][0], rows[-1][1])


async def _reencrypt_one(
    session: AsyncSession, keyring: Keyring, counts: _Counts, holder_id: str, kind: str, key_id: str, sealed: bytes
) -> None:
    try:
        plaintext = keyring.decrypt(kind, holder_id, key_id, sealed)
    except CredentialUnreadable as error:
        counts.unreadable.append(Unreadable(holder_id=holder_id, kind=kind, reason=str(error)))
        return
    new_key_id, new_sealed = keyring.encrypt(kind, holder_id, plaintext)
    # Only over what was read: a credential that somebody sets meanwhile must not be undone.
    mine = (
        Credential.holder_id == holder_id,
        Credential.kind == kind,
        Credential.key_id == key_id,
        Credential.sealed == sealed,
    )
    changed = await session.execute(
        update(Credential).where(*mine).values(key_id=new_key_id, sealed=new_sealed).returning(Credential.holder_id)
    )
    if changed.scalar_one_or_none() is None:
        counts.changed_meanwhile += 1
    else:
        counts.reencrypted += 1


keys_router = Router(path="/", tags=["keys"], route_handlers=[list_keys, reencrypt])
