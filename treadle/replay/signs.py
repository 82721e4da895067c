"""How a task's status looks: always a sign or a word, so that nobody needs the colours."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

SIGNS: Mapping[str, str] = {
    "absent": " ",
    "pending": "·",
    "readied": "○",
    "queued": "◌",
    "running": "▶",
    "awaiting_approval": "?",
    "retry_wait": "↻",
    "needs_attention": "!",
    "cancelling": "⊘",
    "completed": "✓",
    "cancelled": "✕",
    "abandoned": "–",
}
STYLES: Mapping[str, str] = {
    "pending": "dim",
    "readied": "bold cyan",
    "queued": "cyan",
    "running": "bold yellow",
    "awaiting_approval": "bold cyan",
    "retry_wait": "yellow",
    "needs_attention": "bold red",
    "cancelling": "magenta",
    "completed": "green",
    "cancelled": "magenta",
    "abandoned": "dim magenta",
}
MATTERING = (
    "needs_attention",
    "awaiting_approval",
    "running",
    "cancelling",
    "retry_wait",
    "readied",
    "queued",
    "cancelled",
    "abandoned",
    "completed",
    "pending",
)
"""What a person wants to see first where not all tasks fit."""


def words(status: str) -> str:
    """A status as words."""
    return status.replace("_", " ")


def counted(statuses: Iterable[str]) -> str:
    """How many stand how, what matters most first."""
    counts = Counter(statuses)
    return ", ".join(f"{counts[status]} {words(status)}" for status in sorted(counts, key=rank))


def rank(status: str) -> int:
    """The smaller, the more it matters."""
    return MATTERING.index(status) if status in MATTERING else len(MATTERING)
