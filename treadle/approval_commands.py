"""Subcommands: a person's answer to what an agent asks for."""

from __future__ import annotations

import sys
from typing import Any

import click

from treadle.asking import APPROVAL_CHARS, asked_at_length
from treadle.bad_input import BadInput
from treadle.found import Plan, find_plan, known_task
from treadle.instance import Instance
from treadle.plain_text import one_line
from treadle.plan_commands import plan_option
from treadle.run import say

APPROVAL_MIN_CHARS = 8

note_option = click.option("--note", default="", help="Words for the agent; the answer itself where it has a question.")
approval_option = click.option(
    "--approval",
    metavar="HASH",
    default="",
    help="Answer at once, and only if this is what is asked for.",
)


@click.command()
@click.argument("code", metavar="TASK")
@note_option
@approval_option
@plan_option
@click.pass_obj
def approve(instance: Instance, code: str, plan: str | None, note: str, approval: str) -> None:
    """Shows what a task asks for, and allows it: this once, and nothing else."""
    _answer(instance, "approve", code, plan, note, approval)


@click.command()
@click.argument("code", metavar="TASK")
@note_option
@approval_option
@plan_option
@click.pass_obj
def deny(instance: Instance, code: str, plan: str | None, note: str, approval: str) -> None:
    """Shows what a task asks for, and refuses it; the agent goes on without."""
    _answer(instance, "deny", code, plan, note, approval)


def _answer(instance: Instance, verb: str, code: str, wanted: str | None, note: str, approval: str) -> None:
    with instance.reach() as reached:
        gateway = reached.gateway()
        plan = find_plan(gateway, wanted)["plan"]
        with known_task(plan, code) as path:
            task = gateway.get(path, Plan)
            asked = _asked(task, plan, approval)
            click.echo("\n".join(asked_at_length(plan, task)))
            if verb == "approve" and not approval:
                note = _word_of_the_person(asked, note)
            # The hash of what was shown: if it asks for something else by now, the gateway refuses.
            done = gateway.post(f"{path}/{verb}", {"approval": asked["approval"], "note": note})
        gateway.wait_for(plan, done["seq"])
    words = "allowed: it goes on" if verb == "approve" else "refused: the agent is told, and goes on"
    say(f"task {code} of plan {plan}: {words if done['changed'] else 'that was answered so already'}")


def _asked(task: dict[str, Any], plan: str, approval: str) -> dict[str, Any]:
    """What the task asks for. Raises `BadInput` where it is nothing, or not what the person means."""
    asked: dict[str, Any] | None = task.get("approval")
    if task["status"] != "awaiting_approval" or asked is None:
        stands = task["status"].replace("_", " ")
        raise BadInput(f"task {task['code']} of plan {plan} asks for nothing now; its status: {stands}")
    if approval and (len(approval) < APPROVAL_MIN_CHARS or not asked["approval"].startswith(approval.lower())):
        now = asked["approval"][:APPROVAL_CHARS]
        raise BadInput(f"{one_line(approval, 70)} is not what task {task['code']} asks for: that is {now} now")
    return asked


def _word_of_the_person(asked: dict[str, Any], note: str) -> str:
    """Asks whoever sits there; the note, which may be the answer. Raises `BadInput` where nobody does."""
    question = asked["kind"] == "question"
    if question and note.strip():
        return note
    if not sys.stdin.isatty():
        words = "--note with the answer" if question else f"--approval {asked['approval'][:APPROVAL_CHARS]}"
        raise BadInput(f"nobody is there to be asked: if that is what you want, say so by {words}")
    if question:
        return str(click.prompt("your answer"))
    if not click.confirm("allow it?"):
        raise BadInput("nothing was answered: it goes on waiting (`treadle task deny` refuses it)")
    return note


approval_commands: tuple[click.Command, ...] = (approve, deny)
