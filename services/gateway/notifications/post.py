"""One try to bring something to a receiver: to the checked address itself, within ten seconds, without redirects."""

import asyncio
import ssl
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx
import msgspec

from services.gateway.notifications.target import BadTarget, Target, resolved
from services.gateway.notifications.words import Preset, plain

TRY_TIMEOUT_S = 10.0
CONNECT_TIMEOUT_S = 4.0
"""For one address: a name may have another one that answers."""
ANSWER_MAX_BYTES = 4096
"""What is read of an answer."""
ANSWER_SHOWN_MAX_CHARS = 200
RETRY_AFTER_MAX_S = 3600.0
"""A receiver's word on when to come again is believed up to here."""


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a try."""

    error: str
    """In words; empty: it was taken."""
    response_status: int | None = None
    retry_after_s: float = 0.0


class _FeishuAnswer(msgspec.Struct, frozen=True):
    code: int = 0
    msg: str = ""


def make_tls() -> ssl.SSLContext:
    """What every connection trusts, made once since that takes long. `SSL_CERT_FILE` may name an operator's own."""
    return httpx.create_ssl_context()


async def post(
    target: Target,
    preset: Preset,
    content: bytes,
    headers: dict[str, str],
    *,
    tls: ssl.SSLContext,
    allow_private: bool,
    now: datetime,
) -> Outcome:
    """Never raises but for what is a fault of ours."""
    try:
        async with asyncio.timeout(TRY_TIMEOUT_S):
            return await _post(target, preset, content, headers, tls, allow_private, now)
    except BadTarget as error:
        return Outcome(error=str(error))
    except TimeoutError:
        return Outcome(error=f"{target.host} did not answer within {TRY_TIMEOUT_S:.0f} s")
    except httpx.TransportError as error:
        why = plain(str(error), ANSWER_SHOWN_MAX_CHARS) or type(error).__name__
        return Outcome(error=f"{target.host} could not be reached, or broke off: {why}")
    except (OSError, UnicodeError) as error:  # a name that does not resolve, or can't be one
        return Outcome(error=f"{target.host} does not resolve to an address: {plain(str(error), 200)}")


async def _post(
    target: Target,
    preset: Preset,
    content: bytes,
    headers: dict[str, str],
    tls: ssl.SSLContext,
    allow_private: bool,
    now: datetime,
) -> Outcome:
    addresses = await resolved(target, allow_private=allow_private)
    timeout = httpx.Timeout(TRY_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
    for last, address in enumerate(addresses, 1 - len(addresses)):
        host = f"[{address}]" if ":" in address else address
        request = httpx.Request(
            "POST",
            f"{target.scheme}://{host}:{target.port}{target.rest}",
            content=content,
            headers={**headers, "Host": target.origin, "Accept-Encoding": "identity"},
            extensions={"sni_hostname": target.host, "timeout": timeout.as_dict()},
        )
        # A connection of its own: a pool would take two names on one address for the same peer. And no client above
        # it: that would write the whole address into the gateway's log.
        async with httpx.AsyncHTTPTransport(verify=tls, trust_env=False) as transport:
            try:
                answer = await transport.handle_async_request(request)
            except (httpx.ConnectError, httpx.ConnectTimeout):
                if not last:
                    raise
                continue
            try:
                return _outcome(answer, preset, await _beginning(answer), now)
            finally:
                await answer.aclose()
    raise OSError("the name has no address")


async def _beginning(answer: httpx.Response) -> bytes:
    read = b""
    try:
        async for chunk in answer.aiter_raw():
            read += chunk[: ANSWER_MAX_BYTES - len(read)]
            if len(read) >= ANSWER_MAX_BYTES:
                break
    except httpx.TransportError:  # the status has come, and it is what counts
        return read
    return read


def _outcome(answer: httpx.Response, preset: Preset, content: bytes, now: datetime) -> Outcome:
    status = answer.status_code
    said = plain(content.decode(errors="replace"), ANSWER_SHOWN_MAX_CHARS)
    if not answer.is_success:
        what = "a redirect, which is not followed" if answer.is_redirect else f"HTTP {status}"
        error = f"the receiver answered {what}" + (f": {said}" if said else "")
        after_s = retry_after_s(answer.headers.get("retry-after", ""), now)
        return Outcome(error=error, response_status=status, retry_after_s=after_s)
    if preset == "feishu" and (refused := _feishu_refused(content)):
        return Outcome(error=f"Feishu refused it: {refused}", response_status=status)
    return Outcome(error="", response_status=status)


def _feishu_refused(content: bytes) -> str:
    """Feishu says no with 200 and a code of its own (its documentation, custom bots, error codes)."""
    try:
        answer = msgspec.json.decode(content, type=_FeishuAnswer)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return ""
    return plain(f"{answer.code} {answer.msg}", ANSWER_SHOWN_MAX_CHARS) if answer.code else ""


def retry_after_s(header: str, now: datetime) -> float:
    """Seconds, from either form of the header (RFC 9110, 10.2.3); 0 for what is neither."""
    if header.isascii() and header.isdecimal():
        return min(float(header[:9]), RETRY_AFTER_MAX_S)
    try:
        at = parsedate_to_datetime(header)
    except (TypeError, ValueError, OverflowError):
        return 0.0
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    return min(max(0.0, (at - now).total_seconds()), RETRY_AFTER_MAX_S)
