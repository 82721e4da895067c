"""Errors as RFC 9457 `application/problem+json`, each with a stable `code`.

Routes raise `ProblemError`; `exception_handlers` answers that and whatever else goes wrong; `documented` tells OpenAPI
which of them a route answers.
"""

import logging
from collections.abc import Callable
from http import HTTPStatus
from socket import gaierror
from typing import Any

import msgspec
from litestar import Request, Response
from litestar.exceptions import HTTPException
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.spec import Example
from nats.errors import Error as NatsError
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from shared.commands import Changed, Refused
from shared.events import PlanFault
from shared.store import StoreUnavailable

log = logging.getLogger("treadle.gateway")

PROBLEM_JSON = "application/problem+json"
RETRY_AFTER_S = 2


class FieldFault(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that is wrong with a request."""

    field: str
    """Its path, such as `retry.max_attempts`; the parameter's or header's name."""
    source: str
    """`body`, `query`, `path`, `header` or `cookie`; empty where that is not known."""
    message: str


class Problem(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The body of every answer that is an error."""

    type: str = "about:blank"
    title: str
    status: int
    code: str
    """Stable: what programs look at."""
    detail: str
    """For people: what happened, and what to do now."""
    faults: tuple[PlanFault, ...] = ()
    """Only with `invalid_plan`."""
    fields: tuple[FieldFault, ...] = ()
    """Only with `bad_request`: what is wrong where, as far as that is known."""


BODY_TOO_LARGE = Problem(
    status=413, code="body_too_large", title="The body is too large", detail="Request Entity Too Large"
)


class ProblemError(Exception):
    """Raised by a route to answer with a problem; `headers` go with it."""

    def __init__(
        self,
        status: int,
        code: str,
        title: str,
        detail: str,
        faults: tuple[PlanFault, ...] = (),
        *,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.problem = Problem(status=status, code=code, title=title, detail=detail, faults=faults)
        self.headers = headers


def not_found(what: str, listed_by: str) -> ProblemError:
    """There is no such thing, as far as the caller may know."""
    return ProblemError(404, "not_found", "Not found", f"{what} does not exist here; `{listed_by}` lists what does")


def unauthorized(detail: str) -> ProblemError:
    """Nobody in particular asks, or somebody who may not any more."""
    headers = {"WWW-Authenticate": 'Bearer realm="treadle"'}
    return ProblemError(401, "unauthorized", "Unauthorized", detail, headers=headers)


def forbidden(detail: str) -> ProblemError:
    """The caller is known and lacks the right."""
    return ProblemError(403, "forbidden", "Forbidden", detail)


def bad_request(field: str, message: str, source: str = "body") -> ProblemError:
    """A field that has the right type and a value that can't be."""
    error = ProblemError(400, "bad_request", "Bad request", f"{field}: {message}")
    error.problem.fields = (FieldFault(field=field, source=source, message=message),)
    return error


# OpenAPI ----------------------------------------------------------------------------------------------------------


def documented(*answers: int | Problem) -> dict[int, ResponseSpec]:
    """The error answers of a route, for its `responses`. A status stands for its usual problem; a `Problem` is itself.

    400 and 503 are always among them: every path and query is checked, every route needs the database or the log.
    """
    by_status: dict[int, dict[str, Problem]] = {}
    usual = _usual()
    for answer in (400, 503, *answers):
        problem = usual[answer] if isinstance(answer, int) else answer
        by_status.setdefault(problem.status, {})[problem.code] = problem
    return {status: _spec(status, list(by_code.values())) for status, by_code in sorted(by_status.items())}


def _spec(status: int, problems: list[Problem]) -> ResponseSpec:
    examples = [Example(id=p.code, summary=p.title, value=msgspec.to_builtins(p)) for p in problems]
    codes = ", ".join(f"`{p.code}`" for p in problems)
    return ResponseSpec(
        data_container=Problem,
        generate_examples=False,
        description=f"{HTTPStatus(status).phrase}: {codes}",
        media_type=PROBLEM_JSON,
        examples=examples,
    )


def _usual() -> dict[int, Problem]:
    def problem(status: int, code: str, title: str, detail: str) -> Problem:
        return Problem(status=status, code=code, title=title, detail=detail)

    bad = problem(400, "bad_request", "Bad request", "name: Expected `str`, got `int`")
    bad.fields = (FieldFault(field="name", source="body", message="Expected `str`, got `int`"),)
    nothing = "project 5f0c5e5e9f6b4d3e8a1b2c3d does not exist here; `GET /api/projects` lists what does"
    invalid = problem(422, "invalid_plan", "Not a valid plan", "task T2 depends on T9, which does not exist")
    invalid.faults = (PlanFault(message=invalid.detail, task="T2", field="depends_on"),)
    all_usual = (
        bad,
        problem(401, "unauthorized", "Unauthorized", "send a session's or an API token as a bearer token"),
        problem(403, "forbidden", "Forbidden", "only an admin may do this"),
        problem(404, "not_found", "Not found", nothing),
        problem(409, "refused", "Not possible now", "the plan is completed: nothing of it can be paused"),
        problem(412, "changed", "It has changed", "it is at version 4 now: read it again, then decide again"),
        BODY_TOO_LARGE,
        invalid,
        problem(428, "precondition_required", "If-Match is missing", "send the ETag that you read as If-Match"),
        problem(429, "too_many_logins", "Too many failed logins", "try again in 840 s"),
        problem(503, "database_unavailable", "The database is away", f"try again in {RETRY_AFTER_S} s"),
    )
    return {p.status: p for p in all_usual}


# Answers ----------------------------------------------------------------------------------------------------------


def exception_handlers() -> dict[int | type[Exception], Callable[..., Response[Problem]]]:
    """What the application does about every exception: the most specific class decides."""
    return {
        ProblemError: on_problem,
        Changed: on_changed,
        Refused: on_refused,
        StoreUnavailable: on_unavailable,
        NatsError: on_unavailable,
        HTTPException: on_http_error,
        Exception: on_fault,
    }


def _answer(problem: Problem, headers: dict[str, str] | None = None) -> Response[Problem]:
    return Response(problem, status_code=problem.status, media_type=PROBLEM_JSON, headers=headers)


def _unavailable(code: str, title: str, what: str) -> Response[Problem]:
    problem = Problem(title=title, status=503, code=code, detail=f"{what}; try again in {RETRY_AFTER_S} s")
    return _answer(problem, {"Retry-After": str(RETRY_AFTER_S)})


def on_problem(_: Request[Any, Any, Any], error: ProblemError) -> Response[Problem]:
    """A route said what is wrong."""
    return _answer(error.problem, error.headers)


def on_refused(_: Request[Any, Any, Any], error: Refused) -> Response[Problem]:
    """A decider refused a command."""
    return _answer(Problem(title="Not possible now", status=409, code="refused", detail=str(error)))


def on_changed(_: Request[Any, Any, Any], error: Changed) -> Response[Problem]:
    """A decider refused a command that was written for another state."""
    return _answer(Problem(title="It has changed", status=412, code="changed", detail=str(error)))


def on_unavailable(_: Request[Any, Any, Any], error: StoreUnavailable | NatsError) -> Response[Problem]:
    """The log can't be reached: nothing is known to be stored, nothing that was stored is lost."""
    log.warning("the event log does not answer: %s", error)
    return _unavailable("log_unavailable", "The event log is away", "the event log does not answer")


def on_fault(request: Request[Any, Any, Any], error: Exception) -> Response[Problem]:
    """What nobody expected: the database is away, a value that no decoder was prepared for, or a bug of ours."""
    if _is_database_away(error):
        log.warning("%s %s: the database does not answer (%s)", request.method, request.url.path, type(error).__name__)
        return _unavailable("database_unavailable", "The database is away", "the database does not answer")
    unreadable = "the body is not JSON that can be read" if isinstance(error, RecursionError | UnicodeError) else ""
    if unreadable or _is_unstorable(error):
        detail = unreadable or "a value holds characters that can't be stored, or is too large"
        return _answer(Problem(title="Bad request", status=400, code="bad_request", detail=detail))
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    detail = "the gateway failed; its log tells more"
    return _answer(Problem(title="Internal error", status=500, code="internal", detail=detail))


def _is_database_away(error: Exception) -> bool:
    """Not reached, lost, restarting, full, or busy for too long: whatever trying again may cure."""
    if isinstance(
        error, ConnectionError | gaierror | PoolTimeout
    ):  # asyncpg's own while it connects: nothing wraps them
        return True
    if isinstance(error, DBAPIError) and (error.connection_invalidated or isinstance(error, OperationalError)):
        return True
    return _sqlstate(error).startswith(("08", "40", "53", "57P"))


def _is_unstorable(error: Exception) -> bool:
    """A text with a NUL, a number out of range: PostgreSQL says so late, or asyncpg before it is asked."""
    return _sqlstate(error).startswith("22") or (
        isinstance(error, InterfaceError) and isinstance(getattr(error.orig, "__cause__", None), ValueError)
    )


def _sqlstate(error: Exception) -> str:
    """PostgreSQL's error code (its documentation, appendix A); empty for other errors."""
    source = error.orig if isinstance(error, DBAPIError) else error
    return getattr(source, "sqlstate", None) or ""


def on_http_error(_: Request[Any, Any, Any], error: HTTPException) -> Response[Problem]:
    """Everything that Litestar itself refuses: unknown paths, malformed bodies, methods."""
    titles = {
        400: ("bad_request", "Bad request"),
        401: ("unauthorized", "Unauthorized"),
        403: ("forbidden", "Forbidden"),
        404: ("not_found", "Not found"),
        405: ("method_not_allowed", "The path has no such method"),
        413: (BODY_TOO_LARGE.code, BODY_TOO_LARGE.title),
    }
    code, title = titles.get(error.status_code, (f"http_{error.status_code}", "Refused"))
    fields = _field_faults(error.extra) if error.status_code == 400 else ()
    detail = "; ".join(f"{f.field}: {f.message}" if f.field else f.message for f in fields) or error.detail
    return _answer(
        Problem(title=title, status=error.status_code, code=code, detail=detail, fields=fields), error.headers
    )


def _field_faults(extra: object) -> tuple[FieldFault, ...]:
    """What Litestar tells about an invalid request: a list of {message, key, source}."""
    told = [item for item in extra if isinstance(item, dict)] if isinstance(extra, list) else []
    return tuple(
        FieldFault(
            field="" if item.get("key") == "data" else str(item.get("key", "")),
            source=str(getattr(source := item.get("source", ""), "value", source)),
            message=str(item.get("message", "")),
        )
        for item in told
    )
