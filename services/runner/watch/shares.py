"""How many look at once: so many in all, and of each project so many that the others' turns come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from weakref import WeakValueDictionary


class Shares:
    """Room for `in_all` at once, of which one project has at most `of_each`."""

    def __init__(self, in_all: int, of_each: int) -> None:
        self._all = asyncio.Semaphore(in_all)
        self._of_each = of_each
        self._projects: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        """Each is there as long as anybody of its project has room, or waits for it."""

    @asynccontextmanager
    async def room(self, project: str) -> AsyncIterator[None]:
        """Waits for it; who waits for his project's takes none of the others'."""
        own = self._projects.get(project)
        if own is None:
            own = self._projects[project] = asyncio.Semaphore(self._of_each)
        async with own, self._all:
            yield
