"""Workspaces: a lease's own, made from a mirror that is up to date, beside a bare `git worktree add`."""

import asyncio
import os
import shutil
import subprocess
import time
from pathlib import Path

from bench.figures import Figure, Goal, Series, ratio
from services.runner.mirror import mirror_of
from services.runner.workspace import create_workspace, remove_workspace
from shared.clock import new_plan_id

FILES = 50_000
FILES_PER_DIRECTORY = 100
PAIRS_PER_ROUND = 2
"""Each takes seconds, and the disk decides; the order is turned around from pair to pair."""


async def measure(directory: Path, rounds: int) -> Figure:
    """Makes both in turn, `rounds` times `PAIRS_PER_ROUND`, after one of each that fills the page cache."""
    ours, bare = await asyncio.to_thread(_pairs, directory, rounds * PAIRS_PER_ROUND)
    made, added = Series("create_workspace", "s", ours), Series("git worktree add", "s", bare)
    return Figure(
        f"Workspaces, of a repository of {FILES:,} files",
        [made, added],
        [Goal("Treadle's workspace / git worktree add", ratio(made, added).value, "×", at_most=1.3)],
    )


def _pairs(directory: Path, count: int) -> tuple[list[float], list[float]]:
    repo = directory / "repository"
    base = large_repository(repo)
    mirror, plan = mirror_of(directory / "data", str(repo), ""), new_plan_id()
    mirror.ensure(plan, [base])

    def ours(number: int) -> float:
        started = time.perf_counter()
        made = create_workspace(directory / "data", mirror, plan, "T1", number, base)
        seconds = time.perf_counter() - started
        _check(made.code)
        remove_workspace(made.path)
        return seconds

    def bare(number: int) -> float:
        place = directory / f"bare-{number}"
        started = time.perf_counter()
        _git(repo, "worktree", "add", "--quiet", "-b", f"bare-{number}", str(place), base)
        seconds = time.perf_counter() - started
        _check(place)
        shutil.rmtree(place)
        _git(repo, "worktree", "prune")
        return seconds

    made: list[float] = []
    added: list[float] = []
    for number in range(1, count + 2):
        turns = [(ours, made), (bare, added)]
        for create, seconds in turns if number % 2 else reversed(turns):
            os.sync()  # what the one before left to be written must not be charged to this one
            seconds.append(create(number))
    return made[1:], added[1:]


def large_repository(repo: Path) -> str:
    """Makes a repository of small files, packed as a clone would be; returns its commit."""
    for number in range(FILES):
        if number % FILES_PER_DIRECTORY == 0:
            place = repo / f"src/d{number // FILES_PER_DIRECTORY:03}"
            place.mkdir(parents=True)
        (place / f"f{number:05}.py").write_text(f'"""Module {number}."""\n\n' + f"VALUE_{number} = {number}\n" * 20)
    _git(repo, "init", "--quiet", "--initial-branch=main")
    _git(repo, "config", "maintenance.auto", "false")  # or one would run beside us
    _git(repo, "add", "--all")
    _git(repo, "-c", "user.name=Bench", "-c", "user.email=bench@localhost", "commit", "--quiet", "--message", "Begin")
    _git(repo, "gc", "--quiet")
    return _git(repo, "rev-parse", "HEAD")


def _check(place: Path) -> None:
    last = place / f"src/d{(FILES - 1) // FILES_PER_DIRECTORY:03}/f{FILES - 1:05}.py"
    if not last.is_file():
        raise RuntimeError(f"{last} was not checked out")


def _git(repo: Path, *words: str) -> str:
    environment = {"PATH": os.environ["PATH"], "HOME": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"}
    done = subprocess.run(
        ["git", "-C", str(repo), *words], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"git {' '.join(words)} failed: {done.stderr}")
    return done.stdout.strip()
