"""Subcommands about plans and tasks that exist: looking, and giving a person's word."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import wraps
from typing import Any, TypeVar, cast

import click
import msgspec
from rich.console import Console

from shared.spec import BUDGET_MIN_USD, PLAN_BUDGET_MAX_USD
from treadle.api import ApiError, Gateway
from treadle.asking import asked_shortly, conflict_lines, word_on
from treadle.bad_input import BadInput
from treadle.clean import find_items, size_words, total
from treadle.found import Plan, find_plan, imported_plans, known_task
from treadle.goal import candidate_lines, is_being_made, request_lines, see_drafted
from treadle.instance import Instance
from treadle.lines import imported_line, lineage_lines, standing_line
from treadle.no_commit import without_commit
from treadle.plain_text import one_line, plain
from treadle.reviewing import NO_VERDICT, finding_lines, verdict
from treadle.run import REASON_MAX_CHARS, say, watch_plan
from treadle.standstill import why_queued
from treadle.table import render, waits_for_person

F = TypeVar("F", bound=Callable[..., Any])

PIPED_WIDTH = 200
plan_option = click.option("--plan", help="The plan: its id, or the beginning of it [the newest plan].")
json_option = click.option("--json", "as_json", is_flag=True, help="JSON instead of words.")
note_option = click.option("--note", default="", help="Why; kept with the event.")

_HELP = {
    "pause": "Start nothing new; what runs goes on.",
    "resume": "Start tasks again, with a larger budget if the old one is spent.",
    "cancel": "End a plan: nothing starts any more, and what runs is stopped.",
}
_WHICH_PLAN = "PLAN is an id or the beginning of one; left out, it is the newest plan."
_PLAN_STANDS = {"active": "at work", "cancelling": "being cancelled"}


def plan_argument(command: F) -> F:
    """Takes the plan as an argument, or by `--plan` as the commands about tasks do."""

    @click.argument("plan", required=False)
    @click.option("--plan", "named", hidden=True)
    @wraps(command)
    def with_plan(*args: Any, plan: str | None, named: str | None, **more: Any) -> Any:
        if plan is not None and named is not None:
            raise BadInput("name the plan once: as an argument, or by --plan")
        return command(*args, plan=named if plan is None else plan, **more)

    return cast(F, with_plan)


@click.command()
@json_option
@click.pass_obj
def ls(instance: Instance, as_json: bool) -> None:
    """Lists the plans, the newest first; then those that were imported."""
    with instance.reach() as reached:
        gateway = reached.gateway()
        plans = [*gateway.pages("/plans", sort="-created_at"), *imported_plans(gateway)]
    if as_json:
        click.echo(msgspec.json.encode(plans).decode())
    elif not plans:
        click.echo("no plans yet", err=True)
    else:
        for plan in plans:
            click.echo(imported_line(plan) if plan.get("imported") else standing_line(plan))


@click.command()
@plan_argument
@json_option
@click.pass_obj
def status(instance: Instance, plan: str | None, as_json: bool) -> None:
    """Shows how a plan and its tasks stand."""
    with instance.reach() as reached:
        gateway = reached.gateway()
        found = find_plan(gateway, plan)
        tasks = list(gateway.pages(f"/plans/{found['plan']}/tasks"))
        waits = any(task["status"] == "queued" for task in tasks)
        hindered = why_queued(list(gateway.pages("/runners")), tasks) if waits else ""
    if as_json:
        click.echo(msgspec.json.encode({**found, "tasks": tasks}).decode())
        return
    click.echo(_table(found, tasks) if tasks else standing_line(found))
    for line in lineage_lines(found):
        click.echo(line)
    if found["reason"] and found["status"] in ("paused", "cancelling", "cancelled"):
        click.echo(
            f"\nplan {found['plan']} is {_PLAN_STANDS.get(found['status'], found['status'])}: {plain(found['reason'])}"
        )
    if hindered:
        click.echo(f"\n{hindered}")
    for line in [*candidate_lines(found), *request_lines(found)]:
        click.echo(line)
    if held_up := found.get("held_up"):
        click.echo(f"\nits candidate can't be finalized by itself: {one_line(held_up, REASON_MAX_CHARS)}")
    for task in tasks:
        for line in about_task(found["plan"], task, is_imported=bool(found.get("imported"))):
            click.echo(line)


def _table(plan: Plan, tasks: list[Plan]) -> str:
    table = render(plan, {task["code"]: task for task in tasks}, {}, datetime.now(UTC), len(tasks))
    console = Console() if sys.stdout.isatty() else Console(width=PIPED_WIDTH, no_color=True)
    with console.capture() as captured:
        console.print(table)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def about_task(plan: str, task: Mapping[str, Any], *, is_imported: bool = False) -> list[str]:
    """What a row of the table can't hold: a review's findings, what is asked of a person, why there is attention."""
    lines: list[str] = []
    code = task["code"]
    if review := task.get("review"):
        lines += ["", f"{code} {verdict(review)}", *finding_lines(review)]
    match task["status"]:
        case "needs_attention":
            lines += ["", f"{code}: {plain(task['message'])}", *conflict_lines(task)]
            if task.get("reviews") and not task.get("review"):
                lines.append(f"  {NO_VERDICT}")
            if not is_imported:
                lines.append(f"  {word_on(plan, code)}")
        case "awaiting_approval":
            lines += ["", *asked_shortly(plan, task)]
        case "readied":
            lines += ["", f"{code} is ready for its person: treadle task prompt {code} --plan {plan}"]
            lines.append(f"  then: treadle task dispatch {code} --plan {plan}")
        case "queued" | "running" if task.get("result_path"):
            place = f"{one_line(task['result_path'])} in {one_line(task['result_repo_url'])}"
            lines += ["", f"{code} {waits_for_person(task)}; its result: {place}"]
    return lines


@click.command()
@plan_argument
@json_option
@click.pass_obj
def watch(instance: Instance, plan: str | None, as_json: bool) -> None:
    """Watches a plan to its end; exit status as of `run`.

    One that has no tasks yet is watched until a plan is there that can be chosen.
    """
    with instance.reach() as reached:
        found, options = find_plan(reached.gateway(), plan), instance.usual_options()
        if found.get("imported"):
            raise BadInput(
                f"plan {found['plan']} was imported from a file: nothing happens to it any more. "
                f"`treadle replay {found['plan']} --step` shows what did, `treadle events {found['plan']}` lists it"
            )
        if is_being_made(found):
            sys.exit(see_drafted(found["plan"], reached, instance, options, runs=False, as_json=as_json))
        sys.exit(watch_plan(found["plan"], reached, instance, options, as_json=as_json))


def _say_plan(gateway: Gateway, plan: str, done: Plan, words: str) -> None:
    """What has become of a plan by a command; one that changed nothing says how the plan stands."""
    gateway.wait_for(plan, done["seq"])
    if not done["changed"]:
        status = gateway.get(f"/plans/{plan}", Plan)["status"]
        words = f"is {_PLAN_STANDS.get(status, status)} already"
    say(f"plan {plan}: {words}")


def _with_note(name: str, words: str) -> click.Command:
    def callback(instance: Instance, plan: str | None, note: str) -> None:
        with instance.reach() as reached:
            gateway = reached.gateway()
            found = find_plan(gateway, plan)["plan"]
            _say_plan(gateway, found, gateway.post(f"/plans/{found}/{name}", {"note": note}), words)

    command: Callable[..., Any] = click.pass_obj(callback)
    command.__doc__ = f"{_HELP[name]}\n\n    {_WHICH_PLAN}"
    return click.command(name)(plan_argument(note_option(command)))


pause = _with_note("pause", "starts nothing new; what runs goes on")
cancel = _with_note("cancel", "is being ended: what runs is stopped")


@click.command(help=f"{_HELP['resume']}\n\n{_WHICH_PLAN}")
@plan_argument
@click.option(
    "--budget",
    "budget_usd",
    type=click.FloatRange(BUDGET_MIN_USD, PLAN_BUDGET_MAX_USD),
    metavar="USD",
    help="The plan's new budget, in all [it stays].",
)
@click.pass_obj
def resume(instance: Instance, plan: str | None, budget_usd: float | None) -> None:
    """See `_HELP`."""
    if budget_usd is not None and math.isnan(budget_usd):
        raise BadInput("--budget wants a number of US dollars")
    with instance.reach() as reached:
        gateway = reached.gateway()
        found = find_plan(gateway, plan)["plan"]
        # Without a budget nothing is sent, so that gateways that don't know of it are resumed too.
        done = gateway.post(f"/plans/{found}/resume", None if budget_usd is None else {"budget_usd": budget_usd})
        if budget_usd is not None and not done["changed"]:
            raise BadInput(f"plan {found} is not paused, so its budget stays: `treadle pause {found}` first")
        _say_plan(gateway, found, done, "starts tasks again")


@click.command()
@click.argument("code", metavar="TASK")
@click.option("--stat", is_flag=True, help="Only which files, and how much.")
@plan_option
@click.pass_obj
def diff(instance: Instance, code: str, plan: str | None, stat: bool) -> None:
    """Shows what a task changed, against what it started from."""
    with instance.reach() as reached:
        gateway = reached.gateway()
        known = find_plan(gateway, plan)
        with known_task(known["plan"], code) as path:
            try:
                found = gateway.get(f"{path}/diff", Plan)
            except ApiError as error:
                if error.code != "no_commit":
                    raise
                task = gateway.get(path, Plan)
                is_imported = bool(known.get("imported"))
                raise BadInput(without_commit(known["plan"], task, is_imported=is_imported)) from error
    click.echo(plain(found["stat"] if stat else found["patch"]), nl=False)
    if found["cut"] and not stat:
        click.echo("… the diff goes on; it is too long to show", err=True)


@click.command()
@click.option("--yes", is_flag=True, help="Remove what is listed, but for unsaved work.")
@click.option("--unsaved", is_flag=True, help="With --yes: remove unsaved work too.")
@json_option
@click.pass_obj
def clean(instance: Instance, yes: bool, unsaved: bool, as_json: bool) -> None:
    """Lists what may go, with sizes; removes it with --yes."""
    data_dir = instance.own("clean")
    with instance.reach() as reached:
        gateway = reached.gateway()
        items = find_items(data_dir.path, gateway, datetime.now(UTC))
        going = [item for item in items if yes and (unsaved or not item.unsaved)]
        for item in going:
            item.remove()
    if as_json:
        click.echo(msgspec.json.encode([{**item.shown(), "removed": item in going} for item in items]).decode())
        return
    for item in items:
        what = "removed" if item in going else "stays" if yes else item.kind
        click.echo(f"{what:<9} {size_words(item.size_bytes):>10}  {one_line(item.name)}: {item.reason}")
    if not items:
        click.echo("nothing to clean", err=True)
    elif not yes:
        click.echo(
            f"{size_words(total(items))} in all; `treadle clean --yes` removes what holds no unsaved work", err=True
        )


plan_commands: tuple[click.Command, ...] = (ls, status, watch, pause, resume, cancel, diff, clean)
