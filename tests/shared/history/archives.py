"""Archives to look at, and such as only somebody with bad intentions makes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec

from shared import events as e
from shared.history.archive import ArchiveWriter
from shared.history.archive_format import (
    BUNDLE,
    EVENTS,
    FORMAT,
    MANIFEST,
    About,
    Commits,
    Counts,
    Manifest,
    Member,
    diff_name,
    result_name,
    transcript_name,
)
from shared.history.event_file import EventFile
from shared.history.packing import LARGEST, Limits, Packer
from shared.store import Meta, Recorded, recorded
from shared.subjects import PLAN, Address

PLAN_ID = "pabcdefghijkl"
WHEN = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
ABOUT = About(plan=PLAN_ID, treadle="0.1.0", exported_at=WHEN)
RESULT = e.Result(task_code="T1", summary="written", artifacts=("a.txt",))
DIFF = b"--- a/a.txt\n+++ b/a.txt\n@@ -1 +1 @@\n-one\n+two\n"
TRANSCRIPT = b'{"kind":"text","text":"I read"}\n{"kind":"text","text":"I wrote"}\n'
COMMITS = Commits(base="1" * 40, heads=(e.Head("T1", "2" * 40),))
PACK = b"# v2 git bundle\n" + bytes(range(256))


def record(seq: int, event: e.Event, entity: str = PLAN, plan: str = PLAN_ID, **meta: Any) -> Recorded:
    """The event as the log would have it."""
    about = Meta(**{"actor": "user:ann", "command": "X", "command_id": f"c{seq}", **meta})
    address = Address(plan, entity, event.name.partition(".")[2])
    return recorded(seq, WHEN + timedelta(seconds=seq), address, event.version, e.encode(event), about)


RECORDS = (
    record(3, e.PlanPaused(reason="lunch")),
    record(7, e.TaskMarkedComplete(note="by hand"), "T1"),
    record(8, e.PlanResumed()),
)


def lines(directory: Path, records: Iterable[Recorded]) -> bytes:
    """What `events.jsonl` holds of these."""
    path = directory / "lines.jsonl"
    with EventFile.create(path, PLAN_ID) as file:
        for each in records:
            file.append(each)
    text = path.read_bytes()
    path.unlink()
    return text


def whole(directory: Path, about: About = ABOUT, limits: Limits = LARGEST) -> tuple[bytes, str]:
    """An archive with one member of each kind, and its digest."""
    writer = ArchiveWriter(about, limits)
    writer.add(EVENTS, lines(directory, RECORDS))
    writer.add(result_name("T1"), msgspec.json.encode(RESULT))
    writer.add(diff_name("T1"), DIFF)
    writer.add(transcript_name("T1", 2), TRANSCRIPT)
    writer.add(BUNDLE, PACK)
    writer.commits = COMMITS
    writer.left_out.append("the transcript of T2 was kept for 7 days only")
    digest = writer.close()
    return writer.taken(), digest


def forged(contents: Sequence[tuple[str, bytes]], stored: Sequence[str] = (), **manifest: Any) -> bytes:
    """An archive of any members, with a manifest that fits but for what is said otherwise."""
    packer, told = Packer(LARGEST), []
    for name, data in contents:
        if name in stored:
            packer.store(name, data)
        else:
            member = packer.member(name)
            member.write(data)
            member.close()
        told.append(Member(name, len(data), sha256(data).hexdigest()))
    kinds = [name.partition("/")[0] for name, _ in contents]
    events = dict(contents).get(EVENTS, b"")
    fitting = Manifest(
        format=FORMAT, plan=PLAN_ID, treadle="0.1.0", exported_at=WHEN, first_seq=3, last_seq=8, members=tuple(told),
        packed_sha256=packer.digest, commits=COMMITS if BUNDLE in kinds else None,
        counts=Counts(
            events=events.count(b"\n"), results=kinds.count("results"), diffs=kinds.count("diffs"),
            transcripts=kinds.count("transcripts"),
        ),
    )  # fmt: skip
    encoded = msgspec.json.encode(msgspec.to_builtins(fitting) | msgspec.to_builtins(manifest))
    packer.store(MANIFEST, encoded)
    packer.close()
    return packer.taken()
