"""The one form of zip file that Treadle writes, and the only one that it reads.

Any zip program opens it. The other way round nothing is taken but exactly what we would have written for the same
contents: members side by side from the first byte to the last, no comment, no extra field, one fixed date. So there is
no byte that could be changed without being noticed, and none that two programs could read differently.

Reading takes memory for the directory alone. Whoever reads gives `Limits`, which hold before anything is unpacked.
"""

import os
import struct
import zlib
from collections.abc import Iterator
from hashlib import sha256
from typing import BinaryIO, Protocol

import msgspec

MEBIBYTE = 1024 * 1024
NAME_MAX_BYTES = 200
CHUNK_BYTES = 256 * 1024

_LOCAL = struct.Struct("<4s5H3I2H")
_AFTER = struct.Struct("<4s3I")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_END_LONG = struct.Struct("<4sQ2H2I4Q")
_LOCATOR = struct.Struct("<4sIQI")
_LOCAL_MARK = b"PK\3\4"
_END_MARK = b"PK\5\6"
_MADE_ON_UNIX = 0x0314
_VERSION = 20
_VERSION_LONG = 45
_SIZES_COME_AFTER = 0x0008
_DEFLATED = 8
_DAY_ONE = 0x0021  # 1980-01-01, where a zip's calendar begins
_FILE_MODE = 0o100644 << 16
_COUNT_SHORT_MAX = 0xFFFE
_LEVEL = 6


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What an archive may be at most. The largest that are possible are the defaults."""

    file_max_bytes: int = 2047 * MEBIBYTE
    members_max: int = 100_000
    member_max_bytes: int = 2047 * MEBIBYTE
    """Of one member's contents, unpacked."""
    contents_max_bytes: int = 8192 * MEBIBYTE
    """Of all of them."""
    manifest_max_bytes: int = 32 * MEBIBYTE
    ratio_max: int = 200
    """Unpacked to packed, of all that goes beyond `ratio_free_bytes`: what we write never comes near it."""
    ratio_free_bytes: int = 16 * MEBIBYTE


LARGEST = Limits()


class TooLargeToArchive(Exception):
    """What is to be archived is over a limit; the message says which."""


class NotOurZip(Exception):
    """The file is not as we write it; the message says what is wrong, and where."""


class Entry(msgspec.Struct, frozen=True):
    """A member's place in the file."""

    name: str
    crc: int
    packed_bytes: int
    size_bytes: int
    offset: int
    deflated: bool

    @property
    def local(self) -> bytes:
        """What stands before its data."""
        name = self.name.encode()
        sizes = (0, 0, 0) if self.deflated else (self.crc, self.packed_bytes, self.size_bytes)
        return _LOCAL.pack(b"PK\3\4", _VERSION, *self._how(), *sizes, len(name), 0) + name

    @property
    def after(self) -> bytes:
        """What stands after them."""
        return _AFTER.pack(b"PK\7\x08", self.crc, self.packed_bytes, self.size_bytes) if self.deflated else b""

    @property
    def central(self) -> bytes:
        """Its line in the directory."""
        name = self.name.encode()
        sizes = (self.crc, self.packed_bytes, self.size_bytes)
        rest = (len(name), 0, 0, 0, 0, _FILE_MODE, self.offset)
        return _CENTRAL.pack(b"PK\1\2", _MADE_ON_UNIX, _VERSION, *self._how(), *sizes, *rest) + name

    @property
    def data_offset(self) -> int:
        """Where its packed data begin."""
        return self.offset + _LOCAL.size + len(self.name.encode())

    @property
    def end(self) -> int:
        """Where the next one begins."""
        return self.data_offset + self.packed_bytes + (_AFTER.size if self.deflated else 0)

    def _how(self) -> tuple[int, int, int, int]:
        return (_SIZES_COME_AFTER, _DEFLATED, 0, _DAY_ONE) if self.deflated else (0, 0, 0, _DAY_ONE)


def _end(count: int, directory_bytes: int, offset: int) -> bytes:
    if count <= _COUNT_SHORT_MAX:
        return _END.pack(b"PK\5\6", 0, 0, count, count, directory_bytes, offset, 0)
    rest = (0, 0, count, count, directory_bytes, offset)
    long = _END_LONG.pack(b"PK\6\6", _END_LONG.size - 12, _MADE_ON_UNIX, _VERSION_LONG, *rest)
    locator = _LOCATOR.pack(b"PK\6\7", 0, offset + directory_bytes, 1)
    return long + locator + _END.pack(b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, directory_bytes, offset, 0)


