from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from tests.suite.conftest import fill
from treadle.supervision.data_dir import DataDir
from treadle.supervision.private_files import secret_in, write_private
from treadle.supervision.suite_error import DataDirHeld, SuiteError


def test_option_comes_before_environment_and_environment_before_xdg(tmp_path: Path) -> None:
    env = {"TREADLE_DATA": str(tmp_path / "env"), "XDG_DATA_HOME": str(tmp_path / "xdg")}
    assert DataDir.chosen(tmp_path / "option", env).path == tmp_path / "option"
    assert DataDir.chosen(None, env).path == tmp_path / "env"
    del env["TREADLE_DATA"]
    assert DataDir.chosen(None, env).path == tmp_path / "xdg" / "treadle"


def test_relative_xdg_data_home_is_ignored() -> None:
    chosen = DataDir.chosen(None, {"XDG_DATA_HOME": "relative"}).path
    assert chosen == Path.home() / ".local/share/treadle"


def test_new_directory_is_private_and_can_be_prepared_again(tmp_path: Path) -> None:
    data_dir = DataDir(tmp_path / "deep" / "data")
    data_dir.prepare()
    data_dir.prepare()
    assert stat.S_IMODE(data_dir.path.stat().st_mode) == 0o700
    assert data_dir.format() == "1"


def test_directory_of_another_format_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "VERSION").write_text("2\n")
    with pytest.raises(SuiteError, match="data format '2', this Treadle reads format '1'"):
        DataDir(tmp_path).prepare()
    assert [entry.name for entry in tmp_path.iterdir()] == ["VERSION"]


def test_directory_with_strange_files_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(SuiteError, match=r"holds other files \('thesis.tex'"):
        DataDir(tmp_path).prepare()
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]


def test_file_in_place_of_the_directory_is_told_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    with pytest.raises(SuiteError, match=r"data can't be used: .*choose another one with --data"):
        DataDir(tmp_path / "data").prepare()


def test_directory_below_a_file_is_told_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SuiteError, match="Not a directory"):
        DataDir(tmp_path / "file" / "data").prepare()


def test_full_disk_is_told_with_what_to_do(small_disk: Path) -> None:
    fill(small_disk / "filler")
    with pytest.raises(SuiteError, match=r"No space left on device; free some space"):
        DataDir(small_disk / "data").prepare()


def test_lock_is_held_by_one_and_names_its_holder(tmp_path: Path) -> None:
    data_dir = DataDir(tmp_path)
    data_dir.prepare()
    assert data_dir.holder_pid() is None
    with data_dir.hold():
        assert data_dir.holder_pid() == os.getpid()
        with pytest.raises(DataDirHeld, match=f"in use by process {os.getpid()}"):
            data_dir.hold()
    assert data_dir.holder_pid() is None
    data_dir.hold().close()


def test_supervisor_and_clients_exclude_each_other_but_clients_do_not(tmp_path: Path) -> None:
    data_dir = DataDir(tmp_path)
    data_dir.prepare()
    one, other = data_dir.join_as_client(), data_dir.join_as_client()
    assert one and other
    one.close()
    assert data_dir.shut_out_clients() is None
    other.close()
    alone = data_dir.shut_out_clients()
    assert alone
    assert data_dir.join_as_client() is None
    alone.close()


def test_private_file_is_replaced_whole_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("old")
    path.chmod(0o644)
    write_private(path, "new")
    assert path.read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["secret"]


def test_failed_write_keeps_the_old_file(small_disk: Path) -> None:
    path = small_disk / "token"
    secret = secret_in(path)
    fill(small_disk / "filler")
    with pytest.raises(OSError, match="No space left"):
        write_private(path, "x" * 100_000)
    assert secret_in(path) == secret
    assert sorted(entry.name for entry in small_disk.iterdir()) == ["filler", "token"]
