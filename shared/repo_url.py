"""Decides, from the text alone, whether git may be given a repository's address.

Pure: no name is resolved, so a public name that points at a private address passes; who must exclude that too needs a
firewall around the runner.
"""

import re
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import NoReturn
from urllib.parse import urlsplit

ADDRESS_MAX_CHARS = 2048

_REMOTE_HELPER = re.compile(r"[^/:\[\]@]*::")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_SCP = re.compile(r"(?:(?P<user>[^@/:]*)@)?(?P<host>\[[^\]/]*\]|[^:/@\[\]]+):(?P<path>.*)", re.DOTALL)
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_HOST_NAME = re.compile(
    r"[A-Za-z0-9_](?:[A-Za-z0-9_-]*[A-Za-z0-9_])?(?:\.[A-Za-z0-9_](?:[A-Za-z0-9_-]*[A-Za-z0-9_])?)*"
)
_NUMBER = re.compile(r"(?:0[xX][0-9a-fA-F]*|[0-9]+)")
_HIDDEN = re.compile(r"%(?:[01][0-9a-fA-F]|25|2[dDeEfF]|5[cC]|7[fF])|%(?![0-9a-fA-F]{2})")
"""What a percent sign must not stand for: control codes, itself, and `-`, `.`, `/`, `\\`, which make another path."""

_TWO_PART_HOSTS = frozenset({"github.com", "www.github.com", "bitbucket.org", "codeberg.org"})
"""Where a repository is always `owner/name`, so that anything behind it is a page."""
_PAGE_WORDS = frozenset(
    {
        "actions",
        "blob",
        "blame",
        "branches",
        "commit",
        "commits",
        "compare",
        "edit",
        "issues",
        "merge_requests",
        "pull",
        "pulls",
        "raw",
        "releases",
        "src",
        "tags",
        "tree",
        "wiki",
    }
)
_PRIVATE_SUFFIXES = (
    *("localhost", "local", "localdomain", "internal", "intranet", "intra", "private", "corp"),
    *("lan", "home", "home.arpa", "fritz.box", "svc", "consul", "test"),
)
"""Also as a host's whole name. Clusters end in `.svc` or in `.local`."""
_PUBLIC_TOP = re.compile(r"[a-z]{2,}|xn--[a-z0-9-]+")
"""How a public name ends. Containers find each other by names such as `nats.my_net`, `nats.my-net`, `nats.net0`."""
_METADATA_NAMES = frozenset({"metadata.packet.net", "metadata.platformequinix.com", "metadata.tencentyun.com"})
"""Clouds answer with credentials there. Most of their names end in `.internal`."""
_ALSO_PRIVATE = (
    IPv4Network("168.63.129.16/32"),  # one cloud's metadata
    IPv4Network("192.0.0.0/24"),  # another's, among what IANA keeps for protocols
    IPv6Network("64:ff9b:1::/48"),  # NAT64 within a network
    IPv6Network("fec0::/10"),  # site-local: deprecated, not gone
)
"""What Python's list of special addresses does not hold."""
_HOLDS_IPV4 = (
    IPv6Network("64:ff9b::/96"),  # NAT64
    IPv6Network("::ffff:0:0:0/96"),  # IPv4-translated
    IPv6Network("::/96"),  # IPv4-compatible: deprecated
)
"""Whose last 32 bits are the address that is meant; Python knows of the other forms."""


class BadRepoUrl(ValueError):
    """The text is no repository address that git may be given; the message says what to write instead."""


def is_local_path(address: str) -> bool:
    """Whether a checked address is a path on this machine."""
    return not _SCHEME.match(address) and (address.startswith(("/", ".")) or ":" not in address.split("/", 1)[0])