class Packer:
    """Writes a file piece by piece, as its contents come: what is ready is taken by `taken`."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._ready = bytearray()
        self._digest = sha256()
        self._entries: list[Entry] = []
        self._offset = 0
        self._contents_bytes = 0

    def taken(self) -> bytes:
        """The bytes of the file that are new since the last call."""
        new = bytes(self._ready)
        self._ready.clear()
        return new

    @property
    def digest(self) -> str:
        """SHA-256, in hex, of the file so far."""
        return self._digest.hexdigest()

    def member(self, name: str) -> "MemberPacker":
        """Begins a member; its `close` ends it. One at a time. Raises `TooLargeToArchive`."""
        if len(self._entries) >= self._limits.members_max:
            raise TooLargeToArchive(f"there are more than {self._limits.members_max} members")
        return MemberPacker(self, name)

    def store(self, name: str, data: bytes) -> None:
        """A member as it is, not deflated."""
        entry = Entry(name, zlib.crc32(data), len(data), len(data), self._offset, deflated=False)
        self.put(entry.local + data)
        self.done(entry)

    def close(self) -> None:
        """Writes the directory, with which the file ends."""
        offset = self._offset
        for entry in self._entries:
            self.put(entry.central)
        self.put(_end(len(self._entries), self._offset - offset, offset))

    @property
    def offset(self) -> int:
        """How long the file is so far."""
        return self._offset

    def count(self, size_bytes: int) -> bool:
        """Counts contents. True: they pack so well that some have to stay as they are: a reader would fear a bomb."""
        self._contents_bytes += size_bytes
        if self._contents_bytes > self._limits.contents_max_bytes:
            raise TooLargeToArchive(f"it is over {self._limits.contents_max_bytes // MEBIBYTE} MiB unpacked")
        bound = self._limits.ratio_free_bytes + self._limits.ratio_max * self._offset
        return self._contents_bytes > bound // 2

    def put(self, data: bytes) -> None:
        """Bytes of the file. Raises `TooLargeToArchive`."""
        self._ready += data
        self._digest.update(data)
        self._offset += len(data)
        if self._offset > self._limits.file_max_bytes:
            raise TooLargeToArchive(f"the file is over {self._limits.file_max_bytes // MEBIBYTE} MiB")

    def done(self, entry: Entry) -> None:
        """The member's bytes are all put."""
        self._entries.append(entry)


class MemberPacker:
    """Takes one member's contents, in pieces of any size."""

    def __init__(self, packer: Packer, name: str) -> None:
        self._packer = packer
        self._digest = sha256()
        self._deflate, self._level = _deflate(_LEVEL), _LEVEL
        self._entry = Entry(name, 0, 0, 0, packer.offset, deflated=True)
        packer.put(self._entry.local)
        self._began = packer.offset

    def write(self, data: bytes) -> None:
        """Raises `TooLargeToArchive`."""
        for start in range(0, len(data), CHUNK_BYTES):
            self._write(data[start : start + CHUNK_BYTES])

    def _write(self, piece: bytes) -> None:
        entry = self._entry
        self._digest.update(piece)
        self._entry = msgspec.structs.replace(
            entry, crc=zlib.crc32(piece, entry.crc), size_bytes=entry.size_bytes + len(piece)
        )
        level = 0 if self._packer.count(len(piece)) else _LEVEL
        if level != self._level:
            self._packer.put(self._deflate.flush(zlib.Z_FULL_FLUSH))
            self._deflate, self._level = _deflate(level), level
        self._packer.put(self._deflate.compress(piece))

    def close(self) -> tuple[int, str]:
        """Ends the member; returns its size unpacked, and its SHA-256 in hex."""
        self._packer.put(self._deflate.flush())
        entry = msgspec.structs.replace(self._entry, packed_bytes=self._packer.offset - self._began)
        self._packer.put(entry.after)
        self._packer.done(entry)
        return entry.size_bytes, self._digest.hexdigest()


def _deflate(level: int) -> "zlib._Compress":
    return zlib.compressobj(level, zlib.DEFLATED, -zlib.MAX_WBITS)


class _Hash(Protocol):
    def update(self, data: bytes, /) -> None: ...


