"""A plan's events in a file: what is written is read again, byte for byte, and what was damaged is refused."""

import threading
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared import events as e
from shared.history import event_file
from shared.history.event_file import EventFile, HistoryDamaged
from shared.store import Recorded
from shared.subjects import PLAN
from tests.shared.history.worlds import Story, changed, simulated, written

HOSTILE_BODIES = [
    b"",
    b"not JSON",
    b"{",
    b'{"a": 1}',
    b' {"reason":"x"}',
    b'{"reason":\n"x"}',
    b'{"reason":"x"}\n',
    b'{"reason":"\xff\xfe"}',
    b'{"unknown":"\xff"}',
    b"null",
    b"\x00" * 10,
    b'{"reason":"x"},"seq":1',
    b"], [",
    b'{"unknown":' + b"[" * 900 + b"]" * 900 + b"}",
    b'{"unknown":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001,
    '{"reason":"\u2028 \u202e ünï"}'.encode(),
    b'{"reason":"' + b"long " * 200_000 + b'"}',
]


def _same(a: Recorded, b: Recorded) -> None:
    assert changed(a, fault="") == changed(b, fault="")
    assert bool(a.fault) == bool(b.fault)


@pytest.mark.parametrize("seed", range(3))
def test_what_is_written_is_read_again_whoever_opens_it(seed: int, tmp_path: Path) -> None:
    for plan, records in simulated(seed).items():
        path = tmp_path / f"{plan}.jsonl"
        with written(records, path) as file:
            assert list(file.read()) == records
        with EventFile.open(path) as again:
            assert list(again.read()) == records
            assert (again.plan, len(again)) == (plan, len(records))
            assert (again.first_seq, again.last_seq) == (records[0].seq, records[-1].seq)
            assert again.size_bytes == path.stat().st_size


@pytest.mark.parametrize("body", HOSTILE_BODIES, ids=range(len(HOSTILE_BODIES)))
def test_a_body_is_kept_byte_for_byte_whatever_it_is(body: bytes, tmp_path: Path) -> None:
    story = Story()
    story.put(PLAN, "paused", body)
    story.tell(PLAN, e.PlanResumed())
    written(story.records, tmp_path / "f").close()
    with EventFile.open(tmp_path / "f") as file:
        for found, told in zip(file.read(), story.records, strict=True):
            _same(found, told)
    assert (tmp_path / "f").read_bytes().count(b"\n") == 2


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(max_size=60) | st.text('{}[]",:\n a1', max_size=30).map(str.encode), min_size=1, max_size=5))
def test_no_body_can_break_its_line(bodies: list[bytes]) -> None:
    story = Story()
    for body in bodies:
        story.put(PLAN, "paused", body)
    lines = [event_file.line_of(record) for record in story.records]
    assert all(line.endswith(b"\n") and line.count(b"\n") == 1 for line in lines)
    assert [event_file._read_line(Path("f"), 1, line).seq for line in lines] == [r.seq for r in story.records]


def test_reading_begins_where_it_is_asked_to_and_ends_at_the_limit(tmp_path: Path) -> None:
    records = next(iter(simulated(0).values()))
    with written(records, tmp_path / "f") as file:
        for after in (0, records[0].seq, records[3].seq + 0, records[-1].seq, 2**53):
            for limit in (None, 0, 1, 5):
                expected = [r for r in records if r.seq > after][:limit]
                assert list(file.read(after, limit)) == expected


def test_one_entity_is_read_alone_even_where_another_one_speaks_of_it(tmp_path: Path) -> None:
    story = Story()
    story.finalize()
    story.tell("B", e.TaskAbandoned(note='"entity":"A"'))
    story.tell("A", e.TaskAbandoned())
    with written(story.records, tmp_path / "f") as file:
        for entity in ("A", "B", PLAN, "none"):
            assert list(file.read(entity=entity)) == [r for r in story.records if r.entity == entity]
        assert [r.type for r in file.read(entity="A", limit=1)] == ["planned"]


def test_events_that_are_appended_while_others_are_read_belong_to_the_next_reading(tmp_path: Path) -> None:
    records = next(iter(simulated(0).values()))
    with written(records[:5], tmp_path / "f") as file:
        reading = file.read()
        assert next(reading) == records[0]
        file.append(records[5])
        assert list(reading) == records[1:5]
        assert list(file.read()) == records[:6]


