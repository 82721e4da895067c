"""Counting what answers of the Messages API consumed, from their bytes as they pass by.

The API says at an answer's end what it consumed, and bills an answer that is broken off before too. So whoever drops
answers would work for nothing, were they not estimated: see `AnswerMeter.usage`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

from services.runner.model_request import BYTES_PER_TOKEN, ModelRequest
from services.runner.prices import usage_of
from shared.events import Usage

UNSEEN_MAX_TOKENS = 32_000
"""Of an answer of which nothing was seen. Without a stream none is longer than some ten minutes of writing."""

WRITTEN_PER_S = 200
"""Tokens; the fastest models write about as many."""

_LINE_MAX_BYTES = 1024 * 1024
"""Lines of a stream that carry counts are a few hundred bytes long; a longer one is passed over."""

_DOCUMENT_MAX_BYTES = 32 * 1024 * 1024
_CONTENT = {"content_block_start": "content_block", "content_block_delta": "delta"}
_THINKING = ("thinking", "redacted_thinking")


class UsageMeter:
    """The sum over any number of answers, several of which may be under way at once."""

    def __init__(self) -> None:
        self._settled = Usage()
        self._open: list[AnswerMeter] = []
        self._one_ended = asyncio.Event()

    @property
    def usage(self) -> Usage:
        """What all answers consumed, if those that are under way were broken off now."""
        return sum((answer.usage for answer in self._open), self._settled)

    @property
    def told(self) -> Usage:
        """The same, but of answers that are under way only what the API has told of them."""
        return sum((answer.told for answer in self._open), self._settled)

    async def one_ended(self) -> None:
        """Returns once an answer that is under way has ended."""
        await self._one_ended.wait()

    @contextmanager
    def answer(self, asked: ModelRequest) -> Iterator[AnswerMeter]:
        """Counts one answer, from before it is asked for."""
        answer = AnswerMeter(asked)
        self._open.append(answer)
        try:
            yield answer
        finally:
            answer.end()
            self._open.remove(answer)
            self._settled += answer.usage
            self._one_ended.set()
            self._one_ended = asyncio.Event()


class AnswerMeter:
    """Counts one answer. Tell it how the answer begins, and feed it every byte in order."""

    def __init__(self, asked: ModelRequest) -> None:
        self.told = Usage()
        """What the API has told so far."""
        self.is_begun = False
        self._asked = asked
        self._model = asked.model
        self._counts: dict[str, Any] = {}
        self._is_stream = asked.is_stream
        self._is_free = self._is_final = self._is_whole = self._is_ended = False
        self._asked_at = time.monotonic()
        self._thinks_since: float | None = None
        self._thought_s = 0.0
        self._passed_bytes = 0
        self._line = bytearray()
        self._is_skipping = False

    @property
    def usage(self) -> Usage:
        """What the API told, once it told the end; until then an estimate, which errs on the side of more.

        Input that was not told is taken from the request's size, as if none of it were cached. Output is what passed,
        by its bytes, and what can have been written unseen: while the model thinks, or before its answer began, as much
        as the fastest writes in that time. Of an answer without a stream that nobody waited for, all that was asked
        for: the API goes on writing. Never more than `max_tokens`, and than `UNSEEN_MAX_TOKENS` of what was not seen.
        """
        if self._is_free:
            return Usage()
        if self._is_final:
            return self.told
        output = self._passed_bytes // BYTES_PER_TOKEN + min(UNSEEN_MAX_TOKENS, self._unseen_tokens())
        if self._asked.output_max_tokens is not None:
            output = min(output, self._asked.output_max_tokens)
        counts = {"input_tokens": self._asked.input_tokens, **self._counts}
        counts["output_tokens"] = max(output, self.told.output_tokens)
        return usage_of(self._model, counts)

    def costs_nothing(self) -> None:
        """The API refused it, or counts it to nobody."""
        self._is_free = True

    def begin(self, *, is_stream: bool) -> None:
        """It comes: a stream of server-sent events, or one JSON document."""
        self._is_stream, self.is_begun = is_stream, True

    def feed(self, piece: bytes) -> None:
        if not self._is_stream:
            self._keep(piece, _DOCUMENT_MAX_BYTES)
            return
        *lines, begun = piece.split(b"\n")
        for line in lines:
            self._keep(line, _LINE_MAX_BYTES)
            self._take_line()
        self._keep(begun, _LINE_MAX_BYTES)

    def arrived_whole(self) -> None:
        """Every byte of it has passed."""
        self._is_whole = True

    def end(self) -> None:
        """Nothing more will come."""
        if not self._is_stream:
            self._passed_bytes += len(self._line)
            self._take(bytes(self._line))
        self._line.clear()
        self._think(None)
        if not self._counts and not self._is_whole:
            self._thought_s = max(self._thought_s, time.monotonic() - self._asked_at)
        self._is_ended = True

    def _unseen_tokens(self) -> int:
        if self._is_whole:
            return int(self._thought_s * WRITTEN_PER_S)
        if self._is_ended and not self._is_stream:
            return UNSEEN_MAX_TOKENS
        seconds = self._thought_s
        if self._thinks_since is not None:
            seconds += time.monotonic() - self._thinks_since
        if not self._counts and not self._is_ended:
            seconds = max(seconds, time.monotonic() - self._asked_at)
        return int(seconds * WRITTEN_PER_S)

    def _think(self, since: float | None) -> None:
        if self._thinks_since is not None:
            self._thought_s += time.monotonic() - self._thinks_since
        self._thinks_since = since

    def _keep(self, part: bytes, max_bytes: int) -> None:
        if not self._is_skipping and len(self._line) + len(part) > max_bytes:
            self._is_skipping = True
            self._passed_bytes += len(self._line)
            self._line.clear()
        if self._is_skipping:
            self._passed_bytes += len(part)
        else:
            self._line += part

    def _take_line(self) -> None:
        line = bytes(self._line)
        self._line.clear()
        self._is_skipping = False
        if line.startswith(b"data:"):
            self._take(line.removeprefix(b"data:"))

    def _take(self, document: bytes) -> None:
        try:
            found = msgspec.json.decode(document)
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            # The agent sees the same broken bytes, and judges them; they were written nevertheless.
            self._passed_bytes += len(document) if self._is_stream else 0
            return
        if not isinstance(found, dict):
            return
        kind = found.get("type")
        if self._is_stream and isinstance(kind, str) and kind.startswith("content_block"):
            self._take_content(kind, found)
            return
        message = found.get("message") if kind == "message_start" else found
        if not isinstance(message, dict) or not isinstance(message.get("usage"), dict):
            return
        if isinstance(message.get("model"), str):
            self._model = message["model"]
        for name, value in message["usage"].items():
            # A stream repeats its counts, each time for the whole answer so far.
            known = self._counts.get(name)
            if not (isinstance(value, int) and isinstance(known, int) and known > value):
                self._counts[name] = value if value is not None else known
        self.told = usage_of(self._model, self._counts)
        self._is_final = kind == "message_delta" if self._is_stream else True

    def _take_content(self, kind: str, found: dict[str, Any]) -> None:
        """A part of what the model writes. What comes behind counts that looked final shows that they were not."""
        self._is_final = False
        if kind == "content_block_stop":
            self._think(None)
        part = found.get(_CONTENT.get(kind, ""))
        if not isinstance(part, dict):
            return
        if kind == "content_block_start":
            self._think(time.monotonic() if part.get("type") in _THINKING else None)
        self._passed_bytes += sum(
            len(value.encode(errors="replace"))
            for name, value in part.items()
            if name != "type" and isinstance(value, str)
        )
