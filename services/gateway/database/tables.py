"""Every table, and which of two kinds it is.

**The gateway's own truth**: accounts, agents, projects, what belongs to them, the audit log. Nothing else knows these.
**The projection** (`ProjectionHead`, `PlanRow`, `TaskRow`): what the event log says, for lists and filters; it may be
thrown away and is filled again from the log.

Times are aware and in UTC. Identifiers are `shared.clock.new_id`, those of plans `new_plan_id`.
"""

from datetime import UTC, datetime
from typing import Any, Literal

from sqlalchemy import JSON, BigInteger, ForeignKey, Index, LargeBinary, MetaData, String, UniqueConstraint
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import DateTime, TypeDecorator

from shared.spec import APPROVAL_TIMEOUT_MINUTES, POLL_INTERVAL_S, VERIFY_ROUNDS

Role = Literal["admin", "user"]
Mode = Literal["auto", "manual"]

ID = String(64)


class UtcTime(TypeDecorator[datetime]):
    """An aware time in UTC; SQLite keeps none of the zone, so it is put back on reading."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Raises ValueError for a time without a zone: it could mean anything."""
        if value is not None and value.tzinfo is None:
            raise ValueError(f"{value} has no time zone")
        return value.astimezone(UTC) if value is not None else None

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Table(DeclarativeBase):
    """Base of all tables. Constraints have names, so that a migration can speak of them on every database."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_label)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy reads it once, while the class is made
        datetime: UtcTime(),
        dict[str, Any]: JSON,
        list[str]: JSON,
        list[dict[str, Any]]: JSON,
    }


# Accounts ---------------------------------------------------------------------------------------------------------


class User(Table):
    """An account."""

    __tablename__ = "user_account"
    id: Mapped[str] = mapped_column(ID, primary_key=True)
    name: Mapped[str] = mapped_column(String(63), unique=True)
    """Lower case; what one logs in with."""
    role: Mapped[str] = mapped_column(String(16))
    """A `Role`."""
    password_hash: Mapped[str | None] = mapped_column(String(255))
    """Argon2id; None where only tokens let one in (the machine's own account)."""
    is_frozen: Mapped[bool] = mapped_column(default=False)
    session_version: Mapped[int] = mapped_column(default=1)
    """Written into sessions; raised to end all that were given out before."""
    created_at: Mapped[datetime]


class ApiToken(Table):
    """A token for programs. Only its hash is kept."""

    __tablename__ = "api_token"
    id: Mapped[str] = mapped_column(ID, primary_key=True)
    user_id: Mapped[str] = mapped_column(ForeignKey("user_account.id", ondelete="CASCADE"), index=True)
    name: Mapped[str] = mapped_column(String(200))
    token_hash: Mapped[str] = mapped_column(String(64), unique=True)
    """SHA-256 in hex: the token has more entropy than any guessing could get through."""
    created_at: Mapped[datetime]
    last_used_at: Mapped[datetime | None]
    """To the minute."""
    expires_at: Mapped[datetime | None]


class LoginFailures(Table):
    """Failed logins of a name, an address or both within the present window."""

    __tablename__ = "login_failures"
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    """`name:…`, `address:…` or `pair:… address:…`."""
    count: Mapped[int]
    window_ends_at: Mapped[datetime]


class AuditEntry(Table):
    """One change of an account, a credential or a setting. Holds no secret, and is never changed."""

    __tablename__ = "audit_log"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    time: Mapped[datetime]
    actor: Mapped[str] = mapped_column(String(80))
    """`user:<name>`, as in events."""
    action: Mapped[str] = mapped_column(String(63))
    """Past tense, such as `user.frozen`, `agent_type.credential_set`."""
    subject: Mapped[str] = mapped_column(String(80))
    """The id of what was changed."""
    details: Mapped[dict[str, Any]]
    """Which fields changed, and to what where that is no secret."""


class IdempotentAnswer(Table):
    """What a POST with an `Idempotency-Key` was answered."""

    __tablename__ = "idempotent_answer"
    user_id: Mapped[str] = mapped_column(ForeignKey("user_account.id", ondelete="CASCADE"), primary_key=True)
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    fingerprint: Mapped[str] = mapped_column(String(64))
    """Keyed digest of method, path and body: the same key must mean the same request."""
    started_at: Mapped[datetime]
    answer: Mapped[bytes | None] = mapped_column(LargeBinary)
    """Encrypted by the keyring, since an answer may show a token; None while the request is at work."""


# Agents -----------------------------------------------------------------------------------------------------------


class AgentType(Table):
    """A kind of agent: what drives it, where its model is, and the key for that."""

    __tablename__ = "agent_type"
    id: Mapped[str] = mapped_column(ID, primary_key=True)
    owner_id: Mapped[str] = mapped_column(ForeignKey("user_account.id"), index=True)
    name: Mapped[str] = mapped_column(String(63))
    sdk_type: Mapped[str | None] = mapped_column(String(32))
    """A `shared.spec.SdkType`; None: a person does the work."""
    command: Mapped[list[str]]
    """Only of the type `command`: the program and its arguments."""
    api_base_url: Mapped[str | None] = mapped_column(String(2048))
    models: Mapped[list[str]]
    """What agents of this type may use; empty: any."""
    created_at: Mapped[datetime]
    version: Mapped[int] = mapped_column(default=1)
    """Raised by each change: the ETag."""
    __table_args__ = (UniqueConstraint("owner_id", "name"),)


class Agent(Table):
    """Somebody whom tasks can be given to."""

    __tablename__ = "agent"
    id: Mapped[str] = mapped_column(ID, primary_key=True)
    owner_id: Mapped[str] = mapped_column(ForeignKey("user_account.id"), index=True)
    name: Mapped[str] = mapped_column(String(63))
    slug: Mapped[str] = mapped_column(String(63))
    agent_type_id: Mapped[str] = mapped_column(ForeignKey("agent_type.id"), index=True)
    model: Mapped[str | None] = mapped_column(String(128))
    capabilities: Mapped[str] = mapped_column(default="")
    """What it is good at, in its owner's words."""
    is_active: Mapped[bool] = mapped_column(default=True)
    short_window_hours: Mapped[float | None]
    """Length of a subscription's short limit (such as five hours); None where there is none."""
    long_window_hours: Mapped[float | None]
    """The same of its long one (such as a week)."""
    short_resets_at: Mapped[datetime | None]
    """The short limit was hit, and ends then."""
    long_resets_at: Mapped[datetime | None]
    expires_at: Mapped[datetime | None]
    """The end of the subscription."""
    created_at: Mapped[datetime]
    version: Mapped[int] = mapped_column(default=1)
    __table_args__ = (UniqueConstraint("owner_id", "slug"),)


class Credential(Table):
    """A secret of an agent type or of a project, encrypted (`services.gateway.credentials`)."""

    __tablename__ = "credential"
    holder_id: Mapped[str] = mapped_column(ID, primary_key=True)
    """The agent type's or the project's id."""
    kind: Mapped[str] = mapped_column(String(16), primary_key=True)
    """`agent` or `git`."""
    key_id: Mapped[str] = mapped_column(String(32), index=True)
    """The keyring's key that it is encrypted with."""
    sealed: Mapped[bytes] = mapped_column(LargeBinary)
    """Nonce and AES-256-GCM ciphertext; associated data: key id, kind and holder."""
    hint: Mapped[str] = mapped_column(String(16))
    """The last four characters of a key that is long enough to show them; else empty."""
    set_at: Mapped[datetime]
    set_by: Mapped[str] = mapped_column(String(80))


# Projects ---------------------------------------------------------------------------------------------------------


class Project(Table):
    """What plans belong to."""

    __tablename__ = "project"
    id: Mapped[str] = mapped_column(ID, primary_key=True)
    owner_id: Mapped[str] = mapped_column(ForeignKey("user_account.id"), index=True)
    name: Mapped[str] = mapped_column(String(200))
    goal: Mapped[str] = mapped_column(default="")
    mode: Mapped[str] = mapped_column(String(16))
    """A `Mode`."""
    code_repo_url: Mapped[str] = mapped_column(String(2048))
    collab_repo_url: Mapped[str | None] = mapped_column(String(2048))
    """None: the code repository."""
    collab_dir: Mapped[str] = mapped_column(String(1024))
    poll_interval_s: Mapped[float] = mapped_column(default=POLL_INTERVAL_S)
    """Between two looks at the collaboration repository."""
    planning_mode: Mapped[str] = mapped_column(String(32))
    auto_finalize: Mapped[bool] = mapped_column(default=False)
    """Whether a plan made from a goal runs without a person's choice."""
    task_timeout_minutes: Mapped[float]
    max_parallel: Mapped[int]
    budget_usd: Mapped[float | None]
    """The most that one plan may cost."""
    delivery: Mapped[str] = mapped_column(String(16))
    delivery_branch: Mapped[str] = mapped_column(String(255), default="")
    """Empty: the repository's default branch."""
    delivery_command: Mapped[str] = mapped_column(default="")
    on_conflict: Mapped[str] = mapped_column(String(16), default="report")
    verify_rounds: Mapped[int] = mapped_column(default=VERIFY_ROUNDS)
    approval_timeout_minutes: Mapped[float] = mapped_column(default=APPROVAL_TIMEOUT_MINUTES)
    setup: Mapped[list[str]]
    env_allow: Mapped[list[str]]
    network_allow: Mapped[list[str]] = mapped_column(default=list)
    permissions: Mapped[list[dict[str, Any]]] = mapped_column(default=list)
    """Each a `shared.spec.Permission`; the first that fits decides."""
    allow_concurrent_plans: Mapped[bool] = mapped_column(default=False)
    final_plan_id: Mapped[str | None] = mapped_column(ID)
    """The plan that was finalized last: with concurrent plans not allowed, the next one waits for its end."""
    final_plan_at: Mapped[datetime | None]
    prompt_plan_id: Mapped[str | None] = mapped_column(ID)
    """The plan that was asked for by hand last: until a candidate of it is there, whoever asks again asks for it."""
    deleting_since: Mapped[datetime | None]
    """Set while its plans are being cancelled, before it goes."""
    created_at: Mapped[datetime]
    version: Mapped[int] = mapped_column(default=1)


class ProjectAgent(Table):
    """An agent that a project's tasks may be given to."""

    __tablename__ = "project_agent"
    project_id: Mapped[str] = mapped_column(ForeignKey("project.id", ondelete="CASCADE"), primary_key=True)
    agent_id: Mapped[str] = mapped_column(ForeignKey("agent.id"), primary_key=True, index=True)


class HeldFinalization(Table):
    """Why a plan that was to be finalized by itself could not be. It is tried again; the row goes with its success."""

    __tablename__ = "held_finalization"
    plan_id: Mapped[str] = mapped_column(ID, primary_key=True)
    why: Mapped[str]
    since: Mapped[datetime]


# Notifications ----------------------------------------------------------------------------------------------------


class Webhook(Table):
    """Where somebody wants to be told of plans. Its address and secret are a `Credential` of the kind `webhook`."""

    __tablename__ = "webhooks"
    id: Mapped[str] = mapped_column(ID, primary_key=True)
    owner_id: Mapped[str] = mapped_column(ForeignKey("user_account.id"), index=True)
    name: Mapped[str] = mapped_column(String(200))
    url_shown: Mapped[str] = mapped_column(String(300))
    """The address without its path, which may be all that a sender needs."""
    preset: Mapped[str] = mapped_column(String(16))
    """A `services.gateway.notifications.words.Preset`."""
    has_secret: Mapped[bool]
    events: Mapped[list[str]]
    """Each an `EventName`."""
    project_ids: Mapped[list[str] | None] = mapped_column(JSON(none_as_null=True))
    """None: all that its owner owns."""
    is_active: Mapped[bool] = mapped_column(default=True)
    after: Mapped[int] = mapped_column(BigInteger)
    """It hears of events of the log with a greater sequence only: of what happens while it is there and active."""
    created_at: Mapped[datetime]
    version: Mapped[int] = mapped_column(default=1)


class Delivery(Table):
    """Something that a webhook is to be told, or was: outbox and log in one."""

    __tablename__ = "deliveries"
    id: Mapped[str] = mapped_column(ID, primary_key=True)
    """Follows from webhook and event, so that the same one is never added twice; the receiver is told it."""
    webhook_id: Mapped[str] = mapped_column(ForeignKey("webhooks.id", ondelete="CASCADE"))
    event: Mapped[str] = mapped_column(String(32))
    """An `EventName`, or `test`."""
    plan_id: Mapped[str] = mapped_column(ID, default="")
    task_code: Mapped[str] = mapped_column(ID, default="")
    seq: Mapped[int] = mapped_column(BigInteger, default=0)
    more: Mapped[int] = mapped_column(default=0)
    """Not 0: it stands for so many that are not told one by one."""
    notice: Mapped[bytes] = mapped_column(LargeBinary)
    """The `Notice` in JSON."""
    status: Mapped[str] = mapped_column(String(16))
    """`waiting`, `delivered` or `given_up`."""
    attempts: Mapped[int] = mapped_column(default=0)
    """Tries that were begun."""
    due_at: Mapped[datetime]
    """When it is to be tried next; while a gateway tries it, when that gateway is taken for dead."""
    claim: Mapped[str] = mapped_column(String(32), default="")
    """Of the newest try: only whoever made it may say what came of it."""
    response_status: Mapped[int | None]
    error: Mapped[str] = mapped_column(String(500), default="")
    created_at: Mapped[datetime]
    tried_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]
    __table_args__ = (
        Index("ix_deliveries_due", "status", "due_at"),
        Index("ix_deliveries_log", "webhook_id", "created_at", "id"),
        Index("ix_deliveries_plan", "webhook_id", "plan_id", "created_at"),
    )


