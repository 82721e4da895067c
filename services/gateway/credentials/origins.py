"""Where a secret goes to: a secret is written and never read, so it must not follow an address to somewhere else."""

import re
from urllib.parse import urlsplit

from shared.repo_url import is_local_path

_PORTS = {"http": 80, "https": 443, "ssh": 22}
_SCP_HOST = re.compile(r"(?:[^@/]*@)?(?:\[([^\]/]*)\]|([^:/]*)):")

Origin = tuple[str, str, int | None]
"""Scheme, host and port; three empty ones for paths of the machine."""


def origin(address: str) -> Origin:
    """Of a checked URL, `user@host:path` or path."""
    if is_local_path(address):
        return "", "", None
    if "://" not in address:
        found = _SCP_HOST.match(address)
        return "ssh", _host((found[1] or found[2]) if found else address), 22
    parts = urlsplit(address)
    return parts.scheme, _host(parts.hostname or ""), parts.port or _PORTS.get(parts.scheme)


def _host(name: str) -> str:
    return name.lower().removesuffix(".")
