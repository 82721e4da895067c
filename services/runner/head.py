"""Tells which commit a repository's branch is at, for whoever may not run git: the gateway."""

from __future__ import annotations

import asyncio
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from services.runner.git import GitFailed, checked_commit, masked, printable, run_git
from services.runner.git_access import GitAccess
from services.runner.git_threads import in_thread
from services.runner.mirror import LOCAL_UPLOAD
from shared.repo_url import check_repo_url, is_local_path
from shared.requests import GitCredentials, HeadReply, HeadRequest, test_context
from shared.sealed import NotForUs, SealKey

ANSWERS_WITHIN_S = 20.0
_ANSWER_MAX_BYTES = 64 * 1024
_BRANCH = re.compile(r"[^\s\\~^:?*\[\x00-\x20\x7f-]([^\s\\~^:?*\[\x00-\x20\x7f]{0,250})")
_TO_BRANCH = "ref: refs/heads/"


class Heads:
    """One runner's."""

    def __init__(self, runner: str, seal_key: SealKey, private_dir: Path, threads: ThreadPoolExecutor) -> None:
        self._runner = runner
        self._seal_key = seal_key
        self._private_dir = private_dir
        self._threads = threads

    async def answer(self, request: HeadRequest) -> HeadReply:
        """Asks the repository itself. Answers whatever happens."""
        shown = printable(masked(request.repo_url))
        try:
            async with asyncio.timeout(ANSWERS_WITHIN_S):
                return await in_thread(lambda: self._head(request, shown), self._threads)
        except (NotForUs, msgspec.DecodeError):  # never their text, which could quote what is secret
            why = f"runner {self._runner} can't open what it was sent: try again"
        except TimeoutError:
            why = f"{shown} did not answer within {ANSWERS_WITHIN_S:g} seconds: try again"
        except (GitFailed, ValueError, OSError) as error:
            why = str(error)
        return HeadReply(refused=why)

    def _head(self, request: HeadRequest, shown: str) -> HeadReply:
        # Whether a path or a private host may be named at all is the gateway's to say.
        url, branch = check_repo_url(request.repo_url, allow_local=True, allow_private_hosts=True), request.branch
        if is_local_path(url) and not Path(url).is_absolute():
            raise ValueError(f"the path of a repository must be absolute: {shown}")
        if branch and (not _BRANCH.fullmatch(branch) or ".." in branch):
            raise ValueError(f"{printable(branch)} is no name of a branch")
        wanted = f"refs/heads/{branch}" if branch else "HEAD"
        local = [LOCAL_UPLOAD] if is_local_path(url) else []
        done = run_git(
            *("ls-remote", "--quiet", "--symref", *local, "--", url, wanted),
            doing=f"asking {shown} for {branch or 'its default branch'}",
            as_operator=True,
            access=self._access(request),
            out_max_bytes=_ANSWER_MAX_BYTES,
        )
        commit = ""
        for value, _, name in (line.partition("\t") for line in done.out.decode(errors="replace").splitlines()):
            # It lists whatever ends in that name.
            if name == wanted and value.startswith(_TO_BRANCH):
                branch = branch or value.removeprefix(_TO_BRANCH)
            elif name == wanted and not commit:
                commit = checked_commit(value)
        if not commit:
            what = f"no branch {branch}" if request.branch else "no commit on its default branch"
            raise GitFailed(f"{shown} has {what} yet: push one there, then try again")
        return HeadReply(commit=commit, branch=branch)

    def _access(self, request: HeadRequest) -> GitAccess | None:
        if not request.sealed or is_local_path(request.repo_url):
            return None
        opened = self._seal_key.open(request.sealed, test_context(self._runner, "git"))
        credentials = msgspec.json.decode(opened, type=GitCredentials)
        return GitAccess(credentials, request.repo_url, self._private_dir)
