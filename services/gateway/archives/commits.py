"""The commits of an archive: a git bundle, which a runner makes and hands out in parts."""

import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from hashlib import sha256
from typing import BinaryIO

import msgspec
from litestar.datastructures import State

from services.gateway.agents.connection_test import ask, choose_runner
from services.gateway.credentials import stored
from services.gateway.credentials.keyring import CredentialUnreadable
from services.gateway.problems import ProblemError
from shared.history.archive_format import Commits
from shared.requests import BundlePartReply, BundlePartRequest, BundleReply, BundleRequest
from shared.subjects import runner_bundle, runner_bundle_part

MADE_WITHIN_S = 120.0
PART_WITHIN_S = 30.0
SHOWN_MAX = 5


class NoBundle(Exception):
    """There is none; the message says why."""


class Bundle(msgspec.Struct, frozen=True):
    """A bundle that was fetched as a whole."""

    file: BinaryIO
    commits: Commits
    left_out: tuple[str, ...]
    """What is not in it, in words; empty: all is."""


@asynccontextmanager
async def bundle(state: State, wanted: BundleRequest) -> AsyncIterator[Bundle | None]:
    """The commits as some runner finds them, None where there are none; the file is removed with the block's end.

    `wanted` is without credentials. Raises `NoBundle`.
    """
    with tempfile.TemporaryFile(prefix="treadle-bundle-") as file:
        try:
            runner, sealed = await choose_runner(state.nc, "git", await _credentials(state, wanted.project))
            body = msgspec.json.encode(msgspec.structs.replace(wanted, sealed=sealed))
            made = await ask(state.nc, runner_bundle(runner), body, BundleReply, MADE_WITHIN_S)
            if made.refused:
                raise NoBundle(made.refused)
            if made.bundle:
                await _fetch(state, runner, made, file)
        except (ProblemError, CredentialUnreadable) as error:
            raise NoBundle(str(error)) from error
        if not made.bundle:
            if made.without_unfinished:
                raise NoBundle(made.without_unfinished)
            yield None
            return
        file.seek(0)
        there = tuple(head for head in wanted.heads if head.commit not in made.missing)
        commits = Commits(base=wanted.base, heads=there, unfinished=made.unfinished, complete=made.complete)
        yield Bundle(file, commits, tuple(_left_out(wanted.plan, made)))


def _left_out(plan: str, made: BundleReply) -> Iterator[str]:
    if made.missing:
        words = ", ".join(commit[:12] for commit in made.missing[:SHOWN_MAX])
        yield f"commits that the repository does not have any more: {words}"
    if made.without_unfinished:
        yield f"unfinished work: {made.without_unfinished}"
    if made.unfinished:
        refs = ", ".join(f"refs/treadle/{plan}/{one.task}/{one.lease}-wip" for one in made.unfinished[:SHOWN_MAX])
        more = " and others" if len(made.unfinished) > SHOWN_MAX else ""
        yield f"diffs of unfinished work: git makes them of the commits, see {refs}{more}"


async def _fetch(state: State, runner: str, made: BundleReply, file: BinaryIO) -> None:
    digest = sha256()
    offset = 0
    while True:
        body = msgspec.json.encode(BundlePartRequest(bundle=made.bundle, offset=offset))
        reply = await ask(state.nc, runner_bundle_part(runner), body, BundlePartReply, PART_WITHIN_S)
        if reply.refused:
            raise NoBundle(reply.refused)
        if not reply.part:
            break
        offset += len(reply.part)
        if offset > made.size_bytes:
            break
        digest.update(reply.part)
        file.write(reply.part)
    if (offset, digest.hexdigest()) != (made.size_bytes, made.sha256):
        raise NoBundle("what the runner handed out is not what it had made: export again")


async def _credentials(state: State, project: str) -> bytes | None:
    async with state.db.read() as session:
        credentials = await stored.read_git_credentials(session, state.keyring, project)
    return msgspec.json.encode(credentials) if credentials is not None else None
