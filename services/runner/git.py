"""Runs git: an environment from nothing, nobody's hooks, a deadline, and errors in words for people."""

from __future__ import annotations

import os
import re
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import PIPE
from typing import BinaryIO, Protocol, TypeVar

from services.runner.process import die_with_parent
from shared.spec import DELIVER, TASK_CODE
from shared.subjects import PLAN_ID, is_draft

LOCAL_DEADLINE_S = 600.0
"""Bounds one git process that touches only this machine's disk: a huge checkout may take minutes."""
NETWORK_DEADLINE_S = 1800.0
"""Bounds one fetch or push: a first clone over a slow line may take long; a stalled one ends sooner."""

_COMMITS_NAMED_MAX = 10

IDENTITY_NAME = "Treadle"
IDENTITY_EMAIL = "treadle@localhost"

_COMMIT = re.compile(r"[0-9a-f]{40}")
_BWRAP_SAYS = b"bwrap: "

# Stands above every configuration file. What an agent or an operator has configured for their own use must neither
# run a program in our processes nor change what they write.
_CONFIG = {
    "core.hooksPath": "/dev/null",
    "core.fsmonitor": "false",
    "core.attributesFile": "/dev/null",
    "core.excludesFile": "/dev/null",
    "core.quotePath": "false",
    "core.commitGraph": "false",  # an agent could forge these three, and with them what contains what
    "core.multiPackIndex": "false",
    "pack.useBitmaps": "false",
    "core.fsync": "committed,loose-object,reference",  # a completed task names its commit: it must survive a power cut
    "core.fsyncMethod": "batch",
    "gc.auto": "0",
    "maintenance.auto": "false",
    "commit.gpgSign": "false",
    "push.gpgSign": "false",
    "push.followTags": "false",
    "push.recurseSubmodules": "no",
    "fetch.prune": "false",
    "fetch.recurseSubmodules": "false",
    "fetch.writeCommitGraph": "false",
    "submodule.recurse": "false",
    "protocol.ext.allow": "never",
    "http.followRedirects": "false",  # an address was checked, where it leads to was not
    "http.lowSpeedLimit": "1000",
    "http.lowSpeedTime": "60",
}

# What ssh, TLS, proxies and credential helpers of the operator need; only fetch, push and ls-remote see it.
_NETWORK = (
    "GIT_SSL_CAINFO GIT_SSL_CAPATH SSL_CERT_FILE SSL_CERT_DIR CURL_CA_BUNDLE "
    "http_proxy https_proxy HTTPS_PROXY all_proxy ALL_PROXY no_proxy NO_PROXY"
)
_OPERATORS = (
    f"{_NETWORK} HOME USER LOGNAME XDG_CONFIG_HOME XDG_RUNTIME_DIR DBUS_SESSION_BUS_ADDRESS SSH_AUTH_SOCK GIT_SSH "
    "GIT_SSH_COMMAND GIT_SSH_VARIANT GIT_CONFIG_GLOBAL GIT_CONFIG_SYSTEM GIT_CONFIG_NOSYSTEM"
)


class GitFailed(Exception):
    """Git could not do something; the text says what, to which repository, and why, in words for people."""


class CommitsMissing(GitFailed):
    """The repository answers, and has no such commits."""

    def __init__(self, shown: str, commits: Sequence[str]) -> None:
        """`shown` is the repository's address, fit for a message."""
        named = ", ".join(commit[:12] for commit in commits[:_COMMITS_NAMED_MAX])
        more = f" and {len(commits) - _COMMITS_NAMED_MAX} more" if len(commits) > _COMMITS_NAMED_MAX else ""
        super().__init__(f"{shown} has no commit {named}{more}: push it there, then try again")
        self.shown = shown
        self.commits = tuple(commits)


T = TypeVar("T")


class GitStopped(Exception):
    """The work was told to stop, by `Stop.ask`."""