# Templates --------------------------------------------------------------------------------------------------------


class Template(Table):
    """A plan with slots for agents and with inputs, which everybody sees and may use."""

    __tablename__ = "template"
    id: Mapped[str] = mapped_column(ID, primary_key=True)
    owner_id: Mapped[str | None] = mapped_column(ForeignKey("user_account.id"), index=True)
    """None: it comes with Treadle, and is kept as this version of it has it."""
    name: Mapped[str] = mapped_column(String(200))
    description: Mapped[str]
    text: Mapped[str]
    """YAML or JSON, as a plan file."""
    roles: Mapped[list[dict[str, Any]]]
    """Each a `shared.requests.TemplateRole`."""
    inputs: Mapped[list[dict[str, Any]]]
    """Each a `shared.requests.TemplateInput`."""
    created_at: Mapped[datetime]
    version: Mapped[int] = mapped_column(default=1)
    __table_args__ = (UniqueConstraint("owner_id", "name"),)


# Imported plans ---------------------------------------------------------------------------------------------------


class ImportedPlan(Table):
    """A plan that was brought as a file: read-only, and never in the event log. The file is in `ImportedChunk`s."""

    __tablename__ = "imported_plans"
    id: Mapped[str] = mapped_column(ID, primary_key=True)
    """Follows from owner and digest (`services.gateway.archives.imported.imported_id`): importing twice is once."""
    owner_id: Mapped[str] = mapped_column(ForeignKey("user_account.id"))
    imported_by: Mapped[str] = mapped_column(String(80))
    """`user:<name>`, as in events."""
    digest: Mapped[str] = mapped_column(String(64))
    """SHA-256 of its manifest, in hex: what `Archive.digest` is."""
    origin_plan: Mapped[str] = mapped_column(ID)
    """Its id where it ran."""
    name: Mapped[str] = mapped_column(String(200))
    status: Mapped[str] = mapped_column(String(16))
    standing: Mapped[str] = mapped_column(String(16))
    tasks: Mapped[int]
    events: Mapped[int] = mapped_column(BigInteger)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    """Of the file."""
    is_whole: Mapped[bool] = mapped_column(default=False)
    """Whether all of the file is stored; until then the plan is not there."""
    created_at: Mapped[datetime]
    """When it was imported."""
    __table_args__ = (Index("ix_imported_plans_owner", "owner_id", "created_at"),)


