"""Credentials in the table: encrypted, hinted at, re-encrypted without undoing what somebody sets meanwhile."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from sqlalchemy import select, update

from services.gateway.credentials import stored
from services.gateway.credentials.keyring import CredentialUnreadable, Keyring
from services.gateway.credentials.routes import BATCH_ROWS, reencrypt_all
from services.gateway.database.engine import Database
from services.gateway.database.tables import AuditEntry, Credential
from shared.clock import new_id, utc_now
from shared.requests import GitCredentials
from tests.gateway.credentials.keyring_file import write_keyring

KEY = "sk-canary-0123456789-wxyz"
ANN = "user:ann"


async def set_key(db: Database, keyring: Keyring, holder: str, key: str = KEY) -> None:
    async with db.write() as session:
        await stored.set_api_key(session, keyring, holder, key, ANN, utc_now())


async def key_of(db: Database, keyring: Keyring, holder: str) -> str | None:
    async with db.read() as session:
        return await stored.read_api_key(session, keyring, holder)


async def row_of(db: Database, holder: str) -> Credential:
    async with db.read() as session:
        return await session.get_one(Credential, (holder, "agent"))


async def test_a_key_is_set_again_and_cleared_each_time_with_an_audit_entry(db: Database, keyring: Keyring) -> None:
    holder = new_id()
    assert await key_of(db, keyring, holder) is None
    await set_key(db, keyring, holder)
    await set_key(db, keyring, holder, "sk-another-0123456789-abcd")
    assert await key_of(db, keyring, holder) == "sk-another-0123456789-abcd"
    assert (await row_of(db, holder)).hint == "abcd"
    async with db.write() as session:
        assert await stored.clear(session, "agent", holder, ANN, utc_now())
    async with db.write() as session:
        assert not await stored.clear(session, "agent", holder, ANN, utc_now())
    assert await key_of(db, keyring, holder) is None
    async with db.read() as session:
        entries = list(await session.scalars(select(AuditEntry).order_by(AuditEntry.id)))
    assert [entry.action for entry in entries] == [
        "agent_type.credential_set",
        "agent_type.credential_set",
        "agent_type.credential_cleared",
    ]
    assert {(entry.actor, entry.subject) for entry in entries} == {(ANN, holder)}


@pytest.mark.parametrize(
    ("secret", "hint"),
    [("x" * 15 + "abcd", ""), ("x" * 16 + "abcd", "abcd"), ("x" * 30 + "äbcd", ""), ("x" * 30 + "\nbcd", "")],
)
def test_only_a_long_key_has_a_hint(secret: str, hint: str) -> None:
    assert stored.hint(secret) == hint


async def test_git_credentials_come_back_whole_and_a_private_key_has_no_hint(db: Database, keyring: Keyring) -> None:
    project = new_id()
    deploy_key = GitCredentials(kind="deploy_key", secret="-----BEGIN KEY-----" * 3, known_hosts="h ssh-ed25519 A")
    async with db.write() as session:
        await stored.set_git_credentials(session, keyring, project, deploy_key, ANN, utc_now())
    async with db.read() as session:
        assert await stored.read_git_credentials(session, keyring, project) == deploy_key
        assert await stored.hints(session, "git", [project]) == {project: ""}
        assert not await stored.has(session, "agent", project)


async def test_a_row_moved_to_another_holder_is_not_opened(db: Database, keyring: Keyring) -> None:
    mine, theirs = new_id(), new_id()
    await set_key(db, keyring, mine)
    await set_key(db, keyring, theirs, "sk-theirs")
    row = await row_of(db, mine)
    async with db.write() as session:
        await session.execute(update(Credential).where(Credential.holder_id == theirs).values(sealed=row.sealed))
    with pytest.raises(CredentialUnreadable, match=theirs):
        await key_of(db, keyring, theirs)


async def test_everything_comes_under_the_current_key_over_many_batches(
    db: Database, keyring: Keyring, keyring_file: Path
) -> None:
    holders = [new_id() for _ in range(2 * BATCH_ROWS + 1)]
    async with db.write() as session:
        for holder in holders:
            await stored.set_api_key(session, keyring, holder, f"key of {holder}", ANN, utc_now())
    write_keyring(keyring_file, "k2", "k1")
    first = await reencrypt_all(db, keyring, ANN)
    assert (first.reencrypted, first.changed_meanwhile, first.unreadable) == (len(holders), 0, [])
    again = await reencrypt_all(db, keyring, ANN)
    assert (again.reencrypted, again.changed_meanwhile) == (0, 0)
    write_keyring(keyring_file, "k2")
    assert [await key_of(db, keyring, holder) for holder in holders] == [f"key of {holder}" for holder in holders]
    async with db.read() as session:
        rotations = list(await session.scalars(select(AuditEntry).where(AuditEntry.action == "keyring.rotated")))
    assert [entry.details["reencrypted"] for entry in rotations] == [BATCH_ROWS, BATCH_ROWS, 1]
    assert {entry.subject for entry in rotations} == {"k2"}


async def test_what_can_not_be_read_is_named_and_left_as_it_is(
    db: Database, keyring: Keyring, keyring_file: Path
) -> None:
    good, damaged = new_id(), new_id()
    await set_key(db, keyring, good)
    await set_key(db, keyring, damaged)
    async with db.write() as session:
        await session.execute(update(Credential).where(Credential.holder_id == damaged).values(sealed=b"x" * 40))
    write_keyring(keyring_file, "k2", "k1")
    counts = await reencrypt_all(db, keyring, ANN)
    assert counts.reencrypted == 1
    assert [item.holder_id for item in counts.unreadable] == [damaged]
    row = await row_of(db, damaged)
    assert (row.key_id, row.sealed) == ("k1", b"x" * 40)


async def test_a_key_that_is_set_during_a_rotation_is_never_undone(
    db: Database, keyring: Keyring, keyring_file: Path
) -> None:
    holders = [new_id() for _ in range(20)]
    for holder in holders:
        await set_key(db, keyring, holder, "old")
    write_keyring(keyring_file, "k2", "k1")
    # A gateway that has not seen the new key yet still encrypts with the old one.
    write_keyring(keyring_file.with_name("old.json"), "k1")
    late = Keyring(keyring_file.with_name("old.json"))

    async def write() -> None:
        for holder in holders:
            await set_key(db, late, holder, "new")

    async def rotate() -> None:
        for _ in range(5):
            await reencrypt_all(db, keyring, ANN)

    await asyncio.gather(write(), rotate())
    assert {await key_of(db, keyring, holder) for holder in holders} == {"new"}
    await reencrypt_all(db, keyring, ANN)
    assert {(await row_of(db, holder)).key_id for holder in holders} == {"k2"}
    assert {await key_of(db, keyring, holder) for holder in holders} == {"new"}
