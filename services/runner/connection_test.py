"""Tries credentials out on a person's behalf, from where the work will be done."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic
from typing import TypeVar

import msgspec

from services.runner.agents import AGENTS, Trial, try_out
from services.runner.git import GitFailed, masked, printable, run_git
from services.runner.git_access import GitAccess
from services.runner.git_threads import in_thread
from shared.repo_url import is_local_path
from shared.requests import (
    TEST_CODES,
    AgentCredentials,
    GitCredentials,
    Introduction,
    TestReply,
    TestRequest,
    test_context,
)
from shared.sealed import NotForUs, SealKey

T = TypeVar("T")

GIT_ANSWERS_WITHIN_S = 20.0

_GIT_FAULTS: tuple[tuple[TEST_CODES, str, str], ...] = (
    ("refused", "host key verification", "Put the host's line into the credentials' known_hosts (see ssh-keyscan)."),
    ("wrong_key", r"authentication failed|could not read (?:username|password)|permission denied|error: 40[13]"
     r"|invalid format|error in libcrypto|access denied|not authori[sz]ed",
     "Put valid git credentials into the project, and see that they may read and push to this repository."),
    ("unknown_repository", r"not found|does not exist|error: 404|does not appear to be a git repository"
     r"|no such file", "Correct its address, or let the credentials see it."),
    ("unknown_repository", r"error: 30\d|redirect", "It has moved: write its new address."),
    ("no_route", r"could not resolve|couldn't connect|failed to connect|connection (?:refused|timed out|reset|closed)"
     r"|timed out|no route|unreachable|ssl|certificate|tls|proxy", "Is the address right, and the runner let out?"),
)  # fmt: skip
"""Code, the words of git and ssh, what to do. The first that fits."""


class ConnectionTests:
    """One runner's."""

    def __init__(self, runner: str, seal_key: SealKey, private_dir: Path, threads: ThreadPoolExecutor) -> None:
        self._runner = runner
        self._seal_key = seal_key
        self._private_dir = private_dir
        self._threads = threads

    def introduce(self) -> Introduction:
        """Who we are."""
        return Introduction(runner=self._runner, seal_to=self._seal_key.public)

    async def test(self, request: TestRequest) -> TestReply:
        """Tries the credentials out. Answers whatever happens."""
        began = monotonic()
        try:
            trial = await (self._try_agent(request) if request.kind == "agent" else self._try_git(request))
        except (NotForUs, msgspec.DecodeError):  # never their text, which could quote what is secret
            trial = Trial("refused", f"Runner {self._runner} can't open what it was sent: try again.")
        duration_s = round(monotonic() - began, 3)
        return TestReply(code=trial.code, message=trial.message, runner=self._runner, duration_s=duration_s)

    async def _try_agent(self, request: TestRequest) -> Trial:
        if request.sdk_type is None:
            return Trial("ok", "There is nothing to try: a person does the work.")
        if request.sdk_type not in AGENTS:
            return Trial("refused", f"Runner {self._runner} has no agents of the kind {request.sdk_type}.")
        return await try_out(request.sdk_type, self._opened(request, AgentCredentials), request.model)

    async def _try_git(self, request: TestRequest) -> Trial:
        credentials = self._opened(request, GitCredentials)
        return _summed_up(await asyncio.gather(*(self._try_repository(url, credentials) for url in request.repo_urls)))

    async def _try_repository(self, url: str, credentials: GitCredentials | None) -> Trial:
        shown = printable(masked(url))
        access = None if credentials is None or is_local_path(url) else GitAccess(credentials, url, self._private_dir)

        def work() -> None:
            # Not HEAD: an empty repository has none and is none the worse.
            run_git("ls-remote", "--quiet", "--", url, doing=shown, as_operator=True, access=access, out_max_bytes=1)

        try:
            async with asyncio.timeout(GIT_ANSWERS_WITHIN_S):
                await in_thread(work, self._threads)
        except TimeoutError:
            return Trial("no_route", f"{shown}: it did not answer within {GIT_ANSWERS_WITHIN_S:g} seconds.")
        except GitFailed as error:
            return _fault(shown, str(error), has_credentials=access is not None)
        return Trial("ok", f"{shown}: it can be read.")

    def _opened(self, request: TestRequest, type_: type[T]) -> T | None:
        if not request.sealed:
            return None
        opened = self._seal_key.open(request.sealed, test_context(self._runner, request.kind))
        return msgspec.json.decode(opened, type=type_)


def _fault(shown: str, words: str, *, has_credentials: bool) -> Trial:
    said = words.removeprefix(f"{shown}: ").rstrip(".")
    fitting = ((code, remedy) for code, pattern, remedy in _GIT_FAULTS if re.search(pattern, said, re.IGNORECASE))
    code, remedy = next(fitting, ("refused", ""))
    if code == "wrong_key" and not has_credentials:
        remedy = "The project has no git credentials: put some in."
    return Trial(code, f"{shown}: {said}. {remedy}".rstrip())


def _summed_up(trials: Sequence[Trial]) -> Trial:
    """The first fault, with the words on all."""
    first = next((trial for trial in trials if trial.code != "ok"), None)
    if first is None:
        return Trial("ok", "\n".join(trial.message for trial in trials))
    others = (trial.message for trial in trials if trial is not first)
    return Trial(first.code, "\n".join((first.message, *others)))
