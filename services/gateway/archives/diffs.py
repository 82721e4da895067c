"""A task's diff as an archive has it: what whoever applies a diff passes over, then the diff itself."""

from shared.requests import DiffReply

_HEAD = b"Treadle-Diff:"
_CUT = b" (cut)"


def diff_bytes(found: DiffReply) -> bytes:
    """The member's contents."""
    head = _HEAD + (_CUT if found.cut else b"")
    return b"\n".join((head, found.stat.encode(errors="replace"), found.patch.encode(errors="replace")))


def diff_of(stored: bytes) -> DiffReply:
    """The way back, also for a diff that nothing stands before."""
    head, _, rest = stored.partition(b"\n")
    if not head.startswith(_HEAD):
        return DiffReply(patch=stored.decode(errors="replace"))
    if rest.startswith(b"diff "):
        stat, patch = b"", rest
    else:
        stat, mark, patch = rest.partition(b"\ndiff ")
        patch = (mark + patch).removeprefix(b"\n")
    return DiffReply(
        stat=stat.decode(errors="replace"), patch=patch.decode(errors="replace"), cut=head.endswith(_CUT)
    )  # fmt: skip
