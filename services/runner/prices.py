"""What an answer of the model costs.

List prices of the Claude API in US dollars per million tokens: first-party platform, no batch, no regional surcharge.
Source: the model catalogue inside the CLI that claude-agent-sdk 0.2.187 bundles (2.1.330), compared with
https://platform.claude.com/docs/en/about-claude/pricing as far as that page listed the model; read on 2026-11-22. When
the SDK is raised, compare again: a price that is too low lets a budget be overspent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from shared.events import Usage


class Price(msgspec.Struct, frozen=True, kw_only=True):
    """US dollars per million tokens."""

    input: float
    output: float
    cache_read: float
    cache_write_5m: float
    cache_write_1h: float


LONG_PROMPT_TOKENS = 100_000
"""Past so many tokens of prompt, cached ones included, a model in `_LONG_PROMPT_PRICES` costs more for every token."""


def _price(input: float, output: float, cache_read: float) -> Price:  # noqa: A002 - the API's own word
    """Writing to the cache costs 1.25 × the input for five minutes and 2 × for an hour, for every model so far."""
    write_5m, write_1h = input * 1.25, input * 2
    return Price(input=input, output=output, cache_read=cache_read, cache_write_5m=write_5m, cache_write_1h=write_1h)


_PRICES = {
    "claude-fable-5": _price(10, 50, 1),
    "claude-fable-5-1": _price(10, 50, 0.25),
    "claude-fable-5-2": _price(8, 40, 0.2),
    "claude-mythos-5": _price(10, 50, 1),
    "claude-mythos-5-1": _price(10, 50, 0.25),
    "claude-mythos-5-2": _price(8, 40, 0.2),
    "claude-opus-4": _price(15, 75, 1.5),
    "claude-opus-4-1": _price(15, 75, 1.5),
    "claude-opus-4-5": _price(5, 25, 0.5),
    "claude-opus-4-6": _price(5, 25, 0.5),
    "claude-opus-4-7": _price(5, 25, 0.5),
    "claude-opus-4-8": _price(5, 25, 0.5),
    "claude-opus-5": _price(5, 25, 0.5),
    "claude-opus-5-5": _price(4, 20, 0.2),
    "claude-sonnet-4": _price(3, 15, 0.3),
    "claude-sonnet-4-5": _price(3, 15, 0.3),
    "claude-sonnet-4-6": _price(3, 15, 0.3),
    "claude-sonnet-5": _price(2, 10, 0.2),
    "claude-sonnet-5-5": _price(2, 10, 0.1),
    "claude-haiku-4-5": _price(1, 5, 0.1),
    "claude-haiku-5-5": _price(0.1, 0.5, 0.01),
}

_LONG_PROMPT_PRICES = {"claude-haiku-5-5": _price(0.5, 2.5, 0.05)}

WEB_SEARCH_USD = 0.01
"""For one search of the API's own, on top of its tokens: 10 US dollars per thousand, from the same page."""

HIGHEST = _PRICES["claude-opus-4"]
"""Taken for an unknown model: a budget must rather end a run too early than too late."""


def is_known(model: str) -> bool:
    """Whether the model has a price of its own; if not, it is charged at `HIGHEST`, and people are told so."""
    return _family(model) in _PRICES


def price_of(model: str, *, prompt_tokens: int = 0) -> Price:
    """The price of a model, whether or not its id carries a date. `prompt_tokens` counts cached ones too."""
    family = _family(model)
    if prompt_tokens > LONG_PROMPT_TOKENS and family in _LONG_PROMPT_PRICES:
        return _LONG_PROMPT_PRICES[family]
    return _PRICES.get(family, HIGHEST)


def usage_of(model: str, counts: Mapping[str, Any]) -> Usage:
    """Reads a `usage` object of the Messages API, which is untrusted: whatever is no count is taken as 0."""
    read, written = _count(counts, "cache_read_input_tokens"), _count(counts, "cache_creation_input_tokens")
    fresh, output = _count(counts, "input_tokens"), _count(counts, "output_tokens")
    by_age = counts.get("cache_creation")
    written_1h = _count(by_age, "ephemeral_1h_input_tokens") if isinstance(by_age, Mapping) else 0
    written_1h = min(written, written_1h)
    price = price_of(model, prompt_tokens=fresh + read + written)
    cost = (
        fresh * price.input
        + output * price.output
        + read * price.cache_read
        + (written - written_1h) * price.cache_write_5m
        + written_1h * price.cache_write_1h
    )
    of_server = counts.get("server_tool_use")
    searches = _count(of_server, "web_search_requests") if isinstance(of_server, Mapping) else 0
    return Usage(fresh, output, read, written, cost / 1_000_000 + searches * WEB_SEARCH_USD)


def _family(model: str) -> str:
    """`claude-sonnet-4-5-20250929` → `claude-sonnet-4-5`; `[1m]` only widens the context."""
    model = model.removesuffix("[1m]")
    head, _, tail = model.rpartition("-")
    family = head if len(tail) == 8 and tail.isdigit() else model
    return family.removesuffix("-0")


def _count(counts: Mapping[str, Any], name: str) -> int:
    value = counts.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
