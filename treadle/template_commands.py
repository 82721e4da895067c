"""Subcommands: which templates there are, and what each asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click
import msgspec

from treadle.instance import Instance
from treadle.plain_text import one_line, plain
from treadle.run import say
from treadle.templates import find_template

json_option = click.option("--json", "as_json", is_flag=True, help="JSON instead of words.")
DESCRIPTION_CHARS = 300


@click.group(invoke_without_command=True)
@json_option
@click.pass_context
def templates(context: click.Context, as_json: bool) -> None:
    """Lists the templates: plans with roles and inputs, for `treadle run --template`."""
    if context.invoked_subcommand is not None:
        return
    instance: Instance = context.obj
    with instance.reach() as reached:
        found = list(reached.gateway().pages("/templates"))
    if as_json:
        click.echo(msgspec.json.encode(found).decode())
    elif not found:
        say("there are no templates")
    for one in [] if as_json else found:
        click.echo(template_line(one))


@templates.command()
@click.argument("name")
@json_option
@click.pass_obj
def show(instance: Instance, name: str, as_json: bool) -> None:
    """Shows what a template asks for, and its text. NAME is a name or an id."""
    with instance.reach() as reached:
        found = find_template(reached.gateway(), name)
    if as_json:
        click.echo(msgspec.json.encode(found).decode())
        return
    click.echo("\n".join(template_lines(found)))


def template_line(one: Mapping[str, Any]) -> str:
    """A template on one line."""
    return f"{one['id']}  {one_line(one['name'], 60)}  {one_line(one.get('description') or '', DESCRIPTION_CHARS)}"


def template_lines(one: Mapping[str, Any]) -> list[str]:
    """Everything about a template, with the command that runs it."""
    lines = [template_line(one), ""]
    for role in one.get("roles") or ():
        lines.append(f"  --role {one_line(role['slot'], 63)}=AGENT  {one_line(role.get('description') or '', 300)}")
    for field in one.get("inputs") or ():
        lines.append(f"  --input {one_line(field['name'], 63)}={_form(field)}  {_about(field)}")
    text = one.get("text")
    return [*lines, "", plain(text)] if isinstance(text, str) else lines


def _form(field: Mapping[str, Any]) -> str:
    if field.get("type") == "choice":
        return "|".join(one_line(choice, 40) for choice in field.get("choices") or ())
    return {"number": "NUMBER", "boolean": "true|false"}.get(field.get("type", "text"), "TEXT")


def _about(field: Mapping[str, Any]) -> str:
    default = field.get("default")
    if default is not None:
        shown = str(default).lower() if isinstance(default, bool) else default
        needed = f"[{one_line(shown, 60) if isinstance(shown, str) else format(shown, 'g')}] "
    else:
        needed = "(needed) " if field.get("required", True) else ""
    return f"{needed}{one_line(field.get('description') or '', DESCRIPTION_CHARS)}"
