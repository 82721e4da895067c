"""Words for a person who waits for a suite: only where it takes longer than a moment."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType

MOMENT_S = 1.0


class Slowness:
    """Says what is being waited for once the wait has lasted a moment, and then whatever else it becomes.

    `say` is called on a thread of its own or on the caller's, never on both at once.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._timer = threading.Timer(MOMENT_S, self._is_slow)
        self._timer.daemon = True
        self._lock = threading.Lock()
        self._what = self._said = ""
        self._silent = True

    def waits_for(self, what: str) -> None:
        """What it is from now on."""
        with self._lock:
            self._what = what
            self._tell()

    def __enter__(self) -> Slowness:
        self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        with self._lock:
            self._silent = True
            self._what = ""

    def _is_slow(self) -> None:
        with self._lock:
            self._silent = False
            self._tell()

    def _tell(self) -> None:
        if not self._silent and self._what not in ("", self._said):
            self._said = self._what
            self._say(self._what)
