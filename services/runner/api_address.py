"""An API's address, as people set it."""

from __future__ import annotations

from yarl import URL


class BadAddress(ValueError):
    """The text is no HTTP address."""


def api_address(text: str) -> URL:
    """Raises BadAddress, with words for people."""
    try:
        address = URL(text)
    except ValueError as error:
        raise BadAddress(f"{text} is no address of an API: {error}") from error
    if address.scheme not in ("http", "https") or not address.host:
        raise BadAddress(f"{text} is no address of an API: it must begin with https:// (or http://)")
    return address
