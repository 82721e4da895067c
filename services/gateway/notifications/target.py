"""Where a webhook may point: an http or https address whose host is public, unless the operator allows others.

The text is checked when it is set. A name may resolve to anything, and to something else each time, so what it resolves
to is checked at each sending, and the connection goes to the very address that was checked.
"""

import asyncio
import socket
from ipaddress import ip_address
from urllib.parse import urlsplit

import msgspec

from shared.repo_url import BadRepoUrl, check_repo_url, is_private_address

URL_MAX_CHARS = 2048
HINT_CHARS = 4
HINTED_MIN_CHARS = 20
ADDRESSES_TRIED_MAX = 4
_PORTS = {"http": 80, "https": 443}


class BadTarget(ValueError):
    """Nothing may be sent there; the message says why, without the address's secret parts."""


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """An address taken apart."""

    scheme: str
    host: str
    """Without brackets."""
    port: int
    rest: str
    """Path and query, which are secret: with some receivers they are all that a sender needs."""

    @property
    def origin(self) -> str:
        """For people to see, and for the Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"


def checked_target(url: str, *, allow_private: bool) -> Target:
    """Raises `BadTarget`."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise BadTarget("that is no URL: copy it again") from None
    if len(url) > URL_MAX_CHARS:
        raise BadTarget(f"a URL has at most {URL_MAX_CHARS} characters")
    if not url.isascii() or not url.isprintable() or any(c in url for c in ' \\<>"{}|^`'):
        raise BadTarget("it has blanks or characters in it that no URL has: copy it again")
    if parts.scheme not in _PORTS:
        raise BadTarget("it must begin with https:// or http://")
    if "@" in parts.netloc:
        raise BadTarget("it carries credentials before the host: leave them out")
    if "#" in url:
        raise BadTarget("it has a fragment, which is never sent: leave out what begins with #")
    if not host or port == 0:
        raise BadTarget("it names no host and port that could be reached")
    try:
        # A repository's host is held to the very same rules: private ones, and numbers that hide one.
        check_repo_url(f"https://{parts.netloc}/a/b.git", allow_local=False, allow_private_hosts=allow_private)
    except BadRepoUrl:
        raise BadTarget("it names a private host, which the operator of this gateway does not allow, or none") from None
    if _is_link_local(host):
        raise BadTarget("it names a link-local address, where machines keep their metadata")
    rest = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Target(scheme=parts.scheme, host=host, port=port or _PORTS[parts.scheme], rest=rest)


def _is_link_local(host: str) -> bool:
    """Nobody's receiver, whatever the operator allows."""
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_link_local


def shown(target: Target) -> str:
    """The address as the API shows it: the path may be a secret, so only its end, and only of a long one."""
    end = target.rest[-HINT_CHARS:] if len(target.rest) >= HINTED_MIN_CHARS else ""
    return f"{target.scheme}://{target.origin}/…{end}"


async def resolved(target: Target, *, allow_private: bool) -> list[str]:
    """The addresses to connect to, in the resolver's order. Raises `BadTarget` or OSError."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    addresses = list(dict.fromkeys(str(where[0]) for *_, where in found))
    if any(_is_link_local(address) for address in addresses):
        raise BadTarget(f"{target.host} resolves to a link-local address, where machines keep their metadata")
    if not allow_private and any(is_private_address(address) for address in addresses):
        raise BadTarget(f"{target.host} resolves to a private address, which this gateway's operator does not allow")
    return addresses[:ADDRESSES_TRIED_MAX]
