"""What the API shows of where an imported plan comes from."""

from datetime import datetime

import msgspec


class ImportedFrom(msgspec.Struct, frozen=True, kw_only=True):
    """A plan that was brought as a file: a record of what happened elsewhere, which nothing can be added to."""

    plan: str
    """Its id where it ran: what its events, refs and branch are called by."""
    by: str
    """Who imported it: `user:<name>`."""
    at: datetime
    digest: str
    """SHA-256 of the file's manifest, in hex: what its exporter was told."""
    is_redacted: bool
    """Whether names, texts and paths were replaced in it."""
    left_out: tuple[str, ...]
    """What its exporter could not have, in words."""
