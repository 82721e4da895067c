"""The runner's own copy of a code repository: one bare repository per address and project, objects only ever added.

A mirror says nothing of who may read it: what one project's credentials brought is there without the network for all
who use the mirror. So projects never share one, but for a repository on this machine, which has no credentials.

A commit is taken as present only when a marker says that all of it has arrived (`complete/`): a fetch that was killed
may leave a commit without its files, and that must not count. Without a marker git itself looks, and fetches what is
missing. Nothing else in a mirror matters to the result: its refs only save git from fetching things again.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from services.runner.git import (
    Access,
    CommitsMissing,
    Done,
    GitFailed,
    GitRejected,
    checked_commit,
    checked_ids,
    end_if_stopped,
    masked,
    printable,
    run_git,
)
from services.runner.wanted import forget, wanted_by_others, wanting
from shared.repo_url import is_local_path
from shared.spec import DELIVER

# The operator's repository on this machine runs its side of the work with our settings: no hook, no maintenance that
# would prune, no checked-out branch moved; and a commit that no branch reaches (a detached head) may be had by its id.
_LOCAL_SIDE = "git -c core.hooksPath=/dev/null -c gc.auto=0 -c maintenance.auto=false"
LOCAL_UPLOAD = f"--upload-pack={_LOCAL_SIDE} -c uploadpack.allowAnySHA1InWant=true upload-pack"
_LOCAL_RECEIVE = (
    f"--receive-pack={_LOCAL_SIDE} -c receive.autogc=false -c receive.denyCurrentBranch=refuse "
    "-c core.fsync=committed,loose-object,reference -c core.fsyncMethod=batch receive-pack"
)

_HEADS = "+refs/heads/*:refs/heads/*"
_ABANDONED_S = 24 * 3600.0
_LOCK_AGAIN_S = 0.02


@dataclass(frozen=True)
class Mirror:
    """The mirror of one repository; make it with `mirror_of`."""

    path: Path
    repo_url: str
    access: Access | None = None
    """What the repository is reached with; None: the operator's own means."""
    project: str = ""
    """For whom it is used: what belongs to a project is never shared, as the mirror of a local repository is."""

    @property
    def objects(self) -> Path:
        """Its object directory, for a workspace to borrow from. Agents must be able to read it."""
        return self.path / "objects"

    def ensure(self, plan: str, commits: Iterable[str], *, also_of: Iterable[str] = ()) -> None:
        """Makes sure that the commits and all they contain are here; without the network when they are.

        `also_of` are other plans whose refs may hold them: those whose work a fork has inherited. Raises `GitFailed`
        when the repository can't be reached, and `CommitsMissing` when it has no such commit.
        """
        plans = tuple(dict.fromkeys((plan, *filter(None, also_of))))
        for one in plans:
            checked_ids(one, DELIVER)
        wanted = [checked_commit(c) for c in dict.fromkeys(commits)]
        if not self._incomplete(wanted):
            return
        with wanting(self.path, plan, wanted), self.locked():
            if missing := self._incomplete(wanted):
                write_bare_repository(self.path)
                self._sweep()
                for commit in self._fetch_for_all(plans, missing):
                    self.mark_complete(commit)

    def mark_complete(self, commit: str) -> None:
        """Says that the commit and all it contains are here."""
        marker = self._marker(commit)
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.touch()

    def push(self, source: Path, *refspecs: str) -> None:
        """Pushes from the repository `source` to the mirrored one. Raises `GitRejected` when that refuses the ref."""
        local = [_LOCAL_RECEIVE] if is_local_path(self.repo_url) else []
        done = run_git(
            *("push", "--porcelain", "--quiet", "--no-verify", *local, "--", self.repo_url, *refspecs),
            doing=f"pushing to {self.shown}",
            git_dir=source,
            statuses=(0, 1),
            as_operator=True,
            access=self.access,
        )
        if done.status:
            raise GitRejected(f"pushing {refspecs[0].partition(':')[2]} to {self.shown}: {_rejection(done)}")

    def remote_tip(self, ref: str) -> str | None:
        """The commit that a ref of the mirrored repository has now; None when it does not exist."""
        return next((checked_commit(commit) for commit, name in self._list_remote(ref) if name == ref), None)

    def default_branch(self) -> str | None:
        """The name of the mirrored repository's default branch; None where its HEAD names none."""
        for target, name in self._list_remote("HEAD", "--symref"):
            if name == "HEAD" and target.startswith("ref: refs/heads/"):
                return target.removeprefix("ref: refs/heads/")
        return None

    def remote_refs(self, pattern: str) -> list[str]:
        """The names of the mirrored repository's refs that match."""
        return list(self.remote_tips(pattern))

    def remote_tips(self, pattern: str) -> dict[str, str]:
        """The mirrored repository's refs that match, each with its commit."""
        return {name: checked_commit(commit) for commit, name in self._list_remote(pattern)}

    def _list_remote(self, pattern: str, *options: str) -> list[tuple[str, str]]:
        local = [LOCAL_UPLOAD] if is_local_path(self.repo_url) else []
        done = run_git(
            *("ls-remote", "--quiet", *options, *local, "--", self.repo_url, pattern),
            doing=f"asking {self.shown} for {pattern}",
            git_dir=self.path,
            as_operator=True,
            access=self.access,
        )
        lines = done.out.decode(errors="replace").splitlines()
        return [(commit, name) for commit, _, name in (line.partition("\t") for line in lines)]

    @property
    def shown(self) -> str:
        """The repository's address for a message."""
        return printable(masked(self.repo_url))

    def _incomplete(self, commits: Sequence[str]) -> list[str]:
        return [c for c in commits if not self._marker(c).exists()]

    def _marker(self, commit: str) -> Path:
        return self.path / "complete" / commit[:2] / commit[2:]

    def _fetch_for_all(self, plans: Sequence[str], missing: Sequence[str]) -> list[str]:
        """Fetches these, and with them what others wait for, if all of it can be had; returns what has come."""
        plan = plans[0]
        others = wanted_by_others(self.path, missing)
        others = {commit: others[commit] for commit in self._incomplete(list(others))}
        if others and (self.path / "fetched").exists():
            wants = [*((commit, plan) for commit in missing), *others.items()]
            try:
                self._run_fetch(*(f"+{commit}:refs/fetched/{of}/{at}" for at, (commit, of) in enumerate(wants)))
                return [*missing, *others]
            except GitFailed:
                forget(self.path, others)  # each for itself then: what can't be had must not spoil the rest
        self._fetch(plans, missing)
        return list(missing)

    def _fetch(self, plans: Sequence[str], commits: Sequence[str]) -> None:
        fetched_before = self.path / "fetched"
        if not fetched_before.exists():
            self._run_fetch("--prune", _HEADS)
            fetched_before.touch()
        # Refs for what comes now, so that the next fetch need not bring it again; one place each, used over and over.
        by_id = [f"+{commit}:refs/fetched/{plans[0]}/{at}" for at, commit in enumerate(commits)]
        try:
            self._run_fetch(*by_id)
        except GitFailed as by_id_failed:
            # A server may hand out only what its refs name. Then the plans' refs bring it, if it is there at all.
            self._run_fetch("--prune", _HEADS, *(f"+refs/treadle/{plan}/*:refs/treadle/{plan}/*" for plan in plans))
            if not self._connected(commits):
                missing = [commit for commit in commits if not self._connected([commit])]
                raise CommitsMissing(self.shown, missing) from by_id_failed

    def _run_fetch(self, *args: str) -> None:
        options = [a for a in args if a.startswith("--")]
        refspecs = [a for a in args if not a.startswith("--")]
        local = [LOCAL_UPLOAD] if is_local_path(self.repo_url) else []
        run_git(
            *("fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--update-shallow"),
            *(*options, *local, "--", self.repo_url, *refspecs),
            doing=f"fetching from {self.shown}",
            git_dir=self.path,
            as_operator=True,
            access=self.access,
        )

    def _connected(self, commits: Sequence[str]) -> bool:
        done = run_git(
            *("rev-list", "--quiet", "--objects", *commits, "--not", "--all"),
            doing=f"looking for commits of {self.shown}",
            git_dir=self.path,
            statuses=(0, 1, 128),
        )
        return done.status == 0

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Held by whoever fetches into it or takes it away. Blocks; raises `GitStopped` when told to stop."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.with_suffix(".lock").open("w") as lock:
            while True:
                end_if_stopped()
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:  # another one fetches; a wait in flock itself could not be stopped
                    time.sleep(_LOCK_AGAIN_S)
            yield

    def _sweep(self) -> None:
        """Removes what killed git processes left. Only we write refs here, and only under the lock."""
        for lock in (*self.path.glob("*.lock"), *self.path.glob("refs/**/*.lock")):
            lock.unlink(missing_ok=True)
        for piece in (*self.objects.glob("pack/tmp_*"), *self.objects.glob("??/tmp_obj_*")):
            if piece.stat().st_mtime < time.time() - _ABANDONED_S:
                piece.unlink(missing_ok=True)


