"""Looks into a collaboration repository: its newest commit, of that the files that are waited for, and no checkout.

For each repository and project there is a bare one here that holds commits without their history and, where the server
leaves them out (`blob:none`), without files: those that are wanted are fetched one by one, by their ids. Whatever is in
it is somebody else's: nothing is followed (no symbolic link, no submodule), and what is large is not read.

Everything here blocks.
"""

from __future__ import annotations

import fcntl
import re
import shutil
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Literal

from services.runner.git import Access, Done, GitFailed, end_if_stopped, git_within, masked, printable, run_git
from services.runner.mirror import write_bare_repository
from services.runner.workspace import remove_tree
from shared.repo_url import is_local_path

TREE_MAX_BYTES = 4 * 1024 * 1024
"""Of one directory's list: a hundred thousand entries. A longer one is taken as empty."""
TREES_AT_ONCE_BYTES = 32 * 1024 * 1024
FILES_AT_ONCE_BYTES = 256 * 1024 * 1024
"""Of what one fetch of files may bring."""
FETCH_MAX_BYTES = 2 * 1024**3
"""Of what one fetch of a commit may bring, where the server does not leave the files out."""
PACKS_MAX = 200
"""Each new commit adds one. With more of them it is cheaper to begin anew than to put them in order."""

_REF = "refs/watch/head"
_REMOTE = "treadle-watch"
_ID = re.compile(r"[0-9a-f]{40}")
_TREE = re.compile(rb"([0-9a-f]{40}) tree ([0-9]+)")
_LOCK_AGAIN_S = 0.02
_SIDE = "git -c core.hooksPath=/dev/null -c gc.auto=0 -c maintenance.auto=false -c uploadpack.allowFilter=true"
_LOCAL_UPLOAD = f"--upload-pack={_SIDE} -c uploadpack.allowAnySHA1InWant=true upload-pack"

Kind = Literal["file", "link", "directory", "submodule"]
_KINDS: Mapping[bytes, Kind] = {b"40000": "directory", b"120000": "link", b"160000": "submodule"}


@dataclass(frozen=True)
class Entry:
    """What lies at a path."""

    id: str
    """Its object's."""
    kind: Kind


class TooLarge(Exception):
    """A file has more bytes than whoever reads it wants."""


