"""How often a login may fail, in whatever order attempts arrive."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from sqlalchemy import func, select

from services.gateway.accounts.login_limit import (
    PER_ADDRESS,
    PER_NAME,
    PER_NAME_AND_ADDRESS,
    WINDOW,
    count_attempt,
    forgive,
)
from services.gateway.database.engine import Database
from services.gateway.database.tables import LoginFailures
from services.gateway.problems import ProblemError
from shared.clock import utc_now

NOW = utc_now()


async def attempts(db: Database, count: int, name: str = "ann", address: str = "192.0.2.1") -> int:
    """How many of so many attempts at once are let through."""
    answers = await asyncio.gather(
        *(count_attempt(db, name, address, NOW) for _ in range(count)), return_exceptions=True
    )
    refused = [answer for answer in answers if answer is not None]
    for answer in refused:
        assert isinstance(answer, ProblemError), answer
        assert answer.problem.code == "too_many_logins"
    return count - len(refused)


async def test_many_attempts_at_once_get_no_further_than_one_after_another(db: Database) -> None:
    assert await attempts(db, 12) == PER_NAME_AND_ADDRESS
    assert await attempts(db, 1) == 0


async def test_a_stranger_elsewhere_does_not_lock_a_name_out(db: Database) -> None:
    assert await attempts(db, 12, address="192.0.2.66") == PER_NAME_AND_ADDRESS
    assert await attempts(db, 1) == 1


async def test_guesses_from_many_addresses_lock_a_name_everywhere(db: Database) -> None:
    addresses = PER_NAME // PER_NAME_AND_ADDRESS
    through = [await attempts(db, PER_NAME_AND_ADDRESS, address=f"198.51.100.{n}") for n in range(addresses + 1)]
    assert through == [PER_NAME_AND_ADDRESS] * addresses + [0]
    assert await attempts(db, 1, name="bob", address="198.51.100.0") == 1


async def test_success_leaves_the_names_failures_elsewhere(db: Database) -> None:
    for n in range(PER_NAME // PER_NAME_AND_ADDRESS):
        await attempts(db, PER_NAME_AND_ADDRESS - (n == 0), address=f"198.51.100.{n}")
    for _ in range(3):
        assert await attempts(db, 1) == 1
        async with db.write() as session:
            await forgive(session, "ann", "192.0.2.1", NOW)
    assert await attempts(db, 2) == 1


async def test_addresses_are_counted_over_all_names(db: Database) -> None:
    through = [await attempts(db, 1, name=f"name-{n}") for n in range(PER_ADDRESS + 2)]
    assert through == [1] * PER_ADDRESS + [0, 0]
    assert await attempts(db, 1, name="name-0", address="192.0.2.2") == 1


async def test_refused_attempt_of_a_locked_name_does_not_count_against_its_address(db: Database) -> None:
    for _ in range(PER_NAME_AND_ADDRESS + PER_ADDRESS):
        await attempts(db, 1)
    assert await attempts(db, 1, name="bob") == 1


async def test_one_address_of_ipv6_counts_for_its_network_and_a_mapped_one_for_itself(db: Database) -> None:
    for n in range(PER_ADDRESS):
        await attempts(db, 1, name=f"name-{n}", address=f"2001:db8::{n:x}")
    assert await attempts(db, 1, name="x", address="2001:db8::ffff:1") == 0
    assert await attempts(db, 1, name="x", address="2001:db8:0:1::1") == 1
    for n in range(PER_ADDRESS):
        await attempts(db, 1, name=f"more-{n}", address="::ffff:192.0.2.9")
    assert await attempts(db, 1, name="y", address="192.0.2.9") == 0


async def test_window_ends_a_quarter_of_an_hour_after_the_first_failure(db: Database) -> None:
    await attempts(db, PER_NAME_AND_ADDRESS)
    with pytest.raises(ProblemError) as refused:
        await count_attempt(db, "ann", "192.0.2.1", NOW + timedelta(minutes=14, seconds=30))
    assert refused.value.headers == {"Retry-After": "30"}
    await count_attempt(db, "ann", "192.0.2.1", NOW + WINDOW)


async def test_success_forgives_the_name_and_leaves_the_addresss_other_failures(db: Database) -> None:
    for n in range(PER_ADDRESS - 1):
        await attempts(db, 1, name=f"name-{n}")
    for _ in range(3):
        assert await attempts(db, 1) == 1
        async with db.write() as session:
            await forgive(session, "ann", "192.0.2.1", NOW)
    assert await attempts(db, 2) == 1


async def test_what_is_over_is_forgotten_with_the_next_success(db: Database) -> None:
    await attempts(db, 1, name="somebody", address="192.0.2.7")
    later = NOW + WINDOW
    await count_attempt(db, "ann", "192.0.2.1", later)
    async with db.write() as session:
        await forgive(session, "ann", "192.0.2.1", later)
        left = await session.scalar(select(func.count()).select_from(LoginFailures))
    assert left == 2, "the address's and the name's own rows, with no failure"
