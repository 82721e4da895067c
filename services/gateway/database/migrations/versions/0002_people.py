"""What projects say about people, the network, verification, conflicts and delivery."""

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from alembic import op

revision: str = "0002"
down_revision: str | Sequence[str] | None = "0001"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    """From the schema before to this one. There is no way back but a backup."""
    # What projects that are there get; rows made from now on name every value themselves.
    added: tuple[tuple[str, sa.types.TypeEngine[Any], str], ...] = (
        ("delivery_branch", sa.String(length=255), ""),
        ("delivery_command", sa.String(), ""),
        ("on_conflict", sa.String(length=16), "report"),
        ("verify_rounds", sa.Integer(), "2"),
        ("approval_timeout_minutes", sa.Double(), "1440"),
        ("network_allow", sa.JSON(), "[]"),
        ("permissions", sa.JSON(), "[]"),
    )
    for name, type_, of_those_before in added:
        op.add_column("project", sa.Column(name, type_, nullable=False, server_default=of_those_before))
