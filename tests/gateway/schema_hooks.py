"""Hooks for the program that asks everything that `/schema` describes; see test_schema.py.

It makes up ids, addresses and keys, so that nearly every answer would be 400, 404 or 422: where a request is not meant
to be wrong, three of four are given what the test has made.
"""

import json
import os
from itertools import count
from typing import Any

import schemathesis
from schemathesis.core.parameters import ParameterLocation

OWN_ID: str = os.environ["TREADLE_TEST_OWN_ID"]
NOBODY = "0" * 24
THERE: dict[str, dict[str, str]] = json.loads(os.environ["TREADLE_TEST_THERE"])
"""Path parameters: those of a route, such as `DELETE /api/agents/{agent}`, or else those of `*`."""
FIELDS: dict[str, str] = json.loads(os.environ["TREADLE_TEST_FIELDS"])
"""Fields of bodies."""
_calls = count()


@schemathesis.hook
def before_call(context: schemathesis.HookContext, case: schemathesis.Case[Any], kwargs: dict[str, Any]) -> None:
    """Completes a request, unless it follows from the answer to another one."""
    number = next(_calls)
    if case.meta is not None and case.meta.phase.name.value != "stateful" and number % 4:
        _complete(case, case.meta, number)
    if case.method == "PATCH" and case.path_parameters.get("user_id") == OWN_ID:
        # Whoever freezes themselves or sets their own password would hear 401 from then on.
        case.path_parameters["user_id"] = NOBODY


def _complete(case: schemathesis.Case[Any], meta: Any, number: int) -> None:
    if not meta.is_negative_at(ParameterLocation.PATH):
        there = THERE["*"] | THERE.get(f"{case.method} {case.path}", {})
        for name in case.path_parameters:
            case.path_parameters[name] = there[name]
    if not meta.is_negative_at(ParameterLocation.HEADER):
        if "Idempotency-Key" in case.headers:
            case.headers["Idempotency-Key"] = f"request-{number}"
        if any(parameter.name == "If-Match" for parameter in case.operation.headers):
            case.headers["If-Match"] = "*"
    if "candidate" in case.query and not meta.is_negative_at(ParameterLocation.QUERY):
        case.query["candidate"] = FIELDS["candidate"]
    if isinstance(case.body, dict) and not meta.is_negative_at(ParameterLocation.BODY):
        case.body = {name: FIELDS.get(name, value) for name, value in case.body.items()}
