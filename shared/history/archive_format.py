"""What a `.treadle` file is made of: the names of its members, its manifest, the order of its events."""

import re
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Literal

import msgspec

from shared.events import Head
from shared.history.event_file import SEQ_MAX, HistoryDamaged
from shared.requests import Unfinished

FORMAT = 1
SUFFIX = ".treadle"
EVENTS = "events.jsonl"
BUNDLE = "commits.bundle"
MANIFEST = "manifest.json"
LINE_MAX_BYTES = 16 * 1024 * 1024
"""Of an event or of a transcript's entry: what NATS carries, and what JSON makes of it."""


Parts = Literal["events", "all"]

_TASK = "(?P<task>_deliver|_draft-[1-9][0-9]?|[A-Za-z0-9][A-Za-z0-9_-]{0,62})"
_ENTITY = re.compile(f"_plan|{_TASK}")
_TYPE = re.compile("[a-z_]{1,64}")
_KINDS = tuple(
    re.compile(pattern)
    for pattern in (
        re.escape(EVENTS),
        rf"results/{_TASK}\.json",
        rf"diffs/{_TASK}\.diff",
        rf"transcripts/{_TASK}-(?P<lease>[1-9][0-9]{{0,8}})\.jsonl",
        re.escape(BUNDLE),
        re.escape(MANIFEST),
    )
)
"""Every name that a member may have: nothing else is read, so no name leads out of any directory."""


class Member(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file in the archive."""

    name: str
    size: int
    sha256: str


class Counts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How many of each there are."""

    events: int = 0
    results: int = 0
    diffs: int = 0
    transcripts: int = 0


class Commits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What the bundle holds."""

    base: str
    heads: tuple[Head, ...] = ()
    """Under their refs `refs/treadle/<plan>/<task>/head`; the plan's branch has the task `_deliver`."""
    unfinished: tuple[Unfinished, ...] = ()
    """What attempts left that did not come to their end, under their refs `refs/treadle/<plan>/<task>/<lease>-wip`."""
    complete: bool = True
    """False: it begins after `base`, which whoever takes the commits must have already."""


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What the archive is, and all that is in it."""

    format: int
    plan: str
    treadle: str
    """Version of the Treadle that wrote it."""
    exported_at: datetime
    parts: Parts = "all"
    """`events`: nothing else was asked for."""
    redacted: bool = False
    counts: Counts
    first_seq: int
    last_seq: int
    """Of the log, of the last event that is in here."""
    commits: Commits | None = None
    left_out: tuple[str, ...] = ()
    """What was asked for and could not be had, in words for people."""
    members: tuple[Member, ...]
    packed_sha256: str
    """Of the file, from its first byte to where the manifest begins."""


class About(msgspec.Struct, frozen=True, kw_only=True):
    """What the writer can't know by itself."""

    plan: str
    treadle: str
    exported_at: datetime
    parts: Parts = "all"
    redacted: bool = False


def result_name(task: str) -> str:
    """The member that holds a task's result."""
    return f"results/{task}.json"


def diff_name(task: str) -> str:
    """The member that holds what a task changed."""
    return f"diffs/{task}.diff"


def transcript_name(task: str, lease: int) -> str:
    """The member that holds what an agent did under a lease: one JSON object in each line."""
    return f"transcripts/{task}-{lease}.jsonl"


def transcript_of(name: str) -> tuple[str, int] | None:
    """The task and the lease whose transcript a member is; None where it is none."""
    found = _KINDS[3].fullmatch(name)
    return (found["task"], int(found["lease"])) if found else None


def place(name: str) -> tuple[int, str]:
    """Where a member stands among the others. Raises `ValueError` for a name that none may have."""
    for number, pattern in enumerate(_KINDS):
        if pattern.fullmatch(name):
            return number, name
    raise ValueError(f"{name!r} is not a name that a member may have")


class _Line(msgspec.Struct, frozen=True):
    seq: Annotated[int, msgspec.Meta(ge=1, le=SEQ_MAX)]
    plan: str
    entity: str
    type: str


class EventLines:
    """Looks at the lines of `events.jsonl` as they pass: whose they are, and in which order."""

    def __init__(self, plan: str) -> None:
        self._plan = plan
        self._rest = bytearray()
        self.count = 0
        self.first_seq = 0
        self.last_seq = 0

    def feed(self, data: bytes) -> None:
        """Some more of them. Raises `HistoryDamaged`."""
        start = 0
        while (newline := data.find(b"\n", start)) >= 0:
            self._look(bytes(self._rest) + data[start:newline])
            self._rest.clear()
            start = newline + 1
        self._rest += data[start:]
        if len(self._rest) > LINE_MAX_BYTES:
            raise self._damaged(f"is over {LINE_MAX_BYTES} bytes long")

    def end(self) -> None:
        """No more come. Raises `HistoryDamaged`."""
        if self._rest:
            raise self._damaged("is torn: its end is missing")

    def _look(self, line: bytes) -> None:
        try:
            found = msgspec.json.decode(line, type=_Line)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise self._damaged(f"is no event: {error}") from error
        if found.plan != self._plan:
            raise self._damaged(f"is an event of another plan than {self._plan}")
        if not _ENTITY.fullmatch(found.entity) or not _TYPE.fullmatch(found.type):
            raise self._damaged("is an event of something that no plan has")
        if found.seq <= self.last_seq:
            raise self._damaged(f"has sequence {found.seq}, which should come after {self.last_seq}")
        self.count += 1
        self.first_seq = self.first_seq or found.seq
        self.last_seq = found.seq

    def _damaged(self, what: str) -> HistoryDamaged:
        return HistoryDamaged(f"{EVENTS}: line {self.count + 1} {what}")


def counts_of(members: Sequence[Member], events: int) -> Counts:
    """How many of each kind there are."""
    kinds = [place(member.name)[0] for member in members]
    return Counts(events=events, results=kinds.count(1), diffs=kinds.count(2), transcripts=kinds.count(3))
