"""`treadle workspaces`: what lies in this machine's workspaces, and why it is still there."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import click
import msgspec

from services.runner.git import checked_ids
from services.runner.in_use import LeaseName, lives
from services.runner.workspace import LEFT_OUT, list_workspaces, size_bytes
from treadle.clean import size_words
from treadle.instance import Instance
from treadle.lines import duration
from treadle.plain_text import one_line
from treadle.run import say


class Kept(msgspec.Struct, frozen=True):
    """A workspace on disk."""

    plan: str
    task: str
    lease: int
    size_bytes: int
    age_s: float
    """Since it was made."""
    unsaved: bool
    """It holds work that was never pushed; a running task's too."""
    reason: str
    """Why it is there."""
    path: str
    """Where its files are."""


def kept_workspaces(data_dir: Path, now_s: float) -> list[Kept]:
    """Every workspace of the data directory, those that are being made included."""
    found = []
    for stored in list_workspaces(data_dir):
        name = LeaseName(stored.plan, stored.task, stored.lease)
        left_out = (stored.path / LEFT_OUT).exists()
        reason = _reason(running=lives(data_dir, name), unsaved=stored.unsaved, left_out=left_out)
        age_s = _age_s(stored.path, now_s)
        code = str(stored.path / "code")
        found.append(Kept(*name, stored.size_bytes, age_s, stored.unsaved, reason, code))
    return sorted([*found, *_being_made(data_dir, now_s)], key=lambda kept: (kept.plan, kept.task, kept.lease))


def _reason(*, running: bool, unsaved: bool, left_out: bool) -> str:
    if running:
        return "running"
    if left_out:
        return "holds git repositories of their own, which are in no commit"
    return "holds work that was never pushed" if unsaved else "its lease has ended: a runner removes it"


def _being_made(data_dir: Path, now_s: float) -> Iterator[Kept]:
    for path in sorted((data_dir.resolve() / "work").glob("*/.*-*.new")):
        task, _, lease = path.name.removeprefix(".").removesuffix(".new").rpartition("-")
        try:
            checked_ids(path.parent.name, task, int(lease))
        except ValueError:
            continue  # somebody else's file
        name = LeaseName(path.parent.name, task, int(lease))
        reason = (
            "being made" if lives(data_dir, name) else "half made by a runner that was killed: the next one removes it"
        )
        yield Kept(*name, size_bytes(path), _age_s(path, now_s), False, reason, str(path))


def _age_s(path: Path, now_s: float) -> float:
    # Of what is written first and never changed: the directory's own time moves with what is put into it.
    config = path / "runner.git/config"
    return max(0.0, now_s - (config if config.exists() else path).stat().st_mtime)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="JSON instead of words.")
@click.pass_obj
def workspaces(instance: Instance, as_json: bool) -> None:
    """Lists the workspaces on this machine, and why each is there."""
    found = kept_workspaces(instance.own("workspaces").path, time.time())
    if as_json:
        click.echo(msgspec.json.encode(found).decode())
        return
    for kept in found:
        click.echo(line(kept))
    if not found:
        say("no workspaces: a task's goes when the task has ended")
    elif any(kept.reason.startswith("holds") for kept in found):
        say("look at the files, then remove what is not needed: `treadle clean` lists it, and removes it when asked to")


def line(kept: Kept) -> str:
    """One workspace for people."""
    size, age = size_words(kept.size_bytes), duration(kept.age_s)
    name = f"{kept.plan}  {kept.task:<12}  lease {kept.lease:<3}"
    return one_line(f"{name}  {size:>10}  {age:>8} old  {kept.reason}  {kept.path}", width=1000)
