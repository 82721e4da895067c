"""Fetches the work that a task or a delivery is merged from; in a fork that may be another plan's, and gone."""

from __future__ import annotations

from collections.abc import Sequence

from services.runner.git import CommitsMissing, GitFailed
from services.runner.merge import plans_of
from services.runner.mirror import Mirror
from shared.events import Head

_NAMED_MAX = 10


def ensure_heads(mirror: Mirror, plan: str, base: str, heads: Sequence[Head]) -> None:
    """Makes sure that the base (empty: there is none) and the heads are here. Raises `GitFailed`.

    Where what a fork keeps is gone, the error says whose it was, why, and what to do: it can't be pushed again.
    """
    commits = [*([base] if base else ()), *(head.commit for head in heads)]
    try:
        mirror.ensure(plan, commits, also_of=plans_of(heads))
    except CommitsMissing as missing:
        gone = [head for head in heads if head.plan and head.commit in missing.commits]
        if not gone:
            raise
        raise GitFailed(_words(mirror, gone)) from missing


def _words(mirror: Mirror, gone: Sequence[Head]) -> str:
    named = [f"{head.commit[:12]} of {head.task} of plan {head.plan}" for head in gone[:_NAMED_MAX]]
    if len(gone) > _NAMED_MAX:
        named.append(f"{len(gone) - _NAMED_MAX} more")
    anew = ",".join(f"{head.task}.." for head in gone[:_NAMED_MAX])
    return (
        f"{mirror.shown} does not have the work any more that this fork keeps ({', '.join(named)}): `treadle clean` "
        "removed its refs, or somebody else did. Cancel this plan and fork again, so that it is done anew: "
        f"`treadle fork {gone[0].plan} --only {anew}` and whatever else is to run"
    )
