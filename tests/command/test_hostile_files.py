"""A file that no Treadle has written is refused by every command that looks back, before it shows anything."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.gateway.archives.files import archive
from tests.shared.history import hostile
from treadle.main import main


@pytest.mark.parametrize("words", [("replay",), ("replay", "--step"), ("why", "--plan"), ("replay", "--verify")])
def test_a_file_whose_tasks_wait_for_each_other_is_refused_with_which_they_are(
    words: tuple[str, ...], tmp_path: Path
) -> None:
    file = tmp_path / "circle.treadle"
    file.write_bytes(archive(hostile.circle_that_grows()).content)
    command = ["--data", str(tmp_path / "data"), *words, str(file)]
    done = CliRunner().invoke(main, command, env={"TREADLE_URL": ""})
    assert done.exit_code == 2, done.output
    assert "its tasks wait for each other: T1 → T2 → T1" in " ".join(done.stderr.split())
    assert done.stdout == ""
