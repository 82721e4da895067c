"""Who may ask: on one's own machine, whoever can read the token file."""

import hmac
from pathlib import Path
from typing import Any

from litestar.connection import ASGIConnection
from litestar.exceptions import NotAuthorizedException
from litestar.handlers import BaseRouteHandler


class TokenGuard:
    """A Litestar guard that wants `Authorization: Bearer <token>`."""

    def __init__(self, token: str) -> None:
        self._token = token.encode()

    async def __call__(self, connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
        """Raises `NotAuthorizedException`, which answers 401."""
        given = connection.headers.get("authorization", "").removeprefix("Bearer ").encode()
        if not hmac.compare_digest(given, self._token):
            raise NotAuthorizedException("send the token of the data directory's gateway.token as a bearer token")


def read_token(path: Path) -> str:
    """The token of a file that only its owner may read. Raises ValueError where others may, or where it is weak."""
    if path.stat().st_mode & 0o077:
        raise ValueError(f"{path} can be read by others: run chmod 600 on it")
    token = path.read_text().strip()
    if len(token) < 32:
        raise ValueError(f"{path} holds no token of at least 32 characters: delete it, the next start makes a new one")
    return token