def mirror_of(data_dir: Path, repo_url: str, project: str, access: Access | None = None) -> Mirror:
    """A project's mirror of a repository, by its checked address; a local path must be absolute. Touches nothing yet.

    `project` is empty for plans that are older than projects.
    """
    if is_local_path(repo_url) and not os.path.isabs(repo_url):  # noqa: PTH117 - it is text, not yet a path
        raise ValueError(f"the path of a repository must be absolute: {repo_url!r}")
    # No address has a line break in it, so that no address without a project is one with a project.
    key = repo_url if is_local_path(repo_url) or not project else f"{repo_url}\n{project}"
    name = sha256(key.encode()).hexdigest()[:24]
    return Mirror(data_dir.resolve() / "mirrors" / f"{name}.git", repo_url, access, project)


def write_bare_repository(path: Path, *, alternates: Sequence[Path] = (), head: str = "", config: str = "") -> None:
    """Makes a bare repository without starting a process; harmless where there is one already.

    `head` is the content of HEAD. By default it names a branch that can't exist, so that no attribute is ever read
    from it. HEAD comes last: without it git sees no repository.
    """
    if (path / "HEAD").exists():
        return
    for directory in ("objects/info", "objects/pack", "refs/heads", "info"):
        (path / directory).mkdir(parents=True, exist_ok=True)
    if alternates:
        (path / "objects/info/alternates").write_text("".join(f"{a}\n" for a in alternates))
    (path / "config").write_text(
        "[core]\n\trepositoryformatversion = 0\n\tbare = true\n[gc]\n\tauto = 0\n[maintenance]\n\tauto = false\n"
        + config
    )
    unfinished = path / "HEAD.new"
    unfinished.write_text((head or "ref: refs/heads/.invalid") + "\n")
    unfinished.rename(path / "HEAD")


def _rejection(done: Done) -> str:
    for line in done.out.decode(errors="replace").splitlines():
        if line.startswith("!"):
            return printable(line.split("\t")[-1])
    return done.reason or "refused"