class Stop:
    """Ends what git does for one piece of work, from another thread: the process that runs now, and all later ones."""

    def __init__(self) -> None:
        self.asked = False
        self._lock = threading.Lock()
        self._end: Callable[[], None] | None = None

    def ask(self) -> None:
        """Kills the git process that runs, with its children."""
        with self._lock:
            self.asked = True
            if self._end is not None:
                self._end()

    def attach(self, end: Callable[[], None]) -> None:
        """A process runs; `end` kills it."""
        with self._lock:
            self._end = end
            if self.asked:
                end()

    def detach(self) -> None:
        """It has ended."""
        with self._lock:
            self._end = None

    def during(self, work: Callable[[], T]) -> T:
        """Does the work, in the calling thread, as what this object stops. Raises `GitStopped` when it was."""
        token = _stop.set(self)
        try:
            return work()
        finally:
            _stop.reset(token)


_stop: ContextVar[Stop | None] = ContextVar("_stop", default=None)


def end_if_stopped() -> None:
    """For work that waits for something else than git. Raises `GitStopped` when it was told to stop."""
    stop = _stop.get()
    if stop is not None and stop.asked:
        raise GitStopped


_within: ContextVar[Sequence[str]] = ContextVar("_within", default=())


@contextmanager
def git_within(words: Sequence[str]) -> Iterator[None]:
    """Puts bubblewrap's `words` before every git of the block, in this thread: see `Sandbox.reading`.

    A git that can't be had in a sandbox is not had at all: `GitFailed`.
    """
    token = _within.set(words)
    try:
        yield
    finally:
        _within.reset(token)


class GitRejected(GitFailed):
    """The repository refused a ref that was pushed."""


class MergeConflict(Exception):
    """The work of tasks can't be merged; nothing was changed.

    `files` are repository-relative paths; `codes` the tasks already merged that touched them, then the incoming one.
    Where it is no task that they conflict with, `against` names it, and `codes` are the tasks that touched the files.
    `remedy` is what a person can do, where it is something special.
    """

    def __init__(self, files: Sequence[str], codes: Sequence[str], against: str = "", remedy: str = "") -> None:
        self.files = tuple(files)
        self.codes = tuple(codes)
        self.against = against
        self.remedy = remedy
        shown = ", ".join(printable(f) for f in self.files[:20])
        more = f" and {len(self.files) - 20} more files" if len(self.files) > 20 else ""
        incoming = ", ".join(self.codes if against else self.codes[-1:]) or "the plan"
        if not against:
            against = f"that of {', '.join(self.codes[:-1])}" if self.codes[:-1] else "its base"
        super().__init__(f"the work of {incoming} conflicts with {against} in {shown}{more}")


