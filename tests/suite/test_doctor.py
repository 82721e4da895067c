from __future__ import annotations

import subprocess
from pathlib import Path

import msgspec
import pytest

from treadle import doctor
from treadle.supervision.data_dir import DataDir


def find(name: str, found: list[doctor.Check]) -> doctor.Check:
    return next(check for check in found if check.name == name)


def test_this_machine_has_what_make_setup_installs(tmp_path: Path) -> None:
    found = doctor.checks(DataDir(tmp_path / "data"), {})
    for name in ("python", "git", "nats-server", "claude", "data directory", "loopback", "clock"):
        assert find(name, found).grade == "ok", find(name, found)
    assert not (tmp_path / "data").exists()


def test_whatever_is_not_ok_says_how_to_mend_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "VERSION").write_text("7")
    found = doctor.checks(DataDir(tmp_path / "data"), {})
    assert {check.name for check in found if check.grade == "fail"} >= {"git", "setpriv", "data directory"}
    assert all(check.mend for check in found if check.grade != "ok")
    assert doctor.exit_status(found) == 1


def test_key_is_noticed_and_never_shown(tmp_path: Path) -> None:
    found = doctor.checks(DataDir(tmp_path), {"ANTHROPIC_API_KEY": "sk-made-up"})
    assert find("ANTHROPIC_API_KEY", found).grade == "ok"
    assert b"sk-made-up" not in msgspec.json.encode(found)


def test_an_address_of_the_api_that_is_none_is_found(tmp_path: Path) -> None:
    found = doctor.checks(DataDir(tmp_path / "data"), {"ANTHROPIC_BASE_URL": "foo"})
    assert find("ANTHROPIC_BASE_URL", found).grade == "fail"


def test_old_git_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git = tmp_path / "git"
    git.write_text("#!/bin/sh\necho 'git version 2.37.9'\n")
    git.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    check = find("git", doctor.checks(DataDir(tmp_path / "data"), {}))
    assert (check.grade, check.found) == ("fail", "2.37.9")


def test_full_disk_and_a_disk_that_forbids_programs_are_found(small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,noexec", str(small_disk)], check=True)
    found = doctor.checks(DataDir(small_disk / "data"), {})
    assert find("disk", found).grade == "fail"
    assert find("noexec", found).grade == "fail"


def test_held_data_directory_that_does_not_answer_is_found(tmp_path: Path) -> None:
    data_dir = DataDir(tmp_path)
    data_dir.prepare()
    with data_dir.hold():
        assert find("suite", doctor.checks(data_dir, {})).grade == "warn"
    assert find("suite", doctor.checks(data_dir, {})).grade == "ok"


def test_secret_that_others_can_read_and_a_broken_keyring_are_found(tmp_path: Path) -> None:
    data_dir = DataDir(tmp_path / "data")
    data_dir.prepare()
    data_dir.make_secrets()
    assert find("secrets", doctor.checks(data_dir, {})).grade == "ok"
    data_dir.keyring.chmod(0o644)
    exposed = find("secrets", doctor.checks(data_dir, {}))
    assert (exposed.grade, exposed.mend) == ("fail", f"chmod 600 {data_dir.keyring}")
    data_dir.keyring.chmod(0o600)
    data_dir.keyring.write_text("{")
    assert find("secrets", doctor.checks(data_dir, {})).grade == "fail"
