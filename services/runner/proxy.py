"""Keeps the key away from the agent: a proxy on loopback that adds it.

An agent gets the proxy's address and a token that is good for its lease only. The proxy passes on just the two calls of
the Messages API that an agent needs, with the real key in the token's place, and counts what each lease consumes.
A request is read whole and looked through (`services.runner.model_request`); the bytes of an answer are passed on as
they come, at the pace of the slower side. When the lease ends, so does every call of it.
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
import socket
from collections.abc import AsyncIterator, Iterator, Mapping, Set
from contextlib import asynccontextmanager, contextmanager
from types import TracebackType

import aiohttp
import msgspec
from aiohttp import web
from multidict import CIMultiDict

from services.runner.api_address import api_address
from services.runner.model_request import REQUEST_MAX_BYTES, ModelRequest, NotAllowed, allowed_betas, read_request
from services.runner.redaction import LEASE_TOKEN
from services.runner.retry_after import retry_after_s
from services.runner.usage_meter import AnswerMeter, UsageMeter
from shared.events import Usage
from shared.requests import AgentCredentials

DEFAULT_UPSTREAM = "https://api.anthropic.com"

OPEN_CALLS_MAX = 4
"""Of one lease at a time. The budget is looked at before a call, so that many answers may overshoot it, not more; what
open calls may have cost by then is counted too, and one that would only go past it with them waits for their end."""

ERROR_MAX_BYTES = 64 * 1024
"""An error's body is read whole, up to here, so that it can be understood and stripped of the key."""

LONG_WAIT_S = 60.0
"""A limit that lifts sooner is overload, which a retry survives; past it, somebody's allowance is used up."""

_CONNECT_TIMEOUT_S = 10.0
_PATHS = ("/v1/messages", "/v1/messages/count_tokens")

_HOP_BY_HOP = {"connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection"}
_HOP_BY_HOP |= {"te", "trailer", "transfer-encoding", "upgrade"}
_SENT_UP = {"accept", "user-agent", "anthropic-version", "anthropic-dangerous-direct-browser-access", "x-app"}
_SENT_UP |= {"x-claude-code-session-id"}
_NOT_SENT_DOWN = _HOP_BY_HOP | {"set-cookie", "content-encoding"}


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """The last call that did not succeed."""

    status: int
    """HTTP status; 502 when the API could not be reached."""
    kind: str
    """The API's own name for it, such as `rate_limit_error`."""
    message: str
    retry_after_s: float | None


class NoKey(Exception):
    """There is no key to reach the model with."""


class Upstream:
    """An API, and the key for it."""

    def __init__(self, api_key: str, address: str) -> None:
        """`address` may have a path of its own. Raises BadAddress for one that is no HTTP address."""
        self.key = api_key
        self.address = api_address(address)

    def __repr__(self) -> str:
        return f"Upstream({self.address.origin()})"


class Access:
    """What one lease may use of the model, and what it has used."""

    def __init__(self, base_url: str, budget_usd: float, upstream: Upstream) -> None:
        self.base_url = base_url
        self.upstream = upstream
        self.token = LEASE_TOKEN + secrets.token_urlsafe(32)
        self.budget_usd = budget_usd
        self.meter = UsageMeter()
        self.refusal: Refusal | None = None
        self.open_calls = asyncio.Semaphore(OPEN_CALLS_MAX)
        self.is_over = False
        """Whether the lease has ended."""
        self._calls: set[asyncio.Timeout] = set()
        self.has_answered = False
        """Whether any call of this lease succeeded."""
        self.passed_bytes = 0
        """Of answers, so far: as long as this grows, the model is at work."""

    @property
    def usage(self) -> Usage:
        """Consumed so far; of an answer that is being written, what it would have cost if it ended now."""
        return self.meter.usage

    @property
    def told(self) -> Usage:
        """Consumed so far; of an answer that is being written only what the API has told of it, so it never falls."""
        return self.meter.told

    @property
    def is_budget_spent(self) -> bool:
        return self.told.cost_usd >= self.budget_usd

    @property
    def may_be_spent(self) -> bool:
        """Whether it is spent, or will turn out to be when the answers have ended that are being written."""
        return self.usage.cost_usd >= self.budget_usd

    @asynccontextmanager
    async def call(self) -> AsyncIterator[None]:
        """A block that is cancelled, with TimeoutError at its end, when the lease ends; at most `OPEN_CALLS_MAX`."""
        async with asyncio.timeout(None) as until_over:
            self._calls.add(until_over)
            try:
                async with self.open_calls:
                    if self.is_over:
                        raise TimeoutError
                    yield
            finally:
                self._calls.discard(until_over)

    def end(self) -> None:
        """Ends the lease's calls, and lets no other begin."""
        self.is_over = True
        for call in self._calls:
            call.reschedule(0.0)


