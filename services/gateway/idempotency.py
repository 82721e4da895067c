"""`Idempotency-Key`: a client that lost the answer to a POST may repeat it, and gets the first answer again.

A key belongs to an account and to one request (method, path, query, body). It is claimed before the request is
carried out and holds the answer afterwards, for a day. A gateway that dies in between leaves the claim behind; whoever
repeats the request takes it over, and since the ids that a request makes are derived from the claim, it makes the same
rows and the same plan.

What is kept is encrypted by the keyring: an answer may show a token, and the fingerprint of a body that holds a
password must be worth nothing to whoever has the database alone. Both hang on a random salt within it.
"""

import hmac
import re
import secrets
from base64 import b32encode
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Any, cast

import msgspec
from litestar import Litestar, Request
from litestar.enums import ScopeType
from litestar.middleware import ASGIMiddleware
from litestar.types import ASGIApp, HTTPReceiveMessage, HTTPScope, Message, Receive, Scope, Send
from sqlalchemy import delete, update
from sqlalchemy.dialects import postgresql, sqlite

from services.gateway.accounts.access import Caller
from services.gateway.credentials.keyring import CredentialUnreadable, Keyring
from services.gateway.database.engine import Database
from services.gateway.database.tables import IdempotentAnswer
from services.gateway.problems import RETRY_AFTER_S, Problem, ProblemError
from shared.clock import new_id, new_plan_id, utc_now
from shared.spec import PLAN_MAX_BYTES

HEADER = b"idempotency-key"
KEPT = timedelta(hours=24)
LOST_AFTER = timedelta(seconds=60)
"""A claim without an answer is taken to be a dead gateway's then; no request may be at work for so long."""
BODY_MAX_BYTES = 2 * PLAN_MAX_BYTES
ANSWER_MAX_BYTES = 64 * 1024
"""A larger answer is not kept, so the request may be repeated: an import may be refused in megabytes."""
KEY_PATTERN = "[\x21-\x7e]{1,255}"
_KEY = re.compile(KEY_PATTERN)
NOT_FINAL = frozenset({401, 408, 425, 429})
"""Answers to a request that may be repeated with another outcome, as those from 500 on."""
REPEATABLE = frozenset({"/api/plans/import-log"})
"""Templates of routes whose repetition changes nothing anyway; bodies that are too large to be compared go there."""
_NOT_KEPT_HEADERS = frozenset({b"date", b"server", b"set-cookie"})

IN_PROGRESS = Problem(
    status=409,
    code="in_progress",
    title="Still at work",
    detail=f"the first request with this key is still being carried out; try again in {RETRY_AFTER_S} s",
)
KEY_REUSED = Problem(
    status=422,
    code="idempotency_key_reused",
    title="This key was used before",
    detail="this key was sent with another request before: a key is for one request",
)


class Ids:
    """Where a request's new ids come from: chance, or the claim of its key, so that a repetition makes the same."""

    def __init__(self, seed: bytes | None = None) -> None:
        self._seed = seed
        self._made = 0

    def new_id(self) -> str:
        """As `shared.clock.new_id`."""
        return new_id() if self._seed is None else self._next(self._seed).hex()[:24]

    def new_plan_id(self) -> str:
        """As `shared.clock.new_plan_id`."""
        return (
            new_plan_id() if self._seed is None else "p" + b32encode(self._next(self._seed)[:8]).decode().lower()[:12]
        )

    def _next(self, seed: bytes) -> bytes:
        self._made += 1
        return hmac.digest(seed, b"id %d" % self._made, "sha256")


def ids_of(request: Request[Any, Any, Any]) -> Ids:
    """The request's `Ids`."""
    return cast(Ids, request.state.ids)


class _Answer(msgspec.Struct, frozen=True):
    status: int
    headers: list[tuple[str, str]]
    body: bytes


class Claim(msgspec.Struct, frozen=True):
    """What the row's `answer` holds, encrypted."""

    salt: bytes
    at_work: bool = True
    answer: _Answer | None = None

    def begun(self) -> "Claim":
        """At work, without an answer yet."""
        return Claim(self.salt)

    def digest(self, purpose: bytes, content: bytes) -> bytes:
        return hmac.digest(self.salt, purpose + b"\0" + content, "sha256")


class Idempotency(ASGIMiddleware):
    """Stands between the middleware that finds out who asks and the routes."""

    scopes = (ScopeType.HTTP,)

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        """Carries a request out, or answers as before."""
        state = scope.setdefault("state", {})
        state["ids"] = Ids()
        caller = scope.get("user")
        method = cast(HTTPScope, scope)["method"]
        written = next((value for name, value in scope["headers"] if name == HEADER), None)
        is_repeatable = scope.get("path_template") in REPEATABLE
        if method != "POST" or written is None or is_repeatable or not isinstance(caller, Caller):
            await next_app(scope, receive, send)
            return
        key = written.decode("latin-1")
        if not _KEY.fullmatch(key):
            raise ProblemError(
                400, "bad_request", "Bad request", "Idempotency-Key: 1 to 255 visible ASCII characters, such as a UUID"
            )
        received, body = await _read(receive)
        app_receive = _again(received, receive)
        if body is None:  # too large: the route says so
            await next_app(scope, app_receive, send)
            return
        app: Litestar = scope["litestar_app"]
        claims = Claims(app.state.db, app.state.keyring, caller.id, key)
        path = scope["path"].encode() + b"?" + scope["query_string"]
        claim = await claims.take(b"\0".join((method.encode(), path, body)))
        if claim.answer is not None:
            await _replay(claim.answer, send)
            return
        state["ids"] = Ids(claim.digest(b"ids", b""))
        heard = _Heard(send)
        try:
            await next_app(scope, app_receive, heard.send)
        finally:
            answer = heard.answer
            await claims.put(
                msgspec.structs.replace(claim, at_work=False, answer=answer if _is_final(answer) else None)
            )
        await heard.flush()


