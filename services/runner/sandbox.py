"""What one lease's processes run in: a bubblewrap sandbox, or nothing but a name for it.

    sandbox = find_sandbox(mode, hidden=[data_dir, runner_directory])      # once, at start; raises NoSandbox
    async with enclose(sandbox, workspace_code=…, agents_repo=…, objects=mirror.objects, scratch=scratch,
                       network_allow=rules.network_allow) as enclosure:
        await run_program(enclosure.command(argv), cwd=…, env=environment(job), …)

Inside exists only what is named here. To read: the system's programs, the directories of PATH, Python, the Claude CLI,
what `TREADLE_SANDBOX_READ` names, and the mirror's objects. To write: the worktree, the agent's own repository, and of
`scratch` just `home` and `tmp` (which is `/tmp` too). Paths are the same as outside; but the worktree, of which each
lease has another, is also at `INSIDE`, where everything starts. (It stays at its own place, too: git's link from the
agent's repository leads there.) Processes, network, System V IPC and the host's name are the sandbox's own. Nothing is
ever bound *below* a place the agent may write to: it could have put a link there that leads the next process's mounts
astray.

Fail closed: a process in an enclosure with a sandbox starts inside it or not at all.
"""

from __future__ import annotations

import logging
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path, PurePosixPath

import msgspec

from services.runner import sandbox_enter
from services.runner.agents import Enclosure
from services.runner.hand_over import HandOver, Serve
from services.runner.network import NetworkProxy, open_network
from services.runner.sandbox_mode import SandboxMode
from services.runner.worktree import INSIDE
from shared.host_pattern import BadHostPattern

READ_VARIABLE = "TREADLE_SANDBOX_READ"
"""Names more paths that processes inside may read, separated by colons: an operator's toolchains."""

MODEL_PORT, NETWORK_PORT = 27301, 27302
"""On the sandbox's own loopback."""

_INSTALL = "install bubblewrap 0.8 or newer (apt-get install bubblewrap)"
_PROBE_WITHIN_S = 20.0
_PROBES_MAX = 3
_PROBE_AGAIN_S = 1.0
_REFUSALS = (
    *("No permissions to creat", "Operation not permitted", "setting up uid map: Permission denied"),
    *("kernel does not support user namespaces", "Creating new namespace failed: Invalid argument"),
)
"""What bubblewrap says where the kernel or a container lets nobody make namespaces: that does not pass."""
_HOSTS = "127.0.0.1 localhost\n::1 localhost\n"
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
"""Asked directly, being the sandbox's own; but where `network_allow` names one, it is the machine that is meant."""

_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/opt", "/nix/store", "/gnu/store")
_ETC = (
    *("alternatives", "ca-certificates", "ca-certificates.conf", "crypto-policies", "debian_version", "fonts"),
    *("gai.conf", "group", "inputrc", "java", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "locale.alias"),
    *("localtime", "magic", "mime.types", "nsswitch.conf", "os-release", "passwd", "pki/ca-trust/extracted"),
    *("pki/java", "pki/tls/cert.pem", "pki/tls/certs", "pki/tls/openssl.cnf", "protocols", "services", "shells"),
    *("ssl/cert.pem", "ssl/certs", "ssl/openssl.cnf", "terminfo", "timezone"),
)
"""What programs need to work: nothing secret, and nothing that says how the machine is configured beyond that."""

_TMP, _VAR_TMP = "/tmp", "/var/tmp"  # noqa: S108 - the sandbox's own

BadHost = BadHostPattern
"""What `enclose` raises for a wrong entry of `network_allow`."""

_log = logging.getLogger("treadle.runner")


class NoSandbox(Exception):
    """No sandbox can be had; the text says why, and what to do."""


class SandboxFails(NoSandbox):
    """There is a bubblewrap, and nobody refuses it, but it did not work: it may the next time, and nobody must be left
    without a sandbox for a passing fault."""


