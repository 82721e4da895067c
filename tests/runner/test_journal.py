"""What a runner's former life left behind."""

from pathlib import Path

from services.runner.lease import Journal, Taken


def test_a_torn_note_is_dropped_and_the_others_are_read(tmp_path: Path) -> None:
    journal, taken = Journal(tmp_path), Taken("paaaaaaaaaaaa", "T1", 3)
    note = journal.add(taken)
    (tmp_path / "torn.json").write_bytes(b"")
    assert journal.left_behind() == {note: taken}
    assert not (tmp_path / "torn.json").exists()
    journal.remove(note)
    assert journal.left_behind() == {}
