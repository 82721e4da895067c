"""One plan's history in one file: the `.treadle` file.

It is a zip (`shared.history.packing`) of, in this order:

    events.jsonl                     the plan's events, in the lines of `shared.history.event_file`
    results/<task>.json              what a completed task said of itself
    diffs/<task>.diff                what it changed, as a unified diff
    transcripts/<task>-<lease>.jsonl what its agent did
    commits.bundle                   the commits, for `git clone` or `git fetch`
    manifest.json                    what the file holds, with the SHA-256 and the size of every other member

**What the digests prove.** Every byte of the file is covered by the manifest, so damage, truncation and a change that
somebody made without care are found. They are no signature: whoever can write the whole file can write a manifest that
fits. What can't be made to fit is the digest that the exporter was told (`ArchiveWriter.close`, printed by
`treadle export`): it is taken over the manifest, so two people who compare it know that they have the same file. And it
says nothing about whether the exporter told the truth.
"""

from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Self

import msgspec

from shared.events import Result
from shared.history.archive_format import (
    BUNDLE,
    EVENTS,
    FORMAT,
    LINE_MAX_BYTES,
    MANIFEST,
    About,
    Commits,
    EventLines,
    Manifest,
    Member,
    counts_of,
    diff_name,
    place,
    result_name,
    transcript_name,
    transcript_of,
)
from shared.history.event_file import EventFile, HistoryDamaged
from shared.history.packing import LARGEST, Entry, Limits, MemberPacker, NotOurZip, Packer, TooLargeToArchive, Unpacker
from shared.subjects import PLAN_ID


class ArchiveWriter:
    """Writes an archive as it goes, in memory that does not grow with it.

    Members come in the order of `place`, events first:

        writer = ArchiveWriter(about)
        with writer.member(EVENTS) as events: events.write(line) …; send(writer.taken())
        digest = writer.close(); send(writer.taken())
    """

    def __init__(self, about: About, limits: Limits = LARGEST) -> None:
        """Raises `ValueError` for what is no plan's id."""
        if not PLAN_ID.fullmatch(about.plan):
            raise ValueError(f"{about.plan!r} is not a plan's id")
        self._about = about
        self._packer = Packer(limits)
        self._limits = limits
        self._members: list[Member] = []
        self._events = EventLines(about.plan)
        self._open = False
        self.commits: Commits | None = None
        """Set it with the bundle."""
        self.left_out: list[str] = []
        """Add to it what can't be had."""

    def taken(self) -> bytes:
        """The bytes of the file that are new since the last call."""
        return self._packer.taken()

    def member(self, name: str) -> "MemberWriter":
        """Begins a member, whose block has to end before the next one. Raises `ValueError`, `TooLargeToArchive`."""
        if self._open:
            raise ValueError(f"{name} can't begin before the member that is written now has ended")
        if place(name) >= place(MANIFEST) or (self._members and place(name) <= place(self._members[-1].name)):
            raise ValueError(f"{name} is not in its place: members come in the order of `place`")
        if (name == EVENTS) != (not self._members):
            raise ValueError("the events come first, and once")
        self._open = True
        return MemberWriter(self, name, self._packer.member(name), self._events if name == EVENTS else None)

    def add(self, name: str, data: bytes) -> None:
        """A whole member. Raises as `member`."""
        with self.member(name) as member:
            member.write(data)

    def ended(self, member: Member) -> None:
        """Its block has ended."""
        if member.size > self._limits.member_max_bytes:
            raise TooLargeToArchive(f"{member.name} is over {self._limits.member_max_bytes} bytes")
        self._members.append(member)
        self._open = False

    def close(self) -> str:
        """Writes the manifest and the end; returns the archive's digest. Raises `TooLargeToArchive`."""
        if self._open or not self._members:
            raise ValueError("an archive has events, and every member's block has ended")
        about = self._about
        manifest = Manifest(
            format=FORMAT,
            plan=about.plan,
            treadle=about.treadle,
            exported_at=about.exported_at,
            parts=about.parts,
            redacted=about.redacted,
            counts=counts_of(self._members, self._events.count),
            first_seq=self._events.first_seq,
            last_seq=self._events.last_seq,
            commits=self.commits,
            left_out=tuple(self.left_out),
            members=tuple(self._members),
            packed_sha256=self._packer.digest,
        )
        encoded = msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n"
        if len(encoded) > self._limits.manifest_max_bytes:
            raise TooLargeToArchive(f"it has too many members: {len(self._members)}")
        self._packer.store(MANIFEST, encoded)
        self._packer.close()
        return sha256(encoded).hexdigest()