class Sandbox(msgspec.Struct, frozen=True):
    """A bubblewrap that was seen to work, and what of this machine is to be read in it."""

    bwrap: str
    version: str
    hidden: tuple[Path, ...]
    readable: tuple[Path, ...]

    def words(
        self,
        *,
        worktree: Path,
        temporary: Path,
        read_write: Sequence[Path],
        read_only: Sequence[Path],
        files: Mapping[str, Path],
    ) -> list[str]:
        """bubblewrap's part of a command, which starts at `INSIDE`. `worktree` is to be among `read_write`.

        `files` are bound elsewhere than they lie, by where that is.
        """
        bound = [*self.readable, *read_only, *read_write]
        own = ["--proc", "/proc", "--bind", str(temporary.resolve()), _TMP]
        if any(_is_below(path, _TMP) for path in bound):
            # Mounting anything below a /tmp that keeps what the agent left there could be led astray.
            own = ["--proc", "/proc", "--tmpfs", _TMP]
        own += ["--bind", str(worktree.resolve()), str(INSIDE)]
        return self._words(own, INSIDE, read_write, read_only, files)

    def reading(self, *, cwd: Path, read_write: Sequence[Path], read_only: Sequence[Path]) -> list[str]:
        """The same for a program of the runner's that reads what an agent may be changing at that very moment.

        Wherever a link leads it, there is nothing that the agent could not read itself: of this machine it sees what
        agents see, and these paths; no network, no other process, and no /proc, which has the program's environment.
        """
        return self._words(["--tmpfs", _TMP], cwd, read_write, read_only, {})

    def _words(
        self,
        own: Sequence[str],
        cwd: PurePosixPath | Path,
        read_write: Sequence[Path],
        read_only: Sequence[Path],
        files: Mapping[str, Path],
    ) -> list[str]:
        bound = [*self.readable, *read_only, *read_write]
        words = ["--dev", "/dev", *own]
        if not any(_is_below(path, _VAR_TMP) for path in bound):
            words += ["--symlink", "../tmp", _VAR_TMP]
        words += [word for name in _SYSTEM for word in _system_words(Path(name))]
        for path in sorted({*bound, *self._masked()}, key=lambda path: len(path.parts)):
            if path in self.hidden and path not in bound:
                words += ["--tmpfs", str(path)]
            else:
                words += _bind("--bind" if path in read_write else "--ro-bind", path)
        for inside, path in files.items():
            words += ["--ro-bind", str(path), inside]
        return [
            *(self.bwrap, "--unshare-all", "--unshare-user", "--die-with-parent", "--new-session", "--cap-drop", "ALL"),
            *("--hostname", "treadle", *words),
            *("--remount-ro", "/", "--chdir", str(cwd), "--"),
        ]

    def _masked(self) -> list[Path]:
        """The hidden places that something readable would show."""
        shown = [Path(name) for name in _SYSTEM] + list(self.readable)
        return [path for path in self.hidden if path.is_dir() and any(_is_below(path, each) for each in shown)]


def find_sandbox(
    mode: SandboxMode, *, hidden: Sequence[Path] = (), environment: Mapping[str, str] = os.environ
) -> Sandbox | None:
    """Looks whether processes can be sandboxed here, by really doing it, and logs what is in force; None: nothing is.

    `hidden` are Treadle's own directories. Raises NoSandbox when it is required and can't be had; and SandboxFails
    where bubblewrap is there and does not work, several times in a row.
    """
    if mode == "off":
        _log.warning("sandbox: off, as it was asked for: agents can do whatever this runner can")
        return None
    try:
        sandbox = _probe_patiently(hidden, environment)
    except SandboxFails:
        raise
    except NoSandbox as why:
        if mode == "required":
            raise
        _log.warning("sandbox: none, so agents can do whatever this runner can: %s", why)
        return None
    _log.info("sandbox: %s (%s)", sandbox.version, mode)
    return sandbox


def _probe_patiently(hidden: Sequence[Path], environment: Mapping[str, str]) -> Sandbox:
    for number in range(1, _PROBES_MAX):
        try:
            return probe_sandbox(hidden=hidden, environment=environment)
        except SandboxFails as why:
            _log.warning("sandbox: try %d of %d failed: %s", number, _PROBES_MAX, why)
            time.sleep(_PROBE_AGAIN_S)
    return probe_sandbox(hidden=hidden, environment=environment)