class Claims:
    """The row of one account's key."""

    def __init__(self, db: Database, keyring: Keyring, user_id: str, key: str) -> None:
        self._db = db
        self._keyring = keyring
        self._user_id = user_id
        self._key = key
        self._holder = msgspec.json.encode((user_id, key)).decode()
        self._started_at = utc_now()

    async def take(self, content: bytes) -> Claim:
        """The claim, which is ours now unless it holds an answer. Raises `ProblemError`."""
        now = self._started_at
        fresh = Claim(secrets.token_bytes(32))
        insert = sqlite.insert if self._db.is_sqlite else postgresql.insert
        async with self._db.write() as session:
            await session.execute(delete(IdempotentAnswer).where(IdempotentAnswer.started_at < now - KEPT))
            new = (
                insert(IdempotentAnswer)
                .values(
                    user_id=self._user_id,
                    key=self._key,
                    fingerprint=_fingerprint(fresh, content),
                    started_at=now,
                    answer=self.encrypted(fresh),
                )
                .on_conflict_do_nothing()
                .returning(IdempotentAnswer.key)
            )
            if (await session.execute(new)).scalar_one_or_none() is not None:
                return fresh
            row = await session.get_one(IdempotentAnswer, (self._user_id, self._key), with_for_update=True)
            claim = self.decrypted(row)
            if not hmac.compare_digest(row.fingerprint, _fingerprint(claim, content)):
                raise _reused(KEY_REUSED.detail)
            if claim.answer is None:
                _refuse_working(claim, row.started_at, now)
                claim = claim.begun()
                row.started_at, row.answer = now, self.encrypted(claim)
            return claim

    async def put(self, claim: Claim) -> None:
        """Writes down what came of it, unless somebody has taken it over."""
        mine = (
            IdempotentAnswer.user_id == self._user_id,
            IdempotentAnswer.key == self._key,
            IdempotentAnswer.started_at == self._started_at,
        )
        async with self._db.write() as session:
            await session.execute(update(IdempotentAnswer).where(*mine).values(answer=self.encrypted(claim)))

    def encrypted(self, claim: Claim) -> bytes:
        """As the row's `answer` holds it."""
        return self._keyring.encrypt_answer(self._holder, msgspec.msgpack.encode(claim))

    def decrypted(self, row: IdempotentAnswer) -> Claim:
        """The row's claim. Raises `ProblemError` where its key is gone."""
        try:
            return msgspec.msgpack.decode(self._keyring.decrypt_answer(self._holder, row.answer or b""), type=Claim)
        except (CredentialUnreadable, msgspec.MsgspecError) as error:
            raise _reused("this key was used before and its answer can't be read any more: use another key") from error


class _Heard:
    """Holds an answer back until it is kept: a client must not see what a repetition would not."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._messages: list[Message] = []

    async def send(self, message: Message) -> None:
        self._messages.append(message)

    async def flush(self) -> None:
        for message in self._messages:
            await self._send(message)

    @property
    def answer(self) -> _Answer | None:
        """None while it is not whole."""
        start = next((m for m in self._messages if m["type"] == "http.response.start"), None)
        bodies = [m for m in self._messages if m["type"] == "http.response.body"]
        if start is None or not bodies or bodies[-1].get("more_body"):
            return None
        kept = ((n, v) for n, v in start["headers"] if n not in _NOT_KEPT_HEADERS)
        headers = [(n.decode("latin-1"), v.decode("latin-1")) for n, v in kept]
        return _Answer(start["status"], headers, b"".join(m["body"] for m in bodies))


def _refuse_working(claim: Claim, since: datetime, now: datetime) -> None:
    if claim.at_work and now - since <= LOST_AFTER:
        headers = {"Retry-After": str(RETRY_AFTER_S)}
        raise ProblemError(IN_PROGRESS.status, IN_PROGRESS.code, IN_PROGRESS.title, IN_PROGRESS.detail, headers=headers)


def _is_final(answer: _Answer | None) -> bool:
    """Whether it is kept: a repetition would change nothing. What was refused for the moment is worth another try."""
    if answer is None or len(answer.body) > ANSWER_MAX_BYTES:
        return False
    return answer.status < 500 and answer.status not in NOT_FINAL


async def _replay(answer: _Answer, send: Send) -> None:
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in answer.headers]
    headers.append((b"idempotent-replayed", b"true"))
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body, "more_body": False})


async def _read(receive: Receive) -> tuple[list[HTTPReceiveMessage], bytes | None]:
    """The messages of the body, and the body; None where it is too large to be one, or was never finished."""
    received: list[HTTPReceiveMessage] = []
    size = 0
    while True:
        message = cast(HTTPReceiveMessage, await receive())
        received.append(message)
        if message["type"] != "http.request":
            return received, None
        size += len(message["body"])
        if size > BODY_MAX_BYTES:
            return received, None
        if not message.get("more_body"):
            return received, b"".join(m["body"] for m in received if m["type"] == "http.request")


def _again(received: list[HTTPReceiveMessage], receive: Receive) -> Callable[[], Awaitable[Any]]:
    """Gives what was read already, then what comes."""
    waiting = iter(received)

    async def give() -> HTTPReceiveMessage:
        for message in waiting:
            return message
        return cast(HTTPReceiveMessage, await receive())

    return give


def _fingerprint(claim: Claim, content: bytes) -> str:
    return claim.digest(b"request", content).hex()


def _reused(detail: str) -> ProblemError:
    return ProblemError(KEY_REUSED.status, KEY_REUSED.code, KEY_REUSED.title, detail)
