"""Tells what changed between two commits, for whoever may not run git: the gateway."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from services.runner.git import GitFailed
from services.runner.git_access import GitAccess
from services.runner.git_threads import in_thread
from services.runner.in_use import in_use
from services.runner.merge import diff
from services.runner.mirror import mirror_of
from shared.repo_url import is_local_path
from shared.requests import DiffReply, DiffRequest, GitCredentials, test_context
from shared.sealed import NotForUs, SealKey

ANSWERS_WITHIN_S = 50.0
"""Less than a gateway's patience. A first fetch of a huge repository goes on at the next request."""
REPLY_MAX_BYTES = 6 * 1024 * 1024
"""Of JSON: what NATS carries, and room for headers."""


class Diffs:
    """One runner's."""

    def __init__(
        self, runner: str, data_dir: Path, seal_key: SealKey, private_dir: Path, threads: ThreadPoolExecutor
    ) -> None:
        self._runner = runner
        self._data_dir = data_dir
        self._seal_key = seal_key
        self._private_dir = private_dir
        self._threads = threads

    async def answer(self, request: DiffRequest) -> bytes:
        """A `DiffReply` as JSON, whatever happens."""
        try:
            async with asyncio.timeout(ANSWERS_WITHIN_S):
                return await in_thread(lambda: self._diff(request), self._threads)
        except (NotForUs, msgspec.DecodeError):  # never their text, which could quote what is secret
            why = f"runner {self._runner} can't open what it was sent: try again"
        except TimeoutError:
            why = f"the commits were not read within {ANSWERS_WITHIN_S:g} seconds: try again"
        except (GitFailed, ValueError, OSError) as error:
            why = str(error)
        return msgspec.json.encode(DiffReply(refused=why))

    def _diff(self, request: DiffRequest) -> bytes:
        mirror = mirror_of(self._data_dir, request.repo_url, request.project, self._access(request))
        with in_use(mirror.path):
            mirror.ensure(request.plan, [request.base, request.commit])
            found = diff(mirror.path, request.base, request.commit)
        reply = DiffReply(stat=found.stat, patch=found.patch, cut=found.cut)
        while len(encoded := msgspec.json.encode(reply)) > REPLY_MAX_BYTES:
            # JSON writes a control character in six bytes: what is small for git may be large here.
            half = max(len(reply.stat), len(reply.patch)) // 2
            reply = DiffReply(stat=reply.stat[:half], patch=reply.patch[:half], cut=True)
        return encoded

    def _access(self, request: DiffRequest) -> GitAccess | None:
        if not request.sealed or is_local_path(request.repo_url):
            return None
        opened = self._seal_key.open(request.sealed, test_context(self._runner, "git"))
        credentials = msgspec.json.decode(opened, type=GitCredentials)
        return GitAccess(credentials, request.repo_url, self._private_dir)
