"""Makes git bundles of a plan's commits, for whoever may not run git: the gateway, which exports plans.

A bundle is a file here until it was fetched, part by part, or until nobody has asked for it for some minutes.
"""

from __future__ import annotations

import asyncio
import secrets
import shutil
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import file_digest
from pathlib import Path

import msgspec

from services.runner.git import CommitsMissing, GitFailed, checked_commit, checked_ids, run_git
from services.runner.git_access import GitAccess
from services.runner.git_threads import in_thread
from services.runner.in_use import in_use
from services.runner.merge import plans_of
from services.runner.mirror import Mirror, mirror_of, write_bare_repository
from services.runner.unfinished import unfinished_work
from shared.events import Head
from shared.repo_url import is_local_path
from shared.requests import (
    BUNDLE_PART_BYTES,
    HEADS_MAX,
    BundlePartReply,
    BundlePartRequest,
    BundleReply,
    BundleRequest,
    GitCredentials,
    test_context,
)
from shared.sealed import NotForUs, SealKey
from shared.spec import DELIVER

ANSWERS_WITHIN_S = 110.0
"""Less than a gateway's patience. A first fetch of a huge repository goes on at the next request."""
KEPT_S = 180.0
"""After the last request for it."""
KEPT_MAX = 8
MISSING_MAX = 5
"""Of the heads; where more can't be had, it is not for what they are."""
BUNDLE_MAX_BYTES = 256 * 1024 * 1024
_FILE = "commits.bundle"
_DOING = "making a bundle of the plan's commits"


@dataclass
class Kept:
    """A bundle that waits to be fetched."""

    directory: Path
    size_bytes: int
    expires: asyncio.TimerHandle | None = None


class Bundles:
    """One runner's."""

    def __init__(
        self,
        runner: str,
        data_dir: Path,
        directory: Path,
        seal_key: SealKey,
        private_dir: Path,
        threads: ThreadPoolExecutor,
        *,
        max_bytes: int = BUNDLE_MAX_BYTES,
    ) -> None:
        """`directory` is for bundles alone; `max_bytes` bounds one of them."""
        self._runner = runner
        self._data_dir = data_dir
        self._directory = directory
        self._seal_key = seal_key
        self._private_dir = private_dir
        self._threads = threads
        self._max_bytes = max_bytes
        self._kept: dict[str, Kept] = {}
        self._making = 0

    def clear(self) -> None:
        """Removes what a former life has left."""
        shutil.rmtree(self._directory, ignore_errors=True)

    async def make(self, request: BundleRequest) -> BundleReply:
        """Where the bundle can be had, or why it can't, whatever happens."""
        if not request.only_look and len(self._kept) + self._making >= KEPT_MAX:
            return BundleReply(refused=f"runner {self._runner} has {KEPT_MAX} bundles to hand out: try again later")
        name = secrets.token_hex(16)
        directory = self._directory / name
        self._making += 1
        try:
            async with asyncio.timeout(ANSWERS_WITHIN_S):
                if request.only_look:
                    return await in_thread(lambda: self._look(request), self._threads)
                reply = await in_thread(lambda: self._make(request, name, directory), self._threads)
            if not reply.bundle:
                return reply
            self._kept[name] = Kept(directory, reply.size_bytes)
            self._put_off(name)
            return reply
        except (NotForUs, msgspec.DecodeError):  # never their text, which could quote what is secret
            why = f"runner {self._runner} can't open what it was sent: try again"
        except TimeoutError:
            why = f"the commits were not read within {ANSWERS_WITHIN_S:g} seconds: try again"
        except (GitFailed, ValueError, OSError) as error:
            why = str(error)
        finally:
            self._making -= 1
            if name not in self._kept:
                shutil.rmtree(directory, ignore_errors=True)
        return BundleReply(refused=why)

    async def part(self, request: BundlePartRequest) -> BundlePartReply:
        """Bytes of a bundle, or why there are none."""
        kept = self._kept.get(request.bundle)
        if kept is None:
            return BundlePartReply(refused=f"runner {self._runner} has no such bundle (any more): export again")
        if not 0 <= request.offset < kept.size_bytes:
            self._drop(request.bundle)
            return BundlePartReply()
        self._put_off(request.bundle)
        try:
            return BundlePartReply(part=await asyncio.to_thread(_read, kept.directory / _FILE, request.offset))
        except OSError as error:
            return BundlePartReply(refused=f"the bundle can't be read: {error.strerror}")

    def _put_off(self, name: str) -> None:
        kept = self._kept[name]
        if kept.expires is not None:
            kept.expires.cancel()
        kept.expires = asyncio.get_running_loop().call_later(KEPT_S, self._drop, name)

    def _drop(self, name: str) -> None:
        kept = self._kept.pop(name)
        if kept.expires is not None:
            kept.expires.cancel()
        shutil.rmtree(kept.directory, ignore_errors=True)

    def _look(self, request: BundleRequest) -> BundleReply:
        _refs(request)
        mirror = mirror_of(self._data_dir, request.repo_url, request.project, self._access(request))
        commits = [request.base, *(head.commit for head in request.heads)]
        try:
            with in_use(mirror.path):
                mirror.ensure(request.plan, commits, also_of=plans_of(request.heads))
        except CommitsMissing as missing:
            return BundleReply(missing=missing.commits)
        return BundleReply()

    def _make(self, request: BundleRequest, name: str, directory: Path) -> BundleReply:
        refs = _refs(request)
        mirror = mirror_of(self._data_dir, request.repo_url, request.project, self._access(request))
        directory.mkdir(parents=True, mode=0o700)
        with in_use(mirror.path):
            missing = _ensure(mirror, request)
            unfinished, without = unfinished_work(mirror, request)
            if request.leases and not (request.heads or unfinished):
                return BundleReply(without_unfinished=without)
            repo = directory / "repo.git"
            # Of its own, with no refs but those of the bundle: a mirror's are of other plans too.
            write_bare_repository(repo, alternates=[mirror.objects])
            if (mirror.path / "shallow").exists():
                shutil.copy(mirror.path / "shallow", repo)
            _make_refs(repo, {ref: commit for ref, commit in refs.items() if commit not in missing})
            if unfinished and not self._fits(repo, [f"^{request.base}", *(one.commit for one in unfinished.values())]):
                without = f"with it the commits would be over {self._max_bytes >> 20} MiB"
                unfinished = {}
            _make_refs(repo, {ref: one.commit for ref, one in unfinished.items()})
            complete = not (repo / "shallow").exists() and self._fits(repo, [])
            file = directory / _FILE
            self._write(repo, file, [] if complete else [f"^{request.base}"])
            shutil.rmtree(repo)
        with file.open("rb") as written:
            sha256 = file_digest(written, "sha256").hexdigest()
        return BundleReply(
            bundle=name,
            size_bytes=file.stat().st_size,
            sha256=sha256,
            complete=complete,
            missing=tuple(sorted(missing)),
            unfinished=tuple(unfinished.values()),
            without_unfinished=without,
        )

    def _write(self, repo: Path, file: Path, without: list[str]) -> None:
        """Raises `GitFailed` where it is too large."""
        too_large = f"the plan's commits are over {self._max_bytes >> 20} MiB, even without what was there before"
        if without and not self._fits(repo, without):
            raise GitFailed(too_large)
        run_git("bundle", "create", "--quiet", str(file), "--all", *without, doing=_DOING, git_dir=repo)
        if file.stat().st_size > self._max_bytes:
            if without:
                raise GitFailed(too_large)
            raise GitFailed(f"the plan's commits are over {self._max_bytes >> 20} MiB")
        run_git("bundle", "verify", "--quiet", str(file), doing="verifying the bundle", git_dir=repo)

    def _fits(self, repo: Path, more_or_less: list[str]) -> bool:
        """Going by what the objects take on this disk, which is about what they take in a bundle.

        `more_or_less`: commits beside those of the refs, and with a `^` those that are not counted.
        """
        args = ("rev-list", "--disk-usage", "--objects", "--all", "--stdin")
        told = "".join(f"{one}\n" for one in more_or_less).encode()
        return int(run_git(*args, doing=_DOING, git_dir=repo, stdin=told).out) <= self._max_bytes

    def _access(self, request: BundleRequest) -> GitAccess | None:
        if not request.sealed or is_local_path(request.repo_url):
            return None
        opened = self._seal_key.open(request.sealed, test_context(self._runner, "git"))
        credentials = msgspec.json.decode(opened, type=GitCredentials)
        return GitAccess(credentials, request.repo_url, self._private_dir)


