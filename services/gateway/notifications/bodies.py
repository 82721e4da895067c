"""What is asked and answered about webhooks, and which values can't be."""

from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec

from services.gateway.database.tables import Delivery, Webhook
from services.gateway.notifications.happenings import EventName
from services.gateway.notifications.target import URL_MAX_CHARS, BadTarget, Target, checked_target
from services.gateway.notifications.words import EventShown, Notice, Preset, counted
from services.gateway.problems import bad_request

SECRET_MIN_CHARS = 8
SECRET_MAX_CHARS = 256
PROJECTS_MAX = 200
ALL_EVENTS: tuple[EventName, ...] = ("needs_attention", "approval_waiting", "plan_finished", "budget_80")

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
Url = Annotated[str, msgspec.Meta(min_length=1, max_length=URL_MAX_CHARS)]
Secret = Annotated[str, msgspec.Meta(min_length=SECRET_MIN_CHARS, max_length=SECRET_MAX_CHARS)]
Events = Annotated[list[EventName], msgspec.Meta(min_length=1, max_length=len(ALL_EVENTS))]
ProjectIds = Annotated[
    list[Annotated[str, msgspec.Meta(min_length=1, max_length=64)]], msgspec.Meta(min_length=1, max_length=PROJECTS_MAX)
]
Status = Literal["waiting", "delivered", "given_up"]
Unset = msgspec.UnsetType
UNSET = msgspec.UNSET


class NewWebhook(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where to be told what."""

    name: Name
    url: Url
    """Is stored encrypted; only its host is shown."""
    preset: Preset = "generic"
    secret: Secret | None = None
    """What it is signed with; wanted for `generic`, optional for `feishu`, unknown to `slack`. Never shown."""
    events: Events = msgspec.field(default_factory=lambda: list(ALL_EVENTS))
    project_ids: ProjectIds | None = None
    """null: all projects that one owns, those to come too."""
    is_active: bool = True

    def __repr__(self) -> str:
        return f"NewWebhook({self.name!r}, …)"


class WebhookChanges(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is to be different: a field left out stays, null clears it."""

    name: Name | Unset = UNSET
    url: Url | Unset = UNSET
    preset: Preset | Unset = UNSET
    secret: Secret | Unset | None = UNSET
    events: Events | Unset = UNSET
    project_ids: ProjectIds | Unset | None = UNSET
    is_active: bool | Unset = UNSET

    def __repr__(self) -> str:
        return "WebhookChanges(…)"


class WebhookView(msgspec.Struct, frozen=True, kw_only=True):
    """A webhook. Of its address only the host, since the path may be all that a sender needs."""

    id: str
    name: str
    url: str
    """Without its path, but for the last characters of a long one."""
    preset: Preset
    has_secret: bool
    events: list[EventName]
    project_ids: list[str] | None
    is_active: bool
    created_at: datetime
    version: int


class DeliveryView(msgspec.Struct, frozen=True, kw_only=True):
    """Something that a webhook is to be told, or was."""

    id: str
    """The receiver gets it as `Treadle-Delivery`, the same at each try."""
    event: EventShown
    plan: str
    """Empty for a test."""
    task: str
    """Its code; empty where it concerns the plan."""
    reason: str
    more: int
    """Not 0: it stands for so many that are not told one by one."""
    status: Status
    attempts: int
    response_status: int | None
    """Of the newest try; null: the receiver gave no answer."""
    error: str
    """What went wrong at the newest try, in words; empty: nothing."""
    created_at: datetime
    tried_at: datetime | None
    next_try_at: datetime | None
    """null: there is none."""
    ended_at: datetime | None


def checked_name(name: str) -> str:
    """Raises `ProblemError` 400 for a name that people could not read."""
    if not name.isprintable() or name != name.strip():
        raise bad_request("name", "a name has no control characters, and no blanks around it")
    return name


def checked_url(url: str, *, allow_private: bool) -> Target:
    """Raises `ProblemError` 400."""
    try:
        return checked_target(url, allow_private=allow_private)
    except BadTarget as error:
        raise bad_request("url", str(error)) from None


def check_secret(preset: str, secret: str) -> None:
    """Whether the preset has a use for it. Raises `ProblemError` 400."""
    if preset == "generic" and not secret:
        raise bad_request(
            "secret", f"a generic webhook is signed: give it one of {SECRET_MIN_CHARS} characters or more"
        )
    if preset == "slack" and secret:
        raise bad_request("secret", "Slack's webhooks have none but their URL: leave it out, or clear it with null")
    if not secret.isprintable():
        raise bad_request("secret", "a secret has no control characters in it: copy it again")


def once_each(values: list[Any]) -> list[Any]:
    """Each value once, in their order."""
    return list(dict.fromkeys(values))


def view(row: Webhook) -> WebhookView:
    """As it is answered."""
    return WebhookView(
        id=row.id,
        name=row.name,
        url=row.url_shown,
        preset=msgspec.convert(row.preset, Preset),
        has_secret=row.has_secret,
        events=msgspec.convert(row.events, list[EventName]),
        project_ids=row.project_ids,
        is_active=row.is_active,
        created_at=row.created_at,
        version=row.version,
    )


def delivery_view(row: Delivery) -> DeliveryView:
    """As it is answered."""
    notice = counted(msgspec.json.decode(row.notice, type=Notice), row.more)
    return DeliveryView(
        id=row.id,
        event=notice.event,
        plan=row.plan_id,
        task=row.task_code,
        reason=notice.reason,
        more=row.more,
        status=msgspec.convert(row.status, Status),
        attempts=row.attempts,
        response_status=row.response_status,
        error=row.error,
        created_at=row.created_at,
        tried_at=row.tried_at,
        next_try_at=row.due_at if row.status == "waiting" else None,
        ended_at=row.ended_at,
    )
