"""A lease's worktree under its two names: the one that the runner opens, and the one that processes inside know.

In a sandbox the second one is the same for every lease, so what an agent remembers of paths stays true, and a call that
a person allowed still means the same file. To keep the two apart, what is opened is a `Path`, and what is only called
so inside a `PurePosixPath`: on this machine it may lead elsewhere, or nowhere.
"""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

import msgspec

_LINKS_MAX = 40
"""As many as the kernel follows."""


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
        """Whether what an agent names so lies in the worktree by its inner name, links followed as inside."""
        if "\0" in said:
            return False
        if str(self.inside) == str(self.outside):
            return Path(os.path.realpath(self.outside / said)).is_relative_to(os.path.realpath(self.outside))
        at, links = PurePosixPath("/"), 0
        ahead = [*reversed((self.inside / said).parts)]
        while ahead:
            part = ahead.pop()
            if part == "..":
                at = at.parent
                continue
            leads_to = self._link(at := at / part)
            if leads_to is not None:
                links += 1
                if links > _LINKS_MAX:
                    return False
                at = at.parent
                ahead += reversed(leads_to.parts)
        return at.is_relative_to(self.inside)

    def _link(self, path: PurePosixPath) -> PurePosixPath | None:
        """Where a link inside leads to, its parents being none; None for what is no link."""
        if self.inside.is_relative_to(path):
            return None  # made by the sandbox, whatever is called so on this machine
        opened = self.outside / path.relative_to(self.inside) if path.is_relative_to(self.inside) else Path(path)
        try:
            return PurePosixPath(opened.readlink())
        except OSError:
            return None
