"""What an agent may ask of the model's API. Decides, from a request's body: pass it on, or refuse it with words.

The provider could be made to reach out for an agent: tools that it runs itself, MCP servers, addresses to fetch images
and documents from, files and containers that it keeps. All that passes by `network_allow`, and costs what no budget
sees. So only what is known to be harmless is passed on, by lists of names; WebSearch is therefore not to be had. What
was checked is what is sent: the body is written anew, since of a key that stands twice others may read the other one.

The lists are what the CLI of claude-agent-sdk 0.2.187 sends, and a little more. When the SDK is raised, its tests tell
what is missing here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import msgspec

REQUEST_MAX_BYTES = 32 * 1024 * 1024
"""The API's own limit."""

BYTES_PER_TOKEN = 3
"""Few enough: English has four, code about three."""

_INPUT_MAX_TOKENS = 1_000_000
"""No model reads more."""
_IMAGE_TOKENS = 5_000
"""More than the largest image costs, however many bytes it has."""

_FIELDS = {"model", "messages", "system", "tools", "tool_choice", "metadata", "max_tokens", "thinking", "stream"}
_FIELDS |= {"temperature", "top_p", "top_k", "stop_sequences", "context_management", "output_config", "output_format"}
_FIELDS |= {"cache_control", "diagnostics"}

_BLOCKS = {"text", "image", "document", "tool_use", "tool_result", "thinking", "redacted_thinking", "search_result"}
_BLOCKS |= {"tool_reference", "tool_addition", "tool_removal", "tool_definition", "compaction"}
_SOURCES = {"base64", "text", "content"}

_CLIENT_TOOL = re.compile(r"custom|(bash|text_editor|computer|memory)_[0-9]{8}")
"""Tools that the agent itself runs; all others are run by the provider."""

_BETAS = {"claude-code", "claude-code-side-query", "interleaved-thinking", "context-management", "context-1m", "effort"}
_BETAS |= {"per-turn-control", "mid-conversation-tool-changes", "mid-conversation-system", "thinking-token-count"}
_BETAS |= {"thinking-display-updates", "thinking-binding-controls", "redact-thinking"}
_BETAS |= {"mid-conversation-system-clear-at", "fine-grained-tool-streaming", "extended-cache-ttl", "tool-provenance"}
_BETAS |= {"prompt-caching-scope", "structured-outputs", "token-counting", "task-budgets"}
_BETAS |= {"inline-tools", "context-hint", "cache-diagnosis", "advanced-tool-use", "tool-search-tool"}
_DATED = re.compile(r"([a-z0-9-]+)-20[0-9]{2}-?[0-9]{2}-?[0-9]{2}")

_MEND = "Treadle passes on only what the agent does itself: use its own tools."


class NotAllowed(ValueError):
    """The request is not to be passed on; the text says why, to the agent and to people."""


class ModelRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request that may be passed on."""

    body: bytes
    model: str = ""
    is_stream: bool = False
    input_tokens: int = 0
    """Estimated from its size, rather too many."""
    output_max_tokens: int | None = None


def read_request(raw: bytes) -> ModelRequest:
    """Looks a body through. Raises NotAllowed."""
    try:
        asked = msgspec.json.decode(raw)
        if not isinstance(asked, dict):
            raise NotAllowed("The request is no JSON object.")
        image_bytes = _Look().through(asked)
        body = msgspec.json.encode(asked)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        raise NotAllowed("The request can't be read as JSON.") from None
    tokens = sum(_IMAGE_TOKENS - size // BYTES_PER_TOKEN for size in image_bytes) + len(body) // BYTES_PER_TOKEN
    model, max_tokens = asked.get("model"), asked.get("max_tokens")
    return ModelRequest(
        body=body,
        model=model if isinstance(model, str) else "",
        is_stream=asked.get("stream") is True,
        input_tokens=min(_INPUT_MAX_TOKENS, tokens),
        output_max_tokens=max_tokens if type(max_tokens) is int and max_tokens >= 0 else None,
    )


def allowed_betas(headers: Iterable[str]) -> str:
    """Of `anthropic-beta` headers what may be passed on; what else the API can do, nobody needs here."""
    named = [name.strip() for header in headers for name in header.split(",")]
    return ",".join(name for name in named if (dated := _DATED.fullmatch(name)) and dated[1] in _BETAS)


class _Look:
    """One look through a body."""

    def __init__(self) -> None:
        self._image_bytes: list[int] = []

    def through(self, asked: dict[str, Any]) -> list[int]:
        """Sizes of the images in it. Raises NotAllowed."""
        for name in asked:
            if name not in _FIELDS:
                raise NotAllowed(f"The request's field {name[:60]!r} is not passed on. {_MEND}")
        for tool in _items(asked.get("tools"), "tools"):
            _check_tool(tool)
        self._blocks(asked.get("system"))
        for message in _items(asked.get("messages"), "messages"):
            self._blocks(message.get("content"))
        return self._image_bytes

    def _blocks(self, content: Any) -> None:
        if isinstance(content, str):
            return
        for block in _items(content, "content"):
            kind = block.get("type")
            if kind not in _BLOCKS:
                raise NotAllowed(f"Content of type {str(kind)[:60]!r} is not passed on. {_MEND}")
            if kind == "tool_definition":
                _check_tool(block.get("definition"))
            if kind in ("tool_addition", "tool_removal"):
                self._blocks([block.get("tool")])
            if kind in ("image", "document"):
                self._source(block.get("source"), is_image=kind == "image")
            if kind in ("tool_result", "search_result"):
                self._blocks(block.get("content"))

    def _source(self, source: Any, *, is_image: bool) -> None:
        kind = source.get("type") if isinstance(source, dict) else source
        if not isinstance(source, dict) or kind not in _SOURCES:
            words = f"An image or document from a source of type {str(kind)[:60]!r} is not passed on"
            raise NotAllowed(f"{words}: the provider would get it past network_allow. Send its bytes (base64).")
        if is_image:
            self._image_bytes.append(len(str(source.get("data", ""))))
        if kind == "content":
            self._blocks(source.get("content"))


def _check_tool(tool: Any) -> None:
    kind = tool.get("type") if isinstance(tool, dict) else "unknown"
    kind = "custom" if kind is None else kind
    if not isinstance(kind, str) or not _CLIENT_TOOL.fullmatch(kind):
        raise NotAllowed(f"The tool {str(kind)[:60]!r} would be run by the provider, past network_allow. {_MEND}")


def _items(value: Any, name: str) -> list[dict[str, Any]]:
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise NotAllowed(f"The request's {name} can't be understood.")
    return value