class MemberWriter:
    """One member while it is written."""

    def __init__(self, archive: ArchiveWriter, name: str, packer: MemberPacker, lines: EventLines | None) -> None:
        self._archive = archive
        self._name = name
        self._packer = packer
        self._lines = lines

    def write(self, data: bytes) -> None:
        """Some of its contents. Raises `TooLargeToArchive`; `HistoryDamaged` for events that are none."""
        self._packer.write(data)
        if self._lines is not None:
            self._lines.feed(data)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            if self._lines is not None:
                self._lines.end()
            size, digest = self._packer.close()
            self._archive.ended(Member(self._name, size, digest))


class Archive:
    """An archive that was found to be whole. It keeps its file open: what was checked is what is read."""

    def __init__(self, unpacker: Unpacker, manifest: Manifest, digest: str) -> None:
        self._unpacker = unpacker
        self._entries = {entry.name: entry for entry in unpacker.entries}
        self.manifest = manifest
        self.digest = digest
        """SHA-256 of the manifest, in hex: what the exporter was told."""

    @classmethod
    def open(cls, path: Path, limits: Limits = LARGEST) -> Self:
        """Opens a file and checks all of it before anything of it is believed; takes no more memory than its directory.

        Raises `HistoryDamaged`, which says what is wrong and where, and `OSError`.
        """
        file = path.open("rb")
        try:
            unpacker = Unpacker(file, limits)
            manifest, digest = _read_manifest(unpacker, limits)
            _check_members(unpacker, manifest)
            return cls(unpacker, manifest, digest)
        except (NotOurZip, HistoryDamaged) as error:
            file.close()
            raise HistoryDamaged(f"{path.name}: {error}") from error
        except BaseException:
            file.close()
            raise

    def close(self) -> None:
        """It is read no more."""
        self._unpacker.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def plan(self) -> str:
        """The plan's id, as it was where it ran."""
        return self.manifest.plan

    def names(self) -> tuple[str, ...]:
        """Every member but the manifest."""
        return tuple(member.name for member in self.manifest.members)

    def contents(self, name: str) -> Iterator[bytes] | None:
        """A member in pieces; None: there is none of that name. Raises `HistoryDamaged` if the file was changed."""
        entry = self._entries.get(name)
        return self._read(entry) if entry is not None else None

    def event_file(self, directory: Path) -> EventFile:
        """The events as a file of their own in that directory, which the caller removes. Raises `HistoryDamaged`."""
        path = directory / EVENTS
        self._extract(EVENTS, path)
        return EventFile.open(path)

    def leases(self, task: str) -> tuple[int, ...]:
        """Those of a task whose transcripts are here."""
        found = (transcript_of(name) for name in self._entries)
        return tuple(sorted(one[1] for one in found if one is not None and one[0] == task))

    def transcript(self, task: str, lease: int) -> Iterator[bytes] | None:
        """The lines of a lease's transcript, without line ends; None: it is not here."""
        pieces = self.contents(transcript_name(task, lease))
        return _lines(pieces) if pieces is not None else None

    def result(self, task: str) -> Result | None:
        """What a completed task said of itself; None: it is not here. Raises `HistoryDamaged`."""
        name = result_name(task)
        pieces = self.contents(name)
        if pieces is None:
            return None
        try:
            return msgspec.json.decode(b"".join(pieces), type=Result)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise HistoryDamaged(f"{name} is no result: {error}") from error

    def diff(self, task: str) -> bytes | None:
        """What a task changed; None: it is not here."""
        pieces = self.contents(diff_name(task))
        return b"".join(pieces) if pieces is not None else None

    def bundle(self, directory: Path) -> Path | None:
        """The git bundle as a file in that directory, which the caller removes; None: there is none."""
        if BUNDLE not in self._entries:
            return None
        path = directory / BUNDLE
        self._extract(BUNDLE, path)
        return path

    def _extract(self, name: str, path: Path) -> None:
        with path.open("xb") as file:
            for piece in self.contents(name) or ():
                file.write(piece)

    def _read(self, entry: Entry) -> Iterator[bytes]:
        try:
            yield from self._unpacker.contents(entry)
        except NotOurZip as error:
            raise HistoryDamaged(str(error)) from error