class Collab:
    """One repository as one project reaches it; make it with `collab_of`. Runners of a machine may share it."""

    def __init__(self, path: Path, repo_url: str) -> None:
        self.path = path
        self.repo_url = repo_url
        self._commit = ""
        """The one that `_found` is of."""
        self._found: dict[str, Entry | None] = {}
        self._one_at_a_time = threading.Lock()

    @property
    def shown(self) -> str:
        """The repository's address for a message."""
        return printable(masked(self.repo_url))

    def refresh(self, access: Access | None) -> str:
        """Asks the repository for its newest commit, and fetches that if it is new. Empty: it has none yet.

        Raises `GitFailed` where that can't be told.
        """
        with self._locked():
            theirs = self._ask(access)
            if theirs and theirs != self._fetched():
                self._fetch(access)
                theirs = self._fetched()
        return theirs

    def entries(self, commit: str, paths: Iterable[str]) -> dict[str, Entry]:
        """Which of the paths there are in the commit. Raises `GitFailed`."""
        wanted = list(dict.fromkeys(paths))
        with self._one_at_a_time:
            if commit != self._commit:
                self._commit, self._found = commit, {}
            missing = [path for path in wanted if path not in self._found]
            if commit and missing:
                with self._locked(), self._own():
                    self._found.update(self._look(commit, missing))
            return {path: entry for path in wanted if (entry := self._found.get(path)) is not None}

    def bring(self, wanted: Mapping[str, int], access: Access | None) -> dict[str, int | TooLarge]:
        """Fetches files to the copy: by object id, each with the most bytes that it may have; returns their sizes.

        Raises `GitFailed`.
        """
        if not wanted:
            return {}
        with self._locked():
            sizes = self._sizes(wanted)
            if missing := {blob: most for blob, most in wanted.items() if blob not in sizes}:
                for batch in _batches(missing, FILES_AT_ONCE_BYTES):
                    self._fetch_files({blob: missing[blob] for blob in batch}, access)
                sizes |= self._sizes(missing)
        brought: dict[str, int | TooLarge] = {}
        for blob, most in wanted.items():
            size = sizes.get(blob)
            if size is not None and size <= most:
                brought[blob] = size
            else:
                brought[blob] = TooLarge(f"it may have {most} bytes, and has {size or 'more than that'}")
        return brought

    def read(self, ids: Iterable[str]) -> dict[str, bytes]:
        """The content of files that were brought; whoever asks sees to it that they are not too many at once.

        Raises `GitFailed`.
        """
        wanted = list(dict.fromkeys(ids))
        with self._locked():
            return dict(zip(wanted, self._contents(wanted), strict=True))

    def remove(self) -> None:
        """Takes the copy away. Waits for whoever looks into it."""
        with self._locked():
            remove_tree(self.path)
            self._commit, self._found = "", {}

    # What is fetched ----------------------------------------------------------------------------------------------

    def _ask(self, access: Access | None) -> str:
        """The newest commit there."""
        local = [_LOCAL_UPLOAD] if is_local_path(self.repo_url) else []
        done = run_git(
            *("ls-remote", "--quiet", *local, "--", self.repo_url, "HEAD"),
            doing=f"asking {self.shown} for its newest commit",
            as_operator=True,
            access=access,
        )
        lines = (line.partition("\t") for line in done.out.decode(errors="replace").splitlines())
        return next((commit for commit, _, name in lines if name == "HEAD" and _ID.fullmatch(commit)), "")

    def _fetched(self) -> str:
        """The newest commit here. Nobody but us writes that ref, and nobody packs it."""
        try:
            return (self.path / _REF).read_text().strip()
        except FileNotFoundError:
            return ""

    def _fetch(self, access: Access | None) -> None:
        self._begin_anew_if_grown()
        write_bare_repository(self.path, config="[core]\n\tbigFileThreshold = 1m\n")
        self._sweep()
        self._run_fetch(
            ("-c", f"remote.{_REMOTE}.partialclonefilter=blob:none"),
            ("--depth=1", "--update-shallow"),
            f"+HEAD:{_REF}",
            access=access,
            max_bytes=FETCH_MAX_BYTES,
        )

    def _fetch_files(self, wanted: Mapping[str, int], access: Access | None) -> None:
        """All at once; where one of them is too large, either half by itself, and so on, without that one."""
        room = 1024 * 1024
        blobs = list(wanted)
        if self._brought(blobs, access, sum(wanted.values()) + room) or len(blobs) == 1:
            return
        half = len(blobs) // 2
        for some in (blobs[:half], blobs[half:]):
            self._fetch_files({blob: wanted[blob] for blob in some}, access)

    def _brought(self, blobs: Sequence[str], access: Access | None, max_bytes: int) -> bool:
        """False: it would have been more than that."""
        # The commit that we have would be taken to say that we have its files.
        negotiation = ("-c", "fetch.negotiationAlgorithm=noop")
        done = self._run_fetch(negotiation, (), *blobs, access=access, max_bytes=max_bytes, may_be_large=True)
        return done is not None

    def _run_fetch(
        self,
        config: Sequence[str],
        options: Sequence[str],
        *refspecs: str,
        access: Access | None,
        max_bytes: int,
        may_be_large: bool = False,
    ) -> Done | None:
        """None: it was more than may be, where the caller reckons with that."""
        local = [_LOCAL_UPLOAD] if is_local_path(self.repo_url) else []
        settings = (f"remote.{_REMOTE}.url={self.repo_url}", f"remote.{_REMOTE}.promisor=true", "fetch.unpackLimit=1")
        remote = [word for setting in settings for word in ("-c", setting)]
        try:
            with _at_most(max_bytes):
                return run_git(
                    *(*remote, *config, "fetch", "--quiet", "--no-tags", "--no-write-fetch-head"),
                    *(*options, *local, "--", _REMOTE, *refspecs),
                    doing=f"fetching from {self.shown}",
                    git_dir=self.path,
                    as_operator=True,
                    access=access,
                )
        except GitFailed:
            # Git does not say that its helper was stopped at the limit; but what that has written is still there.
            is_large = any(piece.stat().st_size >= max_bytes for piece in self.path.glob("objects/pack/tmp_*"))
            self._sweep()
            if not is_large:
                raise
        if may_be_large:
            return None
        raise GitFailed(f"fetching from {self.shown}: its newest commit has more than {max_bytes // 1024**2} MiB")

    # What is here -------------------------------------------------------------------------------------------------

    def _look(self, commit: str, paths: Sequence[str]) -> dict[str, Entry | None]:
        """What lies at the paths, from the lists of their directories: only these tell a link from a file."""
        by_directory: dict[str, list[str]] = {}
        for path in paths:
            by_directory.setdefault(path.rpartition("/")[0], []).append(path)
        directories = [d for d in by_directory if "\0" not in d]
        trees: dict[str, list[str]] = {}
        sizes: dict[str, int] = {}
        names = [f"{commit}:{directory}" for directory in directories]
        listed = self._cat("--batch-check", [commit, *names]).out
        here, _, rest = listed.partition(b"\n")
        if here.split(b" ")[1:2] != [b"commit"]:
            raise GitFailed(f"the copy of {self.shown} is broken: it is made anew")
        for directory, line in zip(directories, _lines(rest, names), strict=True):
            if (told := _TREE.fullmatch(line)) and int(told[2]) <= TREE_MAX_BYTES:
                trees.setdefault(told[1].decode(), []).append(directory)
                sizes[told[1].decode()] = int(told[2])
        found: dict[str, Entry | None] = dict.fromkeys(paths)
        for batch in _batches(sizes, TREES_AT_ONCE_BYTES):
            for tree, content in zip(batch, self._contents(batch), strict=True):
                wanted = {path.rpartition("/")[2].encode(): path for d in trees[tree] for path in by_directory[d]}
                if len(trees[tree]) == 1:
                    found.update((wanted[name], entry) for name, entry in _entries(content) if name in wanted)
                    continue
                entries = dict(_entries(content))  # equal directories are one object
                both = [path for directory in trees[tree] for path in by_directory[directory]]
                found.update((path, entries.get(path.rpartition("/")[2].encode())) for path in both)
        return found

    def _sizes(self, blobs: Iterable[str]) -> dict[str, int]:
        """Of those that are here."""
        words = (line.split(b" ") for line in self._cat("--batch-check", list(blobs)).out.split(b"\n"))
        return {found[0].decode(): int(found[2]) for found in words if len(found) == 3}

    def _contents(self, ids: Sequence[str]) -> list[bytes]:
        """Of objects that are here, in that order. Raises `GitFailed` where one is not any more."""
        out, at, contents = self._cat("--batch", ids).out if ids else b"", 0, []
        for id_ in ids:
            head_end = out.find(b"\n", at)
            name, _, size_told = out[at:head_end].rpartition(b" ")
            if not (name.startswith(id_.encode()) and size_told.isdigit()):
                raise GitFailed(f"the copy of {self.shown} lost {id_}: it is fetched again")
            size = int(size_told)
            contents.append(out[head_end + 1 : head_end + 1 + size])
            at = head_end + 1 + size + 1
        return contents

    def _cat(self, how: str, names: Sequence[str]) -> Done:
        return run_git(
            *("cat-file", "-z", how),
            doing=f"reading from the copy of {self.shown}",
            git_dir=self.path,
            stdin="".join(f"{name}\0" for name in names).encode(errors="surrogateescape"),
        )

    @contextmanager
    def _own(self) -> Iterator[None]:
        """For what reads only the copy: where that fails, it is broken, and made anew by the next look."""
        try:
            yield
        except GitFailed:
            remove_tree(self.path)
            raise

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One at a time, over all runners of the machine. Raises `GitStopped` when told to stop."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.with_suffix(".lock").open("w") as lock:
            while True:
                end_if_stopped()
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    time.sleep(_LOCK_AGAIN_S)
            yield

    def _begin_anew_if_grown(self) -> None:
        if sum(1 for _ in self.path.glob("objects/pack/*.pack")) > PACKS_MAX:
            remove_tree(self.path)

    def _sweep(self) -> None:
        """Removes what killed git processes left. Only we write here, and only under the lock."""
        left = ("*.lock", "refs/**/*.lock", "objects/pack/tmp_*", "objects/??/tmp_obj_*")
        for piece in (piece for pattern in left for piece in self.path.glob(pattern)):
            piece.unlink(missing_ok=True)


