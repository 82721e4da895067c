"""`treadle replay --verify` on `.treadle` files: what it says first, and its exit status."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from msgspec.structs import replace

from shared.board import in_order
from shared.history.archive import Archive
from shared.spec import PlanSpec, TaskSpec
from shared.store import Meta, Recorded
from tests.histories.record import archive
from treadle.main import main
from treadle.verifying import NOT_VERIFIED, Total

RECORDED = Path(__file__).parents[1] / "histories"


@pytest.fixture
def diamond(tmp_path: Path) -> list[Recorded]:
    with Archive.open(RECORDED / "diamond.treadle") as opened, opened.event_file(tmp_path) as file:
        return list(file.read())


def verified(records: list[Recorded], directory: Path, *words: str) -> Result:
    path = directory / "told.treadle"
    path.write_bytes(archive(records))
    command = ["--data", "/dev/null/none", "replay", str(path), "--verify", *words]
    result = CliRunner().invoke(main, command, env={"TREADLE_URL": ""})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def first_line(result: Result) -> str:
    return result.stdout.splitlines()[0]


def test_a_history_with_all_its_commands_is_decided_the_same(diamond: list[Recorded], tmp_path: Path) -> None:
    done = verified(diamond, tmp_path)
    assert (done.exit_code, first_line(done)) == (0, "plan paaaaaaaaaaaa: all decided the same")
    assert json.loads(verified(diamond, tmp_path, "--json").stdout)["verdict"] == "same"


def test_a_history_without_any_command_is_not_verified(diamond: list[Recorded], tmp_path: Path) -> None:
    done = verified([replace(r, meta=Meta(actor=r.meta.actor)) for r in diamond], tmp_path)
    assert done.exit_code == NOT_VERIFIED == 3
    assert "not verified" in first_line(done) and "the same" not in done.stdout


@pytest.mark.parametrize("lost", [{"command": ""}, {"given": ""}, {"seen": 0}])
def test_a_history_whose_later_events_lack_what_earlier_ones_say_is_not_verified(
    diamond: list[Recorded], tmp_path: Path, lost: dict[str, Any]
) -> None:
    at = next(i for i, r in enumerate(diamond) if r.type == "dispatched")
    robbed = [*diamond[:at], replace(diamond[at], meta=replace(diamond[at].meta, **lost)), *diamond[at + 1 :]]
    done = verified(robbed, tmp_path)
    assert (done.exit_code, "not verified" in first_line(done)) == (3, True), done.stdout
    assert json.loads(verified(robbed, tmp_path, "--json").stdout)["verdict"] == "not verified"


def test_what_is_older_than_the_storing_of_commands_is_said_first(diamond: list[Recorded], tmp_path: Path) -> None:
    at = next(i for i, r in enumerate(diamond) if r.type == "started")
    old = [replace(r, meta=replace(r.meta, given="", seen=0)) for r in diamond[: at + 1]]
    done = verified([*old, *diamond[at + 1 :]], tmp_path)
    assert done.exit_code == 0, done.stdout
    assert "verified in part" in first_line(done) and "decisions could not be made again" in first_line(done)


def test_of_a_whole_log_old_plans_are_no_fault_but_one_that_lacks_its_commands_is() -> None:
    total = Total(plans=2, checked=7, unknown=3)
    assert total.status == 0
    assert Total(plans=2, checked=7, unknown=3, not_verified=1).status == 3
    assert Total(plans=2, unknown=3).status == 3
    assert Total(plans=2, differences=1, not_verified=1).status == 1


def test_a_difference_in_a_struct_with_a_name_of_its_own_is_shown(
    diamond: list[Recorded], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reversed_order(spec: PlanSpec) -> list[TaskSpec]:
        *tasks, deliver = in_order(spec)
        return [*reversed(tasks), deliver]

    monkeypatch.setattr("shared.history.choices.in_order", reversed_order)
    done = verified(diamond, tmp_path)
    assert done.exit_code == 1
    assert "is the place of" in done.stdout and "decided by this Treadle: TaskSpec" in done.stdout
