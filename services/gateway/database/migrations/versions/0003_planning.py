"""Plans from goals and by hand: what projects say about them, what agents are good at, what could not be finalized."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0003"
down_revision: str | Sequence[str] | None = "0002"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    """From the schema before to this one. There is no way back but a backup."""
    # What rows that are there get; those made from now on name every value themselves.
    op.add_column("agent", sa.Column("capabilities", sa.String(), nullable=False, server_default=""))
    op.add_column("project", sa.Column("auto_finalize", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("project", sa.Column("poll_interval_s", sa.Double(), nullable=False, server_default="30"))
    op.add_column("project", sa.Column("prompt_plan_id", sa.String(length=64), nullable=True))
    op.add_column("plan", sa.Column("is_due", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.create_index("ix_plan_due", "plan", ["generation", "is_due"])
    op.create_table(
        "held_finalization",
        sa.Column("plan_id", sa.String(length=64), nullable=False),
        sa.Column("why", sa.String(), nullable=False),
        sa.Column("since", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("plan_id", name=op.f("pk_held_finalization")),
    )
