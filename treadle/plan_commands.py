"""Subcommands about plans and tasks that exist: looking, and giving a person's word."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import click
import httpx
import msgspec
from httpx_sse import connect_sse
from rich.console import Console

from services.runner.merge import diff as diff_commits
from services.runner.mirror import mirror_of
from shared.subjects import PLAN_ID
from treadle.api import CONNECT_TIMEOUT_S, ApiError, Gateway, checked
from treadle.bad_input import BadInput
from treadle.clean import find_items, size_words, total
from treadle.instance import Instance
from treadle.lines import standing_line
from treadle.plain_text import one_line, plain
from treadle.run import watch_plan
from treadle.supervision.suite_info import SuiteOptions
from treadle.table import render

Plan = dict[str, Any]

OVER = ("completed", "cancelled", "abandoned", "needs_attention")
"""A task that stands so says nothing more unless a person asks for it."""

PIPED_WIDTH = 200
TRANSCRIPT_ENTRIES = 500
"""Asked for at once."""

plan_argument = click.argument("plan", required=False)
plan_option = click.option("--plan", help="The plan: its id, or the beginning of it [the newest plan].")
json_option = click.option("--json", "as_json", is_flag=True, help="JSON instead of words.")

_HELP = {
    "pause": "Start nothing new; what runs goes on.",
    "resume": "Start tasks again.",
    "cancel": "End a plan: nothing starts any more, and what runs is stopped.",
    "task redispatch": "Ask for another attempt of a task.",
    "task abandon": "Give a task up: the tasks after it go on without its work.",
    "task complete": "Say that a task is done. No work of its failed attempts comes onto the branch.",
    "task cancel": "Stop a task; it then needs attention.",
}


def find_plan(gateway: Gateway, wanted: str | None) -> Plan:
    """The plan whose id begins so, or the newest. Raises `BadInput` for none and for several."""
    if wanted is None:
        newest = next(gateway.pages("/plans", sort="-created_at", limit=1), None)
        if newest is None:
            raise BadInput("there is no plan yet: `treadle run plan.yaml --repo PATH` makes one")
        return newest
    found = _plans_like(gateway, wanted)
    if len(found) == 1:
        return found[0]
    if not found:
        raise BadInput(f"there is no plan {one_line(wanted, 40)}: `treadle ls` lists the plans")
    raise BadInput(f"{len(found)} plans begin with {wanted}: {', '.join(plan['plan'] for plan in found[:5])}")


def _plans_like(gateway: Gateway, wanted: str) -> list[Plan]:
    if not PLAN_ID.fullmatch(wanted):
        # A gateway that does not know the filter lists all plans.
        return [plan for plan in gateway.pages("/plans", id_prefix=wanted) if plan["plan"].startswith(wanted)]
    try:
        return [gateway.get(f"/plans/{wanted}", Plan)]
    except ApiError as error:
        if error.status != 404:
            raise
        return []


@click.command()
@json_option
@click.pass_obj
def ls(instance: Instance, as_json: bool) -> None:
    """Lists the plans, the newest first."""
    with instance.reach() as reached:
        plans = list(reached.gateway().pages("/plans", sort="-created_at"))
    if as_json:
        click.echo(msgspec.json.encode(plans).decode())
    elif not plans:
        click.echo("no plans yet", err=True)
    else:
        for plan in plans:
            click.echo(standing_line(plan))


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
    if as_json:
        click.echo(msgspec.json.encode({**found, "tasks": tasks}).decode())
        return
    table = render(found, {task["code"]: task for task in tasks}, {}, datetime.now(UTC), len(tasks))
    console = Console() if sys.stdout.isatty() else Console(width=PIPED_WIDTH, no_color=True)
    with console.capture() as captured:
        console.print(table)
    click.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))
    for task in tasks:
        if task["status"] == "needs_attention":
            click.echo(f"\n{task['code']}: {plain(task['message'])}")


@click.command()
@plan_argument
@json_option
@click.pass_obj
def watch(instance: Instance, plan: str | None, as_json: bool) -> None:
    """Watches a plan to its end; exit status as of `run`."""
    with instance.reach() as reached:
        found = find_plan(reached.gateway(), plan)
        options = SuiteOptions(data_dir=str(instance.data_dir.path))
        sys.exit(watch_plan(found["plan"], reached, instance, options, as_json=as_json))


def _plan_command(name: str, path: str, words: str, *, with_note: bool) -> click.Command:
    def callback(instance: Instance, plan: str | None, note: str = "") -> None:
        with instance.reach() as reached:
            gateway = reached.gateway()
            found = find_plan(gateway, plan)
            done = gateway.post(f"/plans/{found['plan']}/{path}", {"note": note} if with_note else None)
            gateway.wait_for(found["plan"], done["seq"])
        click.echo(f"plan {found['plan']}: {words}" + ("" if done["changed"] else " (already)"), err=True)

    command: Callable[..., Any] = click.pass_obj(callback)
    command.__doc__ = f"{_HELP[name]}\n\n    PLAN is an id or the beginning of one; left out, it is the newest plan."
    if with_note:
        command = click.option("--note", default="", help="Why; kept with the event.")(command)
    return click.command(name)(plan_argument(command))


pause = _plan_command("pause", "pause", "starts nothing new; what runs goes on", with_note=True)
resume = _plan_command("resume", "resume", "starts tasks again", with_note=False)
cancel = _plan_command("cancel", "cancel", "is being ended: what runs is stopped", with_note=True)


@click.group()
def task() -> None:
    """A person's word on one task."""