def probe_sandbox(*, hidden: Sequence[Path] = (), environment: Mapping[str, str] = os.environ) -> Sandbox:
    """Runs something in a sandbox and looks whether it was one. Raises NoSandbox, or SandboxFails."""
    if sys.platform != "linux":
        raise NoSandbox("bubblewrap works on Linux only")
    bwrap = shutil.which("bwrap", path=environment.get("PATH", os.defpath))
    if bwrap is None:
        raise NoSandbox(f"there is no bwrap in PATH: {_INSTALL}")
    bwrap = str(Path(bwrap).absolute())
    away = tuple(dict.fromkeys(each for path in hidden for each in (path.absolute(), path.resolve())))
    sandbox = Sandbox(bwrap, _version(bwrap), away, tuple(_readable(environment, away)))
    _refuse_taken(sandbox)
    _try(sandbox)
    return sandbox


@asynccontextmanager
async def enclose(
    sandbox: Sandbox | None,
    *,
    workspace_code: Path,
    agents_repo: Path,
    objects: Path,
    scratch: Path,
    network_allow: Sequence[str] = (),
    read_only: Sequence[Path] = (),
    extra_read_write: Sequence[Path] = (),
) -> AsyncIterator[Enclosure]:
    """What one lease's processes run in. End them before the block does: it only takes their network away.

    All paths must exist. `scratch` must be the lease's own; a later enclosure may use it again. Raises ValueError for a
    path within one that the agent may write to, and `BadHost`.
    """
    home, temporary, control = (scratch / name for name in ("home", "tmp", "enclosure"))
    for directory in (home, temporary, control):
        directory.mkdir(mode=0o700, exist_ok=True)
    if sandbox is None:
        yield Unsandboxed()
        return
    read_write = (workspace_code, agents_repo, home, temporary, *extra_read_write)
    _refuse_nested(read_write, (*read_only, objects))
    (control / "hosts").write_text(_HOSTS)
    async with open_network(network_allow) as network, HandOver(control) as hand_over:
        yield Enclosed(
            sandbox,
            hand_over,
            network,
            worktree=workspace_code,
            temporary=temporary,
            read_write=read_write,
            read_only=(objects, *read_only),
            hosts=control / "hosts",
        )


class Unsandboxed:
    """An enclosure in name only: processes have the runner's rights."""

    is_sandboxed = False
    model_url = ""
    passed_bytes = 0
    environment: Mapping[str, str] = {}

    def command(self, argv: Sequence[str], *, network: bool = True) -> list[str]:
        """The words as they are: nothing is kept from the network."""
        return list(argv)

    def place_of(self, worktree: Path) -> PurePosixPath:
        """Its own: there is no other inside."""
        return PurePosixPath(worktree)

    def serve_model(self, serve: Callable[[socket.socket], Awaitable[None]]) -> None:
        """Nothing: the key proxy's own address is there."""

    def refused_hosts(self) -> Sequence[str]:
        """None."""
        return ()


