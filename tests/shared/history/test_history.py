"""A plan at any of its moments is what a plain fold of its events up to there makes of it, however it is asked for."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from random import Random

import pytest

from shared import events as e
from shared.board import Board
from shared.history import history as histories
from shared.history import moment as moments
from shared.history.event_file import EventFile
from shared.history.history import History, NoSuchMoment
from shared.history.times import begin_of, end_of
from shared.store import Recorded
from shared.subjects import PLAN
from tests.shared.history.worlds import Folded, Story, shown, simulated, written


@pytest.fixture
def few_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """So close together, and so few, that a small plan makes them double several times."""
    monkeypatch.setattr(histories, "SPACING_MIN", 3)
    monkeypatch.setattr(histories, "SNAPSHOTS_MAX", 4)


@contextmanager
def counted() -> Iterator[list[int]]:
    """The sequences of the events that are folded meanwhile."""
    folded: list[int] = []
    apply = moments.apply

    def noting(board: Board, facts: moments.Facts, record: Recorded) -> None:
        folded.append(record.seq)
        apply(board, facts, record)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(moments, "apply", noting)
        yield folded


def _assert_is_as_folded(history: History, records: list[Recorded], place: int) -> None:
    expected = Folded(records[: place + 1])
    seq = records[place].seq
    assert shown(history.board_at(seq)) == shown(expected.board)
    assert history.moment(seq) == expected.moment


@pytest.mark.usefixtures("few_copies")
@pytest.mark.parametrize("seed", range(12))
def test_every_moment_is_as_a_fresh_fold_makes_it_whatever_the_order_of_asking(seed: int, tmp_path: Path) -> None:
    rng = Random(seed)  # noqa: S311 - an order that can be made again is the point
    for plan, records in simulated(seed).items():
        with written(records, tmp_path / f"{seed}-{plan}") as file:
            history = History(file)
            if seed % 2:
                history.extend()
            places = list(range(len(records)))
            rng.shuffle(places)
            for place in places:
                _assert_is_as_folded(history, records, place)
            assert len(history._snapshots) <= 4


@pytest.mark.usefixtures("few_copies")
@pytest.mark.parametrize("seed", range(12, 18))
def test_a_history_that_grows_while_it_is_asked_is_right_at_every_moment(seed: int, tmp_path: Path) -> None:
    rng = Random(seed)  # noqa: S311 - an order that can be made again is the point
    for plan, records in simulated(seed).items():
        with EventFile.create(tmp_path / f"{seed}-{plan}", plan) as file:
            history = History(file)
            for count, record in enumerate(records, start=1):
                file.append(record)
                if rng.random() < 0.3:
                    history.extend()
                if rng.random() < 0.3:
                    _assert_is_as_folded(history, records, rng.randrange(count))
            _assert_is_as_folded(history, records, len(records) - 1)


@pytest.mark.usefixtures("few_copies")
def test_a_board_that_was_given_out_may_be_changed_and_nobody_else_feels_it(tmp_path: Path) -> None:
    for plan, records in simulated(3).items():
        with written(records, tmp_path / plan) as file:
            history = History(file)
            for _ in range(2):
                for place, record in enumerate(records):
                    board = history.board_at(record.seq)
                    assert shown(board) == shown(Folded(records[: place + 1]).board)
                    board.wake(record.time + timedelta(days=1))
                    for code in board.take_ready():
                        board.give_back(code)
                    board.take_ready()
                    for later in records[place + 1 : place + 4]:
                        assert later.event is not None
                        board.apply(later.entity, later.event, later.seq)


def test_several_threads_may_ask_at_once(tmp_path: Path) -> None:
    (plan, records), *_ = simulated(4).items()
    expected = [Folded(records[: place + 1]).moment for place in range(len(records))]
    with written(records, tmp_path / plan) as file:
        history = History(file)
        wrong: list[int] = []

        def ask(seed: int) -> None:
            rng = Random(seed)  # noqa: S311
            for _ in range(100):
                place = rng.randrange(len(records))
                if history.moment(records[place].seq) != expected[place]:
                    wrong.append(place)

        threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong


def test_a_long_history_keeps_few_copies_and_a_step_costs_one_event(tmp_path: Path) -> None:
    story = Story()
    story.finalize()
    for _ in range(2_000):
        story.tell(PLAN, e.PlanPaused())
        story.tell(PLAN, e.PlanResumed())
    with written(story.records, tmp_path / "f") as file:
        history = History(file)
        history.extend()
        assert len(history._snapshots) <= histories.SNAPSHOTS_MAX
        assert history._spacing < len(file) / 8
        with counted() as folded:
            history.moment(story.records[3333].seq)
            assert len(folded) <= history._spacing
            folded.clear()
            for record in story.records[3333:3390]:
                history.moment(record.seq)
            assert len(folded) <= 56  # none where a copy lies


# What is left out ---------------------------------------------------------------------------------------------------


def _unreadable_story() -> tuple[Story, int, int]:
    """A task's event can't be read; two events later an operator has it left out."""
    story = Story()
    story.finalize()
    story.dispatch("A")
    unreadable = story.put("A", "started", b'{"lease":"one"}')
    story.tell(PLAN, e.PlanPaused())
    skipped = story.tell("A", e.TaskSkipped(seq=unreadable, reason="damaged"))
    story.start("A")
    story.complete("A")
    return story, unreadable, skipped


@pytest.mark.usefixtures("few_copies")
@pytest.mark.parametrize("seed", range(4))
def test_an_unreadable_event_is_a_fault_until_it_is_left_out(seed: int, tmp_path: Path) -> None:
    story, unreadable, skipped = _unreadable_story()
    with written(story.records, tmp_path / "f") as file:
        history = History(file)
        places = list(range(len(story.records)))
        Random(seed).shuffle(places)  # noqa: S311
        for place in places:
            _assert_is_as_folded(history, story.records, place)
            seq = story.records[place].seq
            found = history.moment(seq)
            assert found.fault_seq == (unreadable if unreadable <= seq < skipped else 0)
            assert bool(found.fault) == (unreadable <= seq < skipped)
            if found.fault:
                assert f"event {unreadable} (started) can't be read" in found.fault


@pytest.mark.usefixtures("few_copies")
def test_an_event_that_can_not_be_folded_is_a_fault_and_no_traceback(tmp_path: Path) -> None:
    story = Story()
    story.finalize()
    alien = story.dispatch("ALIEN")  # none of the plan's tasks
    story.start("A")
    unfolded = history_of(story, tmp_path / "one").moment(story.records[-1].seq)
    assert unfolded.fault_seq == alien
    assert "ALIEN" in unfolded.fault
    assert unfolded.running[0].task == "A"
    story.tell("ALIEN", e.TaskSkipped(seq=alien, reason="none of ours"))
    told = history_of(story, tmp_path / "two")
    assert told.moment(story.records[-1].seq - 20).fault_seq == alien
    last = len(story.records) - 1
    assert shown(told.board_at(told.last_seq)) == shown(Folded(story.records[: last + 1]).board)


def test_nonsense_in_any_order_never_raises(tmp_path: Path) -> None:
    for seed in range(60):
        rng = Random(seed)  # noqa: S311
        told = Story()
        told.finalize()
        told.dispatch("A")
        told.start("A")
        told.complete("A")
        extension = e.PlanExtended(tasks=(told.records[2].event.spec,), before="B", reason="x")  # type: ignore[union-attr]
        skip = e.PlanSkipped(seq=30, reason="")
        events = [*((r.entity, r.event) for r in told.records), (PLAN, extension), (PLAN, skip)]
        rng.shuffle(events)
        story = Story()
        for entity, event in events:
            assert event is not None
            if rng.random() < 0.9:
                story.tell(entity, event)
            else:
                story.put(entity, event.name.partition(".")[2], b"{]")
        history = history_of(story, tmp_path / str(seed))
        for record in story.records:
            history.moment(record.seq)


def test_a_file_that_has_very_much_left_out_costs_its_reader_little(tmp_path: Path) -> None:
    story = Story()
    story.finalize()
    for _ in range(1_500):
        seq = story.tell(PLAN, e.PlanPaused())
        story.tell(PLAN, e.PlanSkipped(seq=seq, reason="no"))
    story.tell(PLAN, e.PlanPaused(reason="last"))
    history = history_of(story, tmp_path / "f")
    with counted() as folded:
        assert history.moment(history.last_seq).reason == "last"
        assert len(folded) < 3 * len(story.records)
    assert shown(history.board_at(history.last_seq)) == shown(Folded(story.records).board)


def history_of(story: Story, path: Path) -> History:
    return History(written(story.records, path))


# Which moment is meant ----------------------------------------------------------------------------------------------


@pytest.fixture
def told(tmp_path: Path) -> History:
    """Events 10, 20, … 60, of the seconds 10, 20, … 60."""
    story = Story()
    story.finalize()
    return history_of(story, tmp_path / "told")


@pytest.mark.parametrize(
    ("word", "seq"),
    [
        ("end", 60),
        (" end ", 60),
        ("10", 10),
        ("19", 10),
        ("20", 20),
        ("60", 60),
        ("61", 60),
        ("9" * 400, 60),
        ("2026-01-01T00:00:10Z", 10),
        ("2026-01-01T00:00:29.999999Z", 20),
        ("2026-01-01T00:00:30", 30),
        ("2026-01-01T01:00:30+01:00", 30),
        ("2025-12-31T23:00:40-01:00", 40),
        ("2026-01-02", 60),
        ("2026-01-01T00:00:29.000Z", 20),
        ("2026-01-01T00:00:30.000Z", 30),
        ("9999-12-31T23:59:59Z", 60),
    ],
)
def test_a_moment_is_the_newest_event_by_then(told: History, word: str, seq: int) -> None:
    assert told.seq_of(word) == seq
    assert told.moment(told.seq_of(word)).seq == seq


@pytest.mark.parametrize(
    ("text", "fraction"),
    [
        ("2026-01-01T00:00:10", 999_999),
        ("2026-01-01T00:00:10+01:00", 999_999),
        ("2026-01-01T00:00:10.000Z", 0),
        ("2026-01-01 00:00:10,25", 250_000),
    ],
)
def test_a_time_without_a_fraction_is_its_whole_second(text: str, fraction: int) -> None:
    assert end_of(text).microsecond == fraction
    assert end_of(text).replace(microsecond=0) == begin_of(text).replace(microsecond=0)


@pytest.mark.parametrize(
    ("word", "why"),
    [
        ("0", "0 is before the plan's first event, which is 10"),
        ("9", "9 is before the plan's first event, which is 10"),
        ("2026-01-01T00:00:09Z", "before the plan's first event, which is of 2026-01-01T00:00:10"),
        ("0001-01-01", "before the plan's first event"),
        ("", "is no moment: give a sequence such as 60, a time such as 2026-01-01T00:01:00Z, or end"),
        ("yesterday", "is no moment"),
        ("-1", "is no moment"),
        ("1.5", "is no moment"),
        ("١٢", "is no moment"),
        ("2026-13-01", "is no moment"),
        ("0001-01-01T00:00:00+23:59", "before the plan's first event"),
        ("\x1b[2J", "is no moment"),
        ("x" * 10_000, "is no moment"),
    ],
)
def test_what_is_no_moment_is_refused_in_words(told: History, word: str, why: str) -> None:
    with pytest.raises(NoSuchMoment) as refused:
        told.seq_of(word)
    assert why in str(refused.value)
    assert len(str(refused.value)) < 300
    assert str(refused.value).isprintable()


def test_a_sequence_before_the_first_event_has_no_board_and_no_moment(told: History) -> None:
    for ask in (told.board_at, told.moment):
        with pytest.raises(NoSuchMoment, match="before the plan's first event"):
            ask(9)


def test_a_history_without_events_says_so(tmp_path: Path) -> None:
    history = History(EventFile.create(tmp_path / "f", "paaaaaaaaaaaa"))
    history.extend()
    with pytest.raises(NoSuchMoment, match="plan paaaaaaaaaaaa has no events"):
        history.seq_of("end")
    with pytest.raises(NoSuchMoment, match="has no events"):
        history.moment(1)
    assert (history.last_seq, history.plan) == (0, "paaaaaaaaaaaa")
