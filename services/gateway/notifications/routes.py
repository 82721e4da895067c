"""Routes of webhooks: each account's own, admins' not excepted."""

from datetime import timedelta
from typing import Annotated, Any

import msgspec
from litestar import Request, Response, Router, delete, get, patch, post
from litestar.datastructures import State
from litestar.di import NamedDependency, Provide
from litestar.params import FromPath, HeaderParameter, JSONBody, QueryParameter
from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from services.gateway.accounts import audit
from services.gateway.accounts.access import Caller
from services.gateway.conditions import ETAG, check_if_match, etag
from services.gateway.credentials import stored
from services.gateway.credentials.keyring import CredentialUnreadable
from services.gateway.database.tables import Delivery, Project, User, Webhook
from services.gateway.idempotency import ids_of
from services.gateway.notifications.bodies import (
    DeliveryView,
    NewWebhook,
    WebhookChanges,
    WebhookView,
    check_secret,
    checked_name,
    checked_url,
    delivery_view,
    once_each,
    view,
)
from services.gateway.notifications.outbox import encoded
from services.gateway.notifications.sender import Secrets, Sender
from services.gateway.notifications.target import shown
from services.gateway.notifications.words import test_notice
from services.gateway.paging import Asked, Order, Page, asked_page
from services.gateway.patch import given
from services.gateway.problems import Problem, ProblemError, bad_request, documented, not_found
from services.gateway.projection.live import log_end
from services.gateway.projects.lookup import seen_by
from shared.clock import utc_now
from shared.subjects import ROW_ID

WEBHOOKS_MAX = 50
TEST_EVERY = timedelta(seconds=2)
WEBHOOKS = Order({"name": Webhook.name, "created_at": Webhook.created_at}, id_=Webhook.id, default="name")
DELIVERIES = Order({"created_at": Delivery.created_at}, id_=Delivery.id, default="-created_at")

IfMatch = Annotated[str | None, HeaderParameter(name="If-Match", description="The ETag that was read; optional.")]
StatusFilter = Annotated[str | None, QueryParameter(pattern=r"^(waiting|delivered|given_up)(?!\n)$")]

_TOO_MANY = Problem(
    status=409,
    code="too_many_webhooks",
    title="Too many webhooks",
    detail=f"an account has at most {WEBHOOKS_MAX} webhooks: delete one that is not needed any more",
)
_UNREADABLE = Problem(
    status=409,
    code="credential_unreadable",
    title="The webhook's secrets can't be decrypted",
    detail="the webhook secret of 5f0c5e5e9f6b4d3e8a1b2c3d is encrypted with key 'k1', which the gateway's keyring "
    "does not hold: put that key back into its file, or set url and secret anew",
)
_TOO_SOON = Problem(
    status=429,
    code="too_soon",
    title="A test was sent just now",
    detail=f"a webhook is tested once in {TEST_EVERY.total_seconds():.0f} s: try again then",
)
_IS_OFF = Problem(
    status=409,
    code="webhook_off",
    title="The webhook is turned off",
    detail="the webhook is turned off: turn it on first (is_active true)",
)


@get("/webhooks", dependencies={"asked": Provide(asked_page)}, responses=documented(400, 401))
async def list_webhooks(
    state: State, request: Request[Caller, Any, Any], asked: NamedDependency[Asked]
) -> Page[WebhookView]:
    """One's own webhooks."""
    async with state.db.read() as session:
        rows, next_ = await WEBHOOKS.fetch(session, select(Webhook).where(Webhook.owner_id == request.user.id), asked)
    return Page([view(row) for row in rows], next_)


@post("/webhooks", status_code=201, response_headers=[ETAG], responses=documented(400, 401, _TOO_MANY))
async def create_webhook(
    data: JSONBody[NewWebhook], state: State, request: Request[Caller, Any, Any]
) -> Response[WebhookView]:
    """Makes a webhook. It is told what happens from now on."""
    caller, now, webhook_id = request.user, utc_now(), ids_of(request).new_id()
    target = checked_url(data.url, allow_private=state.settings.local_repositories)
    secret = data.secret or ""
    check_secret(data.preset, secret)
    row = Webhook(
        id=webhook_id,
        owner_id=caller.id,
        name=checked_name(data.name),
        url_shown=shown(target),
        preset=data.preset,
        has_secret=bool(secret),
        events=once_each(data.events),
        project_ids=once_each(data.project_ids) if data.project_ids is not None else None,
        is_active=data.is_active,
        after=await log_end(state.nc),
        created_at=now,
        version=1,
    )
    async with state.db.write() as session:
        made_before = await session.get(Webhook, webhook_id)
        if made_before is None:  # else a repetition of a request whose answer was lost
            await _check_count(session, caller)
            await _check_projects(session, caller, row.project_ids)
            session.add(row)
            await session.flush()
            await audit.record(session, caller.actor, "webhook.created", webhook_id, {"name": row.name}, now)
            await _keep(session, state, webhook_id, Secrets(url=data.url, secret=secret), caller)
    return _answer(made_before or row, 201)


