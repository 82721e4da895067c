"""A plan file by itself: what is known of it without a project."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from shared.spec import PLAN_MAX_BYTES
from treadle.bad_input import BadInput
from treadle.main import main
from treadle.plan_file import PlanFile, check_size, read_plan_file

OWN = "agents: {sh: {sdk_type: command, command: [sh]}, c: {sdk_type: claude}}"


def written(directory: Path, tasks: str, agents: str = OWN) -> PlanFile:
    path = directory / "plan.yaml"
    path.write_text(f"# ours\nname: x\n{agents}\ntasks: {tasks}\n")
    return read_plan_file(path)


def test_text_stays_as_its_author_wrote_it_and_agents_of_a_project_are_left_to_the_gateway(tmp_path: Path) -> None:
    file = written(tmp_path, "[{code: T1, name: One, assignee: worker, description: d}]")
    assert file.text.startswith("# ours\n")
    assert file.spec is None and not file.uses_claude()
    with pytest.raises(BadInput, match=r"(?s)plan.yaml.*worker.*line 4.*--project"):
        file.alone()


def test_fault_that_no_project_could_mend_comes_without_that_hint(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="T9") as error:
        written(tmp_path, "[{code: T1, name: One, assignee: sh, depends_on: [T9]}]").alone()
    assert "--project" not in str(error.value)


def test_text_that_is_no_yaml_is_refused_at_once_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="line"):
        written(tmp_path, "[")


def test_key_is_asked_for_agents_of_the_file_and_not_for_a_name_that_a_project_may_have(tmp_path: Path) -> None:
    declared = written(tmp_path, "[{code: T1, name: One, assignee: c, description: d}]")
    implied = written(tmp_path, "[{code: T1, name: One, assignee: claude, description: d}]", agents="")
    neither = written(tmp_path, "[{code: T1, name: One, assignee: sh}]")
    assert [f.uses_claude() for f in (declared, implied, neither)] == [True, True, False]
    assert [f.uses_claude(of_declared=True) for f in (declared, implied, neither)] == [True, False, False]


def test_text_that_no_gateway_takes_is_refused_here(tmp_path: Path) -> None:
    file = written(tmp_path, f"[{{code: T1, name: One, assignee: sh}}] # {'x' * PLAN_MAX_BYTES}")
    with pytest.raises(BadInput, match="7 MiB"):
        check_size(file)


@pytest.mark.parametrize(("asked", "told"), [("", "at most 64 at once"), ("max_parallel: 7", "at most 7 at once")])
def test_validate_says_how_many_tasks_run_at_once(tmp_path: Path, asked: str, told: str) -> None:
    written(tmp_path, "[{code: T1, name: One, assignee: sh}]", f"{OWN}\n{asked}")
    done = CliRunner().invoke(main, ["validate", str(tmp_path / "plan.yaml")], env={"TREADLE_URL": ""})
    assert done.exit_code == 0 and told in done.output
