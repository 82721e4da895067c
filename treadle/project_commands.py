"""Subcommands about projects: which there are, and what each says of how its plans are worked on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, get_args

import click
import msgspec

from shared.spec import Answer, Delivery, OnConflict, Permission
from treadle.api import ApiError, Gateway, Resource
from treadle.bad_input import BadInput, not_utf8
from treadle.instance import Instance
from treadle.plain_text import one_line, plain
from treadle.projects import agent_named
from treadle.run import say

json_option = click.option("--json", "as_json", is_flag=True, help="JSON instead of words.")

NOT_SETTINGS = frozenset({"id", "owner_id", "created_at", "version", "deleting_since"})
_SAID_OTHERWISE = frozenset({"has_git_credentials", "git_credentials_hint", "git_credentials_kind"})
"""What a project shows and `set` doesn't set."""
_ONLY_SET = "clear_credentials"
_CHOICES: Mapping[str, tuple[str, ...]] = {"delivery": get_args(Delivery), "on_conflict": get_args(OnConflict)}

_RULE = (
    f"a rule has {', '.join(Permission.__struct_fields__)} (one of {', '.join(get_args(Answer))}), such as "
    """permissions='[{"tool": "Bash", "pattern": "git push*", "answer": "ask"}]'"""
)


@click.group(invoke_without_command=True)
@json_option
@click.pass_context
def projects(context: click.Context, as_json: bool) -> None:
    """Lists the projects; shows and changes what one says."""
    if context.invoked_subcommand is not None:
        return
    instance: Instance = context.obj
    with instance.reach() as reached:
        found = list(reached.gateway().pages("/projects"))
    if as_json:
        click.echo(msgspec.json.encode(found).decode())
    elif not found:
        say("no projects yet: `treadle run` makes one")
    for one in [] if as_json else found:
        click.echo(_line(one))


@projects.command()
@click.argument("project")
@json_option
@click.pass_obj
def show(instance: Instance, project: str, as_json: bool) -> None:
    """Shows a project's settings. PROJECT is an id or a name."""
    with instance.reach() as reached:
        gateway = reached.gateway()
        found = gateway.get(f"/projects/{_find(gateway, project)['id']}", Resource)
    _show(found, as_json=as_json)


@projects.command(name="set")
@click.argument("project")
@click.argument("settings", nargs=-1, required=True, metavar="SETTING=VALUE...")
@json_option
@click.pass_obj
def set_(instance: Instance, project: str, settings: tuple[str, ...], as_json: bool) -> None:
    """Changes a project's settings. PROJECT is an id or a name.

    A VALUE is JSON where it can be read as such, else a text; null clears it. Plans that are finalized keep what they
    have. For example:

        treadle projects set demo delivery=merge network_allow='["packages.example.org"]'
        treadle projects set demo agent_ids='["ann", "ben"]'

    Agents are named by slug, name or id.
    """
    changes = dict(setting(text) for text in settings)
    with instance.reach() as reached:
        gateway = reached.gateway()
        before = _find(gateway, project)
        known_ones = before.keys() - NOT_SETTINGS - _SAID_OTHERWISE
        if unknown := [name for name in changes if name not in {*known_ones, _ONLY_SET}]:
            known = ", ".join(sorted(known_ones))
            raise BadInput(f"{one_line(unknown[0], 60)} is no setting of a project: there are {known}")
        for name, value in changes.items():
            if isinstance(before.get(name), bool) and not isinstance(value, bool):
                raise BadInput(f"{name} is true or false, not {one_line(str(value), 60)}")
        for name, allowed in _CHOICES.items():
            if name in changes and changes[name] not in allowed:
                raise BadInput(f"{name} is one of {', '.join(allowed)}, not {one_line(str(changes[name]), 60)}")
        if changes.get("agent_ids") is not None:
            changes["agent_ids"] = _agents(gateway, changes["agent_ids"])
        with _rule_shown(changes):
            changed = gateway.patch(f"/projects/{before['id']}", changes)
    if as_json:
        _show(changed, as_json=True)
        return
    hidden = NOT_SETTINGS | _SAID_OTHERWISE
    differing = {name: value for name, value in changed.items() if value != before.get(name)}
    lines = _lines({name: value for name, value in differing.items() if name not in hidden})
    click.echo("\n".join([_line(changed), *(lines or ["  nothing has changed: it is so already"])]))


@contextlib.contextmanager
def _rule_shown(changes: Mapping[str, Any]) -> Iterator[None]:
    """Where the rules about tools are refused, one is shown as it has to be. Raises `BadInput`."""
    try:
        yield
    except ApiError as error:
        if error.status >= 500 or "permissions" not in changes or not str(error).startswith("permissions"):
            raise
        raise BadInput(f"{error}; {_RULE}") from error


def _agents(gateway: Gateway, wanted: Any) -> list[str]:
    """Their ids: people know them by their slugs. Raises `BadInput`."""
    if not isinstance(wanted, list) or not all(isinstance(one, str) for one in wanted):
        raise BadInput('agent_ids is a list of agents, each by its slug, name or id: agent_ids=\'["ann", "ben"]\'')
    return [agent_named(gateway, one) for one in wanted]


def setting(text: str) -> tuple[str, Any]:
    """NAME=VALUE as a name and JSON's value, or the text where it is no JSON. Raises `BadInput`."""
    name, sign, value = text.partition("=")
    if not sign or not name:
        raise BadInput(f"{one_line(text, 60)} says nothing: write NAME=VALUE")
    try:
        return name, msgspec.json.decode(value)
    except UnicodeEncodeError as error:
        raise not_utf8(error) from None
    except (msgspec.MsgspecError, RecursionError):
        return name, value


def _find(gateway: Gateway, wanted: str) -> Resource:
    """Raises `BadInput` for no project of that id or name, and for several."""
    found = list(gateway.pages("/projects"))
    named = [p for p in found if p["id"] == wanted] or [p for p in found if p["name"] == wanted]
    if len(named) == 1:
        return named[0]
    if not named:
        raise BadInput(f"there is no project {one_line(wanted, 60)}: `treadle projects` lists them")
    ids = ", ".join(project["id"] for project in named[:5])
    raise BadInput(f"{len(named)} projects are called {one_line(wanted, 60)}: name one by its id ({ids})")


def _show(project: Resource, *, as_json: bool) -> None:
    if as_json:
        click.echo(msgspec.json.encode(project).decode())
        return
    click.echo(_line(project))
    for line in _lines({name: value for name, value in project.items() if name not in NOT_SETTINGS}):
        click.echo(line)


def _lines(settings: Mapping[str, Any]) -> list[str]:
    width = max(map(len, settings), default=0)
    return [f"  {name:<{width}}  {plain(msgspec.json.encode(value).decode())}" for name, value in settings.items()]


def _line(project: Resource) -> str:
    return (
        f"{project['id']}  {project['mode']:<6}  {one_line(project['name'], 60)}  {one_line(project['code_repo_url'])}"
    )