def _lines(pieces: Iterator[bytes]) -> Iterator[bytes]:
    rest = b""
    for piece in pieces:
        *whole, rest = (rest + piece).split(b"\n")
        yield from whole
        if len(rest) > LINE_MAX_BYTES:
            raise HistoryDamaged(f"a line is over {LINE_MAX_BYTES} bytes long")
    if rest:
        yield rest


class _Format(msgspec.Struct, frozen=True):
    format: int


def _read_manifest(unpacker: Unpacker, limits: Limits) -> tuple[Manifest, str]:
    entries = unpacker.entries
    if not entries or entries[-1].name != MANIFEST or entries[-1].deflated:
        raise HistoryDamaged(f"it is no archive of Treadle's: it does not end with its {MANIFEST}")
    if entries[-1].size_bytes > limits.manifest_max_bytes:
        raise HistoryDamaged(f"{MANIFEST} is over {limits.manifest_max_bytes} bytes")
    encoded = b"".join(unpacker.contents(entries[-1]))
    try:
        found = msgspec.json.decode(encoded, type=_Format).format
        if found > FORMAT:
            raise HistoryDamaged(f"it was written by a newer Treadle (format {found}, this one knows {FORMAT})")
        return msgspec.json.decode(encoded, type=Manifest), sha256(encoded).hexdigest()
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise HistoryDamaged(f"{MANIFEST} can't be read: {error}") from error


def _check_members(unpacker: Unpacker, manifest: Manifest) -> None:
    """Raises `HistoryDamaged` or `NotOurZip`."""
    if not PLAN_ID.fullmatch(manifest.plan):
        raise HistoryDamaged(f"{MANIFEST} names no plan")
    entries = unpacker.entries[:-1]
    _check_names([entry.name for entry in entries], [member.name for member in manifest.members])
    packed = sha256()
    lines = EventLines(manifest.plan)
    for entry, member in zip(entries, manifest.members, strict=True):
        digest = sha256()
        if not entry.deflated or entry.size_bytes != member.size:
            raise HistoryDamaged(f"member {entry.name} is not of the size that {MANIFEST} says")
        for piece in unpacker.contents(entry, packed):
            digest.update(piece)
            if entry.name == EVENTS:
                lines.feed(piece)
        if digest.hexdigest() != member.sha256:
            raise HistoryDamaged(f"member {entry.name} is not what was exported: its digest is another one")
    lines.end()
    if packed.hexdigest() != manifest.packed_sha256:
        raise HistoryDamaged("the file is not as it was exported: the digest of its packed form is another one")
    counts = counts_of(manifest.members, lines.count)
    if (counts, lines.first_seq, lines.last_seq) != (manifest.counts, manifest.first_seq, manifest.last_seq):
        raise HistoryDamaged(f"{MANIFEST} counts other members or events than there are")
    if (manifest.commits is not None) != any(entry.name == BUNDLE for entry in entries):
        raise HistoryDamaged(f"{MANIFEST} and {BUNDLE} contradict one another")


def _check_names(found: list[str], told: list[str]) -> None:
    if found != told:
        odd = sorted({*found} ^ {*told}) or ["their order"]
        raise HistoryDamaged(f"it does not hold the members that {MANIFEST} names: see {odd[0][:200]!r}")
    last = (-1, "")
    for name in found:
        try:
            here = place(name)
        except ValueError as error:
            raise HistoryDamaged(f"it holds what no archive does: {error}") from error
        if here <= last:
            raise HistoryDamaged(f"member {name} is there twice, or not in its place")
        last = here
    if found[:1] != [EVENTS]:
        raise HistoryDamaged("it holds no events")
