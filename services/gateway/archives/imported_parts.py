"""What another archive of an imported plan is made of: one with its events alone, or a redacted one."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

from services.gateway.archives.copies import Copy
from services.gateway.archives.looking import events_page
from shared.events import Result
from shared.store import Recorded

PAGE = 500
LINES_TOGETHER = 100
DIFF_MAX_BYTES = 64 * 1024**2
"""No runner tells of a larger one."""


class ImportedParts:
    """One plan's, from its open archive."""

    def __init__(self, copy: Copy) -> None:
        self._copy = copy
        self.plan = copy.archive.plan
        self.left_out = list(copy.archive.manifest.left_out)

    async def events(self) -> AsyncIterator[list[Recorded]]:
        """In pages. Raises `HistoryDamaged`."""
        after: int | None = 0
        while after is not None:
            page = await events_page(self._copy, after=after, limit=PAGE)
            yield page.records
            after = page.next_after

    async def results(self) -> AsyncIterator[tuple[str, Result]]:
        """Each with its task. Raises `HistoryDamaged`."""
        archive = self._copy.archive
        for name in archive.names():
            task = name.removeprefix("results/").removesuffix(".json")
            if name.startswith("results/") and (result := await asyncio.to_thread(archive.result, task)) is not None:
                yield task, result

    async def diffs(self) -> AsyncIterator[tuple[str, bytes]]:
        """What tasks changed, each with its task. Raises `HistoryDamaged`."""
        archive = self._copy.archive
        for member in archive.manifest.members:
            task = member.name.removeprefix("diffs/").removesuffix(".diff")
            if member.name.startswith("diffs/") and member.size > DIFF_MAX_BYTES:
                self.left_out.append(f"the diff of {task}: it is over {DIFF_MAX_BYTES} bytes")
            elif member.name.startswith("diffs/"):
                diff = await asyncio.to_thread(archive.diff, task)
                yield task, diff or b""

    @asynccontextmanager
    async def bundle(self) -> AsyncIterator[None]:
        """None: who wants it takes the file as it was imported."""
        yield

    async def transcripts(self) -> AsyncIterator[tuple[str, AsyncIterator[bytes]]]:
        """The member's name, and its lines, some together. Raises `HistoryDamaged`."""
        archive = self._copy.archive
        for name in archive.names():
            if name.startswith("transcripts/"):
                task, _, lease = name.removeprefix("transcripts/").removesuffix(".jsonl").rpartition("-")
                yield name, _together(archive.transcript(task, int(lease)) or iter(()))


async def _together(lines: Iterator[bytes]) -> AsyncIterator[bytes]:
    def some() -> bytes:
        return b"".join(line + b"\n" for line, _ in zip(lines, range(LINES_TOGETHER), strict=False))

    while taken := await asyncio.to_thread(some):
        yield taken
