"""What the gateway says to programs, said to people at the command: its routes become the commands that call them."""

from __future__ import annotations

import re

_ROUTE = re.compile(r"`?\b(?:GET|POST|PUT|PATCH|DELETE) /api/[^\s`,;:)]+`?")
_LISTED_BY = re.compile(rf"; ({_ROUTE.pattern}) lists what does$")
_COMMANDS = tuple(
    (re.compile(route), command)
    for route, command in (
        (r"GET /api/plans(\?.*)?", "treadle ls"),
        (r"GET /api/plans/(?P<plan>\w+)/tasks/(?P<task>[\w-]+)/transcript", "treadle logs {task} --plan {plan}"),
        (r"GET /api/plans/(?P<plan>\w+)/(tasks|tasks/\S+|state)", "treadle status {plan}"),
        (r"GET /api/plans/(?P<plan>\w+)/(?P<what>events|candidates)", "treadle {what} {plan}"),
        (r"POST /api/projects/…/plans/prompt", "treadle plan GOAL --by-hand"),
        (r"PATCH /api/projects/…", "treadle projects set PROJECT"),
        (r"GET /api/(?P<what>consumers|projects|templates)", "treadle {what}"),
        (r"GET /api/projection", "treadle projection show"),
        (r"GET /api/imported-plans", "treadle imported"),
        (r"DELETE /api/imported-plans/\{id\}", "treadle imported remove PLAN"),
    )
)


def in_command_words(detail: str) -> str:
    """The detail of a problem with commands instead of routes. A route that no command calls stays as it is.

    A list that no command shows is not named.
    """
    named = _LISTED_BY.search(detail)
    if named is not None and _command(named[1]) == named[1]:
        return detail[: named.start()]
    return _ROUTE.sub(lambda found: _command(found[0]), detail)


def _command(route: str) -> str:
    for pattern, command in _COMMANDS:
        if found := pattern.fullmatch(route.strip("`")):
            return f"`{command.format(**found.groupdict())}`"
    return route
