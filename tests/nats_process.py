"""A real nats-server for tests, which may be killed and started again."""

from __future__ import annotations

import asyncio
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from treadle.supervision.log_files import open_log
from treadle.supervision.nats_server import NatsAccess, wait_until_ready, why_it_ended
from treadle.supervision.nats_server import NatsServer as Settings
from treadle.supervision.processes import die_with_parent

START_WITHIN_S = END_WITHIN_S = 60.0
"""On a machine whose disk is slow and whose processors are others'."""


class NatsServer:
    """A nats-server on a free loopback port, with its store in `directory`, `sync_interval: always`."""

    def __init__(self, directory: Path) -> None:
        self._settings = Settings(directory)
        self._log = directory / "nats-server.log"
        self._process: subprocess.Popen[bytes] | None = None
        access = self._settings.access
        assert access.user and access.password and access.password_file
        self.access = access
        self.url: str = access.url
        self.user: str = access.user
        self.password: str = access.password
        self.password_file: Path = access.password_file

    def access_of(self, user: str) -> NatsAccess:
        """What lets one of `shared.bus.USERS` in; the operator's is `access`."""
        return self._settings.access_of(user)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Starts the server, on the port and the store of its former life, and waits until it answers."""
        assert self._process is None
        with open_log(self._log) as log:
            process = subprocess.Popen(
                self._settings.argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=die_with_parent()
            )
        self._process = process
        # In a thread of its own, so that a test may start a server while its event loop runs.
        with ThreadPoolExecutor(1) as thread:
            ready = wait_until_ready(self.access, START_WITHIN_S, alive=lambda: process.poll() is None)
            try:
                thread.submit(asyncio.run, ready).result()
            except Exception as error:
                error.add_note(why_it_ended(self._log))
                self.kill()
                raise

    def kill(self) -> None:
        """kill -9."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(END_WITHIN_S)
        self._process = None

    def stop(self) -> None:
        """Stops the server politely, if it runs."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(END_WITHIN_S)
            self._process = None

    def close(self) -> None:
        """Stops the server for good and gives its port back."""
        self.stop()
        self._settings.release_port()
