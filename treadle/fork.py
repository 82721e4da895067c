"""`treadle fork`: a plan that goes on from a moment of another one."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import msgspec

from shared.spec import NAME_MAX_CHARS, PLAN_MAX_BYTES
from treadle.api import Resource
from treadle.bad_input import BadInput
from treadle.found import find_plan
from treadle.instance import Instance
from treadle.lines import money, tasks_words
from treadle.plain_text import one_line
from treadle.run import COMPLETED, faults_told, finalize, say, see_run
from treadle.suite_choice import suite_options
from treadle.supervision.suite_info import SuiteOptions

SHOWN_MAX = 200
"""Tasks of a kind that are spelled out."""


@click.command()
@click.argument("plan", required=False)
@click.option("--at", default="end", show_default=True, metavar="SEQ|TIME", help="Keep what was completed by then.")
@click.option("--edit", "edit_file", metavar="FILE", help="What is to be different, as a plan file; - reads it.")
@click.option("--only", multiple=True, metavar="TASK[..]", help="Run these, again if completed; .. with all behind.")
@click.option("--name", default="", help="Of the new plan [the old one's].")
@click.option("--dry-run", is_flag=True, help="Only say what would be kept, and what would run.")
@click.option("--no-start", is_flag=True, help="Make the plan, and don't finalize it.")
@click.option("--detach", is_flag=True, help="Finalize it, and don't watch.")
@click.option("--json", "as_json", is_flag=True, help="JSON instead of words.")
@suite_options
@click.pass_obj
def fork(
    instance: Instance,
    plan: str | None,
    at: str,
    edit_file: str | None,
    only: tuple[str, ...],
    name: str,
    dry_run: bool,
    no_start: bool,
    detach: bool,
    as_json: bool,
    options: SuiteOptions,
) -> None:
    """Makes a new plan of PLAN that keeps what was completed, and runs the rest.

    PLAN is an id or the beginning of one; left out, it is the newest plan. FILE has tasks by their code, with the
    fields that are to be different, new tasks, and `remove: [CODES]`; what it leaves out stays as it was:

    \b
        max_parallel: 2                     # of the plan
        tasks:
          - code: T2                        # changed: it runs again, and what rests on it
            description: Do it in French.
          - code: T9                        # new
            name: Check the French
            assignee: tester
            depends_on: [T2]
        remove: [T4]

    Exit status: 0 completed (or as was asked), 1 something needs attention, 2 bad input, 130 interrupted.
    """
    if len(name) > NAME_MAX_CHARS:
        raise BadInput(f"--name has {len(name)} characters: at most {NAME_MAX_CHARS}")
    body: dict[str, Any] = {"at": at, "edit": _read(edit_file), "name": name, "dry_run": dry_run}
    if wanted := [code for word in only for code in word.split(",") if code]:
        body["only"] = wanted
    with instance.reach(options) as reached:
        gateway = reached.gateway()
        origin = find_plan(gateway, plan)["plan"]
        changed = f", with the changes of {_shown(edit_file)}" if edit_file is not None else ""
        with faults_told(f"plan {origin} can't be forked so{changed}"):
            made = gateway.post(f"/plans/{origin}/fork", body)
        if not_looked := made.get("not_looked"):
            say(f"not checked whether the commits that are kept are still in the code repository: {not_looked}")
        if dry_run or no_start:
            click.echo(msgspec.json.encode(made).decode() if as_json else "\n".join(table(made)))
            if no_start:
                say(f"plan {made['plan']} is there: `treadle choose {made['plan']} 1` starts it")
            sys.exit(COMPLETED)
        finalize(gateway, made["plan"], made["candidate"])
        told = f"keeps {tasks_words(len(made['kept']))} of {origin} at event {made['at']}, runs {len(made['runs'])}; "
        sys.exit(see_run(made["plan"], told, reached, instance, options, as_json=as_json, detach=detach))


def table(made: Resource) -> list[str]:
    """What is kept with its cost, what runs and why, and what is left out."""
    new = f"plan {made['plan']}" if made["plan"] else "a fork"
    kept, runs, left_out = made["kept"], made["runs"], made["left_out"]
    lines = [f"{new} of {made['origin']} at event {made['at']}: “{one_line(made['name'], 60)}”", ""]
    lines.append(f"kept: {tasks_words(len(kept))}, {money(made['kept_usd'])} there")
    lines += _rows(kept, lambda task: f"{money(task.get('cost_usd', 0)):>8}  {task.get('commit', '')[:12] or '-':<12}")
    lines.append(f"runs: {tasks_words(len(runs))}, at most {money(made['most_usd'])}, then the delivery")
    lines += _rows(runs, _why)
    if left_out:
        lines.append(f"left out: {tasks_words(len(left_out))}")
        lines += _rows(left_out, _why)
    return lines


def _rows(tasks: Sequence[Resource], told: Any) -> list[str]:
    lines = [
        f"  {task['code']:<12} {one_line(task['name'], 40):<40} {told(task)}".rstrip() for task in tasks[:SHOWN_MAX]
    ]
    return [*lines, *([f"  … and {len(tasks) - SHOWN_MAX} more"] if len(tasks) > SHOWN_MAX else [])]


def _why(task: Resource) -> str:
    return one_line(task.get("why", ""), 120)


def _shown(file: str) -> str:
    return "standard input" if file == "-" else file


def _read(file: str | None) -> str:
    """The text of the changes. Raises `BadInput`."""
    if file is None:
        return ""
    shown = _shown(file)
    try:
        if file == "-":
            content = sys.stdin.buffer.read(PLAN_MAX_BYTES + 1)
        else:
            with Path(file).open("rb") as opened:
                content = opened.read(PLAN_MAX_BYTES + 1)
    except OSError as error:
        raise BadInput(f"{shown} can't be read: {error.strerror}") from error
    if len(content) > PLAN_MAX_BYTES:
        raise BadInput(f"{shown} is larger than {PLAN_MAX_BYTES // 1024**2} MiB")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise BadInput(f"{shown} is not UTF-8 text: save it as UTF-8") from error
