"""What the API shows of forks: of the plan that one goes on from, and of those that were made of a plan."""

import msgspec

from shared.events import ForkOf, Kept, PlanForked, Usage

FORKS_SHOWN_MAX = 100


class ForkedFrom(msgspec.Struct, frozen=True, kw_only=True):
    """Where a plan comes from."""

    plan: str
    seq: int
    """The moment: the origin's newest event that counted."""
    kept: int
    """Tasks that were completed there."""
    usage: Usage
    """What those took. It is the origin's: none of it is in the fork's own."""


class ForkMade(msgspec.Struct, frozen=True, kw_only=True):
    """A plan that goes on from a moment of this one."""

    plan: str
    seq: int
    """The moment."""


class InheritedView(msgspec.Struct, frozen=True, kw_only=True):
    """Where a task was done that a fork has from its origin."""

    plan: str
    """Its transcript is there."""
    seq: int
    """Of the event that completed it."""
    usage: Usage


def forked_from(fork: ForkOf) -> ForkedFrom:
    """In time that grows with what is kept."""
    usage = Usage()
    for kept in fork.kept:
        usage += kept.usage
    return ForkedFrom(plan=fork.plan, seq=fork.seq, kept=len(fork.kept), usage=usage)


def forks_made(forks: tuple[PlanForked, ...]) -> tuple[ForkMade, ...]:
    """The newest `FORKS_SHOWN_MAX`."""
    return tuple(ForkMade(plan=fork.plan, seq=fork.seq) for fork in forks[-FORKS_SHOWN_MAX:])


def inherited_view(kept: Kept) -> InheritedView:
    """Of one task."""
    return InheritedView(plan=kept.plan, seq=kept.seq, usage=kept.usage)
