"""How often a login may fail within a window, whatever gateway is asked: per name and address, per name, per address.

A name is locked for one address after a few failures from there, so that a stranger elsewhere can't lock its owner out
with those. Over all addresses it may fail more often: that is for guesses from many of them.

An attempt is counted before the password is looked at, in the transaction that checks the count, so that many at once
get no further than one after another. Names count whether or not there is such an account: a lock tells nothing.
"""

import ipaddress
from datetime import datetime, timedelta
from hashlib import sha256
from math import ceil

from sqlalchemy import case, delete, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncSession

from services.gateway.database.engine import Database
from services.gateway.database.tables import LoginFailures
from services.gateway.problems import ProblemError

PER_NAME_AND_ADDRESS = 5
PER_NAME = 50
PER_ADDRESS = 20
WINDOW = timedelta(minutes=15)


async def count_attempt(db: Database, name: str, address: str, now: datetime) -> None:
    """Counts an attempt as failed, until `forgive`. Raises `ProblemError` 429 `too_many_logins` for one too many.

    `address` is the socket's, or what a proxy says of it that the settings trust: any other header's sender may choose.
    """
    insert = sqlite.insert if db.is_sqlite else postgresql.insert
    limits = {
        _address_key(address): PER_ADDRESS,
        _name_key(name): PER_NAME,
        _pair_key(name, address): PER_NAME_AND_ADDRESS,
    }
    new = insert(LoginFailures).values(
        # In one order everywhere, so that two attempts never wait for each other.
        [{"key": key, "count": 1, "window_ends_at": now + WINDOW} for key in sorted(limits)]
    )
    is_over = LoginFailures.window_ends_at <= now
    counted = new.on_conflict_do_update(
        index_elements=[LoginFailures.key],
        set_={
            "count": case((is_over, 1), else_=LoginFailures.count + 1),
            "window_ends_at": case((is_over, new.excluded.window_ends_at), else_=LoginFailures.window_ends_at),
        },
    ).returning(LoginFailures.key, LoginFailures.count, LoginFailures.window_ends_at)
    async with db.write() as session:
        rows = (await session.execute(counted)).all()
        ends = [window_ends_at for key, count, window_ends_at in rows if count > limits[key]]
        if ends:
            raise _too_many(max(ends) - now)  # and nothing is counted: waiting it out is enough


async def forgive(session: AsyncSession, name: str, address: str, now: datetime) -> None:
    """The attempt was a success: the name is free again from there; else it was no failure. Forgets what is over."""
    for key in sorted((_address_key(address), _name_key(name))):  # in the order in which they are counted
        await session.execute(
            update(LoginFailures)
            .where(LoginFailures.key == key, LoginFailures.count > 0)
            .values(count=LoginFailures.count - 1)
        )
    await session.execute(delete(LoginFailures).where(LoginFailures.key == _pair_key(name, address)))
    # Never waits for an attempt that is being counted, which may wait for this transaction.
    over = select(LoginFailures.key).where(LoginFailures.window_ends_at <= now).with_for_update(skip_locked=True)
    await session.execute(delete(LoginFailures).where(LoginFailures.key.in_(over)))


def _too_many(wait: timedelta) -> ProblemError:
    wait_s = max(1, ceil(wait.total_seconds()))
    detail = f"too many logins failed with this name or from this address; try again in {wait_s} s"
    headers = {"Retry-After": str(wait_s)}
    return ProblemError(429, "too_many_logins", "Too many failed logins", detail, headers=headers)


def _name_key(name: str) -> str:
    """Hashed: people type passwords into the wrong field, and a key has a length."""
    return f"name:{sha256(name.encode()).hexdigest()}"


def _pair_key(name: str, address: str) -> str:
    return f"pair:{sha256(name.encode()).hexdigest()} {_address_key(address)}"


def _address_key(address: str) -> str:
    """IPv6 by /64: whoever has one address there has all of them."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:  # a Unix socket has none
        return "address:local"
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is None:
            return f"address:{ipaddress.ip_network((int(ip), 64), strict=False)}"
        ip = ip.ipv4_mapped
    return f"address:{ip}"