class ImportedChunk(Table):
    """A part of an imported file."""

    __tablename__ = "imported_chunks"
    plan_id: Mapped[str] = mapped_column(ForeignKey("imported_plans.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    """From 0."""
    content: Mapped[bytes] = mapped_column(LargeBinary)
    """`services.gateway.archives.imported.CHUNK_BYTES`; the last one fewer."""


# The projection ---------------------------------------------------------------------------------------------------


class ProjectionHead(Table):
    """One generation of the projection and how far it has come. Exactly one is current."""

    __tablename__ = "projection_head"
    generation: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    position: Mapped[int] = mapped_column(BigInteger)
    """Sequence of the last event in it; written in the transaction that writes the event's rows."""
    is_current: Mapped[bool] = mapped_column(default=False)
    told: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    """Sequence of the last event whose notifications are in `deliveries`; goes on from generation to generation."""


class PlanRow(Table):
    """A plan as it stands."""

    __tablename__ = "plan"
    generation: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    id: Mapped[str] = mapped_column(ID, primary_key=True)
    project_id: Mapped[str] = mapped_column(ID)
    """Empty for a plan that was made before there were projects: only admins see it."""
    name: Mapped[str] = mapped_column(String(200))
    status: Mapped[str] = mapped_column(String(16))
    standing: Mapped[str] = mapped_column(String(16))
    is_busy: Mapped[bool]
    """Whether it goes on by itself, without a person."""
    is_due: Mapped[bool] = mapped_column(default=False)
    """Whether its only candidate is to be finalized by itself."""
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]
    seq: Mapped[int] = mapped_column(BigInteger)
    view: Mapped[bytes] = mapped_column(LargeBinary)
    """The `PlanView` as it is answered, in JSON."""
    __table_args__ = (
        Index("ix_plan_project", "generation", "project_id", "created_at"),
        Index("ix_plan_created", "generation", "created_at", "id"),
        Index("ix_plan_due", "generation", "is_due"),
    )


class TaskRow(Table):
    """A task as it stands."""

    __tablename__ = "task"
    generation: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    plan_id: Mapped[str] = mapped_column(ID, primary_key=True)
    code: Mapped[str] = mapped_column(ID, primary_key=True)
    place: Mapped[int]
    """In topological order, from 0."""
    name: Mapped[str] = mapped_column(String(200))
    status: Mapped[str] = mapped_column(String(20))
    agent: Mapped[str] = mapped_column(String(63))
    seq: Mapped[int] = mapped_column(BigInteger)
    """Sequence of the task's newest event: the ETag."""
    view: Mapped[bytes] = mapped_column(LargeBinary)
    """The `TaskView` as it is answered, in JSON."""
    __table_args__ = (Index("ix_task_place", "generation", "plan_id", "place"),)