def _refs(request: BundleRequest) -> dict[str, str]:
    """What the bundle names, and the commits. Raises `ValueError`."""
    if max(len(request.heads), len(request.leases)) > HEADS_MAX:
        raise ValueError(f"there are over {HEADS_MAX} commits to bundle")
    refs = {f"refs/treadle-base/{request.plan}": checked_commit(request.base)}
    checked_ids(request.plan, DELIVER)
    for head in request.heads:
        plan = head.plan or request.plan
        checked_ids(plan, head.task)
        own_branch = head.task == DELIVER and plan == request.plan
        ref = f"refs/heads/treadle/{plan}" if own_branch else f"refs/treadle/{plan}/{head.task}/head"
        refs[ref] = checked_commit(head.commit)
    return refs


def _make_refs(repo: Path, refs: dict[str, str]) -> None:
    commands = "".join(f"create {ref} {commit}\n" for ref, commit in refs.items())
    run_git("update-ref", "--stdin", doing=_DOING, git_dir=repo, stdin=commands.encode())


def _ensure(mirror: Mirror, request: BundleRequest) -> set[str]:
    """Fetches the commits; returns the few that the repository does not have. Raises `GitFailed`.

    What the plan's branch contains needs no ref of its own any more.
    """
    branch = [head.commit for head in request.heads if head.task == DELIVER and not head.plan]
    mirror.ensure(request.plan, [request.base, *branch])
    wanted = _absent(mirror, request.heads)
    try:
        mirror.ensure(request.plan, wanted)
        return set()
    except GitFailed:
        missing: set[str] = set()
        for commit in wanted:
            try:
                mirror.ensure(request.plan, [commit])
            except GitFailed:
                if len(missing) == MISSING_MAX:
                    raise
                missing.add(commit)
        return missing


def _absent(mirror: Mirror, heads: Iterable[Head]) -> list[str]:
    commits = list(dict.fromkeys(head.commit for head in heads))
    if not commits:
        return []
    asked = "".join(f"{commit}\n" for commit in commits).encode()
    args = ("cat-file", "--batch-check=%(objectname) %(objecttype)")
    lines = run_git(*args, doing=_DOING, git_dir=mirror.path, stdin=asked).out.decode().splitlines()
    return [commit for commit, line in zip(commits, lines, strict=True) if not line.endswith(" commit")]


def _read(file: Path, offset: int) -> bytes:
    with file.open("rb") as opened:
        opened.seek(offset)
        return opened.read(BUNDLE_PART_BYTES)