@dataclass(frozen=True)
class Presented:
    """How one git command is given credentials. None of it is secret itself."""

    config: tuple[tuple[str, str], ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    pass_fds: tuple[int, ...] = ()


class Access(Protocol):
    """Credentials for one repository, in the place of the operator's own."""

    def presented(self) -> AbstractContextManager[Presented]:
        """For one command, which has ended when the block does."""
        ...

    def redacted(self, output: bytes) -> bytes:
        """What git printed, without the secret: a server may repeat it."""
        ...


@dataclass(frozen=True)
class Done:
    """How a git process ended."""

    status: int
    out: bytes
    cut: bool
    """Whether `out` was cut at the limit that the caller set."""
    reason: str
    """The first line of its errors that tells a person something; empty when there is none."""


def run_git(
    *args: str,
    doing: str,
    git_dir: Path | None = None,
    work_tree: Path | None = None,
    index: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: bytes | Path = b"",
    statuses: Sequence[int] = (0,),
    as_operator: bool = False,
    access: Access | None = None,
    out_max_bytes: int | None = None,
) -> Done:
    """Runs one git command to its end; blocks, at most until its deadline.

    `doing` names the act for the error ("fetching from …"). `as_operator` is for what talks to the code repository: it
    sees the operator's credentials and configuration, but still no hook and no prompt. With `access` it sees these
    credentials instead and nothing of the operator's but certificates and proxies. `stdin` is what git reads, or the
    file to read it from. Raises `GitFailed` when the exit status is none of `statuses`, when git is missing and when
    the deadline passes.
    """
    deadline_s = NETWORK_DEADLINE_S if as_operator else LOCAL_DEADLINE_S
    places = {"GIT_DIR": git_dir, "GIT_WORK_TREE": work_tree, "GIT_INDEX_FILE": index}
    located = {k: str(v) for k, v in places.items() if v is not None}
    cwd = git_dir or Path("/")
    with access.presented() if access else nullcontext(Presented()) as presented:
        variables = {**_environment(presented, as_operator, access is not None), **located, **(env or {})}
        command = _command(args, variables, dies_with_us=as_operator)
        fds = presented.pass_fds
        if isinstance(stdin, Path):
            with stdin.open("rb") as file:
                status, out, err, overdue = _run(command, cwd, file, deadline_s, out_max_bytes, fds)
        else:
            status, out, err, overdue = _run(command, cwd, stdin, deadline_s, out_max_bytes, fds)
    if access:
        out, err = access.redacted(out), access.redacted(err)
    if overdue:
        raise GitFailed(f"{doing}: not done after {deadline_s:g} seconds, so it was ended")
    cut = out_max_bytes is not None and len(out) > out_max_bytes
    if (within := _within.get()) and status and (why := _why_not_within(within[0], err)):
        raise GitFailed(f"{doing}: {why}")
    done = Done(0 if cut else status, out[:out_max_bytes], cut, _reason(err))
    if done.status in statuses:
        return done
    if status == 127:
        raise GitFailed(f"{doing}: git is not installed, or not on the PATH: install git 2.38 or newer")
    if status < 0:
        raise GitFailed(f"{doing}: git was ended by {signal.Signals(-status).name}")
    raise GitFailed(f"{doing}: {done.reason or f'git ended with status {status}'}")


def checked_ids(plan: str, task: str, lease: int = 1) -> None:
    """Raises `ValueError` unless these may become part of a path and of a ref."""
    if not PLAN_ID.fullmatch(plan):
        raise ValueError(f"not a plan id: {plan!r}")
    if task != DELIVER and not TASK_CODE.fullmatch(task) and not is_draft(task):
        raise ValueError(f"not a task code: {task!r}")
    if lease < 1:
        raise ValueError(f"not a lease: {lease}")


def checked_commit(commit: str) -> str:
    """The commit id as it is; raises `ValueError` when it is anything but a full id in hex."""
    if not _COMMIT.fullmatch(commit):
        raise ValueError(f"not a commit id: {commit!r}")
    return commit


def printable(text: str) -> str:
    """The text on one line without control, bidirectional or other invisible characters, at most 300 long."""
    clean = "".join(c if c.isprintable() else " " for c in re.sub(r"\x1b\[[0-9;?]*[ -/]*[@-~]", "", text)).strip()
    return clean if len(clean) <= 300 else clean[:300] + "…"


def masked(text: str) -> str:
    """The text with the credentials in any address replaced by `***`."""
    return re.sub(r"(://[^/\s:@]+):[^/\s@]+@", r"\1:***@", re.sub(r"(?i)(https?://)[^/\s@]+@", r"\1***@", text))


def _command(args: Sequence[str], variables: Mapping[str, str], *, dies_with_us: bool) -> list[str]:
    # GitPython adds to the runner's own environment and can't take away from it; `env -i` begins with nothing. It is
    # looked up by us, and the work tree is never the working directory: a program there must not be taken for it.
    program = shutil.which("env", path=variables["PATH"]) or "/usr/bin/env"
    # What waits for a network must not outlive a killed runner; the rest is over in milliseconds anyway.
    wrapper = die_with_parent() if dies_with_us else ()
    # The sandbox behind `env`: its first process keeps the environment that it was started with.
    return [*wrapper, program, "-i", *(f"{k}={v}" for k, v in variables.items()), *_within.get(), "git", *args]


def _why_not_within(bwrap: str, err: bytes) -> str | None:
    if not Path(bwrap).exists():
        return f"the sandbox is gone: there is no {bwrap} any more, install bubblewrap again"
    if err.startswith(_BWRAP_SAYS):
        said = printable(err.removeprefix(_BWRAP_SAYS).decode(errors="replace").partition("\n")[0])
        return f"the sandbox to read it in could not be made ({said}): treadle doctor says what to do"
    return None


def _run(
    command: list[str],
    cwd: Path,
    stdin: bytes | BinaryIO,
    deadline_s: float,
    out_max_bytes: int | None,
    pass_fds: tuple[int, ...],
) -> tuple[int, bytes, bytes, bool]:
    try:
        from git.cmd import Git  # here, because importing it runs git, and fails where there is none
    except ImportError:
        return 127, b"", b"", False
    # A session of its own: the deadline ends git's children too, and ssh finds no terminal to ask a person on.
    sent = stdin if isinstance(stdin, bytes) else b""
    istream = (PIPE if sent else None) if isinstance(stdin, bytes) else stdin
    end_if_stopped()
    stop = _stop.get()
    started = Git(cwd).execute(command, istream=istream, as_process=True, start_new_session=True, pass_fds=pass_fds)
    process = started.proc
    if process is None or process.stdout is None:
        raise AssertionError("GitPython starts a process with pipes")
    overdue = threading.Event()

    def end() -> None:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)

    def miss_deadline() -> None:
        overdue.set()
        end()

    if stop is not None:
        stop.attach(end)
    watchdog = threading.Timer(deadline_s, miss_deadline)
    watchdog.daemon = True
    watchdog.start()
    try:
        if out_max_bytes is None:
            out, err = process.communicate(sent or None)
        else:
            out = process.stdout.read(out_max_bytes + 1)
            if len(out) > out_max_bytes:
                end()
            err = process.communicate()[1]
    finally:
        watchdog.cancel()
        if stop is not None:
            stop.detach()
    end_if_stopped()
    return process.returncode, out, err, overdue.is_set()


