"""A lease's worktree under its two names: the one that the runner opens, and the one that processes inside know.

In a sandbox the second one is the same for every lease, so what an agent remembers of paths stays true, and a call that
a person allowed still means the same file. To keep the two apart, what is opened is a `Path`, and what is only called
so inside a `PurePosixPath`: on this machine it may lead elsewhere, or nowhere.
"""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

import msgspec

INSIDE = PurePosixPath("/treadle/code")
"""Where a sandbox shows the worktree, of whatever lease."""

_PATH_MAX_BYTES = 4096
"""The kernel opens no longer name."""
_LINKS_MAX = 40
"""As many as the kernel follows."""
_STEPS_MAX = 1000
"""Names on the way to a file, those of links included. An agent asks while all leases of the runner wait."""


class Worktree(msgspec.Struct, frozen=True):
    """Both names of one worktree; without a sandbox they are the same."""

    outside: Path
    inside: PurePosixPath

    def shortened(self, said: str) -> str:
        """What an agent names so, from the worktree's root where it lies in it by its words, links not followed.

        Both names are known: a rule about `secret/*` fits whichever of them is used.
        """
        # Two slashes at the beginning would stay, and mean the same as one.
        path = PurePosixPath(os.path.normpath(f"/{str(self.inside / said).lstrip('/')}"))
        for name in (self.inside, PurePosixPath(self.outside)):
            if path != name and path.is_relative_to(name):
                return str(path.relative_to(name))
        return str(path)

    def holds(self, said: str) -> bool:
        """Whether what an agent names so is in the worktree, links followed as inside; by the inner name only."""
        return self.followed(said) is not None

    def followed(self, said: str) -> str | None:
        """Where in the worktree that is, from its root, links followed as inside; None: not in it, or in no way to it.

        Only by the inner name, and no link outside the worktree is followed: such are not on this machine.
        """
        try:
            if "\0" in said or len(os.fsencode(said)) > _PATH_MAX_BYTES:
                return None
        except UnicodeEncodeError:  # half a character: no file is called so
            return None
        if str(self.inside) == str(self.outside):
            root, real = os.path.realpath(self.outside), os.path.realpath(self.outside / said)
            return os.path.relpath(real, root) if Path(real).is_relative_to(root) else None
        # Programs differ: some take `a/..` for nothing, whatever `a` leads to.
        ends = {self._end(str(self.inside / name)) for name in (said, os.path.normpath(said))}
        return ends.pop() if len(ends) == 1 else None

    def _end(self, path: str) -> str | None:
        root = [*self.inside.parts[1:]]
        at, ahead, links = list[str](), [*reversed(path.split("/"))], 0
        for _ in range(_STEPS_MAX):
            if not ahead:
                return "/".join(at[len(root) :]) or "." if len(at) >= len(root) else None
            name = ahead.pop()
            if name in ("", "."):
                continue
            if name == "..":
                del at[-1:]
                continue
            at.append(name)
            if len(at) <= len(root):
                if at != root[: len(at)]:
                    return None
            elif leads_to := self._link("/".join(at[len(root) :])):
                links += 1
                if links > _LINKS_MAX:
                    return None
                del at[0 if leads_to.startswith("/") else -1 :]
                ahead += reversed(leads_to.split("/"))
        return None

    def _link(self, name: str) -> str:
        """Where a link in the worktree leads to, its parents being none; empty for what is no link."""
        try:
            return str((self.outside / name).readlink())
        except OSError:
            return ""
