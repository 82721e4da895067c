"""Words of an attempt's end, for the log and for people."""

from __future__ import annotations

from services.runner.git import printable
from services.runner.leftovers import Outcome
from shared.spec import AgentSpec


def tried_words(agent: AgentSpec | None, rounds: int) -> str:
    """What was done to have it mended; nothing where there are no rounds."""
    if not rounds:
        return ""
    if agent is not None and agent.sdk_type == "command":
        return f"The program was run again {'once' if rounds == 1 else f'{rounds} times'}, and told what is wrong."
    return f"The agent had {rounds} more {'turn' if rounds == 1 else 'turns'} to mend it."


def joined(said: str, words: str) -> str:
    """Words of ours behind what was said, in a paragraph of their own where that has lines of a program's."""
    between = "\n\n" if "\n" in said else " "
    return between.join(part for part in (said, words) if part)


def files_words(count: int) -> str:
    return "1 file" if count == 1 else f"{count} files"


def summary_words(outcome: Outcome, said: str) -> str:
    summary = said or "done, without a word"
    if not outcome.changed:
        summary += " (no file was changed)"
    if outcome.left_out:
        summary += f" ({left_out_words(outcome)})"
    return summary


def left_out_words(outcome: Outcome) -> str:
    more = f" and {len(outcome.left_out) - 5} more" if len(outcome.left_out) > 5 else ""
    left_out = ", ".join(printable(path) for path in outcome.left_out[:5])
    return f"not committed, being git repositories of their own: {left_out}{more}"