def _environment(presented: Presented, as_operator: bool, has_access: bool) -> dict[str, str]:
    # A relative entry would find programs in the repository that git works in.
    path = os.pathsep.join(p for p in os.environ.get("PATH", os.defpath).split(os.pathsep) if Path(p).is_absolute())
    env = {
        "PATH": path,
        "LC_ALL": "C",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ASKPASS": "",
        "SSH_ASKPASS_REQUIRE": "never",
        "GCM_INTERACTIVE": "never",
        "GIT_EDITOR": ":",
        "GIT_NO_REPLACE_OBJECTS": "1",
        "GIT_GRAFT_FILE": "/dev/null",
        "GIT_ATTR_NOSYSTEM": "1",
        "GIT_ALLOW_PROTOCOL": "https:ssh:file",
        "GIT_AUTHOR_NAME": IDENTITY_NAME,
        "GIT_AUTHOR_EMAIL": IDENTITY_EMAIL,
        "GIT_COMMITTER_NAME": IDENTITY_NAME,
        "GIT_COMMITTER_EMAIL": IDENTITY_EMAIL,
        "GIT_CONFIG_COUNT": str(len(_CONFIG) + len(presented.config)),
        **presented.env,
    }
    for number, (key, value) in enumerate((*_CONFIG.items(), *presented.config)):
        env |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
    nobodys = {"HOME": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": "/dev/null"}
    if not as_operator:
        return env | nobodys
    seen = {k: os.environ[k] for k in (_NETWORK if has_access else _OPERATORS).split() if k in os.environ}
    # With a project's credentials the operator's must not come to their help: they may be good for other people's work.
    return env | seen | (nobodys if has_access else {})


def _reason(err: bytes) -> str:
    noise = (
        "hint:",
        "warning:",
        "from ",
        "to ",
        "cloning ",
        "remote: enumerating",
        "remote: counting",
        "remote: compr",
    )
    if b"Host key verification failed" in err:  # ssh's last line, behind a screenful of warning
        return "host key verification failed: known_hosts holds no key of this host, or another one than it has now"
    for line in err.decode(errors="replace").splitlines():
        text = printable(masked(line))
        if text and not text.lower().startswith(noise):
            return re.sub(r"^(?:(?:fatal|error|remote|ssh): +)+", "", text)
    return ""