class KeyProxy:
    """`async with KeyProxy(key, upstream) as proxy:` serves until the block ends; one for a runner's whole process."""

    def __init__(self, api_key: str | None, upstream: str = DEFAULT_UPSTREAM) -> None:
        """The key is for leases without credentials of their own; None: there is none, and `lease` wants them.

        `upstream` may have a path of its own. Raises BadAddress for one that is no HTTP address.
        """
        self._own = Upstream(api_key, upstream) if api_key else None
        self._leases: list[Access] = []

    def __repr__(self) -> str:
        return f"KeyProxy({self._own})"

    async def __aenter__(self) -> KeyProxy:
        # A company's HTTPS_PROXY is for https; a loopback address is never asked through it.
        self._sessions = {scheme: _session(trust_env=scheme == "https") for scheme in ("http", "https")}
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._serve)
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        host, port = self._runner.addresses[0][:2]
        self._base_url = f"http://{host}:{port}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._runner.cleanup()
        for session in self._sessions.values():
            await session.close()

    async def serve(self, listening: socket.socket) -> None:
        """Serves on one more listening socket, a sandbox's, until it is cancelled."""
        site = web.SockSite(self._runner, listening)
        await site.start()
        try:
            await asyncio.Event().wait()
        finally:
            if site in self._runner.sites:  # else the whole proxy has ended meanwhile
                await site.stop()

    @contextmanager
    def lease(self, budget_usd: float, credentials: AgentCredentials | None = None) -> Iterator[Access]:
        """Access for one lease; its token is worthless afterwards, and once the budget is spent.

        Raises `NoKey` where neither the lease nor the process has one, and `BadAddress`.
        """
        upstream = self._own
        if credentials is not None:
            upstream = Upstream(credentials.api_key, credentials.base_url or DEFAULT_UPSTREAM)
        if upstream is None:
            raise NoKey
        access = Access(self._base_url, budget_usd, upstream)
        self._leases.append(access)
        try:
            yield access
        finally:
            self._leases.remove(access)
            access.end()

    def _holder(self, request: web.Request) -> Access | None:
        token = request.headers.get("x-api-key") or request.headers.get("authorization", "").removeprefix("Bearer ")
        offered = token.encode(errors="replace")
        return next((lease for lease in self._leases if hmac.compare_digest(lease.token.encode(), offered)), None)

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        access = self._holder(request)
        if access is None:
            return _no_lease()
        if request.method != "POST" or request.path not in _PATHS:
            return _error(404, "not_found_error", f"Treadle passes on POST {' and '.join(_PATHS)} only.")
        try:
            async with access.call():
                return await self._looked_through(request, access)
        except TimeoutError:
            return _no_lease()

    async def _looked_through(self, request: web.Request, access: Access) -> web.StreamResponse:
        try:
            raw = await _body(request)
            asked = read_request(raw) if raw is not None else None
        except NotAllowed as refused:
            return _error(400, "invalid_request_error", f"Treadle: {refused}")
        if asked is None:
            limit = f"{REQUEST_MAX_BYTES // 1024**2} MiB"
            return _error(413, "request_too_large", f"A request may have {limit} at the most.")
        while access.may_be_spent and not access.is_budget_spent:
            await access.meter.one_ended()
        if access.is_budget_spent:
            return _error(400, "invalid_request_error", f"This attempt's budget of {access.budget_usd:g} USD is spent.")
        with access.meter.answer(asked) as counted:
            if request.path != _PATHS[0]:
                counted.costs_nothing()
            try:
                return await self._forward(request, asked, counted, access)
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                counted.costs_nothing()
                # Only the error's class: its text may name more than the agent should see.
                words = f"{access.upstream.address.origin()} can't be reached ({type(error).__name__})."
                access.refusal = Refusal(status=502, kind="api_error", message=words, retry_after_s=None)
                return _error(502, "api_error", words, is_final=not access.has_answered)

    async def _forward(
        self, request: web.Request, asked: ModelRequest, counted: AnswerMeter, access: Access
    ) -> web.StreamResponse:
        key, address = access.upstream.key, access.upstream.address
        async with self._sessions[address.scheme].request(
            request.method,
            address.joinpath(request.path.lstrip("/")).with_query(_query(request)),
            headers=_sent_up(request, key),
            data=asked.body,
            allow_redirects=False,  # a redirect would take the key to another host
        ) as answer:
            headers = _passed_on(answer.headers, _NOT_SENT_DOWN)
            for name in [name for name, value in headers.items() if key in value]:
                del headers[name]
            if "content-encoding" in answer.headers:  # sent against our wish, and decoded by our client
                headers.popall("content-length", None)
            if answer.status >= 300:
                counted.costs_nothing()
            if answer.status >= 400:
                return await self._refused(answer, headers, access)
            access.has_answered = True
            return await _stream(request, answer, headers, access, counted)

    async def _refused(
        self, answer: aiohttp.ClientResponse, headers: CIMultiDict[str], access: Access
    ) -> web.StreamResponse:
        body = b""
        while len(body) < ERROR_MAX_BYTES and (piece := await answer.content.readany()):
            body += piece
        body = body[:ERROR_MAX_BYTES].replace(access.upstream.key.encode(), b"[key]")
        access.refusal = _refusal(answer, body)
        headers.popall("content-length", None)
        wait_s = access.refusal.retry_after_s or 0.0
        if answer.status == 401 or (answer.status == 429 and wait_s > LONG_WAIT_S):
            headers["x-should-retry"] = "false"  # the CLI would try a wrong key ten times, for minutes
        return web.Response(status=answer.status, headers=headers, body=body)


