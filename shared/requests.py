"""What services ask one another over NATS request/reply. Nothing here is stored."""

import msgspec


class ImportRequest(msgspec.Struct, frozen=True, kw_only=True):
    """To the planner: make this text a candidate of that plan."""

    plan: str
    candidate: str
    text: str
    repo_url: str
    base_commit: str
    actor: str
    correlation: str


class PlanFault(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One thing that is wrong with a plan."""

    message: str
    task: str | None = None
    field: str | None = None
    line: int | None = None


class ImportReply(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """From the planner: where `drafted` is stored, or why nothing was."""

    seq: int = 0
    faults: tuple[PlanFault, ...] = ()
    refused: str = ""
