"""Which hosts may be reached, as people write it: `example.com`, `*.example.com`, `192.0.2.7`, `[2001:db8::1]:8443`."""

import re
from ipaddress import AddressValueError, IPv4Address, IPv6Address

import msgspec

HOST_MAX_CHARS = 253
PORTS = (443, 80)
"""Where a pattern names no port."""

_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_LIKE_AN_ADDRESS = re.compile(r"([0-9]+|0x[0-9a-f]*)")
"""A last label that resolvers take for a part of an IPv4 address: `127.1` and `0x7f.1` are 127.0.0.1 to some."""


class BadHostPattern(ValueError):
    """The text names no hosts; the message says why, for people, and does not repeat the text."""


class HostPattern(msgspec.Struct, frozen=True):
    """Hosts and ports."""

    host: str
    """A name in lower case, or an address without brackets."""
    below: bool = False
    """`*.host`: every name below it, and not `host` itself."""
    port: int | None = None
    """None: any of `PORTS`."""

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'*.' * self.below}{host}{'' if self.port is None else f':{self.port}'}"

    def fits(self, host: str, port: int) -> bool:
        """Whether the host, a name or an address without brackets, may be reached on the port."""
        if port not in (PORTS if self.port is None else (self.port,)):
            return False
        host = host.lower().removesuffix(".")
        return host.endswith(f".{self.host}") if self.below else host == self.host


def parse_host_pattern(text: str) -> HostPattern:
    """Raises `BadHostPattern`."""
    if "://" in text:
        raise BadHostPattern("it has a scheme; name the host alone")
    if "@" in text:
        raise BadHostPattern("it has credentials; name the host alone")
    if any(ch in text for ch in "/\\?#"):
        raise BadHostPattern("it has a path; name the host alone")
    if text.startswith("["):
        address, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise BadHostPattern("an IPv6 address is written in brackets, as in [2001:db8::1]:443")
        return HostPattern(_ipv6(address), port=_port(rest[1:]) if rest else None)
    if text.count(":") > 1:
        raise BadHostPattern("an IPv6 address is written in brackets, as in [2001:db8::1]:443")
    host, colon, port_text = text.partition(":")
    port = _port(port_text) if colon else None
    below = host.startswith("*.")
    return HostPattern(_name(host.removeprefix("*."), below=below), below, port)


def _ipv6(text: str) -> str:
    try:
        return str(IPv6Address(text if "%" not in text else ""))
    except AddressValueError:
        raise BadHostPattern("what is in brackets is no IPv6 address") from None


def _port(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", text) or not 1 <= int(text) <= 65_535:
        raise BadHostPattern("its port is not a number from 1 to 65535")
    return int(text)


def _name(text: str, *, below: bool) -> str:
    if text == "*":
        raise BadHostPattern('"*" alone would be the whole network: name a host, or all below one as *.example.com')
    if "*" in text:
        raise BadHostPattern('"*" can only stand in front, as in *.example.com')
    if not text.isascii():
        raise BadHostPattern("write an international name in its ASCII form, which begins with xn--")
    host = text.lower().removesuffix(".")
    labels = host.split(".")
    if not host or len(host) > HOST_MAX_CHARS or not all(map(_LABEL.fullmatch, labels)):
        raise BadHostPattern("it is no name of a host")
    if _LIKE_AN_ADDRESS.fullmatch(labels[-1]):
        try:
            address = str(IPv4Address(host))
        except AddressValueError:
            raise BadHostPattern("it is neither a name nor an IPv4 address of four numbers") from None
        if below:
            raise BadHostPattern("nothing is below an address")
        return address
    if below and len(labels) == 1:
        raise BadHostPattern("everything below a top-level domain is too much: name a domain, as in *.example.com")
    return host
