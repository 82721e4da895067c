"""`treadle imported`: the plans that came from files, and their removal."""

from __future__ import annotations

import click
import msgspec

from treadle.api import checked
from treadle.bad_input import BadInput
from treadle.found import find_plan, imported_plans
from treadle.instance import Instance
from treadle.lines import imported_line
from treadle.plan_commands import json_option
from treadle.run import say


@click.group(invoke_without_command=True)
@json_option
@click.pass_context
def imported(context: click.Context, as_json: bool) -> None:
    """Lists the plans that were imported, the newest first."""
    if context.invoked_subcommand is not None:
        return
    instance: Instance = context.obj
    with instance.reach() as reached:
        plans = imported_plans(reached.gateway())
    if as_json:
        click.echo(msgspec.json.encode(plans).decode())
    elif not plans:
        say("no plan was imported: `treadle import FILE` makes one")
    for plan in [] if as_json else plans:
        click.echo(imported_line(plan))


@imported.command()
@click.argument("plan")
@click.pass_obj
def remove(instance: Instance, plan: str) -> None:
    """Removes the imported PLAN, an id or the beginning of one. Who has its file can import it again."""
    with instance.reach() as reached:
        gateway = reached.gateway()
        found = find_plan(gateway, plan)
        if not found.get("imported"):
            raise BadInput(f"plan {found['plan']} was not imported: it stays in the log (`treadle cancel` ends it)")
        checked(gateway.http.delete(f"/imported-plans/{found['plan']}"))
    say(f"plan {found['plan']} is removed; its file can be imported again")
