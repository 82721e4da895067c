"""Errors as RFC 9457 `application/problem+json`, each with a stable `code`."""

import logging
from typing import Any

import msgspec
from litestar import Request, Response
from litestar.exceptions import HTTPException

from shared.commands import Refused
from shared.requests import PlanFault
from shared.store import StoreUnavailable

log = logging.getLogger("treadle.gateway")

RETRY_AFTER_S = 2


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


class ProblemError(Exception):
    """Raised by a route to answer with a problem."""

    def __init__(self, status: int, code: str, title: str, detail: str, faults: tuple[PlanFault, ...] = ()) -> None:
        super().__init__(detail)
        self.problem = Problem(status=status, code=code, title=title, detail=detail, faults=faults)


def not_found(what: str, listed_by: str) -> ProblemError:
    """There is no such thing, as far as the caller may know."""
    return ProblemError(404, "not_found", "Not found", f"{what} does not exist here; `{listed_by}` lists what does")


def _answer(problem: Problem, headers: dict[str, str] | None = None) -> Response[Problem]:
    return Response(problem, status_code=problem.status, media_type="application/problem+json", headers=headers)


def on_problem(_: Request[Any, Any, Any], error: ProblemError) -> Response[Problem]:
    """A route said what is wrong."""
    return _answer(error.problem)


def on_refused(_: Request[Any, Any, Any], error: Refused) -> Response[Problem]:
    """A decider refused a command."""
    return _answer(Problem(title="Not possible now", status=409, code="refused", detail=str(error)))


def on_unavailable(_: Request[Any, Any, Any], error: StoreUnavailable) -> Response[Problem]:
    """The log can't be reached: nothing is known to be stored, nothing that was stored is lost."""
    detail = f"the event log does not answer; try again in {RETRY_AFTER_S} s ({error})"
    problem = Problem(title="The event log is away", status=503, code="log_unavailable", detail=detail)
    return _answer(problem, {"Retry-After": str(RETRY_AFTER_S)})


def on_fault(request: Request[Any, Any, Any], error: Exception) -> Response[Problem]:
    """A bug of ours, or a body that no decoder was prepared for."""
    if isinstance(error, RecursionError | UnicodeError):
        detail = "the body is not JSON that can be read"
        return _answer(Problem(title="Bad request", status=400, code="bad_request", detail=detail))
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    detail = "the gateway failed; its log tells more"
    return _answer(Problem(title="Internal error", status=500, code="internal", detail=detail))


def on_http_error(_: Request[Any, Any, Any], error: HTTPException) -> Response[Problem]:
    """Everything that Litestar itself refuses: unknown paths, malformed bodies, methods."""
    titles = {
        400: ("bad_request", "Bad request"),
        401: ("unauthorized", "Unauthorized"),
        404: ("not_found", "Not found"),
    }
    code, title = titles.get(error.status_code, (f"http_{error.status_code}", "Refused"))
    extra = f": {error.extra}" if error.extra else ""
    return _answer(Problem(title=title, status=error.status_code, code=code, detail=f"{error.detail}{extra}"))
