"""A conversation kept in a list, and what one lease has to do with it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Literal
from uuid import uuid4

from services.runner.agents import Asks
from shared.events import Usage
from shared.task import Approval


class LeaseOver(Exception):
    """What a memory raises once its lease is over."""


class Kept:
    """Outlives leases."""

    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = []
        self.session_id = str(uuid4())

    def lease(self, *, resumes: bool = False) -> LeaseMemory:
        return LeaseMemory(self, resumes=resumes)


class LeaseMemory:
    """See `Memory`."""

    def __init__(self, kept: Kept, *, resumes: bool) -> None:
        self._kept = kept
        self.session_id = kept.session_id
        self.resumes = resumes
        self.is_over = False
        self.turns: list[Usage] = []

    async def load(self) -> list[dict[str, Any]]:
        return list(self._kept.entries)

    async def append(self, entries: Sequence[dict[str, Any]]) -> None:
        if self.is_over:
            raise LeaseOver
        known = {entry.get("uuid") for entry in self._kept.entries} - {None}
        self._kept.entries += [entry for entry in entries if entry.get("uuid") not in known]

    def turn_ended(self, usage: Usage) -> None:
        self.turns.append(usage)


def answered(asks: Asks, given: Literal["granted", "denied"], *, note: str = "", used_by: int = 0) -> Approval:
    """What a person says to what a lease asked."""
    return Approval(
        approval="hash",
        lease=3,
        kind=asks.kind,
        tool=asks.tool,
        input=json.dumps(asks.input),
        why=asks.why,
        expires_at=datetime.now(UTC),
        answer=given,
        note=note,
        used_by=used_by,
    )
