"""Keeps a process's memory from its neighbours: what holds keys calls this first."""

import ctypes
import sys

PR_SET_DUMPABLE = 4


def hide_memory() -> None:
    """Linux: other processes of the same user, agents among them, can't read this process's memory or environment.

    Root can; there only the agents' sandbox helps.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
