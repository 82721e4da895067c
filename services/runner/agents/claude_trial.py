"""Tries a key for the Claude API out: one request for one token."""

from __future__ import annotations

import aiohttp
import msgspec

from services.runner.agents import Trial, cut
from services.runner.git import printable
from services.runner.proxy import DEFAULT_UPSTREAM, ERROR_MAX_BYTES, BadAddress, Upstream, said_by
from shared.requests import AgentCredentials
from shared.spec import DEFAULT_MODEL

ANSWER_WITHIN_S = 15.0
_API_VERSION = "2023-06-01"
_WORDS_MAX_BYTES = 500


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
        why = f"{type(error).__name__}: {_told(str(error), upstream)}"
        return Trial("no_route", f"{upstream.address.origin()} can't be reached from a runner ({why}).")
    except ValueError:  # from the HTTP client: a key with a line break can't be a header
        return Trial("wrong_key", "The API key has characters that no key has: put it in again.")
    return _verdict(status, kind, _told(words, upstream), model, str(upstream.address.origin()))


async def _ask(upstream: Upstream, model: str) -> tuple[int, str, str]:
    """Status, and in case of an error the API's name for it and its words."""
    body = {"model": model, "max_tokens": 1, "messages": [{"role": "user", "content": "hi"}]}
    headers = {"x-api-key": upstream.key, "anthropic-version": _API_VERSION}
    async with aiohttp.ClientSession(
        timeout=aiohttp.ClientTimeout(total=ANSWER_WITHIN_S), trust_env=upstream.address.scheme == "https"
    ) as session:
        # A redirect would take the key to another host.
        url = upstream.address.joinpath("v1/messages")
        async with session.post(url, json=body, headers=headers, allow_redirects=False) as answer:
            text = await answer.content.read(ERROR_MAX_BYTES)
            if answer.status == 200:
                return 200, *_model_said(text)
            error = said_by(text)
            return answer.status, error.type, error.message


def _model_said(text: bytes) -> tuple[str, str]:
    """("message", "") for the API's own answer; else what came in its place."""
    try:
        return msgspec.json.decode(text, type=_Message).type, ""
    except msgspec.DecodeError:
        return "", text[:_WORDS_MAX_BYTES].decode(errors="replace")


class _Message(msgspec.Struct, frozen=True):
    type: str


def _verdict(status: int, kind: str, words: str, model: str, origin: str) -> Trial:
    if status == 200 and kind == "message":
        return Trial("ok", f"{origin} accepts the key, and {model} answers.")
    if status in (401, 403):
        return Trial("wrong_key", f"{origin} refused the key: {words}. Put a valid key into the agent type.")
    is_model = (status == 404 and kind == "not_found_error") or (status == 400 and model in words)
    if is_model:
        return Trial("unknown_model", f"{origin} knows no model {model}, or the key may not use it: {words}")
    if status == 429:
        return Trial("refused", f"{origin} takes the key, but its limit is reached just now: {words}")
    return Trial("refused", f"{origin} answered with status {status}: {words}")


def _told(words: str, upstream: Upstream) -> str:
    """On one line, short, without the key."""
    return cut(printable(words.replace(upstream.key, "[key]")), _WORDS_MAX_BYTES).rstrip(".")
