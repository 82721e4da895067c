"""Subcommands: a person's word on one task, and what a person who does tasks needs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click
import msgspec

from treadle.api import ApiError, Resource
from treadle.bad_input import BadInput
from treadle.found import Plan, find_plan, known_task
from treadle.instance import Instance
from treadle.plain_text import one_line, plain
from treadle.plan_commands import json_option, note_option, plan_option
from treadle.project_commands import setting
from treadle.run import faults_told, say

_HELP = {
    "redispatch": "Ask for another attempt of a task.",
    "abandon": "Give a task up: the tasks after it go on without its work.",
    "complete": "Say that a task is done. No work of its failed attempts comes onto the branch.",
    "cancel": "Stop a task; it then needs attention.",
    "dispatch": "Say that a task's person begins: from now on its result is looked for.",
}
_STANDS = {
    "awaiting_approval": "waits for an answer: `treadle task approve` or `deny` it",
    "cancelling": "is being cancelled",
    "needs_attention": "needs attention",
    "readied": "is ready for its person",
    "retry_wait": "waits for its next attempt",
}


_STAYS = frozenset({"code", "depends_on", "reviews"})
"""Of these the gateway says itself why they stay."""
EDITABLE = frozenset(
    {"name", "description", "assignee", "expected_output", "timeout_minutes", "verify", "verify_rounds", "retry"}
    | {"requires_approval", "allow_no_change", "budget_usd", "max_review_rounds", "fixer"}
)


@click.group()
def task() -> None:
    """A person's word on one task; and a person's own tasks."""


def _task_command(name: str, words: str) -> click.Command:
    def callback(instance: Instance, code: str, plan: str | None, note: str) -> None:
        with instance.reach() as reached:
            gateway = reached.gateway()
            found = find_plan(gateway, plan)["plan"]
            with known_task(found, code) as path:
                done = gateway.post(f"{path}/{name}", {"note": note})
                gateway.wait_for(found, done["seq"])
                task = gateway.get(path, Plan)
        stands = _said_of(name, task) or words if done["changed"] else _stands_already(task["status"])
        say(f"task {code} of plan {found}: {stands}")

    command: Callable[..., Any] = click.pass_obj(callback)
    command.__doc__ = _HELP[name]
    return click.command(name)(click.argument("code", metavar="TASK")(note_option(plan_option(command))))


def _said_of(name: str, task: Plan) -> str:
    """What a person's word means for a review or a decision, where it means something else there."""
    if name == "redispatch" and task.get("is_decision"):
        return "it is weighed again, and one more round is granted"
    if name == "complete" and task.get("reviews") and not task.get("review"):
        return "marked complete, without a verdict: its decision will need your word too (complete or abandon it)"
    return ""


def _stands_already(status: str) -> str:
    return f"{_STANDS.get(status, f'is {status}')} already"


task.add_command(_task_command("redispatch", "another attempt was asked for"))
task.add_command(_task_command("abandon", "given up; its successors don't wait for it"))
task.add_command(_task_command("complete", "marked complete"))
task.add_command(_task_command("cancel", "asked to stop; it then needs attention"))
task.add_command(_task_command("dispatch", "is with its person; its result is looked for"))


@task.command()
@click.argument("code", metavar="TASK")
@plan_option
@json_option
@click.pass_obj
def prompt(instance: Instance, code: str, plan: str | None, as_json: bool) -> None:
    """Prints what a task's agent is told: what a person gives to theirs."""
    with instance.reach() as reached:
        gateway = reached.gateway()
        with known_task(find_plan(gateway, plan)["plan"], code) as path:
            try:
                found = gateway.get(f"{path}/prompt", Resource)
            except ApiError as error:
                if error.code != "not_dispatched":
                    raise
                waiting_for = gateway.get(path, Plan)["waiting_for"]
                raise BadInput(f"{error}{_waits_for(waiting_for)}") from error
    click.echo(msgspec.json.encode(found).decode() if as_json else plain(found["prompt"].rstrip()))


def _waits_for(codes: list[str]) -> str:
    return f": it waits for {', '.join(codes[:5])}{', …' if len(codes) > 5 else ''}" if codes else ""


@task.command()
@click.argument("code", metavar="TASK")
@plan_option
@json_option
@click.pass_obj
def refresh(instance: Instance, code: str, plan: str | None, as_json: bool) -> None:
    """Looks for a manual task's result now, whatever the task's state. What is new is then taken as any result."""
    with instance.reach() as reached:
        gateway = reached.gateway()
        with known_task(find_plan(gateway, plan)["plan"], code) as path:
            looked = gateway.post(f"{path}/refresh")
            stands = gateway.get(path, Plan)
    if as_json:
        click.echo(msgspec.json.encode(looked).decode())
        return
    for line in refreshed_lines(looked, stands):
        click.echo(line)


def refreshed_lines(looked: Resource, task: Resource) -> list[str]:
    """What was found when somebody looked, and how the task stands now."""
    where = one_line(looked["path"])
    there = f"{where} is there ({looked['blob'][:12]})" if looked["blob"] else f"{where} is not there"
    if looked["blob"] and task["status"] in ("running", "needs_attention"):
        there += "; if it is new, it is being taken"
    return [there, f"task {task['code']} {_STANDS.get(task['status'], 'is ' + task['status'])}"]


@task.command()
@click.argument("code", metavar="TASK")
@click.argument("fields", nargs=-1, required=True, metavar="FIELD=VALUE...")
@note_option
@plan_option
@click.pass_obj
def edit(instance: Instance, code: str, fields: tuple[str, ...], note: str, plan: str | None) -> None:
    """Changes what is to be done, while a task has not begun or needs attention.

    A FIELD is one of a plan file's task; a VALUE is JSON where it can be read as such, else a text; null clears it.
    For example:

        treadle task edit greet timeout_minutes=20 'verify=["pytest -q"]' assignee=coder
    """
    changes = dict(setting(text) for text in fields)
    if unknown := [name for name in changes if name not in EDITABLE | _STAYS]:
        known = ", ".join(sorted(EDITABLE))
        raise BadInput(f"{one_line(unknown[0], 60)} is no field of a task that can be changed: there are {known}")
    with instance.reach() as reached:
        gateway = reached.gateway()
        found = find_plan(gateway, plan)["plan"]
        with known_task(found, code) as path, faults_told(f"task {code} can't be changed so"):
            body = {**changes, "note": note} if note else changes
            done = gateway.patch(path, body, if_match=gateway.tag(path))
        gateway.wait_for(found, done["seq"])
    say(f"task {code} of plan {found}: {'changed' if done['changed'] else 'is so already'}")