@get("/webhooks/{webhook:str}", response_headers=[ETAG], responses=documented(401, 404))
async def read_webhook(
    webhook: FromPath[str], state: State, request: Request[Caller, Any, Any]
) -> Response[WebhookView]:
    """One webhook."""
    async with state.db.read() as session:
        return _answer(await _find(session, request.user, webhook), 200)


@patch("/webhooks/{webhook:str}", response_headers=[ETAG], responses=documented(400, 401, 404, _UNREADABLE, 412))
async def change_webhook(
    webhook: FromPath[str],
    data: JSONBody[WebhookChanges],
    state: State,
    request: Request[Caller, Any, Any],
    if_match: IfMatch = None,
) -> Response[WebhookView]:
    """Changes what is given, for what is still to be sent too. What happens while it is off, it is never told."""
    caller, now, changes = request.user, utc_now(), given(data)
    if "name" in changes:
        checked_name(changes["name"])
    for field in ("events", "project_ids"):
        if changes.get(field) is not None:
            changes[field] = once_each(changes[field])
    if "url" in changes:
        changes["url_shown"] = shown(checked_url(changes["url"], allow_private=state.settings.local_repositories))
    end = await log_end(state.nc) if changes.get("is_active") else 0
    async with state.db.write() as session:
        row = await _find(session, caller, webhook, lock=True)
        check_if_match(if_match, row.version)
        if "project_ids" in changes:
            await _check_projects(session, caller, changes["project_ids"])
        kept = await _change_secrets(session, state, row, changes, caller)
        if changes.get("is_active") and not row.is_active:
            row.after = max(row.after, end)
        secrets_changed = [field for field in ("url", "secret") if field in changes]
        columns = {field: value for field, value in changes.items() if field not in ("url", "secret")}
        fields = [field for field, value in columns.items() if value != getattr(row, field)]
        for field in fields:
            setattr(row, field, columns[field])
        row.has_secret = bool(kept.secret) if kept else row.has_secret
        if fields or secrets_changed:
            row.version += 1
            await session.flush()
            told = {"fields": sorted({*fields, *secrets_changed} - {"url_shown"})}
            await audit.record(session, caller.actor, "webhook.changed", row.id, told, now)
        return _answer(row, 200)


async def _change_secrets(
    session: AsyncSession, state: State, row: Webhook, changes: dict[str, Any], caller: Caller
) -> Secrets | None:
    """Address and secret as they are to be, stored where they change; None: nothing of them is concerned."""
    if not changes.keys() & {"url", "secret", "preset"}:
        return None
    preset = changes.get("preset", row.preset)
    if {"url", "secret"} <= changes.keys():
        kept = Secrets(url=changes["url"], secret=changes["secret"] or "")
    else:
        try:
            plaintext = await stored.read_webhook_secrets(session, state.keyring, row.id)
        except CredentialUnreadable as error:
            raise ProblemError(_UNREADABLE.status, _UNREADABLE.code, _UNREADABLE.title, str(error)) from error
        before = msgspec.json.decode(plaintext or b'{"url":""}', type=Secrets)
        secret = changes["secret"] or "" if "secret" in changes else before.secret
        kept = Secrets(url=changes.get("url", before.url), secret=secret)
    check_secret(preset, kept.secret)
    if changes.keys() & {"url", "secret"}:
        await _keep(session, state, row.id, kept, caller)
    return kept


@delete("/webhooks/{webhook:str}", status_code=204, responses=documented(400, 401, 404, 412))
async def delete_webhook(
    webhook: FromPath[str], state: State, request: Request[Caller, Any, Any], if_match: IfMatch = None
) -> None:
    """Removes a webhook, with what it was still to be told and its log."""
    caller, now = request.user, utc_now()
    async with state.db.write() as session:
        row = await _find(session, caller, webhook, lock=True)
        check_if_match(if_match, row.version)
        await stored.clear(session, "webhook", row.id, caller.actor, now)
        await session.delete(row)
        await audit.record(session, caller.actor, "webhook.deleted", row.id, {"name": row.name}, now)


@post("/webhooks/{webhook:str}/test", status_code=200, responses=documented(401, 404, _TOO_SOON))
async def test_webhook(webhook: FromPath[str], state: State, request: Request[Caller, Any, Any]) -> DeliveryView:
    """Sends a test once, also where the webhook is off, and tells what came of it."""
    sender: Sender = state.sender
    now, delivery_id = utc_now(), ids_of(request).new_id()
    async with state.db.write() as session:
        row = await _find(session, request.user, webhook, lock=True)
        if await session.get(Delivery, delivery_id) is None:
            newest = select(func.max(Delivery.created_at)).where(
                Delivery.webhook_id == row.id, Delivery.event == "test"
            )
            tested_at = await session.scalar(newest)
            if tested_at is not None and now - tested_at < TEST_EVERY:
                headers = {"Retry-After": f"{TEST_EVERY.total_seconds():.0f}"}
                raise ProblemError(_TOO_SOON.status, _TOO_SOON.code, _TOO_SOON.title, _TOO_SOON.detail, headers=headers)
            notice = encoded(test_notice(row.name, now))
            session.add(
                Delivery(
                    id=delivery_id, webhook_id=row.id, event="test", notice=notice, status="waiting", due_at=now,
                    created_at=now,
                )
            )  # fmt: skip
    await sender.try_now(delivery_id)
    async with state.db.read() as session:
        return delivery_view(await _find_delivery(session, webhook, delivery_id))


