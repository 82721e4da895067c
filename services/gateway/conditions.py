"""Preconditions: what a caller saw when it decided to change something (RFC 9110, section 13).

ETags are strong: `"<version>"` of a row, `"<seq>"` of a task, `"<digest>"` of a candidate.
"""

import re

from litestar.datastructures import ResponseHeader

from services.gateway.problems import ProblemError

ETAG = ResponseHeader(
    name="ETag",
    documentation_only=True,
    required=True,
    description="What an `If-Match` must say for this to be changed.",
)
"""For the `response_headers` of a route that answers one."""
_TAGS = re.compile(r'\s*(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"\s*(?:,\s*(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"\s*)*')
_STRONG = re.compile(r'(?<!W/)"([\x21\x23-\x7e\x80-\xff]*)"')


def etag(value: object) -> str:
    """A strong ETag."""
    return f'"{value}"'


def check_if_match(if_match: str | None, now: object) -> None:
    """Raises `ProblemError` 412 where the caller saw something else than `now`; without a header nothing is checked."""
    if if_match is None or if_match.strip() == "*":
        return
    if str(now) not in _seen(if_match):
        raise changed(f'it is at "{now}" now: read it again, then decide again')


def wanted_if_match(if_match: str | None) -> str:
    """The header, where it is needed. Raises `ProblemError` 428 `precondition_required`."""
    if if_match is None:
        detail = "read it, and send its ETag as If-Match with the change"
        raise ProblemError(428, "precondition_required", "If-Match is missing", detail)
    return if_match


def changed(detail: str) -> ProblemError:
    """412 `changed`."""
    return ProblemError(412, "changed", "It has changed", detail)


def _seen(if_match: str) -> list[str]:
    """The strong tags of the header; weak ones never match. Raises `ProblemError` 400 for what is no list of tags."""
    if not _TAGS.fullmatch(if_match):
        raise ProblemError(400, "bad_request", "Bad request", 'If-Match: expected an ETag in quotes, such as "7"')
    return _STRONG.findall(if_match)
