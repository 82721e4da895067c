"""Which agents and agent types an account sees, and which it may change.

An admin's are public: everybody may use them, and sees nothing of their credentials. A user's own are private.
"""

from sqlalchemy import ColumnElement, or_, select, true

from services.gateway.accounts.access import Caller
from services.gateway.database.tables import Agent, AgentType, User
from services.gateway.problems import ProblemError, forbidden

ADMINS = select(User.id).where(User.role == "admin")


def usable_by(owner_id: str, table: type[Agent] | type[AgentType]) -> ColumnElement[bool]:
    """The rows that an account may use for what it owns: its own and the public ones."""
    return or_(table.owner_id == owner_id, table.owner_id.in_(ADMINS))


def seen_by(caller: Caller, table: type[Agent] | type[AgentType]) -> ColumnElement[bool]:
    """The rows that a caller sees: an admin all of them."""
    return true() if caller.is_admin else usable_by(caller.id, table)


def may_change(caller: Caller, row: Agent | AgentType) -> bool:
    """Whether a row that the caller sees is theirs to change."""
    return caller.is_admin or row.owner_id == caller.id


def check_may_change(caller: Caller, row: Agent | AgentType) -> None:
    """Raises `ProblemError` 403 for somebody else's row, which is public if the caller sees it."""
    if not may_change(caller, row):
        raise forbidden(f"{row.name} is an admin's: you may use it, and only an admin may change or test it")


def taken(what: str, name: str) -> ProblemError:
    """Names are unique per owner."""
    return ProblemError(409, "name_taken", "The name is taken", f"there is {what} {name!r} already: choose another")


def in_use(what: str, by: str, instead: str) -> ProblemError:
    """Something rests on it."""
    return ProblemError(409, "in_use", "It is in use", f"{what} is used by {by}: {instead}")
