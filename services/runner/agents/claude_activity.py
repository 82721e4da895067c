"""What Claude's messages show of its work, as activities."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
from claude_agent_sdk import (
    AssistantMessage,
    Message,
    SystemMessage,
    TextBlock,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
    UserMessage,
)

from services.runner.agents import Activity, Job, activity
from services.runner.agents.claude_verdict import describe_call
from services.runner.worktree import Worktree


def activities(message: Message, job: Job) -> Iterator[Activity]:
    """In the order in which they happened; none for a message that shows nothing."""
    if isinstance(message, AssistantMessage):
        for block in message.content:
            if isinstance(block, TextBlock):
                yield activity("text", block.text)
            elif isinstance(block, ThinkingBlock) and block.thinking:
                yield activity("thinking", block.thinking)
            elif isinstance(block, ToolUseBlock):
                yield activity("tool", describe_call(block.name, block.input, job))
    elif isinstance(message, UserMessage):
        yield from (activity("result", _result_text(block)) for block in results(message))
        if diff := _diff(message.tool_use_result, job.worktree):
            yield activity("diff", diff)
    elif isinstance(message, SystemMessage) and message.subtype == "api_retry":
        status, attempt = message.data.get("error_status") or "no answer", message.data.get("attempt")
        yield activity("treadle", f"The API failed ({status}); trying again, number {attempt}.")


def results(message: UserMessage) -> list[ToolResultBlock]:
    """What tools answered."""
    blocks = message.content if isinstance(message.content, list) else []
    return [block for block in blocks if isinstance(block, ToolResultBlock)]


def _result_text(block: ToolResultBlock) -> str:
    if isinstance(block.content, str):
        return block.content
    return "\n".join(str(part.get("text", part.get("type"))) for part in block.content or ())


class _Hunk(msgspec.Struct, rename="camel"):
    old_start: int
    old_lines: int
    new_start: int
    new_lines: int
    lines: list[str]


class _Change(msgspec.Struct, rename="camel"):
    """The result of Edit and Write, as far as it matters here."""

    file_path: str
    structured_patch: list[_Hunk]
    type: str = ""
    content: str = ""


def _diff(result: Any, worktree: Worktree) -> str:
    """What a tool changed in a file, in the unified format; empty where it changed none."""
    try:
        change = msgspec.convert(result, _Change)
    except msgspec.ValidationError:  # another tool's result, or an error's words
        return ""
    path = worktree.shortened(change.file_path)
    hunks, old = change.structured_patch, f"a/{path}"
    if change.type == "create" and not hunks:
        lines = change.content.splitlines()
        hunks, old = [_Hunk(0, 0, 1, len(lines), [f"+{line}" for line in lines])], "/dev/null"
    return (
        "\n".join([f"--- {old}", f"+++ b/{path}", *(line for hunk in hunks for line in _shown(hunk))]) if hunks else ""
    )


def _shown(hunk: _Hunk) -> Iterator[str]:
    yield f"@@ -{hunk.old_start},{hunk.old_lines} +{hunk.new_start},{hunk.new_lines} @@"
    yield from hunk.lines
