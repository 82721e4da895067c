"""Counting what answers of the Messages API consumed, from their bytes as they pass by."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

from services.runner.prices import usage_of
from shared.events import Usage

_LINE_MAX_BYTES = 1024 * 1024
"""Lines of a stream that carry counts are a few hundred bytes long; a longer one is passed over."""

_DOCUMENT_MAX_BYTES = 32 * 1024 * 1024


class UsageMeter:
    """The sum over any number of answers, several of which may be under way at once."""

    def __init__(self) -> None:
        self._settled = Usage()
        self._open: list[AnswerMeter] = []

    @property
    def usage(self) -> Usage:
        """What all answers consumed so far."""
        return sum((answer.usage for answer in self._open), self._settled)

    @contextmanager
    def answer(self, *, is_stream: bool) -> Iterator[AnswerMeter]:
        """Counts one answer: a stream of server-sent events, or one JSON document. What was seen of it counts."""
        answer = AnswerMeter(is_stream=is_stream)
        self._open.append(answer)
        try:
            yield answer
        finally:
            answer.end()
            self._open.remove(answer)
            self._settled += answer.usage


class AnswerMeter:
    """Counts one answer. Feed it every byte in order."""

    def __init__(self, *, is_stream: bool) -> None:
        self.usage = Usage()
        self._is_stream = is_stream
        self._model = ""
        self._counts: dict[str, Any] = {}
        self._begun = bytearray()
        self._is_skipping = False

    def feed(self, piece: bytes) -> None:
        if not self._is_stream:
            self._keep(piece, _DOCUMENT_MAX_BYTES)
            return
        *lines, begun = piece.split(b"\n")
        for line in lines:
            self._keep(line, _LINE_MAX_BYTES)
            self._take_line()
        self._keep(begun, _LINE_MAX_BYTES)

    def end(self) -> None:
        if not self._is_stream:
            self._take(bytes(self._begun))
        self._begun.clear()

    def _keep(self, part: bytes, max_bytes: int) -> None:
        self._is_skipping = self._is_skipping or len(self._begun) + len(part) > max_bytes
        if self._is_skipping:
            self._begun.clear()
        else:
            self._begun += part

    def _take_line(self) -> None:
        line = bytes(self._begun)
        self._begun.clear()
        self._is_skipping = False
        # Looked for before it is decoded: most lines are pieces of text.
        if line.startswith(b"data:") and b'"usage"' in line:
            self._take(line.removeprefix(b"data:"))

    def _take(self, document: bytes) -> None:
        try:
            found = msgspec.json.decode(document)
        except (msgspec.DecodeError, RecursionError):
            return  # the agent sees the same broken bytes, and judges them; what can't be read can't be counted
        if not isinstance(found, dict):
            return
        message = found.get("message") if found.get("type") == "message_start" else found
        if not isinstance(message, dict) or not isinstance(message.get("usage"), dict):
            return
        if isinstance(message.get("model"), str):
            self._model = message["model"]
        for name, value in message["usage"].items():
            # A stream repeats its counts, each time for the whole answer so far.
            known = self._counts.get(name)
            if not (isinstance(value, int) and isinstance(known, int) and known > value):
                self._counts[name] = value if value is not None else known
        self.usage = usage_of(self._model, self._counts)