class Enclosed:
    """An enclosure in a sandbox; made by `enclose`. Every command is a sandbox of its own over the same files."""

    is_sandboxed = True
    model_url = f"http://{sandbox_enter.ADDRESS}:{MODEL_PORT}"

    def __init__(
        self,
        sandbox: Sandbox,
        hand_over: HandOver,
        network: NetworkProxy,
        *,
        worktree: Path,
        temporary: Path,
        read_write: Sequence[Path],
        read_only: Sequence[Path],
        hosts: Path,
    ) -> None:
        self._sandbox, self._hand_over, self._network = sandbox, hand_over, network
        self._worktree, self._temporary, self._hosts = worktree, temporary, hosts
        self._read_write, self._read_only = read_write, read_only
        self._serve_model: Serve | None = None
        proxy = f"http://{sandbox_enter.ADDRESS}:{NETWORK_PORT}"
        direct = (sandbox_enter.ADDRESS, *(host for host in _LOOPBACK if not network.names(host)))
        names = {"HTTP_PROXY": proxy, "HTTPS_PROXY": proxy, "NO_PROXY": ",".join(direct)}
        lower = {name.lower(): value for name, value in names.items()}
        self.environment: Mapping[str, str] = {**names, **lower, "NODE_USE_ENV_PROXY": "1"}

    def command(self, argv: Sequence[str], *, network: bool = True) -> list[str]:
        """The words that start a program inside, once. Without `network` it reaches the model alone."""
        served: dict[int, Serve] = {}
        if self._serve_model is not None:
            served[MODEL_PORT] = self._serve_model
        if network:
            served[NETWORK_PORT] = self._network.serve
        enter = "/run/treadle/enter.py"
        files = {"/etc/hosts": self._hosts, enter: Path(sandbox_enter.__file__)}
        if served:
            files[sandbox_enter.HAND_OVER] = self._hand_over.expect(served)
        words = self._sandbox.words(
            worktree=self._worktree,
            temporary=self._temporary,
            read_write=self._read_write,
            read_only=self._read_only,
            files=files,
        )
        return [*words, _python(), "-I", "-S", enter, ",".join(map(str, served)), "--", *argv]

    def place_of(self, worktree: Path) -> PurePosixPath:
        """The same for the worktree of every lease."""
        return INSIDE

    def serve_model(self, serve: Callable[[socket.socket], Awaitable[None]]) -> None:
        """Has `serve` called, until it is cancelled, with each listening socket that stands for `model_url` inside."""
        self._serve_model = serve

    @property
    def passed_bytes(self) -> int:
        """Through the allowed network, in both directions, so far."""
        return self._network.passed_bytes

    def refused_hosts(self) -> Sequence[str]:
        """`host:port` of what was asked for and is not allowed, each once."""
        return self._network.refused_hosts()


def _python() -> str:
    """The interpreter itself, not a virtual environment's link to it."""
    return os.path.realpath(sys.executable)


def _readable(environment: Mapping[str, str], hidden: Sequence[Path]) -> list[Path]:
    """What exists of all that may be read beside the system's directories."""
    found = [Path("/etc") / name for name in _ETC]
    found += [Path(sys.base_prefix), Path(sys.prefix)]
    agent_sdk = find_spec("claude_agent_sdk")
    if agent_sdk is not None and agent_sdk.origin is not None:
        found.append(Path(agent_sdk.origin).parent / "_bundled")
    for text in filter(None, environment.get("PATH", os.defpath).split(":")):
        found += _programs(Path(text), hidden)
    named = [Path(text).expanduser() for text in environment.get(READ_VARIABLE, "").split(":") if text]
    for path in named:
        if not path.is_absolute() or not path.exists():
            raise SandboxFails(f"{READ_VARIABLE} names {path}, which is no absolute path of something that exists")
    there = dict.fromkeys(path for path in (*found, *named) if path.exists() and not _is_system(path))
    within = {path for path in there for other in there if path != other and _is_below(path, other)}
    return [path for path in there if path not in within]


def _programs(directory: Path, hidden: Sequence[Path]) -> list[Path]:
    """A directory of PATH and what its programs need; nothing for one with more in it than programs."""
    private = [Path.home(), *hidden]
    if not directory.is_absolute() or not directory.is_dir():
        return []
    # Shims, pyenv's and its like, are scripts that start what lies beside them.
    if directory.name == "shims" or (directory.parent / "pyvenv.cfg").exists():
        found = [directory.parent]
    else:
        libraries = ("lib", "lib64", "libexec") if directory.name in ("bin", "sbin") else ()
        found = [directory, *(directory.parent / name for name in libraries)]
    return [path for path in found if not any(_is_below(each, path) for each in private) and not _lies(path, hidden)]


def _system_words(path: Path) -> list[str]:
    if path.is_symlink():
        return ["--symlink", str(path.readlink()), str(path)]
    return ["--ro-bind", str(path), str(path)] if path.is_dir() else []


def _bind(option: str, path: Path) -> list[str]:
    """At its own place, and where that is a link also at the place it leads to."""
    real = path.resolve()
    words = [option, str(real), str(path)]
    if real != path and not _is_system(real):
        words += [option, str(real), str(real)]
    return words


