"""The `.treadle` file: what was written is read back, and nothing else is believed."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared import events as e
from shared.history.archive import Archive, ArchiveWriter
from shared.history.archive_format import BUNDLE, EVENTS, FORMAT, MANIFEST, Member, transcript_name
from shared.history.archive_store import ArchiveStore, ReadOnly
from shared.history.event_file import HistoryDamaged
from shared.history.packing import LARGEST, MEBIBYTE, Limits, TooLargeToArchive
from shared.subjects import PLAN
from tests.shared.history.archives import (
    ABOUT,
    COMMITS,
    DIFF,
    PACK,
    PLAN_ID,
    RECORDS,
    RESULT,
    TRANSCRIPT,
    forged,
    lines,
    record,
    whole,
)

same_file = settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@pytest.fixture
def data(tmp_path: Path) -> bytes:
    return whole(tmp_path)[0]


def opened(directory: Path, data: bytes, limits: Limits = LARGEST) -> Archive:
    path = directory / "x.treadle"
    path.write_bytes(data)
    return Archive.open(path, limits)


def refusal(directory: Path, data: bytes, limits: Limits = LARGEST) -> str:
    with pytest.raises(HistoryDamaged) as caught:
        opened(directory, data, limits).close()
    return str(caught.value)


# What was written ------------------------------------------------------------------------------------------------


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    data, digest = whole(tmp_path)
    with opened(tmp_path, data) as archive:
        assert archive.digest == digest
        assert archive.plan == PLAN_ID
        manifest = archive.manifest
        assert (manifest.format, manifest.treadle, manifest.exported_at) == (FORMAT, "0.1.0", ABOUT.exported_at)
        assert (manifest.parts, manifest.redacted, manifest.commits) == ("all", False, COMMITS)
        assert (manifest.first_seq, manifest.last_seq) == (3, 8)
        assert msgspec.structs.asdict(manifest.counts) == {"events": 3, "results": 1, "diffs": 1, "transcripts": 1}
        assert manifest.left_out == ("the transcript of T2 was kept for 7 days only",)
        assert tuple(archive.event_file(tmp_path).read()) == RECORDS
        assert (archive.result("T1"), archive.diff("T1"), archive.leases("T1")) == (RESULT, DIFF, (2,))
        assert list(archive.transcript("T1", 2) or ()) == TRANSCRIPT.splitlines()
        bundle = archive.bundle(tmp_path)
        assert bundle is not None and bundle.read_bytes() == PACK


def test_what_is_not_there_is_none(tmp_path: Path, data: bytes) -> None:
    with opened(tmp_path, data) as archive:
        assert (archive.result("T2"), archive.diff("T2"), archive.transcript("T1", 1)) == (None, None, None)
        assert archive.leases("T2") == ()
    with opened(tmp_path, forged([(EVENTS, lines(tmp_path, RECORDS))])) as archive:
        assert archive.bundle(tmp_path) is None


def test_the_same_contents_make_the_same_file(tmp_path: Path) -> None:
    assert whole(tmp_path) == whole(tmp_path)


def test_any_zip_program_opens_it(tmp_path: Path, data: bytes) -> None:
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        assert file.testzip() is None
        assert file.namelist()[0] == EVENTS and file.namelist()[-1] == MANIFEST
        assert file.read(EVENTS) == lines(tmp_path, RECORDS)
        assert file.read("diffs/T1.diff") == DIFF


def test_more_members_than_an_old_zip_can_count_are_read_too(tmp_path: Path) -> None:
    writer = ArchiveWriter(ABOUT)
    writer.add(EVENTS, lines(tmp_path, RECORDS))
    for number in range(65_600):
        writer.add(f"diffs/T{number:05}.diff", b"")
    writer.close()
    data = writer.taken()
    with opened(tmp_path, data) as archive:
        assert archive.manifest.counts.diffs == 65_600
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        assert len(file.namelist()) == 65_602
    assert "end is missing" in refusal(tmp_path, data[:-22] + b"PK\5\6" + data[-18:].replace(b"\xff", b"\xfe", 1))


def test_members_have_their_places(tmp_path: Path) -> None:
    writer = ArchiveWriter(ABOUT)
    with pytest.raises(ValueError, match="events come first"):
        writer.add("diffs/T1.diff", b"")
    writer.add(EVENTS, lines(tmp_path, RECORDS))
    writer.add("results/T2.json", b"{}")
    for name in ("results/T1.json", "results/T2.json", MANIFEST, "../x", EVENTS):
        with pytest.raises(ValueError):
            writer.add(name, b"")
    with writer.member("diffs/T1.diff"), pytest.raises(ValueError, match="has ended"):
        writer.member("diffs/T2.diff")


def test_an_event_of_another_plan_is_not_even_written(tmp_path: Path) -> None:
    writer = ArchiveWriter(msgspec.structs.replace(ABOUT, plan="pzzzzzzzzzzzz"))
    with pytest.raises(HistoryDamaged, match="another plan"):
        writer.add(EVENTS, lines(tmp_path, RECORDS))


# Damage ----------------------------------------------------------------------------------------------------------


def test_every_byte_of_the_file_counts(tmp_path: Path, data: bytes) -> None:
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= 1 << (place % 8)
        assert refusal(tmp_path, bytes(changed)).startswith("x.treadle: ")


@same_file
@given(more=st.data())
def test_no_change_of_any_bytes_is_believed(tmp_path: Path, data: bytes, more: st.DataObject) -> None:
    start = more.draw(st.integers(0, len(data)))
    end = more.draw(st.integers(start, min(len(data), start + 50)))
    instead = more.draw(st.binary(max_size=50) | st.sampled_from([data[:30], data[-22:], data[end : end + 40]]))
    changed = data[:start] + instead + data[end:]
    if changed != data:
        refusal(tmp_path, changed)


def test_a_file_that_was_cut_off_anywhere_is_refused(tmp_path: Path, data: bytes) -> None:
    for length in range(len(data)):
        refusal(tmp_path, data[:length])
    assert "not written or sent to its end" in refusal(tmp_path, data[:-1])


def test_a_file_changed_after_it_was_checked_is_found_out(tmp_path: Path, data: bytes) -> None:
    with opened(tmp_path, data) as archive:
        (tmp_path / "x.treadle").write_bytes(b"x" * len(data))
        with pytest.raises(HistoryDamaged):
            list(archive.transcript("T1", 2) or ())


@pytest.mark.parametrize("member", ["", EVENTS, "results/T1.json", "transcripts/T1-2.jsonl", BUNDLE])
def test_the_same_members_packed_by_another_program_are_refused(tmp_path: Path, data: bytes, member: str) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file:
        for name in source.namelist():
            file.writestr(name, source.read(name).replace(b"T1", b"T7") if name == member else source.read(name))
    refusal(tmp_path, packed.getvalue())


# Bad intentions: everything fits, but for one thing --------------------------------------------------------------


def good(tmp_path: Path) -> list[tuple[str, bytes]]:
    return [(EVENTS, lines(tmp_path, RECORDS)), ("results/T1.json", msgspec.json.encode(RESULT))]


def test_a_forged_archive_in_which_everything_fits_is_read(tmp_path: Path) -> None:
    opened(tmp_path, forged(good(tmp_path))).close()


@pytest.mark.parametrize(
    "name",
    ["../x", "/etc/passwd", "results/../../x.json", "results/a/b.json", "x", "results/T1.JSON", "diffs/.diff",
     "results/T1.json\n", "transcripts/T1-0.jsonl", "transcripts/T1.jsonl", "results\\T1.json", "commits.bundle/"],
)  # fmt: skip
def test_a_member_of_no_known_name_is_refused(tmp_path: Path, name: str) -> None:
    assert "not a name that a member may have" in refusal(tmp_path, forged([*good(tmp_path), (name, b"x")]))


def test_a_member_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    assert "there twice" in refusal(tmp_path, forged([*good(tmp_path), good(tmp_path)[-1]]))


def test_a_manifest_that_names_other_members_is_refused(tmp_path: Path) -> None:
    words = refusal(tmp_path, forged([*good(tmp_path), ("diffs/T9.diff", b"x")], members=[]))
    assert "does not hold the members" in words


def test_a_member_that_is_not_deflated_is_refused(tmp_path: Path) -> None:
    assert "member results/T1.json" in refusal(tmp_path, forged(good(tmp_path), stored=["results/T1.json"]))


@pytest.mark.parametrize(
    ("records", "words"),
    [
        ([RECORDS[1], RECORDS[0]], "line 2 has sequence 3, which should come after 7"),
        ([RECORDS[0], RECORDS[0]], "line 2 has sequence 3"),
        ([record(3, e.PlanPaused(), plan="pzzzzzzzzzzzz")], "line 1 is an event of another plan"),
        ([record(3, e.TaskAbandoned(), "../../T1")], "line 1 is an event of something that no plan has"),
    ],
)
def test_events_that_are_not_this_plans_history_are_refused(tmp_path: Path, records: Any, words: str) -> None:
    text = b"".join(lines_of_any(one) for one in records)
    assert words in refusal(tmp_path, forged([(EVENTS, text)]))


def lines_of_any(one: Any) -> bytes:
    """A line that no event file would take."""
    told = {"seq": one.seq, "time": one.time, "plan": one.plan, "entity": one.entity, "type": one.type,
            "meta": one.meta, "body": msgspec.Raw(one.body)}  # fmt: skip
    return msgspec.json.encode(told) + b"\n"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text[:-1], "line 3 is torn"),
        (lambda text: text + b"{}\n", "line 4 is no event"),
        (lambda text: text + b"\n", "line 4 is no event"),
        (lambda text: text + b"[" * 100_000 + b"\n", "line 4 is no event"),
        (lambda text: text.replace(b'"seq":8', b'"seq":99999999999999999999'), "line 3 is no event"),
        (lambda text: text.replace(b'"seq":8', b'"seq":9'), "counts other members or events"),
        (lambda text: b"", "counts other members or events"),
    ],
)
def test_lines_that_are_no_events_are_refused(tmp_path: Path, change: Callable[[bytes], bytes], words: str) -> None:
    assert words in refusal(tmp_path, forged([(EVENTS, change(lines(tmp_path, RECORDS)))]))


def test_a_line_without_an_end_is_not_collected_in_memory(tmp_path: Path) -> None:
    words = refusal(tmp_path, forged([(EVENTS, b'"' + b"x" * (17 * MEBIBYTE))]))
    assert "line 1 is over" in words


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": FORMAT + 1}, "written by a newer Treadle"),
        ({"format": "x"}, "manifest.json can't be read"),
        ({"more": 1}, "manifest.json can't be read"),
        ({"plan": "../x"}, "names no plan"),
        ({"plan": "pzzzzzzzzzzzz"}, "another plan"),
        ({"last_seq": 9}, "counts other members or events"),
        ({"counts": {"events": 4}}, "counts other members or events"),
        ({"packed_sha256": "0" * 64}, "its packed form"),
        ({"commits": COMMITS}, "contradict one another"),
        ({"members": [Member(EVENTS, 1, "0" * 64), Member("results/T1.json", 2, "0" * 64)]}, "not of the size"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    assert words in refusal(tmp_path, forged(good(tmp_path), **change))


def test_another_digest_of_a_member_is_refused(tmp_path: Path) -> None:
    text = lines(tmp_path, RECORDS)
    told = [Member(EVENTS, len(text), "0" * 64)]
    assert "its digest is another one" in refusal(tmp_path, forged([(EVENTS, text)], members=told))


def test_an_archive_without_events_is_none(tmp_path: Path) -> None:
    assert "it holds no events" in refusal(tmp_path, forged([("diffs/T1.diff", b"")]))


# Bombs -----------------------------------------------------------------------------------------------------------


def bomb(size_bytes: int, told_bytes: int | None = None) -> bytes:
    """Zeros as the only member, with what the directory says of their size."""
    claimed = bytes(told_bytes or 0)
    data = forged([(EVENTS, claimed)])
    packed = zlib.compress(bytes(size_bytes), 9, -15)
    small = zlib.compress(claimed, 6, -15)
    crc, told = zlib.crc32(bytes(size_bytes)), told_bytes if told_bytes is not None else size_bytes
    begin = data.index(b"PK\7\x08")
    after = struct.pack("<4s3I", b"PK\7\x08", crc, len(packed), told)
    data = data[: begin - len(small)] + packed + after + data[begin + 16 :]
    grown = len(packed) - len(small)
    first = data.index(b"PK\1\2")
    second = data.index(b"PK\1\2", first + 1)
    changed = bytearray(data)
    struct.pack_into("<3I", changed, first + 16, crc, len(packed), told)
    struct.pack_into("<I", changed, second + 42, struct.unpack_from("<I", data, second + 42)[0] + grown)
    struct.pack_into("<I", changed, len(data) - 6, first)
    return bytes(changed)


def test_what_unpacks_to_a_thousand_times_its_size_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    assert "packed more densely" in refusal(tmp_path, bomb(64 * MEBIBYTE))


def test_a_bomb_that_says_it_is_small_is_unpacked_no_further_than_it_says(tmp_path: Path) -> None:
    data = bomb(64 * MEBIBYTE, told_bytes=10)
    tracemalloc.start()
    words = refusal(tmp_path, data)
    assert tracemalloc.get_traced_memory()[1] < 4 * MEBIBYTE
    tracemalloc.stop()
    assert "not those that the file's directory tells of" in words


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (Limits(file_max_bytes=100), "over the 0 MiB that are read"),
        (Limits(members_max=3), "members, over the 3 that are read"),
        (Limits(member_max_bytes=10), "MiB unpacked"),
        (Limits(contents_max_bytes=10), "MiB unpacked"),
        (Limits(manifest_max_bytes=10), "manifest.json is over 10 bytes"),
    ],
)
def test_what_is_over_a_limit_is_refused_and_not_written(
    tmp_path: Path, data: bytes, limits: Limits, words: str
) -> None:
    assert words in refusal(tmp_path, data, limits)
    with pytest.raises(TooLargeToArchive):
        whole(tmp_path, limits=limits)


def test_what_packs_as_densely_as_a_bomb_is_written_so_that_it_can_be_read_again(tmp_path: Path) -> None:
    writer = ArchiveWriter(ABOUT)
    writer.add(EVENTS, lines(tmp_path, RECORDS))
    with writer.member(transcript_name("T1", 1)) as member:
        for _ in range(80):
            member.write(b"no \n" * (MEBIBYTE // 4))
    writer.close()
    data = writer.taken()
    assert len(data) < 2 * MEBIBYTE
    with opened(tmp_path, data) as archive:
        assert sum(len(piece) for piece in archive.contents("transcripts/T1-1.jsonl") or ()) == 80 * MEBIBYTE


def test_a_large_archive_takes_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "x.treadle"
    words = bytes((at * at + at // 7) % 251 for at in range(MEBIBYTE - 1)) + b"\n"
    events = lines(tmp_path, RECORDS)
    tracemalloc.start()
    writer = ArchiveWriter(ABOUT)
    with path.open("wb") as file:
        writer.add(EVENTS, events)
        with writer.member(BUNDLE) as member:
            for _ in range(40):
                member.write(words)
                file.write(writer.taken())
        writer.commits = COMMITS
        writer.close()
        file.write(writer.taken())
    with Archive.open(path) as archive:
        assert archive.bundle(tmp_path) is not None
    assert tracemalloc.get_traced_memory()[1] < 8 * MEBIBYTE
    tracemalloc.stop()
    assert (tmp_path / BUNDLE).stat().st_size == 40 * MEBIBYTE


# As an event store -----------------------------------------------------------------------------------------------


async def test_an_archive_takes_no_event(tmp_path: Path, data: bytes) -> None:
    with opened(tmp_path, data) as archive:
        store = ArchiveStore(archive.event_file(tmp_path))
    with pytest.raises(ReadOnly, match="was imported"):
        await store.append(PLAN_ID, PLAN, e.PlanPaused(), RECORDS[0].meta, expected=8)
    assert await store.read(PLAN_ID) == list(RECORDS)


async def test_following_an_archive_ends_where_it_ends(tmp_path: Path, data: bytes) -> None:
    with opened(tmp_path, data) as archive:
        store = ArchiveStore(archive.event_file(tmp_path))
    batches = [batch async for batch in store.follow(after=3)]
    assert [r.seq for batch in batches for r in batch.events] == [7, 8]
    assert batches[-1].caught_up