def collab_of(data_dir: Path, project: str, repo_url: str) -> Collab:
    """A project's copy of a collaboration repository, by its checked address. Touches nothing yet."""
    if is_local_path(repo_url) and not repo_url.startswith("/"):
        raise ValueError(f"the path of a repository must be absolute: {repo_url!r}")
    name = sha256(f"{repo_url}\n{project}".encode()).hexdigest()[:24]
    return Collab(data_dir.resolve() / "collab" / f"{name}.git", repo_url)


def _lines(out: bytes, names: Iterable[str]) -> Iterator[bytes]:
    """What `--batch-check` says of each name. It repeats those of which it finds nothing, whatever is in them."""
    at = 0
    for name in names:
        missing = f"{name} missing\n".encode(errors="surrogateescape")
        end = at + len(missing) - 1 if out.startswith(missing, at) else out.find(b"\n", at)
        yield out[at:end]
        at = end + 1


def _batches(sizes: Mapping[str, int], most_bytes: int) -> Iterator[list[str]]:
    batch: list[str] = []
    total = 0
    for object_, size in sizes.items():
        if batch and total + size > most_bytes:
            yield batch
            batch, total = [], 0
        batch.append(object_)
        total += size
    if batch:
        yield batch


def _entries(tree: bytes) -> Iterator[tuple[bytes, Entry]]:
    """A tree object's entries: mode, blank, name, NUL, the id's 20 bytes."""
    at = 0
    while at < len(tree):
        blank = tree.index(b" ", at)
        end = tree.index(b"\0", blank)
        kind = _KINDS.get(tree[at:blank], "file")
        yield tree[blank + 1 : end], Entry(tree[end + 1 : end + 21].hex(), kind)
        at = end + 21


@contextmanager
def _at_most(max_bytes: int) -> Iterator[None]:
    """No file that git writes in the block may be larger, where the system has a program for that."""
    prlimit = shutil.which("prlimit")
    limit = git_within([prlimit, f"--fsize={max_bytes}", "--"]) if prlimit else nullcontext()
    with limit:
        yield