def _is_system(path: Path) -> bool:
    return any(_is_below(path, root) for root in _SYSTEM if Path(root).exists())


def _is_below(path: Path, directory: Path | str) -> bool:
    """Whether it lies there, or is that directory."""
    return path.is_relative_to(directory)


def _lies(path: Path, hidden: Sequence[Path]) -> bool:
    return any(_is_below(each, place) for place in hidden for each in (path, path.resolve()))


def _refuse_nested(read_write: Sequence[Path], read_only: Sequence[Path]) -> None:
    for path in (*read_write, *read_only):
        for place in read_write:
            if path is not place and _is_below(path.resolve(), place.resolve()):
                raise ValueError(f"{path} can't be bound: it is within {place}, where the agent may write")


def _refuse_taken(sandbox: Sandbox) -> None:
    """Raises SandboxFails where something of this machine would stand in the way of `INSIDE`."""
    taken = [path for path in sandbox.readable if _is_below(path, str(INSIDE)) or INSIDE.is_relative_to(path)]
    taken += [path for path in sandbox.hidden if _is_below(path, str(INSIDE))]
    if taken:
        raise SandboxFails(
            f"{taken[0]} can't be used: {INSIDE} is where agents find their worktree. Take it out of "
            f"{READ_VARIABLE} or PATH, or keep Treadle's data elsewhere"
        )
    if os.path.realpath(INSIDE) != str(INSIDE):
        raise SandboxFails(f"{INSIDE} is where agents find their worktree, and a link here: remove that link")


def _version(bwrap: str) -> str:
    try:
        done = subprocess.run([bwrap, "--version"], capture_output=True, text=True, timeout=_PROBE_WITHIN_S, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise SandboxFails(f"{bwrap} does not work ({error}): {_INSTALL}") from error
    return done.stdout.strip()[:80]


def _try(sandbox: Sandbox) -> None:
    """Raises NoSandbox unless a process inside is by itself, does not see what is outside, and can write."""
    looks = "import os, sys; open('written', 'w').close(); print(os.path.exists(sys.argv[1]), os.getpid() < 10)"
    with tempfile.TemporaryDirectory(prefix="treadle-sandbox-", ignore_cleanup_errors=True) as made:
        directory = Path(made).resolve()
        code, temporary = directory / "code", directory / "tmp"
        code.mkdir()
        temporary.mkdir()
        words = sandbox.words(worktree=code, temporary=temporary, read_write=[code], read_only=[], files={})
        try:
            done = subprocess.run(
                [*words, _python(), "-I", "-S", "-c", looks, str(temporary)],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_PROBE_WITHIN_S,
            )
        except subprocess.TimeoutExpired as error:
            late = f"{sandbox.bwrap} starts nothing within {_PROBE_WITHIN_S:g} seconds"
            raise SandboxFails(f"{late}: wait until this machine is less busy") from error
        except OSError as error:
            raise SandboxFails(f"{sandbox.bwrap} does not work ({error}): {_INSTALL}") from error
        if done.returncode:
            said = "".join(done.stderr.strip().splitlines()[-1:])
            refused = done.returncode > 0 and said.startswith("bwrap: ") and any(words in said for words in _REFUSALS)
            raise (NoSandbox if refused else SandboxFails)(_why(said))
        if done.stdout.split() != ["False", "True"] or not (code / "written").exists():
            raise SandboxFails(f"{sandbox.bwrap} starts programs, but not in a sandbox: {_INSTALL}")


def _why(said: str) -> str:
    hints = {
        "No permissions to create": "let users make user namespaces (sysctl kernel.unprivileged_userns_clone=1; on "
        "Ubuntu, kernel.apparmor_restrict_unprivileged_userns=0)",
        "Operation not permitted": "let users make user namespaces; in a container see the runner in compose.yaml",
        "setting up uid map": "let users make user namespaces; in a container see the runner in compose.yaml",
        "proc": "in a container: let the sandbox mount a /proc of its own, see the runner in compose.yaml",
    }
    mend = next((hint for part, hint in hints.items() if part in said), _INSTALL)
    return f"{said[:300] or 'bwrap fails without a word'}: {mend}"
