"""One plan's events in one local file: a third kind of event store, which is read where it lies.

A line is one event, in the log's order, as JSON: `seq`, `time`, `plan`, `entity`, `type`, `version`, `meta`, and `body`
as the log has it; where that is no JSON, `bytes` with its base64 instead. In memory there are 16 bytes for each event.
"""

import os
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from io import BufferedWriter
from pathlib import Path

import msgspec

from shared.skipped import skipped_seq
from shared.store import Meta, Recorded, recorded
from shared.subjects import Address

CHUNK_BYTES = 256 * 1024
"""Lines are read together up to here; one that is longer, alone."""
DEPTH_MAX = 200
"""JSON that may be nested deeper is kept as bytes: how deep a decoder goes depends on who calls it."""

SEQ_MAX = 2**63 - 1
_RAW = msgspec.json.Decoder(msgspec.Raw)


class HistoryDamaged(Exception):
    """The file is not what was written: cut off, changed, or no history at all. The message says where."""


class _Line(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """An event as the file has it."""

    seq: int
    time: datetime
    plan: str
    entity: str
    type: str
    version: int = 1
    meta: Meta
    body: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    raw: bytes | msgspec.UnsetType = msgspec.field(default=msgspec.UNSET, name="bytes")

    @property
    def stored(self) -> bytes:
        """The event's body as the log has it."""
        if self.raw is not msgspec.UNSET:
            return self.raw
        return bytes(self.body) if self.body is not msgspec.UNSET else b""


_DECODER = msgspec.json.Decoder(_Line)
_ENCODER = msgspec.json.Encoder()


class EventFile:
    """The events of one plan, in the log's order. It may be read in several threads while one appends.

    It stays readable when its path is removed, and one that was created goes on taking events.
    """

    def __init__(self, path: Path, plan: str) -> None:
        """Not to be called: see `create` and `open`."""
        self.path = path
        self.plan = plan
        self._seqs = array("Q")
        self._offsets = array("Q")
        self._words: dict[tuple[str, int], int] = {}
        """Entity and sequence of what was left out → how many events there were before that was said first."""
        self._word_places = array("Q")
        """The values of it."""
        self._word_seqs = array("Q")
        """Likewise, the sequences."""
        self._size_bytes = 0
        self._writer: BufferedWriter | None = None
        """None until something is appended: a file that is only read may be one that can't be written."""
        self._reader = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    @classmethod
    def create(cls, path: Path, plan: str) -> "EventFile":
        """A new file without events. Raises `FileExistsError`, `OSError`."""
        path.touch(mode=0o600, exist_ok=False)
        file = cls(path, plan)
        file._writer = path.open("ab")
        return file

    @classmethod
    def open(cls, path: Path) -> "EventFile":
        """A file that is there; every line is looked at. Raises `HistoryDamaged`, `OSError`."""
        with path.open("rb") as lines:
            first = lines.readline()
        file = cls(path, _read_line(path, 1, first).plan)
        try:
            file._index()
        except HistoryDamaged:
            file.close()
            raise
        return file

    def _index(self) -> None:
        with self.path.open("rb") as lines:
            for number, text in enumerate(lines, start=1):
                line = _read_line(self.path, number, text)
                if line.plan != self.plan:
                    raise HistoryDamaged(f"{self.path}, line {number}: an event of plan {line.plan}, not {self.plan}")
                if line.seq <= self.last_seq:
                    raise HistoryDamaged(f"{self.path}, line {number}: event {line.seq} comes after {self.last_seq}")
                word = skipped_seq(_as_recorded(line)) if line.type == "skipped" else 0
                self._note(line.seq, len(text), line.entity, word)

    def _note(self, seq: int, size_bytes: int, entity: str, word: int) -> None:
        if 0 < word <= SEQ_MAX and (key := (entity, word)) not in self._words:
            self._words[key] = len(self)
            self._word_seqs.append(word)
            self._word_places.append(len(self))
        self._offsets.append(self._size_bytes)
        self._seqs.append(seq)  # last: whoever reads meanwhile goes by these
        self._size_bytes += size_bytes

    def close(self) -> None:
        """Gives the file back; what was appended is in it. Calling it again does nothing. Raises `OSError`."""
        if self._writer is not None:
            self._writer.close()
        if self._reader >= 0:
            reader, self._reader = self._reader, -1
            os.close(reader)

    def __del__(self) -> None:
        with suppress(AttributeError, OSError):  # it could not even be opened, or the disk is full
            self.close()

    def __enter__(self) -> "EventFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._seqs)

    @property
    def first_seq(self) -> int:
        """Sequence of the first event; 0 where there is none."""
        return self._seqs[0] if self._seqs else 0

    @property
    def last_seq(self) -> int:
        """Sequence of the newest event; 0 where there is none."""
        return self._seqs[-1] if self._seqs else 0

    @property
    def size_bytes(self) -> int:
        """How large the file is."""
        return self._size_bytes

    def append(self, record: Recorded) -> None:
        """Adds the plan's next event. Raises `ValueError` for another plan's or an older one, `OSError`."""
        if record.plan != self.plan:
            raise ValueError(f"event {record.seq} is of plan {record.plan}, and this is the history of {self.plan}")
        if record.seq <= self.last_seq:
            raise ValueError(f"event {record.seq} can't come after event {self.last_seq}")
        text = line_of(record)
        if self._writer is None:
            self._writer = self.path.open("ab")
        self._writer.write(text)
        self._note(record.seq, len(text), record.entity, skipped_seq(record))

    def place_of(self, seq: int) -> int:
        """How many events have that sequence or an older one."""
        return bisect_right(self._seqs, seq)

    def seq_at_place(self, place: int) -> int:
        """Sequence of the event before which there are so many others. Raises `IndexError`."""
        return self._seqs[place]

    @property
    def words(self) -> int:
        """Of how many events it says that they are left out, whether they are there or not."""
        return len(self._words)

    def is_left_out(self, entity: str, seq: int, place: int) -> bool:
        """Whether that event was left out by the time when there were so many events."""
        return bool(self._words) and self._words.get((entity, seq), place) < place

    def reaches_back(self, earlier: int, later: int, place: int) -> bool:
        """Whether anything of the first `place` events was left out between two times, told as `is_left_out` does."""
        last = self._seqs[place - 1] if place else 0
        first, end = (bisect_left(self._word_places, time) for time in (earlier, later))
        return any(seq <= last for seq in self._word_seqs[first:end])

    def read(self, after: int = 0, limit: int | None = None, entity: str | None = None) -> Iterator[Recorded]:
        """The events with a sequence over `after`, of one entity or of all; the first `limit` of them.

        Raises `HistoryDamaged` where the file was changed since it was opened.
        """
        mark = b'"entity":%b' % _ENCODER.encode(entity) if entity is not None else b""
        left = limit if limit is not None else len(self)
        start = self.place_of(after)
        for text in self._lines(start, len(self) if entity is not None else min(len(self), start + left)):
            if left <= 0:
                return
            if mark in text and (record := self._recorded(text)).entity == (entity or record.entity):
                left -= 1
                yield record

    def _lines(self, start: int, end: int) -> Iterator[bytes]:
        if self._writer is not None:
            self._writer.flush()
        ends = self._offsets
        while start < end:
            size_bytes = self._size_bytes
            offset = self._offsets[start]
            stop = min(end, max(start + 1, bisect_right(self._offsets, offset + CHUNK_BYTES) - 1))
            upto = ends[stop] if stop < len(ends) else size_bytes
            chunk = os.pread(self._reader, upto - offset, offset)
            if len(chunk) != upto - offset:
                raise HistoryDamaged(f"{self.path} was cut off while it was read")
            for place in range(start, stop):
                line_end = ends[place + 1] - offset if place + 1 < stop else upto - offset
                yield chunk[ends[place] - offset : line_end]
            start = stop

    def _recorded(self, text: bytes) -> Recorded:
        return _as_recorded(_read_line(self.path, 0, text))

    def seq_at(self, time: datetime) -> int:
        """The newest sequence at or before that time; 0 where the first event is younger. The log's times rise."""
        place = bisect_left(range(len(self)), True, key=lambda i: self._time(i) > time)
        return self._seqs[place - 1] if place else 0

    def _time(self, place: int) -> datetime:
        (text,) = self._lines(place, place + 1)
        return _read_line(self.path, place + 1, text).time

    def time_of(self, seq: int) -> datetime:
        """When the newest event up to that sequence was stored. Raises `LookupError` where there is none."""
        place = self.place_of(seq)
        if place == 0:
            raise LookupError(f"the history of {self.plan} has no event {seq}")
        return self._time(place - 1)


def _as_recorded(line: _Line) -> Recorded:
    address = Address(line.plan, line.entity, line.type)
    return recorded(line.seq, line.time, address, line.version, line.stored, line.meta)


def line_of(record: Recorded) -> bytes:
    """The event as the file has it, with its line end."""
    is_json = _is_plain_json(record.body)
    line = _Line(
        seq=record.seq,
        time=record.time,
        plan=record.plan,
        entity=record.entity,
        type=record.type,
        version=record.version,
        meta=record.meta,
        body=msgspec.Raw(record.body) if is_json else msgspec.UNSET,
        raw=msgspec.UNSET if is_json else record.body,
    )
    return _ENCODER.encode(line) + b"\n"


def _is_plain_json(body: bytes) -> bool:
    """Whether it can stand in a line as it is, and be read again from there."""
    try:
        body.decode()
        if bytes(_RAW.decode(body)) != body or b"\n" in body:
            return False
        if body.count(b"[") + body.count(b"{") > DEPTH_MAX:
            _RAW.decode(b"[" * DEPTH_MAX + body + b"]" * DEPTH_MAX)
    except (ValueError, RecursionError):  # msgspec's errors are ValueErrors
        return False
    return True


def _read_line(path: Path, number: int, text: bytes) -> _Line:
    where = f"{path}, line {number}" if number else str(path)
    if not text.endswith(b"\n"):
        raise HistoryDamaged(f"{where}: the file is cut off" if text else f"{path} holds no event")
    try:
        line = _DECODER.decode(text)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise HistoryDamaged(f"{where} is no event: {error}") from error
    if (line.raw is msgspec.UNSET) == (line.body is msgspec.UNSET):
        raise HistoryDamaged(f"{where} is no event: it has one of `body` and `bytes`, not both or neither")
    return line
