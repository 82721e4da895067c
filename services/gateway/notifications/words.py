"""What receivers are sent: the same facts as JSON for programs, and in a line or two for people in a chat.

Names and reasons come from repositories, models and people. They are bounded here, control codes and what changes the
direction of writing go out, and what a chat would take for a mention or a link of its own is made plain.
"""

import base64
import hashlib
import hmac
import unicodedata
from datetime import datetime
from typing import Any, Literal

import msgspec

from services.gateway.notifications.happenings import Happening

Preset = Literal["generic", "slack", "feishu"]
EventShown = Literal["needs_attention", "approval_waiting", "plan_finished", "budget_80", "test"]
"""What a delivery may be about: a test is asked for, the others happen."""

NAME_MAX_CHARS = 200
REASON_MAX_CHARS = 1_000
_TITLES: dict[EventShown, str] = {
    "needs_attention": "needs attention",
    "approval_waiting": "waits for an approval",
    "plan_finished": "has ended",
    "budget_80": "has spent 80 % of its budget",
    "test": "is a test",
}
_SLACK = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})
"""All that Slack wants escaped; mentions and links are written in angle brackets."""
_FEISHU = str.maketrans({"<": "＜", ">": "＞"})
"""Feishu knows no escaping, and takes `<at user_id="all">` for a mention of everybody."""


class NotedPlan(msgspec.Struct, frozen=True, kw_only=True):
    """The plan that it is about."""

    id: str
    name: str
    project: str
    """The project's name."""
    project_id: str
    url: str | None = None
    """Where the API shows it; null: this gateway was not told its public address."""


class NotedTask(msgspec.Struct, frozen=True, kw_only=True):
    """The task that it is about."""

    code: str
    name: str


class Notice(msgspec.Struct, frozen=True, kw_only=True):
    """What a generic receiver gets as its body."""

    event: EventShown
    time: datetime
    """The log's, of what happened."""
    plan: NotedPlan | None
    task: NotedTask | None
    reason: str
    more: int = 0
    """Not 0: it stands for so many further ones of this event and plan, which are not told one by one."""


def notice_of(happening: Happening, project_name: str, public_url: str | None) -> Notice:
    """A happening as people outside may see it."""
    task = NotedTask(code=plain(happening.task, NAME_MAX_CHARS), name=plain(happening.task_name, NAME_MAX_CHARS))
    return Notice(
        event=happening.event,
        time=happening.time,
        plan=NotedPlan(
            id=happening.plan,
            name=plain(happening.plan_name, NAME_MAX_CHARS),
            project=plain(project_name, NAME_MAX_CHARS),
            project_id=happening.project,
            url=f"{public_url}/api/plans/{happening.plan}" if public_url else None,
        ),
        task=task if happening.task else None,
        reason=plain(happening.reason, REASON_MAX_CHARS),
    )


def test_notice(webhook_name: str, now: datetime) -> Notice:
    """What a person sends to see whether it arrives."""
    reason = f"a test of Treadle's webhook {plain(webhook_name, NAME_MAX_CHARS)}"
    return Notice(event="test", time=now, plan=None, task=None, reason=reason)


def counted(notice: Notice, more: int) -> Notice:
    """One that stands for many."""
    if not more:
        return notice
    words = f"{more} more of its tasks" if more > 1 else "one more of its tasks"
    verb = {"needs_attention": "attention", "approval_waiting": "an approval"}.get(notice.event, "a look")
    reason = f"{words} {'need' if more > 1 else 'needs'} {verb}"
    return msgspec.structs.replace(notice, task=None, reason=reason, more=more)


def body(preset: Preset, notice: Notice, secret: str, now: datetime) -> bytes:
    """What is posted. Feishu's carries its signature in itself, so that it is another one at each try."""
    if preset == "generic":
        return msgspec.json.encode(notice)
    if preset == "slack":
        return msgspec.json.encode({"text": _sentence(notice).translate(_SLACK)})
    told: dict[str, Any] = {"msg_type": "text", "content": {"text": _sentence(notice).translate(_FEISHU)}}
    if secret:
        timestamp = str(int(now.timestamp()))
        signed = hmac.new(f"{timestamp}\n{secret}".encode(), b"", hashlib.sha256).digest()
        told = {"timestamp": timestamp, "sign": base64.b64encode(signed).decode(), **told}
    return msgspec.json.encode(told)


def headers(preset: Preset, event: str, delivery: str, secret: str, content: bytes, now: datetime) -> dict[str, str]:
    """What goes with it. The signature is over the time too, so that nobody can send an old one again."""
    told = {"Content-Type": "application/json; charset=utf-8", "User-Agent": "Treadle"}
    if preset == "generic":
        told |= {"Treadle-Event": event, "Treadle-Delivery": delivery}
        if secret:
            timestamp = str(int(now.timestamp()))
            signed = hmac.new(secret.encode(), f"{timestamp}.".encode() + content, hashlib.sha256).hexdigest()
            told["Treadle-Signature"] = f"t={timestamp},v1={signed}"
    return told


def plain(text: str, chars_max: int) -> str:
    """One line that shows what it holds: no control codes, nothing invisible, at most so many characters."""
    seen = text[: 4 * chars_max]
    kept = (" " if c.isspace() else c for c in seen if c.isspace() or unicodedata.category(c)[0] != "C")
    shown = " ".join("".join(kept).split())
    return shown if len(shown) <= chars_max else shown[: chars_max - 1] + "…"


def _sentence(notice: Notice) -> str:
    if notice.plan is None:
        return notice.reason
    plan = notice.plan
    subject = f"plan {plan.name or plan.id}" + (f" ({plan.project})" if plan.project else "")
    if notice.task is not None:
        subject = f"task {notice.task.code} {notice.task.name}".rstrip() + f" of {subject}"
    title = "tells of more" if notice.more else _TITLES[notice.event]
    return f"Treadle: {subject} {title}: {notice.reason}"
