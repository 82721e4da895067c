"""The first schema."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0001"
down_revision: str | Sequence[str] | None = None
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    """From the schema before to this one. There is no way back but a backup."""
    op.create_table(
        "audit_log",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("actor", sa.String(length=80), nullable=False),
        sa.Column("action", sa.String(length=63), nullable=False),
        sa.Column("subject", sa.String(length=80), nullable=False),
        sa.Column("details", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_log")),
    )
    op.create_table(
        "credential",
        sa.Column("holder_id", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("key_id", sa.String(length=32), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.Column("hint", sa.String(length=16), nullable=False),
        sa.Column("set_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("set_by", sa.String(length=80), nullable=False),
        sa.PrimaryKeyConstraint("holder_id", "kind", name=op.f("pk_credential")),
    )
    op.create_index(op.f("ix_credential_key_id"), "credential", ["key_id"], unique=False)
    op.create_table(
        "login_failures",
        sa.Column("key", sa.String(length=255), nullable=False),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.Column("window_ends_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_login_failures")),
    )
    op.create_table(
        "plan",
        sa.Column("generation", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("standing", sa.String(length=16), nullable=False),
        sa.Column("is_busy", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("view", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("generation", "id", name=op.f("pk_plan")),
    )
    op.create_index("ix_plan_created", "plan", ["generation", "created_at", "id"], unique=False)
    op.create_index("ix_plan_project", "plan", ["generation", "project_id", "created_at"], unique=False)
    op.create_table(
        "projection_head",
        sa.Column("generation", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("is_current", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("generation", name=op.f("pk_projection_head")),
    )
    op.create_table(
        "task",
        sa.Column("generation", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("plan_id", sa.String(length=64), nullable=False),
        sa.Column("code", sa.String(length=64), nullable=False),
        sa.Column("place", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("status", sa.String(length=20), nullable=False),
        sa.Column("agent", sa.String(length=63), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("view", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("generation", "plan_id", "code", name=op.f("pk_task")),
    )
    op.create_index("ix_task_place", "task", ["generation", "plan_id", "place"], unique=False)
    op.create_table(
        "user_account",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("password_hash", sa.String(length=255), nullable=True),
        sa.Column("is_frozen", sa.Boolean(), nullable=False),
        sa.Column("session_version", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_user_account")),
        sa.UniqueConstraint("name", name=op.f("uq_user_account_name")),
    )
    op.create_table(
        "agent_type",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("owner_id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("sdk_type", sa.String(length=32), nullable=True),
        sa.Column("command", sa.JSON(), nullable=False),
        sa.Column("api_base_url", sa.String(length=2048), nullable=True),
        sa.Column("models", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["owner_id"], ["user_account.id"], name=op.f("fk_agent_type_owner_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_agent_type")),
        sa.UniqueConstraint("owner_id", "name", name=op.f("uq_agent_type_owner_id_name")),
    )
    op.create_index(op.f("ix_agent_type_owner_id"), "agent_type", ["owner_id"], unique=False)
    op.create_table(
        "api_token",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("user_id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("token_hash", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("last_used_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["user_id"], ["user_account.id"], name=op.f("fk_api_token_user_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_token")),
        sa.UniqueConstraint("token_hash", name=op.f("uq_api_token_token_hash")),
    )
    op.create_index(op.f("ix_api_token_user_id"), "api_token", ["user_id"], unique=False)
    op.create_table(
        "idempotent_answer",
        sa.Column("user_id", sa.String(length=64), nullable=False),
        sa.Column("key", sa.String(length=255), nullable=False),
        sa.Column("fingerprint", sa.String(length=64), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("answer", sa.LargeBinary(), nullable=True),
        sa.ForeignKeyConstraint(
            ["user_id"], ["user_account.id"], name=op.f("fk_idempotent_answer_user_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("user_id", "key", name=op.f("pk_idempotent_answer")),
    )
    op.create_table(
        "project",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("owner_id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("goal", sa.String(), nullable=False),
        sa.Column("mode", sa.String(length=16), nullable=False),
        sa.Column("code_repo_url", sa.String(length=2048), nullable=False),
        sa.Column("collab_repo_url", sa.String(length=2048), nullable=True),
        sa.Column("collab_dir", sa.String(length=1024), nullable=False),
        sa.Column("planning_mode", sa.String(length=32), nullable=False),
        sa.Column("task_timeout_minutes", sa.Double(), nullable=False),
        sa.Column("max_parallel", sa.Integer(), nullable=False),
        sa.Column("budget_usd", sa.Double(), nullable=True),
        sa.Column("delivery", sa.String(length=16), nullable=False),
        sa.Column("setup", sa.JSON(), nullable=False),
        sa.Column("env_allow", sa.JSON(), nullable=False),
        sa.Column("allow_concurrent_plans", sa.Boolean(), nullable=False),
        sa.Column("final_plan_id", sa.String(length=64), nullable=True),
        sa.Column("final_plan_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("deleting_since", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["owner_id"], ["user_account.id"], name=op.f("fk_project_owner_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_project")),
    )
    op.create_index(op.f("ix_project_owner_id"), "project", ["owner_id"], unique=False)
    op.create_table(
        "agent",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("owner_id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("slug", sa.String(length=63), nullable=False),
        sa.Column("agent_type_id", sa.String(length=64), nullable=False),
        sa.Column("model", sa.String(length=128), nullable=True),
        sa.Column("is_active", sa.Boolean(), nullable=False),
        sa.Column("short_window_hours", sa.Double(), nullable=True),
        sa.Column("long_window_hours", sa.Double(), nullable=True),
        sa.Column("short_resets_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("long_resets_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["agent_type_id"], ["agent_type.id"], name=op.f("fk_agent_agent_type_id")),
        sa.ForeignKeyConstraint(["owner_id"], ["user_account.id"], name=op.f("fk_agent_owner_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_agent")),
        sa.UniqueConstraint("owner_id", "slug", name=op.f("uq_agent_owner_id_slug")),
    )
    op.create_index(op.f("ix_agent_agent_type_id"), "agent", ["agent_type_id"], unique=False)
    op.create_index(op.f("ix_agent_owner_id"), "agent", ["owner_id"], unique=False)
    op.create_table(
        "project_agent",
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("agent_id", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(["agent_id"], ["agent.id"], name=op.f("fk_project_agent_agent_id")),
        sa.ForeignKeyConstraint(
            ["project_id"], ["project.id"], name=op.f("fk_project_agent_project_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("project_id", "agent_id", name=op.f("pk_project_agent")),
    )
    op.create_index(op.f("ix_project_agent_agent_id"), "project_agent", ["agent_id"], unique=False)