class Unpacker:
    """Reads such a file, from any thread."""

    def __init__(self, file: BinaryIO, limits: Limits) -> None:
        """Reads the directory. Raises `NotOurZip`."""
        self._file = file
        self._fd = file.fileno()
        self._size = os.fstat(self._fd).st_size
        self._limits = limits
        if self._size > limits.file_max_bytes:
            raise NotOurZip(f"the file is over the {limits.file_max_bytes // MEBIBYTE} MiB that are read")
        self.entries = self._read_directory()

    def close(self) -> None:
        """The file is read no more."""
        self._file.close()

    def contents(self, entry: Entry, digest: _Hash | None = None) -> Iterator[bytes]:
        """A member's contents in pieces; `digest` is told every byte of the file that belongs to the member.

        Raises `NotOurZip`, at the latest in the end: until then, the pieces are no more than what the file says.
        """
        where = f"member {entry.name}"
        local = self._at(entry.offset, len(entry.local))
        if local != entry.local:
            raise NotOurZip(f"{where}: what stands before it is damaged (byte {entry.offset})")
        if digest:
            digest.update(local)
        size, crc = 0, 0
        for piece in self._inflated(entry, digest) if entry.deflated else self._packed(entry, digest):
            size, crc = size + len(piece), zlib.crc32(piece, crc)
            if size > entry.size_bytes:
                break
            yield piece
        if (size, crc) != (entry.size_bytes, entry.crc):
            raise NotOurZip(f"{where} is damaged: its contents are not those that the file's directory tells of")
        after = self._at(entry.end - len(entry.after), len(entry.after))
        if after != entry.after:
            raise NotOurZip(f"{where}: what stands after it is damaged (byte {entry.end - len(after)})")
        if digest:
            digest.update(after)

    def _packed(self, entry: Entry, digest: _Hash | None) -> Iterator[bytes]:
        end = entry.data_offset + entry.packed_bytes
        for start in range(entry.data_offset, end, CHUNK_BYTES):
            chunk = self._at(start, min(CHUNK_BYTES, end - start))
            if digest:
                digest.update(chunk)
            yield chunk

    def _inflated(self, entry: Entry, digest: _Hash | None) -> Iterator[bytes]:
        inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            for chunk in self._packed(entry, digest):
                while chunk:
                    yield inflate.decompress(chunk, CHUNK_BYTES)
                    chunk = inflate.unconsumed_tail
            # What was taken in may still hold more than what could be given out at once.
            while not inflate.eof and (rest := inflate.decompress(b"", CHUNK_BYTES)):
                yield rest
        except zlib.error:
            raise NotOurZip(f"member {entry.name} is damaged: it can't be unpacked") from None
        if not inflate.eof or inflate.unused_data:
            raise NotOurZip(f"member {entry.name} is damaged: it does not end where it should")

    def _at(self, offset: int, count: int) -> bytes:
        found = os.pread(self._fd, count, offset)
        if len(found) != count:
            raise NotOurZip(f"the file ends too early (at byte {offset + len(found)})")
        return found

    def _read_directory(self) -> list[Entry]:
        torn = "the file's end is missing or damaged: it was not written or sent to its end"
        if not self._size:
            raise NotOurZip("it is empty")
        tail = self._at(max(0, self._size - _END.size), min(_END.size, self._size))
        if len(tail) < _END.size or not tail.startswith(_END_MARK):
            raise NotOurZip(torn if self._begins_at(0) else "it is no archive of Treadle's, nor any other zip file")
        *_, count, length, offset, _ = _END.unpack(tail)
        if count == 0xFFFF and self._size > _END.size + _LOCATOR.size + _END_LONG.size:
            long = self._at(self._size - _END.size - _LOCATOR.size - _END_LONG.size, _END_LONG.size)
            count = _END_LONG.unpack(long)[-3]
        if count > self._limits.members_max:
            raise NotOurZip(f"it has {count} members, over the {self._limits.members_max} that are read")
        end = _end(count, length, offset)
        before = self._size - offset - length - len(end)
        if before > 0 and self._begins_at(before):
            raise NotOurZip(f"something stands before the archive, which begins at byte {before}: remove it")
        if before or length > count * (_CENTRAL.size + NAME_MAX_BYTES):
            raise NotOurZip(torn)
        if self._at(offset + length, len(end)) != end:
            raise NotOurZip(torn)
        return self._entries(self._at(offset, length), count, offset)

    def _begins_at(self, offset: int) -> bool:
        """Whether what is there is how a member begins, as far as the file goes."""
        found = self._at(offset, min(len(_LOCAL_MARK), self._size - offset))
        return bool(found) and _LOCAL_MARK.startswith(found)

    def _entries(self, directory: bytes, count: int, directory_offset: int) -> list[Entry]:
        entries: list[Entry] = []
        at = next_offset = contents_bytes = 0
        for number in range(1, count + 1):
            entry = _entry(directory, at, number)
            at += len(entry.central)
            if entry.offset != next_offset or entry.end > directory_offset:
                raise NotOurZip(f"member {entry.name} is not where it should be")
            next_offset = entry.end
            contents_bytes += entry.size_bytes
            if entry.size_bytes > self._limits.member_max_bytes:
                raise NotOurZip(f"member {entry.name} is over {self._limits.member_max_bytes // MEBIBYTE} MiB unpacked")
            entries.append(entry)
        if at != len(directory) or next_offset != directory_offset:
            raise NotOurZip("the file's directory is damaged: it does not cover the file")
        if contents_bytes > self._limits.contents_max_bytes:
            raise NotOurZip(f"it is over {self._limits.contents_max_bytes // MEBIBYTE} MiB unpacked")
        if contents_bytes > self._limits.ratio_free_bytes + self._limits.ratio_max * directory_offset:
            raise NotOurZip("it is packed more densely than anything that Treadle writes: it could fill a disk")
        return entries


def _entry(directory: bytes, at: int, number: int) -> Entry:
    damaged = NotOurZip(f"the file's directory is damaged at its member {number}")
    if len(directory) < at + _CENTRAL.size:
        raise damaged
    _, _, _, _, method, _, _, crc, packed, size, name_bytes, *_, offset = _CENTRAL.unpack_from(directory, at)
    name = directory[at + _CENTRAL.size : at + _CENTRAL.size + name_bytes]
    if not name or len(name) > NAME_MAX_BYTES or not name.isascii():
        raise damaged
    entry = Entry(name.decode(), crc, packed, size, offset, deflated=method == _DEFLATED)
    if directory[at : at + len(entry.central)] != entry.central or (not entry.deflated and packed != size):
        raise damaged
    return entry
