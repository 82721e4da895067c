"""What `why` answers with: sentences, each with the events that it rests on; and the words that they are made of.

Names, reasons and messages come from people and models. They are cut and put on one line here; whoever shows them on
a terminal still has to take the control codes out.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Literal

import msgspec

from shared.events import Usage

About = Literal["stands", "waits", "repeats", "failures", "cost", "base"]
"""What question a sentence answers: how it stands, what that waits for, why it ran more than once, why it failed, what
it cost, what it starts from."""

Standing = Literal[
    "fault",
    "not_finalized",
    "waits",
    "reviews",
    "adding",
    "ready",
    "paused",
    "plan_cancelling",
    "slots",
    "budget",
    "readied",
    "with_person",
    "queued",
    "running",
    "approval",
    "retry",
    "needs_attention",
    "cancelling",
    "completed",
    "inherited",
    "cancelled",
    "abandoned",
    "reopening",
]
"""How a task stands, as its first sentence has it.

`waits`: for tasks before it; `reviews`: likewise, of a decision; `adding`: for tasks that are being added before it;
`ready`: for nothing, it is about to be dispatched, readied or weighed; `paused`, `plan_cancelling`, `slots`, `budget`:
it could begin, but for that; `with_person`: a manual task that was handed out.
"""

PlanStanding = Literal[
    "fault",
    "requested",
    "failed",
    "drafted",
    "finalizing",
    "paused",
    "plan_cancelling",
    "plan_cancelled",
    "plan_completed",
    "needs_attention",
    "waits_for_people",
    "running",
]
"""How a plan stands, as its first sentence has it."""

Kind = Literal[
    Standing,
    PlanStanding,
    "merging",
    "watch_fault",
    "skipped",
    "began",
    "lost",
    "handed_back",
    "recalled",
    "retried",
    "redispatched",
    "resumed",
    "edited",
    "failure",
    "denied",
    "cost",
    "lease_cost",
    "base",
    "contents",
    "left_out",
    "lineage",
]

QUOTED_MAX_CHARS = 400
LISTED_MAX = 10
"""Names in a list; of the others only their number is said."""


class Sentence(msgspec.Struct, frozen=True, kw_only=True):
    """One true thing, with what it rests on."""

    about: About
    kind: Kind
    text: str
    """For people. What it quotes is somebody else's: whoever shows it strips control codes."""
    seqs: tuple[int, ...]
    """The events that say so, ascending; all of this plan, none after the moment."""
    task: str = ""
    """Which task it speaks of; empty: the plan."""


class NoSuchTask(LookupError):
    """The plan had no such task at that moment."""


def sentence(about: About, kind: Kind, text: str, seqs: Iterable[int], task: str = "") -> Sentence:
    """One with its sequences in order; those that are 0 (there was no such event) are left out."""
    return Sentence(about=about, kind=kind, text=text, seqs=tuple(sorted({seq for seq in seqs if seq})), task=task)


def when(time: datetime) -> str:
    """A time, to the second."""
    return f"{time:%Y-%m-%d %H:%M:%S} UTC"


def quoted(text: str, most: int = QUOTED_MAX_CHARS) -> str:
    """Somebody's words on one line, in quotes that they can't close."""
    words = " ".join(text[: most * 4].split()).replace("“", '"').replace("”", '"')
    return f"“{words if len(words) <= most and len(text) <= most * 4 else words[: most - 1] + '…'}”"


def because(text: str) -> str:
    """Somebody's reason behind a colon; empty where there is none."""
    return f": {quoted(text)}" if text.strip() else ""


def listed(names: Sequence[str], most: int = LISTED_MAX) -> str:
    """The first names, and how many more there are."""
    if len(names) > most:
        return f"{', '.join(names[:most])} and {len(names) - most} more"
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else "nothing"


def span(seconds: float) -> str:
    """How long something took."""
    whole = max(0, round(seconds))
    if whole < 120:
        return f"{whole} s"
    return (
        f"{whole // 60} min {whole % 60:02d} s" if whole < 7200 else f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    )


def usd(amount: float) -> str:
    """Money, with enough digits to see small sums."""
    return f"{amount:.2f} USD" if amount >= 0.1 or amount == 0 else f"{amount:.4f} USD"


def consumed(usage: Usage) -> str:
    """Money and tokens."""
    cached = usage.cache_read_tokens + usage.cache_write_tokens
    with_cache = f", {cached} through the cache" if cached else ""
    return f"{usd(usage.cost_usd)}, {usage.input_tokens} tokens in and {usage.output_tokens} out{with_cache}"


def count_words(count: int, thing: str) -> str:
    """So many things."""
    return f"{count} {thing}{'' if count == 1 else 's'}"


def short(commit: str) -> str:
    """A commit's id as people read it."""
    return commit[:12]