def _session(*, trust_env: bool) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        cookie_jar=aiohttp.DummyCookieJar(),  # leases must not meet through the API's cookies
        # How long an answer may take is the agent's business: when it gives up, its connection ends, and ours too.
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_TIMEOUT_S),
        trust_env=trust_env,
    )


async def _stream(
    request: web.Request,
    answer: aiohttp.ClientResponse,
    headers: CIMultiDict[str],
    access: Access,
    counted: AnswerMeter,
) -> web.StreamResponse:
    """Passes an answer on, piece by piece; `write` waits while the agent doesn't read."""
    response = web.StreamResponse(status=answer.status, headers=headers)
    counted.begin(is_stream=answer.content_type == "text/event-stream")
    try:
        await response.prepare(request)
        async for piece in answer.content.iter_any():
            access.passed_bytes += len(piece)
            counted.feed(piece)
            await response.write(piece)
        counted.arrived_whole()
        await response.write_eof()
    except (aiohttp.ClientError, OSError, asyncio.CancelledError) as error:
        # One side broke off in the middle, or the lease is over. A proper end would make half an answer look whole.
        if request.transport is not None:
            request.transport.abort()
        if isinstance(error, asyncio.CancelledError):
            raise
    return response


async def _body(request: web.Request) -> bytes | None:
    """A request's body; None: it is too large. Raises NotAllowed for one that can't be unpacked."""
    body = bytearray()
    try:
        async for piece in request.content.iter_any():
            body += piece
            if len(body) > REQUEST_MAX_BYTES:
                return None
    except web.RequestPayloadError:
        raise NotAllowed("The request can't be unpacked.") from None
    return bytes(body)


def _query(request: web.Request) -> dict[str, str]:
    return {"beta": "true"} if request.query.get("beta") == "true" else {}


def _sent_up(request: web.Request, key: str) -> CIMultiDict[str]:
    """What the API needs to know, and nothing that could ask it for more."""
    dropped = {name.lower() for name in request.headers}
    dropped -= {name for name in dropped if name in _SENT_UP or name.startswith("x-stainless-")}
    headers = _passed_on(request.headers, dropped)
    if betas := allowed_betas(request.headers.getall("anthropic-beta", [])):
        headers["anthropic-beta"] = betas
    headers["content-type"] = "application/json"
    headers["x-api-key"] = key
    headers["accept-encoding"] = "identity"  # what is counted must be readable
    return headers


def _passed_on(headers: Mapping[str, str], dropped: Set[str]) -> CIMultiDict[str]:
    """End-to-end headers: without those of the connection, which it may name itself (RFC 9110, section 7.6.1)."""
    named = {name.strip().lower() for name in headers.get("connection", "").split(",")}
    return CIMultiDict((name, value) for name, value in headers.items() if name.lower() not in dropped | named)


def _refusal(answer: aiohttp.ClientResponse, body: bytes) -> Refusal:
    error = said_by(body)
    wait_s = retry_after_s(answer.status, answer.headers)
    return Refusal(status=answer.status, kind=error.type, message=error.message, retry_after_s=wait_s)


class ApiError(msgspec.Struct, frozen=True):
    """The API's own words for why it refused a call."""

    type: str = "api_error"
    message: str = ""


class _ErrorBody(msgspec.Struct, frozen=True):
    error: ApiError


def said_by(body: bytes) -> ApiError:
    """What an error's body says."""
    try:
        return msgspec.json.decode(body, type=_ErrorBody).error
    except (msgspec.DecodeError, RecursionError):  # not the API's own words, such as a gateway's page
        return ApiError(message=body[:500].decode(errors="replace"))


def _no_lease() -> web.Response:
    return _error(401, "authentication_error", "This token is not, or no longer, good for any lease.")


def _error(status: int, kind: str, message: str, *, is_final: bool = True) -> web.Response:
    """An answer of our own, in the API's shape. A final one is not tried again by the CLI."""
    error = {"type": "error", "error": {"type": kind, "message": message}}
    return web.json_response(error, status=status, headers={"x-should-retry": "false"} if is_final else {})