@get(
    "/webhooks/{webhook:str}/deliveries",
    dependencies={"asked": Provide(asked_page)},
    responses=documented(400, 401, 404),
)
async def list_deliveries(
    webhook: FromPath[str],
    state: State,
    request: Request[Caller, Any, Any],
    asked: NamedDependency[Asked],
    status: StatusFilter = None,
) -> Page[DeliveryView]:
    """What the webhook was told, or is still to be told, the newest first. Kept for 30 days."""
    async with state.db.read() as session:
        row = await _find(session, request.user, webhook)
        query = select(Delivery).where(Delivery.webhook_id == row.id)
        if status is not None:
            query = query.where(Delivery.status == status)
        rows, next_ = await DELIVERIES.fetch(session, query, asked)
    return Page([delivery_view(row) for row in rows], next_)


@post(
    "/webhooks/{webhook:str}/deliveries/{delivery:str}/redeliver",
    status_code=202,
    responses=documented(401, 404, _IS_OFF),
)
async def redeliver(
    webhook: FromPath[str], delivery: FromPath[str], state: State, request: Request[Caller, Any, Any]
) -> DeliveryView:
    """Sends it again, under the same id and with all its tries; at once where it waits for a try."""
    now = utc_now()
    async with state.db.write() as session:
        row = await _find(session, request.user, webhook)
        found = await _find_delivery(session, row.id, delivery)
        if not row.is_active and found.event != "test":
            raise ProblemError(_IS_OFF.status, _IS_OFF.code, _IS_OFF.title, _IS_OFF.detail)
        # One that is at work is left to whoever sends it.
        anew = {"status": "waiting", "attempts": 0, "due_at": now, "error": "", "ended_at": None}
        await session.execute(
            update(Delivery)
            .where(Delivery.id == found.id, Delivery.claim == "")
            .values({**anew, "response_status": None})
            .execution_options(synchronize_session=False)
        )
        await session.refresh(found)
        answer = delivery_view(found)
    state.sender.wake()
    return answer


async def _find(session: AsyncSession, caller: Caller, webhook_id: str, *, lock: bool = False) -> Webhook:
    row = await session.get(Webhook, webhook_id, with_for_update=lock or None) if ROW_ID.fullmatch(webhook_id) else None
    if row is None or row.owner_id != caller.id:
        raise not_found(f"webhook {webhook_id[:80]}", "GET /api/webhooks")
    return row


async def _find_delivery(session: AsyncSession, webhook_id: str, delivery_id: str) -> Delivery:
    row = await session.get(Delivery, delivery_id) if ROW_ID.fullmatch(delivery_id) else None
    if row is None or row.webhook_id != webhook_id:
        raise not_found(f"delivery {delivery_id[:80]}", f"GET /api/webhooks/{webhook_id}/deliveries")
    return row


async def _check_count(session: AsyncSession, caller: Caller) -> None:
    await session.execute(select(User.id).where(User.id == caller.id).with_for_update())  # two can't be the last
    count = await session.scalar(select(func.count()).where(Webhook.owner_id == caller.id))
    if (count or 0) >= WEBHOOKS_MAX:
        raise ProblemError(_TOO_MANY.status, _TOO_MANY.code, _TOO_MANY.title, _TOO_MANY.detail)


async def _check_projects(session: AsyncSession, caller: Caller, project_ids: list[str] | None) -> None:
    if project_ids is None:
        return
    wanted = [project_id for project_id in project_ids if ROW_ID.fullmatch(project_id)]
    found = set(await session.scalars(select(Project.id).where(Project.id.in_(wanted), seen_by(caller))))
    for project_id in project_ids:
        if project_id not in found:
            raise bad_request("project_ids", f"project {project_id!r} does not exist here: see `GET /api/projects`")


async def _keep(session: AsyncSession, state: State, webhook_id: str, secrets: Secrets, caller: Caller) -> None:
    plaintext = msgspec.json.encode(secrets)
    await stored.set_webhook_secrets(session, state.keyring, webhook_id, plaintext, caller.actor, utc_now())


def _answer(row: Webhook, status: int) -> Response[WebhookView]:
    return Response(view(row), status_code=status, headers={"ETag": etag(row.version)})


webhooks_router = Router(
    path="/",
    tags=["webhooks"],
    route_handlers=[
        list_webhooks, create_webhook, read_webhook, change_webhook, delete_webhook, test_webhook, list_deliveries,
        redeliver,
    ],
)  # fmt: skip
