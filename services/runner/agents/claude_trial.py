"""Tries a key for the Claude API out: one request for one token."""

from __future__ import annotations

import aiohttp
import msgspec

from services.runner.agents import Trial
from services.runner.api_address import BadAddress
from services.runner.git import printable
from services.runner.proxy import DEFAULT_UPSTREAM, ERROR_MAX_BYTES, Upstream
from shared.requests import AgentCredentials
from shared.spec import DEFAULT_MODEL

ANSWER_WITHIN_S = 15.0
_API_VERSION = "2023-06-01"
_SAID_MAX_CHARS = 200


async def try_out(credentials: AgentCredentials | None, model: str) -> Trial:
    """See `AgentModule.try_out`."""
    if credentials is None:
        return Trial("wrong_key", "No API key is set: put one into the agent type.")
    model = model or DEFAULT_MODEL
    try:
        upstream = Upstream(credentials.api_key, credentials.base_url or DEFAULT_UPSTREAM)
        status, kind, words = await _ask(upstream, model)
    except BadAddress as error:
        return Trial("no_route", f"{error}. Correct api_base_url.")
    except TimeoutError:
        origin = upstream.address.origin()
        return Trial("no_route", f"{origin} did not answer within {ANSWER_WITHIN_S:g} seconds. Is api_base_url right?")
    except (aiohttp.ClientError, OSError) as error:
        # The words of other errors quote what came in the place of an answer.
        words = f": {_told(str(error), upstream)}" if isinstance(error, OSError) else ""
        why = f"{type(error).__name__}{words}"
        return Trial("no_route", f"{upstream.address.origin()} can't be reached from a runner ({why}).")
    except ValueError:  # from the HTTP client: a key with a line break can't be a header
        return Trial("wrong_key", "The API key has characters that no key has: put it in again.")
    return _verdict(status, kind, _told(words, upstream), model, str(upstream.address.origin()))


async def _ask(upstream: Upstream, model: str) -> tuple[int, str, str]:
    """Status, then see `_api_said`."""
    body = {"model": model, "max_tokens": 1, "messages": [{"role": "user", "content": "hi"}]}
    headers = {"x-api-key": upstream.key, "anthropic-version": _API_VERSION}
    async with aiohttp.ClientSession(
        timeout=aiohttp.ClientTimeout(total=ANSWER_WITHIN_S), trust_env=upstream.address.scheme == "https"
    ) as session:
        # A redirect would take the key to another host.
        url = upstream.address.joinpath("v1/messages")
        async with session.post(url, json=body, headers=headers, allow_redirects=False) as answer:
            text = b""
            async for piece in answer.content.iter_chunked(ERROR_MAX_BYTES):
                text += piece
                if len(text) >= ERROR_MAX_BYTES:
                    break
            return answer.status, *_api_said(text)


def _api_said(text: bytes) -> tuple[str, str]:
    """The kind of an answer in the API's own form, and an error's words; empty for anything else.

    Anything else is never shown: the address is a person's choice, and what answers there may be no one's business.
    """
    try:
        said = msgspec.json.decode(text, type=_Error | _Message)
    except (msgspec.DecodeError, RecursionError):
        return "", ""
    if isinstance(said, _Message):
        return "message", ""
    return said.error.type, said.error.message


class _Message(msgspec.Struct, frozen=True, tag="message"):
    pass


class _Fault(msgspec.Struct, frozen=True):
    type: str
    message: str


class _Error(msgspec.Struct, frozen=True, tag="error"):
    error: _Fault


def _verdict(status: int, kind: str, words: str, model: str, origin: str) -> Trial:
    if status == 200 and kind == "message":
        return Trial("ok", f"{origin} accepts the key, and {model} answers.")
    said = f": {words}" if words else ""
    if status in (401, 403):
        remedy = "Put a valid key into the agent type."
        return Trial("wrong_key", f"{origin} refused the key with status {status}{said}. {remedy}")
    if not kind or status == 200:
        return Trial(
            "refused", f"{origin} answered with status {status}, but not as the API does. Is it the right one?"
        )
    is_model = (status == 404 and kind == "not_found_error") or (status == 400 and model in words)
    if is_model:
        return Trial("unknown_model", f"{origin} knows no model {model}, or the key may not use it{said}")
    if status == 429:
        return Trial("refused", f"{origin} takes the key, but its limit is reached just now{said}")
    return Trial("refused", f"{origin} answered with status {status}{said}")


def _told(words: str, upstream: Upstream) -> str:
    """On one line, short, printable, without the key."""
    return printable(words.replace(upstream.key, "[key]"))[:_SAID_MAX_CHARS].rstrip(".")
