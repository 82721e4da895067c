"""What `/schema` says: Litestar's description of the routes, with what it can't know of them.

Bodies are described by msgspec, which is what reads and writes them: bounds within unions and refused fields included.
What no route does but the layers around all of them (keys of idempotency, tokens, limits) is added to each.
"""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from http import HTTPStatus
from types import UnionType
from typing import Any, get_args

import msgspec
from litestar import Request, Response
from litestar.handlers import HTTPRouteHandler
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.routes import BaseRoute, HTTPRoute
from litestar.typing import FieldDefinition

from services.gateway.accounts.access import OPEN_PATHS
from services.gateway.idempotency import IN_PROGRESS, KEY_PATTERN, KEY_REUSED, NOT_FINAL, REPEATABLE
from services.gateway.problems import BODY_TOO_LARGE, PROBLEM_JSON, Problem

Json = dict[str, Any]

_REF = "#/components/schemas/{name}"
_KEY: Json = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "Any text of one's own for this one request, such as a UUID. Repeated with it within a day, the "
    "request is answered as it was the first time and not carried out again.",
    "schema": {"type": "string", "pattern": f"^{KEY_PATTERN}$"},
}


class SchemaPage(JsonRenderPlugin):
    """Serves the description, which is made when it is first asked for."""

    def __init__(self) -> None:
        super().__init__(path=["/openapi.json", "/"])
        self._rendered: bytes | None = None

    def render(self, request: Request[Any, Any, Any], openapi_schema: Json) -> bytes:
        """See `OpenAPIRenderPlugin`."""
        if self._rendered is None:
            self._rendered = super().render(request, described(openapi_schema, request.app.routes))
        return self._rendered


def described(document: Json, routes: Sequence[BaseRoute]) -> Json:
    """Litestar's description of these routes, completed."""
    document = deepcopy(document)
    operations = list(_operations(document, routes))
    _describe_bodies(document, [(operation, handler) for operation, _, handler in operations])
    for operation, template, handler in operations:
        for parameter in operation.get("parameters", ()):
            parameter["schema"] = _without_null(parameter["schema"])
        if "requestBody" in operation:
            data = handler.parsed_data_field
            if data is not None:  # else it is a file, and the route says so itself
                operation["requestBody"]["required"] = data.is_required
            _also_answers(operation, BODY_TOO_LARGE)
        if template in OPEN_PATHS:
            operation["security"] = []
        elif "POST" in handler.http_methods and template not in REPEATABLE:
            _may_be_repeated(operation)
        for status, answer in operation["responses"].items():
            _describe_headers(status, answer)
    return document


def _operations(document: Json, routes: Sequence[BaseRoute]) -> Iterator[tuple[Json, str, HTTPRouteHandler]]:
    for route in routes:
        if isinstance(route, HTTPRoute):
            for method, (handler, _) in route.route_handler_map.items():
                operation = document["paths"].get(route.path_format, {}).get(method.lower())
                if operation is not None:
                    yield operation, route.path_format, handler


def _describe_bodies(document: Json, operations: list[tuple[Json, HTTPRouteHandler]]) -> None:
    described: list[tuple[Json, Any]] = []
    for operation, handler in operations:
        for status, answer in operation["responses"].items():
            if status.startswith("2") and "application/json" in (content := answer.get("content", {})):
                described.append((content["application/json"], _answered(handler.parsed_return_field)))
        if handler.parsed_data_field is not None:
            described.append((operation["requestBody"]["content"]["application/json"], handler.parsed_data_field.raw))
    types = [*(one for _, type_ in described for one in _alternatives(type_)), Problem]
    schemas, components = msgspec.json.schema_components(types, ref_template=_REF)
    waiting = iter(schemas)
    for place, type_ in described:
        found = [next(waiting) for _ in _alternatives(type_)]
        place["schema"] = found[0] if len(found) == 1 else {"anyOf": found}
    document["components"]["schemas"] = components


def _answered(field: FieldDefinition) -> Any:
    """What is within a `Response`, or is answered as it is."""
    return field.inner_types[0].raw if field.is_subclass_of(Response) else field.raw


def _alternatives(type_: Any) -> tuple[Any, ...]:
    """What an answer is one of. msgspec describes no union of records, since it could not tell them apart."""
    return get_args(type_) if isinstance(type_, UnionType) else (type_,)


def _without_null(schema: Json) -> Json:
    """A parameter can be left out; it can't be null."""
    kinds = [kind for kind in schema.get("oneOf", ()) if kind != {"type": "null"}]
    if len(kinds) != 1:
        return schema
    return {**{name: value for name, value in schema.items() if name != "oneOf"}, **kinds[0]}


def _may_be_repeated(operation: Json) -> None:
    operation.setdefault("parameters", []).append(_KEY)
    _also_answers(operation, IN_PROGRESS)
    _also_answers(operation, KEY_REUSED)
    for status, answer in operation["responses"].items():
        if int(status) not in NOT_FINAL and int(status) < 500:
            text = "`true` where this is the answer to an earlier request with the same Idempotency-Key."
            answer.setdefault("headers", {})["Idempotent-Replayed"] = {
                "description": text,
                "schema": {"const": "true"},
            }


def _also_answers(operation: Json, problem: Problem) -> None:
    status = str(problem.status)
    new = {
        "description": f"{HTTPStatus(problem.status).phrase}: `{problem.code}`",
        "content": {PROBLEM_JSON: {"schema": {"$ref": _REF.format(name="Problem")}, "examples": {}}},
    }
    answer = operation["responses"].get(status)
    if answer is None:
        answer = operation["responses"][status] = new
    else:
        answer["description"] += f", `{problem.code}`"
    example = {"summary": problem.title, "value": msgspec.to_builtins(problem)}
    answer["content"][PROBLEM_JSON]["examples"][problem.code] = example


def _describe_headers(status: str, answer: Json) -> None:
    headers = answer.setdefault("headers", {})
    text = {"type": "string"}
    if status == "401":
        headers["WWW-Authenticate"] = {"description": "That a bearer token is wanted", "required": True, "schema": text}
    examples = answer.get("content", {}).get(PROBLEM_JSON, {}).get("examples", {})
    if status in ("429", "503") or IN_PROGRESS.code in examples:
        headers["Retry-After"] = {
            "description": "Seconds to wait before trying again",
            "required": status != "409",
            "schema": {"type": "string", "pattern": "^[0-9]+$"},
        }
    for header in headers.values():
        header.setdefault("schema", text)
