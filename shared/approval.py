"""What a person's answer is bound to: this call, of this attempt, with this input, and nothing else."""

from hashlib import sha256

import msgspec


def approval_hash(plan: str, task: str, attempt: int, lease: int, tool: str, input: object) -> str:  # noqa: A002 - the field's word
    """SHA-256 in hex over the call's one spelling. `input` is what JSON can hold.

    The lease is in it too: an agent may make the same call twice in an attempt, and a late repeat of the first answer
    must not be the second one's.
    """
    return sha256(msgspec.json.encode([plan, task, attempt, lease, tool, input], order="deterministic")).hexdigest()
