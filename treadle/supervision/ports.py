"""A loopback port that stays ours while the program listening on it is restarted."""

from __future__ import annotations

import errno
import socket
import sys

from treadle.supervision.suite_error import SuiteError

LOOPBACK = "127.0.0.1"


class PortInUse(SuiteError):
    """Another program listens on the port that was asked for."""


class ReservedPort:
    """A loopback port, bound but not listened on until `release`.

    Linux lets a child bind and listen on the same port (both sockets carry SO_REUSEADDR, ours does not listen), while
    no program that asks for "any free port" is given it. So a port can be chosen before its server starts, and a killed
    server comes back on the port its clients know. Elsewhere the binding is given up at once: the number is then
    likely, not certain, to stay free.
    """

    def __init__(self, port: int = 0) -> None:
        """Takes `port`, or any free one for 0. Raises PortInUse."""
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._socket.bind((LOOPBACK, port))
        except OSError as error:
            self._socket.close()
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
            raise PortInUse(
                f"port {port} on {LOOPBACK} can't be used ({error.strerror}): choose another one"
            ) from error
        self.number: int = self._socket.getsockname()[1]
        if sys.platform != "linux":
            self._socket.close()

    def release(self) -> None:
        self._socket.close()
