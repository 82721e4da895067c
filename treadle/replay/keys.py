"""Single keys from a terminal, which is as it was before once they are no longer read."""

from __future__ import annotations

import codecs
import os
import select
import signal
import sys
import termios
import time
import tty
from types import FrameType, TracebackType

ESCAPE_WAIT_S = 0.05
"""What belongs to one key arrives together; Escape itself has nothing behind it."""
KEY_BYTES_MAX = 64
CLOSED = "closed"
"""The terminal has gone, or Ctrl-D."""

_SEQUENCES = {
    "[C": "right", "[D": "left", "[A": "up", "[B": "down", "[H": "home", "[F": "end", "[1~": "home",
    "[4~": "end", "[5~": "page-up", "[6~": "page-down", "OC": "right", "OD": "left", "OA": "up", "OB": "down",
    "OH": "home", "OF": "end",
}  # fmt: skip
_NAMED = {"\r": "enter", "\n": "enter", "\x7f": "backspace", "\x08": "backspace", "\x04": CLOSED, "": CLOSED}


class Keys:
    """Reads keys while it is entered. Ctrl-C stays an interrupt, and SIGTERM ends as it does, with status 143."""

    def __init__(self, fd: int | None = None) -> None:
        self._fd = sys.stdin.fileno() if fd is None else fd
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._waiting: list[str] = []

    def __enter__(self) -> Keys:
        self._before = termios.tcgetattr(self._fd)
        self._on_term = signal.signal(signal.SIGTERM, _ended)
        tty.setcbreak(self._fd, termios.TCSANOW)  # what was typed already is not lost
        modes = termios.tcgetattr(self._fd)
        # Ctrl-Z would leave the shell with a screen and a cursor that are ours.
        modes[6][termios.VSUSP] = bytes([os.fpathconf(self._fd, "PC_VDISABLE")])
        termios.tcsetattr(self._fd, termios.TCSANOW, modes)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        termios.tcsetattr(self._fd, termios.TCSADRAIN, self._before)
        signal.signal(signal.SIGTERM, self._on_term)

    def next(self, timeout_s: float | None = None) -> str | None:
        """The next key: a character, or a name such as `left`; None where none came in time."""
        until_s = None if timeout_s is None else time.monotonic() + timeout_s
        while not self._waiting:
            left_s = None if until_s is None else max(0.0, until_s - time.monotonic())
            if not self._ready(left_s):
                return None
            self._read()
        return self._waiting.pop(0)

    def _ready(self, timeout_s: float | None) -> bool:
        return bool(select.select([self._fd], [], [], timeout_s)[0])

    def _bytes(self) -> bytes:
        try:
            return os.read(self._fd, KEY_BYTES_MAX)
        except OSError:  # a terminal that was closed
            return b""

    def _read(self) -> None:
        data = self._bytes()
        if not data:
            self._waiting.append(CLOSED)
            return
        if data.endswith(b"\x1b") and self._ready(ESCAPE_WAIT_S):
            data += self._bytes()
        self._waiting += split_keys(self._decoder.decode(data))


def split_keys(text: str) -> list[str]:
    """What was read as keys. Sequences that name none are left out."""
    keys: list[str] = []
    while text:
        if text[0] != "\x1b":
            keys.append(_NAMED.get(text[0], text[0]))
            text = text[1:]
        elif text[1:2] in ("[", "O"):
            end = next((i for i, ch in enumerate(text[2:], start=2) if "@" <= ch <= "~"), len(text) - 1)
            if name := _SEQUENCES.get(text[1 : end + 1]):
                keys.append(name)
            text = text[end + 1 :]
        else:
            keys.append("escape")
            text = text[1:]
    return keys


def _ended(signal_number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + signal_number)