def _task_command(name: str, words: str) -> click.Command:
    def callback(instance: Instance, code: str, plan: str | None, note: str) -> None:
        with instance.reach() as reached:
            gateway = reached.gateway()
            found = find_plan(gateway, plan)
            done = gateway.post(f"/plans/{found['plan']}/tasks/{_segment(code)}/{name}", {"note": note})
            gateway.wait_for(found["plan"], done["seq"])
        click.echo(
            f"task {code} of plan {found['plan']}: {words}" + ("" if done["changed"] else " (already)"), err=True
        )

    command: Callable[..., Any] = click.pass_obj(callback)
    command.__doc__ = _HELP[f"task {name}"]
    command = click.option("--note", default="", help="Why; kept with the event.")(plan_option(command))
    return click.command(name)(click.argument("code", metavar="TASK")(command))


task.add_command(_task_command("redispatch", "another attempt was asked for"))
task.add_command(_task_command("abandon", "given up; its successors don't wait for it"))
task.add_command(_task_command("complete", "marked complete"))
task.add_command(_task_command("cancel", "asked to stop; it then needs attention"))


@click.command()
@click.argument("code", metavar="TASK")
@click.option("-f", "--follow", is_flag=True, help="Go on as it comes.")
@plan_option
@json_option
@click.pass_obj
def logs(instance: Instance, code: str, plan: str | None, follow: bool, as_json: bool) -> None:
    """Shows what a task's agents did."""
    with instance.reach() as reached:
        gateway = reached.gateway()
        found = find_plan(gateway, plan)
        path = f"/plans/{found['plan']}/tasks/{_segment(code)}/transcript"
        if not follow:
            for entry in _transcript(gateway, path):
                _show_entry(entry, as_json)
            return
        timeout = httpx.Timeout(CONNECT_TIMEOUT_S, read=None)
        with (
            httpx.Client(**reached.address.http(), timeout=timeout) as http,
            connect_sse(http, "GET", f"{path}/stream") as source,
        ):
            checked(source.response)
            for message in source.iter_sse():
                if message.event == "activity":
                    _show_entry(msgspec.json.decode(message.data), as_json)
                elif message.event == "live" and msgspec.json.decode(message.data)["status"] in OVER:
                    return


def _transcript(gateway: Gateway, path: str) -> Iterator[Plan]:
    after: int | None = 0
    while after is not None:
        page = gateway.get(path, Plan, after=after, limit=TRANSCRIPT_ENTRIES)
        yield from page["items"]
        after = page["next_after"]


def _show_entry(entry: Plan, as_json: bool) -> None:
    if as_json:
        click.echo(msgspec.json.encode(entry).decode())
        return
    activity = entry["activity"]
    if text := activity.get("text"):
        time = datetime.fromisoformat(entry["time"]).astimezone().strftime("%H:%M:%S")
        click.echo(f"{time} {activity['kind']:<6} {plain(text.rstrip())}")


@click.command()
@click.argument("code", metavar="TASK")
@click.option("--stat", is_flag=True, help="Only which files, and how much.")
@plan_option
@click.pass_obj
def diff(instance: Instance, code: str, plan: str | None, stat: bool) -> None:
    """Shows what a task changed, against what it started from."""
    data_dir = instance.own("diff")
    with instance.reach() as reached:
        gateway = reached.gateway()
        found = find_plan(gateway, plan)
        view = gateway.get(f"/plans/{found['plan']}/tasks/{_segment(code)}", Plan)
    if not view["commit"]:
        raise BadInput(f"task {code} has no commit: it is {view['status'].replace('_', ' ')}")
    mirror = mirror_of(data_dir.path, found["repo_url"])
    mirror.ensure(found["plan"], [view["base_commit"], view["commit"]])
    changes = diff_commits(mirror.path, view["base_commit"], view["commit"])
    click.echo(plain(changes.stat if stat else changes.patch), nl=False)
    if changes.cut and not stat:
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


def _segment(code: str) -> str:
    """A task code on its way into a URL's path."""
    if not all(ch.isalnum() or ch in "_-" for ch in code) or not code.isascii() or not code:
        raise ApiError(404, "not_found", f"{one_line(code, 40)} is not a task code")
    return code


plan_commands: tuple[click.Command, ...] = (ls, status, watch, pause, resume, cancel, task, logs, diff, clean)
