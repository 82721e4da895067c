"""The data directory of one machine's suite: where it is, what lies in it, and who may use it.

Two locks guard it (flock(2): a killed holder leaves none behind). `lock` is held by the supervisor; `clients.lock` is
shared by the commands that use the suite, so that an idle supervisor stops only when there is none.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import stat
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from treadle.supervision.keyring_file import make_keyring
from treadle.supervision.private_files import (
    PRIVATE_DIR_MODE,
    PRIVATE_FILE_MODE,
    make_private_dir,
    secret_in,
    write_private,
)
from treadle.supervision.suite_error import DataDirHeld, SuiteError

FORMAT = "1"
FREE_MIN_BYTES = 64 << 20
_PROBE_S = 0.2
_DIRS = ("logs", "nats", "runners", "mirrors", "work")
_DATABASE = "treadle.sqlite"
_FILES = (
    *("VERSION", "lock", "clients.lock", "suite.json", "children.json"),
    *("nats.password", "gateway.token", "gateway.secret", "keyring.json"),
    *(f"{_DATABASE}{suffix}" for suffix in ("", "-wal", "-shm", "-journal", ".rebuild")),
)


@dataclass(frozen=True)
class DataDir:
    path: Path

    @classmethod
    def chosen(cls, option: Path | None, environment: Mapping[str, str]) -> DataDir:
        """The directory that was asked for: by option, by TREADLE_DATA, else in the user's XDG data directory."""
        asked = option or environment.get("TREADLE_DATA")
        if asked:
            return cls(Path(asked).expanduser().absolute())
        xdg = environment.get("XDG_DATA_HOME", "")
        # The XDG specification: a relative path is invalid and is to be ignored.
        base = Path(xdg) if Path(xdg).is_absolute() else Path.home() / ".local/share"
        return cls(base / "treadle")

    @property
    def nats(self) -> Path:
        return self.path / "nats"

    @property
    def nats_password(self) -> Path:
        """The password of a NATS server that was given by URL."""
        return self.path / "nats.password"

    @property
    def token(self) -> Path:
        return self.path / "gateway.token"

    @property
    def secret(self) -> Path:
        """What the gateway signs sessions with."""
        return self.path / "gateway.secret"

    @property
    def keyring(self) -> Path:
        """The keys that stored credentials are encrypted with."""
        return self.path / "keyring.json"

    @property
    def database(self) -> Path:
        return self.path / _DATABASE

    @property
    def private_files(self) -> list[Path]:
        """Those of the files that hold secrets, or what only their owner may see, which exist."""
        names = ("nats.password", "gateway.token", "gateway.secret", "keyring.json")
        found = [self.path / name for name in names] + sorted(self.path.glob(f"{_DATABASE}*"))
        return [path for path in found + sorted(self.nats.glob("*.password")) if path.exists()]

    @property
    def suite_file(self) -> Path:
        return self.path / "suite.json"

    @property
    def children_file(self) -> Path:
        return self.path / "children.json"

    def log(self, service: str) -> Path:
        return self.path / "logs" / f"{service}.log"

    def runner(self, number: int) -> Path:
        return self.path / "runners" / str(number)

    def prepare(self) -> None:
        """Creates the directory, or makes sure that an existing one is ours and of our format. Raises SuiteError."""
        with told_to_people(self.path):
            make_private_dir(self.path)
            if self.path.stat().st_uid != os.getuid():
                raise SuiteError(f"{self.path} belongs to another user: choose your own directory with --data")
            if self.format() is None:
                strangers = [
                    e.name
                    for e in self.path.iterdir()
                    if e.name not in _DIRS + _FILES and not e.name.startswith(".VERSION.")
                ]
                if strangers:
                    raise SuiteError(
                        f"{self.path} is not a data directory of Treadle: it holds other files ({strangers[0]!r}, …). "
                        "Choose an empty or a new directory with --data."
                    )
                self.path.chmod(PRIVATE_DIR_MODE)
                write_private(self.path / "VERSION", f"{FORMAT}\n")
            self.check_format()
            for name in _DIRS:
                make_private_dir(self.path / name)

    def make_secrets(self) -> None:
        """Makes what is missing of the gateway's own files; a directory of the former version has only the token."""
        secret_in(self.token)
        secret_in(self.secret)
        make_keyring(self.keyring)
        # SQLite gives the files beside a database the mode that it has itself.
        os.close(os.open(self.database, os.O_WRONLY | os.O_CREAT, PRIVATE_FILE_MODE))

    def format(self) -> str | None:
        """The data format that the directory says it has; None when it has none yet."""
        try:
            return (self.path / "VERSION").read_text(encoding="utf-8", errors="replace").strip()[:40]
        except FileNotFoundError:
            return None

    def check_format(self) -> None:
        found = self.format()
        if found != FORMAT:
            raise SuiteError(
                f"{self.path} has data format {found!r}, this Treadle reads format {FORMAT!r}: use the Treadle that "
                "wrote it, or another directory with --data"
            )

    def check_space(self) -> None:
        """Raises SuiteError when the disk is too full to go on."""
        trouble = self.space_trouble()
        if trouble:
            raise SuiteError(trouble)

    def space_trouble(self) -> str | None:
        """What to say about a disk that is full or nearly so; None when there is room."""
        free_bytes = shutil.disk_usage(self.path).free
        if free_bytes >= FREE_MIN_BYTES:
            return None
        return (
            f"the disk of {self.path} is full: {free_bytes >> 20} MiB are free, {FREE_MIN_BYTES >> 20} MiB are needed. "
            "Free some space (treadle clean shows what may go); what was stored is kept."
        )

    def hold(self) -> IO[str]:
        """Takes the supervisor's lock, kept until the file is closed or the process ends. Raises DataDirHeld."""
        until_s = time.monotonic() + _PROBE_S
        while (file := _locked(self.path / "lock", fcntl.LOCK_EX)) is None and time.monotonic() < until_s:
            time.sleep(_PROBE_S / 10)  # it may be a `holder_pid` that just looks
        if file is None:
            raise DataDirHeld(f"{self.path} is in use by {self._holder()}: use that suite, stop it, or choose --data")
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        return file

    def holder_pid(self) -> int | None:
        """The process that holds the supervisor's lock: None when nobody does, 0 when it has not said who it is."""
        try:
            file = _locked(self.path / "lock", fcntl.LOCK_SH)
        except FileNotFoundError:
            return None
        if file is not None:
            file.close()
            return None
        said = (self.path / "lock").read_text(encoding="ascii", errors="replace")
        return int(said) if said.isdecimal() else 0

    def _holder(self) -> str:
        pid = self.holder_pid()
        return f"process {pid}" if pid else "another process"

    def join_as_client(self) -> IO[str] | None:
        """Keeps an idle suite from stopping until the file is closed; None while one is already stopping."""
        return _locked(self.path / "clients.lock", fcntl.LOCK_SH)

    def shut_out_clients(self) -> IO[str] | None:
        """The opposite, for the supervisor that wants to stop; None when there is a client."""
        return _locked(self.path / "clients.lock", fcntl.LOCK_EX)


def _locked(path: Path, how: int) -> IO[str] | None:
    """Opens a lock file with the lock taken; None when somebody else's lock excludes it."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT, PRIVATE_FILE_MODE)
    try:
        fcntl.flock(fd, how | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            raise
        return None
    return os.fdopen(fd, "r+", encoding="ascii")


@contextlib.contextmanager
def told_to_people(path: Path) -> Iterator[None]:
    """Turns the OSErrors of a data directory that can't be used into a SuiteError that says what to do."""
    try:
        yield
    except OSError as error:
        where = error.filename or path
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            advice = "free some space (treadle clean shows what may go)"
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            advice = "make it writable for you, or choose another directory with --data"
        elif error.errno in (errno.ENOTDIR, errno.EEXIST) or (path.exists() and not stat.S_ISDIR(path.stat().st_mode)):
            advice = "it must be a directory: choose another one with --data"
        elif error.filename is None:
            raise  # not about a file
        else:
            advice = "choose another directory with --data"
        raise SuiteError(f"{where} can't be used: {error.strerror or error}; {advice}") from error
