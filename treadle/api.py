"""The command's side of the gateway's API."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator
from typing import Any, TypeVar
from uuid import uuid4

import httpx
import msgspec

from treadle.bad_input import not_utf8
from treadle.command_words import in_command_words
from treadle.plain_text import plain

T = TypeVar("T")

TIMEOUT_S = 90.0
"""An import of a large plan takes seconds."""
CONNECT_TIMEOUT_S = 5.0
REPEAT_WITHIN_S = 15.0
"""How long a POST is repeated whose answer was lost: a killed gateway is back within seconds."""
REPEAT_AFTER_S = 0.3
IN_PROGRESS_MAX_S = 75.0
"""How long another gateway's claim on a request is waited out: one that died with it is given up after a minute."""
PAGE_ITEMS = 200

Resource = dict[str, Any]

_EXPECTED = re.compile(r"Expected `([^`]+)`, got `([^`]+)`")
"""How the gateway says that a value is of the wrong type: in the words of its decoder."""
_TYPES = {
    "array": "a list", "object": "an object", "str": "a text", "int": "a whole number", "float": "a number",
    "bool": "true or false", "null": "null",
}  # fmt: skip


class ApiError(Exception):
    """The gateway refused; the text is its own, with commands for its routes."""

    def __init__(self, status: int, code: str, detail: str, faults: tuple[str, ...] = ()) -> None:
        super().__init__(plain(in_command_words(_EXPECTED.sub(_wanted, detail))))
        self.status = status
        self.code = code
        self.faults = faults
        """Everything that is wrong with a plan, each with its place; only with `invalid_plan`."""


def _wanted(found: re.Match[str]) -> str:
    wanted, got = (" or ".join(_TYPES.get(one, one) for one in types.split(" | ")) for types in found.groups())
    return f"has to be {wanted}, not {got}"


class Address(msgspec.Struct, frozen=True):
    """Where a gateway is, and what lets us in."""

    url: str
    token: str
    through_proxies: bool = False
    """Proxies of the environment are not for loopback."""

    def __repr__(self) -> str:
        return f"Address({self.url})"

    def http(self) -> dict[str, Any]:
        """The arguments of an httpx client, but for its timeouts."""
        headers = {"Authorization": f"Bearer {self.token}"}
        return {"base_url": f"{self.url}/api", "headers": headers, "trust_env": self.through_proxies}


class _Page(msgspec.Struct):
    items: list[Resource]
    next: str | None = None


class Gateway:
    """Calls to one gateway."""

    def __init__(self, address: Address) -> None:
        self.http = httpx.Client(**address.http(), timeout=httpx.Timeout(TIMEOUT_S, connect=CONNECT_TIMEOUT_S))

    def get(self, path: str, type_: type[T], **params: Any) -> T:
        """Reads a resource. Raises `ApiError`, `BadInput` for what is not UTF-8, and httpx's errors."""
        try:
            answer = self.http.get(path, params=params)
        except UnicodeEncodeError as error:
            raise not_utf8(error) from None
        return msgspec.json.decode(checked(answer).content, type=type_)

    def pages(self, path: str, **params: Any) -> Iterator[Resource]:
        """Every item of a list, page by page. Raises as `get`."""
        params = {"limit": PAGE_ITEMS, **params}
        while True:
            page = self.get(path, _Page, **params)
            yield from page.items
            if page.next is None:
                return
            params["cursor"] = page.next

    def post(self, path: str, body: object = None) -> Resource:
        """Gives a command. One whose answer was lost is repeated: by its key the gateway knows it as the same.

        Raises as `get`.
        """
        content = _json({} if body is None else body)
        headers = {"Content-Type": "application/json", "Idempotency-Key": uuid4().hex}
        began_s = time.monotonic()
        while True:
            try:
                answer = checked(self.http.post(path, content=content, headers=headers))
                decoded: Resource = msgspec.json.decode(answer.content)
                return decoded
            except (httpx.TransportError, ApiError) as error:
                if time.monotonic() - began_s > _repeat_within_s(error):
                    raise
            time.sleep(REPEAT_AFTER_S)

    def tag(self, path: str) -> str:
        """The ETag of a resource as it is now. Raises as `get`."""
        return str(checked(self.http.get(path)).headers["ETag"])

    def patch(self, path: str, body: object, *, if_match: str | None = None) -> Resource:
        """Changes a resource, with `if_match` only if it still has that ETag. Raises as `get`."""
        content, headers = _json(body), {"Content-Type": "application/json"}
        if if_match is not None:
            headers["If-Match"] = if_match
        changed: Resource = msgspec.json.decode(
            checked(self.http.patch(path, content=content, headers=headers)).content
        )
        return changed

    def wait_for(self, plan: str, seq: int) -> None:
        """Returns once reads show the plan with its event `seq`; at the latest when the gateway has waited enough."""
        with contextlib.suppress(ApiError, httpx.HTTPError):
            self.get(f"/plans/{plan}", Resource, min_seq=seq)


def _json(body: object) -> bytes:
    try:
        return msgspec.json.encode(body)
    except UnicodeEncodeError as error:  # arguments keep the bytes that are no UTF-8 as halves of surrogates
        raise not_utf8(error) from None


def _repeat_within_s(error: httpx.TransportError | ApiError) -> float:
    if isinstance(error, httpx.TransportError):
        return REPEAT_WITHIN_S
    return IN_PROGRESS_MAX_S if error.code == "in_progress" else -1.0


def checked(answer: httpx.Response) -> httpx.Response:
    """The answer, if it is no error. Raises `ApiError`."""
    if answer.is_success:
        return answer
    answer.read()
    try:
        problem = msgspec.json.decode(answer.content)
        faults = tuple(str(fault["message"]) for fault in problem.get("faults", ()))
        raise ApiError(answer.status_code, str(problem["code"]), str(problem["detail"]), faults)
    except (msgspec.DecodeError, KeyError, TypeError, AttributeError) as error:
        raise ApiError(answer.status_code, "unknown", f"the gateway answered {answer.status_code}") from error
