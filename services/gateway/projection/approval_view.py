"""What the API shows of a question to a person."""

from datetime import datetime
from typing import Literal

import msgspec

from shared.events import ApprovalKind
from shared.task import Approval

INPUT_SHOWN_MAX_CHARS = 4096
"""Of what an agent wants to do, in lists and streams. Whoever asks for the one task gets it whole."""


class ApprovalView(msgspec.Struct, frozen=True, kw_only=True):
    """What a person was asked, and what they said."""

    approval: str
    """Its hash, which an answer names: it stands for this tool, this input and this attempt."""
    kind: ApprovalKind
    """A tool call that nobody allowed beforehand; the agent's own question; the finished work."""
    tool: str
    input: str
    """The call's input as JSON. The text is the agent's: strip control characters before showing it."""
    input_is_cut: bool
    """Whether there is more of it, as in lists and streams: the one task's own page has it all."""
    why: str
    expires_at: datetime
    """What nobody has answered by then is denied."""
    base_commit: str
    commit: str
    """Of a result: its changes lie between the two."""
    answer: Literal["granted", "denied"] | None
    """null: it waits for one."""
    note: str
    """The person's words."""
    expired: bool
    """It was time that denied it."""


def approval_view(asked: Approval) -> ApprovalView:
    """The approval as lists and streams show it."""
    shown = asked.input[:INPUT_SHOWN_MAX_CHARS]
    return ApprovalView(
        approval=asked.approval,
        kind=asked.kind,
        tool=asked.tool,
        input=shown,
        input_is_cut=len(shown) < len(asked.input),
        why=asked.why,
        expires_at=asked.expires_at,
        base_commit=asked.base_commit,
        commit=asked.commit,
        answer=asked.answer or None,
        note=asked.note,
        expired=asked.expired,
    )
