"""Counting tokens and money."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.runner.model_request import ModelRequest
from services.runner.prices import _LONG_PROMPT_PRICES, _PRICES, HIGHEST, WEB_SEARCH_USD, is_known, price_of, usage_of
from services.runner.usage_meter import UNSEEN_MAX_TOKENS, WRITTEN_PER_S, AnswerMeter, UsageMeter
from shared.events import Usage
from shared.spec import DEFAULT_MODEL

START = {
    "type": "message_start",
    "message": {
        "model": "claude-sonnet-4-5-20250929",
        "usage": {
            "input_tokens": 10,
            "cache_read_input_tokens": 1000,
            "cache_creation_input_tokens": 300,
            "cache_creation": {"ephemeral_5m_input_tokens": 100, "ephemeral_1h_input_tokens": 200},
            "output_tokens": 1,
        },
    },
}
TEXT = {"type": "content_block_delta", "delta": {"text": 'he said "usage": 5'}}
END = {"type": "message_delta", "usage": {"input_tokens": 0, "output_tokens": 50, "cache_read_input_tokens": None}}
STREAM = b"".join(f"event: x\r\ndata: {json.dumps(part)}\r\n\r\n".encode() for part in (START, TEXT, END))

COST_USD = (10 * 3 + 50 * 15 + 1000 * 0.3 + 100 * 3.75 + 200 * 6) / 1e6


@contextmanager
def answering(meter: UsageMeter, *, is_stream: bool = True, max_tokens: int | None = None) -> Iterator[AnswerMeter]:
    """An answer that has begun, to a request of some 600 tokens."""
    asked = ModelRequest(
        body=b"", model="claude-sonnet-5-5", is_stream=is_stream, input_tokens=600, output_max_tokens=max_tokens
    )
    with meter.answer(asked) as answer:
        answer.begin(is_stream=is_stream)
        yield answer


@given(st.lists(st.integers(0, len(STREAM)), max_size=8))
def test_stream_counts_the_same_however_it_is_cut(cuts: list[int]) -> None:
    meter = UsageMeter()
    with answering(meter) as answer:
        edges = [0, *sorted(cuts), len(STREAM)]
        for begin, end in pairwise(edges):
            answer.feed(STREAM[begin:end])
    assert msgspec.structs.replace(meter.usage, cost_usd=0.0) == Usage(10, 50, 1000, 300)
    assert meter.usage.cost_usd == pytest.approx(COST_USD)


def test_answers_under_way_at_once_add_up() -> None:
    meter = UsageMeter()
    with answering(meter) as first, answering(meter, is_stream=False, max_tokens=0) as second:
        first.feed(STREAM)
        second.feed(json.dumps(START["message"]).encode())
        assert (meter.usage.output_tokens, meter.usage.input_tokens) == (50, 610)
        assert meter.told.input_tokens == 10
    assert meter.usage.output_tokens == 51
    assert meter.usage.input_tokens == 20
    assert meter.told == meter.usage


DEEP = b'data: {"usage": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"


@pytest.mark.parametrize("line", [b"x" * 3_000_000, DEEP, b"data: [1]", b'data: {"usage": 3}'], ids=len)
def test_odd_lines_are_passed_over(line: bytes) -> None:
    meter = UsageMeter()
    with answering(meter) as answer:
        answer.feed(line[:1000])
        answer.feed(line[1000:] + b"\n" + STREAM)
    assert meter.usage.input_tokens == 10


COUNTS = ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens", "cache_creation")


@given(st.none() | st.booleans() | st.integers() | st.text() | st.dictionaries(st.text(), st.integers()))
def test_counts_that_are_none_are_worth_nothing(junk: Any) -> None:
    usage = usage_of("claude-sonnet-5-5", dict.fromkeys(COUNTS, junk))
    assert usage.cost_usd >= 0
    assert usage.input_tokens == (junk if type(junk) is int and junk > 0 else 0)


def test_dates_and_wide_contexts_do_not_change_the_price() -> None:
    assert price_of("claude-sonnet-4-5-20250929") == price_of("claude-sonnet-4-5") == price_of("claude-sonnet-4-5[1m]")
    assert price_of("claude-opus-4-20250514") == price_of("claude-opus-4-0") == price_of("claude-opus-4")
    assert price_of("claude-opus-4-5") != price_of("claude-opus-4")


def test_long_prompts_of_haiku_cost_more() -> None:
    short = usage_of("claude-haiku-5-5", {"input_tokens": 60_000, "cache_read_input_tokens": 40_000})
    long = usage_of("claude-haiku-5-5", {"input_tokens": 60_000, "cache_read_input_tokens": 40_001})
    assert long.cost_usd == pytest.approx(short.cost_usd * 5, rel=1e-3)


def test_unknown_model_costs_the_most() -> None:
    assert not is_known("claude-new-9")
    assert is_known(DEFAULT_MODEL)
    for price in (*_PRICES.values(), *_LONG_PROMPT_PRICES.values()):
        for field in price.__struct_fields__:
            assert getattr(price_of("claude-new-9"), field) >= getattr(price, field)
    assert price_of("") == HIGHEST


def sse(*parts: dict[str, Any]) -> bytes:
    return b"".join(f"data: {json.dumps(part)}\n\n".encode() for part in parts)


def delta(text: str) -> dict[str, Any]:
    return {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}}


def test_stream_that_was_broken_off_is_counted_by_what_passed_of_it() -> None:
    meter = UsageMeter()
    with answering(meter) as answer:
        answer.feed(sse(START, *(delta("word " * 100) for _ in range(60))))
        assert (meter.usage.output_tokens, meter.told.output_tokens) == (10_000, 1)
    assert (meter.usage.input_tokens, meter.usage.cache_read_tokens, meter.usage.output_tokens) == (10, 1000, 10_000)


def test_input_of_a_stream_without_a_beginning_is_counted_by_the_requests_size() -> None:
    meter = UsageMeter()
    with answering(meter):
        pass
    assert meter.usage.input_tokens == 600
    assert meter.usage.cost_usd >= 600 * 2 / 1e6


@pytest.mark.parametrize(("max_tokens", "counted"), [(None, UNSEEN_MAX_TOKENS), (100, 100), (10**9, UNSEEN_MAX_TOKENS)])
def test_document_that_nobody_waited_for_is_counted_as_long_as_it_may_be(max_tokens: int | None, counted: int) -> None:
    meter = UsageMeter()
    with answering(meter, is_stream=False, max_tokens=max_tokens) as answer:
        answer.feed(b'{"type": "mess')
    assert counted <= meter.usage.output_tokens <= counted + 4


def test_thoughts_that_are_not_shown_are_counted_by_their_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    meter = UsageMeter()
    with answering(meter) as answer:
        answer.feed(sse(START, {"type": "content_block_start", "content_block": {"type": "thinking", "thinking": ""}}))
        now += 10
        assert meter.usage.output_tokens == 10 * WRITTEN_PER_S
        answer.feed(sse({"type": "content_block_stop"}))
        now += 10
    assert meter.usage.output_tokens == 10 * WRITTEN_PER_S


def test_counts_that_are_followed_by_more_content_are_not_the_end() -> None:
    meter = UsageMeter()
    with answering(meter) as answer:
        answer.feed(sse(START, delta("x"), END, delta("y" * 3000)))
    assert meter.usage.output_tokens == 1000


def test_answer_that_was_refused_costs_nothing() -> None:
    meter = UsageMeter()
    with answering(meter, is_stream=False) as answer:
        answer.costs_nothing()
    assert meter.usage == Usage()


def test_searches_of_the_api_cost_money() -> None:
    usage = usage_of("claude-sonnet-5-5", {"server_tool_use": {"web_search_requests": 1000}})
    assert usage.cost_usd == pytest.approx(1000 * WEB_SEARCH_USD) == 10
