"""How an attempt ends when it is no success."""

from shared.events import Conflict, FailureKind, PlanFault


class Failed(Exception):
    """An attempt's end that is not success, on its way to the log; the text is for people."""

    def __init__(
        self, kind: FailureKind, message: str, conflict: Conflict | None = None, faults: tuple[PlanFault, ...] = ()
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.conflict = conflict
        """Of a `merge_conflict`: what could not be merged."""
        self.faults = faults
        """Of a plan that could not be made valid."""