def test_many_threads_may_read_while_one_appends(tmp_path: Path) -> None:
    records = [record for plan in simulated(1).values() for record in plan]
    records = [changed(record, plan="paaaaaaaaaaaa", seq=i) for i, record in enumerate(records, start=1)] * 1
    file = EventFile.create(tmp_path / "f", "paaaaaaaaaaaa")
    faults: list[str] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            found = list(file.read())
            if found != records[: len(found)]:
                faults.append(f"{len(found)} events are not those that were written")

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for record in records:
        file.append(record)
    done.set()
    for reader in readers:
        reader.join()
    assert not faults
    assert list(file.read()) == records


def test_another_plans_event_or_an_older_one_is_not_taken(tmp_path: Path) -> None:
    records = next(iter(simulated(0).values()))
    with written(records[:3], tmp_path / "f") as file:
        with pytest.raises(ValueError, match="is of plan pother"):
            file.append(changed(records[3], plan="potherotherot"))
        with pytest.raises(ValueError, match="can't come after"):
            file.append(records[2])
        assert list(file.read()) == records[:3]


def test_a_file_that_is_there_is_not_begun_anew(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("somebody's")
    with pytest.raises(FileExistsError):
        EventFile.create(tmp_path / "f", "paaaaaaaaaaaa")
    assert (tmp_path / "f").read_text() == "somebody's"


def test_a_time_is_found_between_and_outside_of_the_events(tmp_path: Path) -> None:
    story = Story()
    story.finalize()
    times = [record.time for record in story.records]
    with written(story.records, tmp_path / "f") as file:
        assert file.seq_at(times[0] - timedelta(microseconds=1)) == 0
        for record in story.records:
            assert file.seq_at(record.time) == record.seq
            assert file.seq_at(record.time + timedelta(seconds=9)) == record.seq
            assert file.time_of(record.seq) == file.time_of(record.seq + 9) == record.time
        assert file.seq_at(times[-1] + timedelta(days=999)) == story.records[-1].seq
        with pytest.raises(LookupError):
            file.time_of(story.records[0].seq - 1)


def test_a_removed_file_goes_on_being_read_and_written(tmp_path: Path) -> None:
    records = next(iter(simulated(0).values()))
    with written(records[:3], tmp_path / "f") as file:
        (tmp_path / "f").unlink()
        file.append(records[3])
        assert list(file.read()) == records[:4]


def _damages() -> dict[str, tuple[bytes, str]]:
    story = Story()
    story.finalize()
    lines = [event_file.line_of(record) for record in story.records]
    whole = b"".join(lines)
    other = event_file.line_of(changed(story.records[1], plan="potherotherot"))
    return {
        "nothing in it": (b"", "holds no event"),
        "a torn last line": (whole[:-7], "line 6: the file is cut off"),
        "a missing line end": (whole[:-1], "line 6: the file is cut off"),
        "no history at all": (b"hello\n", "line 1 is no event"),
        "a line that is no JSON": (lines[0] + b"{]\n" + lines[1], "line 2 is no event"),
        "a line without a time": (lines[0] + lines[1].replace(b'"time"', b'"tame"'), "line 2 is no event"),
        "another plan": (lines[0] + other, "line 2: an event of plan potherotherot"),
        "an event twice": (lines[0] + lines[0], "line 2: event 10 comes after 10"),
        "an event before another": (lines[1] + lines[0], "line 2: event 10 comes after 20"),
        "no body": (lines[0] + lines[5].replace(b'"body":{"digest":"d"}', b'"version":1'), "neither"),
        "two bodies": (lines[0] + lines[5].replace(b'"body":{"digest":"d"}', b'"body":{},"bytes":""'), "not both"),
        "endless nesting": (lines[0] + b'{"meta":' + b"[" * 500_000 + b"\n", "line 2 is no event"),
        "no text": (lines[0] + b"\xff\xfe\n", "line 2 is no event"),
    }


@pytest.mark.parametrize("damage", list(_damages()))
def test_a_damaged_file_is_refused_and_the_line_is_named(damage: str, tmp_path: Path) -> None:
    content, message = _damages()[damage]
    (tmp_path / "f").write_bytes(content)
    with pytest.raises(HistoryDamaged, match=message):
        EventFile.open(tmp_path / "f")


def test_a_file_that_is_cut_off_while_it_is_open_is_noticed(tmp_path: Path) -> None:
    records = next(iter(simulated(0).values()))
    with written(records, tmp_path / "f") as file:
        list(file.read())
        with (tmp_path / "f").open("r+b") as other:
            other.truncate(file.size_bytes // 2)
        with pytest.raises(HistoryDamaged, match="cut off"):
            list(file.read())
