"""The command's side of the gateway's API."""

from __future__ import annotations

from typing import Any, TypeVar

import httpx
import msgspec

from treadle.plain_text import plain

T = TypeVar("T")

TIMEOUT_S = 90.0
"""An import of a large plan takes seconds."""


class ApiError(Exception):
    """The gateway refused; the text is its own, for people."""

    def __init__(self, status: int, code: str, detail: str) -> None:
        super().__init__(plain(detail))
        self.status = status
        self.code = code


class Gateway:
    """Calls to one gateway. Proxies of the environment are not for loopback."""

    def __init__(self, url: str, token: str) -> None:
        headers = {"Authorization": f"Bearer {token}"}
        timeout = httpx.Timeout(TIMEOUT_S, connect=5.0)
        self.http = httpx.Client(base_url=f"{url}/api", headers=headers, timeout=timeout, trust_env=False)

    def get(self, path: str, type_: type[T], **params: Any) -> T:
        """Reads a resource. Raises `ApiError` and httpx's errors."""
        return msgspec.json.decode(checked(self.http.get(path, params=params)).content, type=type_)

    def post(self, path: str, body: object = None) -> dict[str, Any]:
        """Gives a command. Raises `ApiError` and httpx's errors."""
        content = msgspec.json.encode({} if body is None else body)
        answer = checked(self.http.post(path, content=content, headers={"Content-Type": "application/json"}))
        decoded: dict[str, Any] = msgspec.json.decode(answer.content)
        return decoded


def checked(answer: httpx.Response) -> httpx.Response:
    """The answer, if it is no error. Raises `ApiError`."""
    if answer.is_success:
        return answer
    answer.read()
    try:
        problem = msgspec.json.decode(answer.content)
        raise ApiError(answer.status_code, str(problem["code"]), str(problem["detail"]))
    except (msgspec.DecodeError, KeyError, TypeError) as error:
        raise ApiError(answer.status_code, "unknown", f"the gateway answered {answer.status_code}") from error
