"""What a command said that its event does not: with it, a decision can be made again from the log.

Most of what deciding needed besides the state is in the event, under the same name. The rest (the time, random values,
what the plan allowed) is stored beside it in a header, so that the event stays as short as its consumers want it.
"""

import json
from functools import cache
from typing import Any, get_args

import msgspec

from shared.commands import Command, PlanCommand, TaskCommand
from shared.events import Event, TaskReadied

GIVEN_MAX_CHARS = 64 * 1024
"""What is longer is not stored, and its decision can't be made again."""

COMMANDS: dict[str, type[Command]] = {kind.__name__: kind for kind in (*get_args(PlanCommand), *get_args(TaskCommand))}
_LEFT_OUT = {"Dispatch": ("rules",), "HandOut": ("readied",)}
"""Megabytes at times. The decider adds the task's own part to a dispatch's rules, which does nothing to what has it
already; what was readied is in the task's history."""


class NotGiven(Exception):
    """The command can't be known from the log any more; the message says why."""


def given(command: Command, event: Event) -> str:
    """JSON of what `rebuilt` needs besides the event: `{}` for nothing; empty where it is too much."""
    fields = _fields(type(command))
    rest = {
        name: value
        for name, field in fields.items()
        if name not in _LEFT_OUT.get(type(command).__name__, ())
        and (value := getattr(command, name)) is not getattr(event, name, _ABSENT)
        and value != getattr(event, name, _default(field))
    }
    text = json.dumps(msgspec.to_builtins(rest), separators=(",", ":"))  # headers are ASCII
    return text if len(text) <= GIVEN_MAX_CHARS else ""


def rebuilt(name: str, event: Event, given: str, readied: TaskReadied | None = None) -> Command:
    """The command of that name that led to the event. `readied` is the task's newest such event before it.

    Raises `NotGiven` for events that were stored before commands were, or by a newer Treadle.
    """
    kind = COMMANDS.get(name)
    if kind is None:
        raise NotGiven(f"this Treadle knows no command {name or 'without a name'}")
    try:
        said = msgspec.json.decode(given) if given else {}
        values = {n: msgspec.convert(said[n], field.type) for n, field in _fields(kind).items() if n in said}
    except (msgspec.MsgspecError, TypeError) as error:
        raise NotGiven(f"what the command {name} said can't be read: {error}") from error
    for field in _fields(kind):
        if field not in values and hasattr(event, field):
            values[field] = getattr(event, field)
    if kind.__name__ == "HandOut" and readied is not None:
        values["readied"] = readied
    try:
        return kind(**values)
    except TypeError as error:
        raise NotGiven(f"what the command {name} said is not in the log: {error}") from error


_ABSENT = object()


@cache
def _fields(kind: type[Command]) -> dict[str, msgspec.structs.FieldInfo]:
    return {field.name: field for field in msgspec.structs.fields(kind)}


def _default(field: msgspec.structs.FieldInfo) -> Any:
    if field.default_factory is not msgspec.NODEFAULT:
        return field.default_factory()
    return field.default