def check_repo_url(text: str, *, allow_local: bool, allow_private_hosts: bool = False) -> str:
    """The address as git gets it: `https://…`, `ssh://…`, `user@host:path`, or with `allow_local` a path.

    `allow_private_hosts` lets through loopback, private and metadata hosts. Raises `BadRepoUrl`.
    """
    address = text.strip()
    shown = _shown(address)
    if not address:
        raise BadRepoUrl("no repository was named: write its clone URL, such as https://example.com/owner/name.git")
    if len(address) > ADDRESS_MAX_CHARS:
        raise BadRepoUrl(
            f"a repository address has at most {ADDRESS_MAX_CHARS} characters, this one has {len(address)}"
        )
    if not address.isprintable():
        raise BadRepoUrl(f"{shown} has control characters in it: copy the clone URL again")
    if address.startswith("-"):
        raise BadRepoUrl(f"{shown} starts with a dash, which git would take for an option: write ./{shown} for a path")
    if _REMOTE_HELPER.match(address):
        raise BadRepoUrl(f"{shown} would start a remote helper: write an https:// or ssh:// URL")
    if _SCHEME.match(address):
        return _check_url(address, shown, allow_local=allow_local, allow_private_hosts=allow_private_hosts)
    if is_local_path(address):
        if allow_local:
            return address
        raise BadRepoUrl(f"{shown} is a path, and local paths are not allowed here: write an https:// or ssh:// URL")
    return _check_scp(address, shown, allow_private_hosts=allow_private_hosts)


def _check_url(address: str, shown: str, *, allow_local: bool, allow_private_hosts: bool) -> str:
    try:
        parts = urlsplit(address)
        port = parts.port
    except ValueError as fault:
        raise BadRepoUrl(f"{shown} is no URL ({fault}): copy the clone URL again") from None
    if parts.scheme == "file":
        instead = f"write the path itself, {parts.path}" if allow_local else "write an https:// or ssh:// URL"
        raise BadRepoUrl(f"{shown} is a file URL: {instead}")
    if parts.scheme not in ("https", "ssh"):
        raise BadRepoUrl(f"{shown} is not fetched over {parts.scheme}: write an https:// or ssh:// URL")
    user, at, netloc = parts.netloc.rpartition("@")
    if at:
        bare = f"{parts.scheme}://{netloc}{parts.path}"
        if parts.scheme == "https":
            raise BadRepoUrl(f"{shown} carries a user or a token: write {bare} and give git the credentials")
        if ":" in user:
            raise BadRepoUrl(f"{shown} carries a password: write {bare} and use a key")
        if not _USER.fullmatch(user):
            raise BadRepoUrl(f"{shown} has no usable user name: write ssh://git@host/owner/name.git")
    if "?" in address or "#" in address:
        bare = re.split(r"[?#]", shown, maxsplit=1)[0]
        raise BadRepoUrl(f"{shown} has a query or a fragment: write {bare}")
    if port == 0:
        raise BadRepoUrl(f"{shown} has port 0: leave the port out or write the right one")
    host = re.sub(r":\d*$", "", netloc)
    _check_host(host, shown, allow_private_hosts=allow_private_hosts)
    path = _check_path(parts.path.rstrip("/"), shown)
    _refuse_page(parts.scheme, host.lower().removesuffix("."), netloc.lower(), path, shown)
    return f"{parts.scheme}://{user}{at}{netloc.lower()}{path}"


def _check_scp(address: str, shown: str, *, allow_private_hosts: bool) -> str:
    form = "write git@host:owner/name.git"
    match = _SCP.fullmatch(address)
    if match is None:
        raise BadRepoUrl(f"{shown} is no repository address: {form}, or an https:// or ssh:// URL")
    if match["user"] is not None and not _USER.fullmatch(match["user"]):
        raise BadRepoUrl(f"{shown} has no usable user name: {form}")
    if "?" in address or "#" in address:
        raise BadRepoUrl(f"{shown} has a query or a fragment: {form}")
    path = match["path"]
    if "@" in path.split("/", 1)[0]:
        raise BadRepoUrl(f"{shown} carries a password: {form} and use a key")
    if path.startswith("-"):
        raise BadRepoUrl(f"{shown} has a path that starts with a dash: {form}")
    _check_host(match["host"], shown, allow_private_hosts=allow_private_hosts)
    _check_path("/" + path.strip("/"), shown)
    return address.rstrip("/")


def _check_path(path: str, shown: str) -> str:
    parts = path.split("/")[1:]
    if not parts or not all(parts):
        raise BadRepoUrl(f"{shown} names no repository: write the whole clone URL, such as https://host/owner/name.git")
    if any(part in (".", "..") for part in parts):
        raise BadRepoUrl(f"{shown} has . or .. in its path: write the path without them")
    if parts[0].startswith("-") and parts[0] != "-":
        raise BadRepoUrl(f"{shown} has a path that starts with a dash: copy the clone URL again")
    if "\\" in path or any(c.isspace() for c in path):
        raise BadRepoUrl(f"{shown} has a blank or a backslash in its path: copy the clone URL again")
    if hidden := _HIDDEN.search(path):
        code = hidden.group()
        raise BadRepoUrl(f"{shown} hides a control character or another path behind {code}: copy the clone URL again")
    return path


def _refuse_page(scheme: str, host: str, netloc: str, path: str, shown: str) -> None:
    if scheme != "https" or path.endswith(".git"):
        return
    parts = path.split("/")[1:]
    end = len(parts)
    if host in _TWO_PART_HOSTS:
        if end < 2:
            raise BadRepoUrl(f"{shown} names no repository: write https://{netloc}/owner/name.git")
        end = 2
    for at, part in enumerate(parts[:-1]):
        # With a page's word there is always something behind it; a last part may be a repository of that name.
        if (at >= 1 and part == "-") or (at >= 2 and part in _PAGE_WORDS):
            end = min(end, at)
    if end < len(parts):
        repository = "/".join(parts[:end])
        # Groups may be nested and have any name: an address that ends in .git is always taken as it is.
        other = "" if host in _TWO_PART_HOSTS else f", or {path.removeprefix('/')}.git if that is the repository"
        raise BadRepoUrl(f"{shown} is a web page, not a repository: write https://{netloc}/{repository}.git{other}")


def _check_host(host: str, shown: str, *, allow_private_hosts: bool) -> None:
    if host.startswith("["):
        private = _is_private_ipv6(host, shown)
    else:
        name = host.lower().removesuffix(".")
        if not _HOST_NAME.fullmatch(name) or not name.isascii():
            raise BadRepoUrl(f"{shown} has no valid host name: copy the clone URL again")
        if _NUMBER.fullmatch(name.rpartition(".")[2]):
            private = _is_private_ipv4(name, shown)
        else:
            suffixes = tuple(f".{suffix}" for suffix in _PRIVATE_SUFFIXES)
            private = (
                "." not in name
                or "_" in name  # no name of the public web has one
                or not _PUBLIC_TOP.fullmatch(name.rpartition(".")[2])
                or name in _METADATA_NAMES
                or f".{name}".endswith(suffixes)
            )
    if private and not allow_private_hosts:
        raise BadRepoUrl(f"{shown} is on a private host, which is not allowed here: write the address of a public one")


def _is_private_ipv4(name: str, shown: str) -> bool:
    try:
        # Strict: no octal, hexadecimal or short form. curl and ssh would read 0177.1 as 127.0.0.1.
        return _is_private(IPv4Address(name))
    except ValueError:
        raise BadRepoUrl(f"{shown} has an unusual number for a host: write four decimal numbers, or a name") from None


def _is_private_ipv6(host: str, shown: str) -> bool:
    def refuse() -> NoReturn:
        raise BadRepoUrl(f"{shown} has no valid IPv6 address for a host: write it as [2001:db8::1]")

    if not host.endswith("]"):
        refuse()
    try:
        address = IPv6Address(host[1:-1])
    except ValueError:
        refuse()
    if address.scope_id is not None:
        return True
    inner: list[IPv4Address] = [a for a in (address.ipv4_mapped, address.sixtofour) if a is not None]
    inner += address.teredo or ()
    if any(address in network for network in _HOLDS_IPV4):
        inner.append(IPv4Address(int(address) & 0xFFFFFFFF))
    return _is_private(address) or any(_is_private(a) for a in inner)


def is_private_address(text: str) -> bool:
    """Whether a resolved address is of this machine, a private network or a metadata service, or stands for one.

    Raises `BadRepoUrl` for what is no address.
    """
    return _is_private_ipv6(f"[{text}]", text) if ":" in text else _is_private_ipv4(text, text)


def _is_private(address: IPv4Address | IPv6Address) -> bool:
    return not address.is_global or address.is_multicast or any(address in network for network in _ALSO_PRIVATE)


def _shown(address: str) -> str:
    """The address for a message: short, printable, without what may be a secret."""
    masked = re.sub(r"(://|^)[^/@\s]*(?::[^/@\s]*)@", r"\1***@", address)
    masked = re.sub(r"(?i)(https?://)[^/@\s]+@", r"\1***@", masked)
    printable = "".join(c if c.isprintable() else "�" for c in masked)
    return printable if len(printable) <= 200 else printable[:200] + "…"
