"""What an agent asks a person for, in words. Pure functions; nothing in them steers a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

import msgspec

from shared.spec import DELIVER
from treadle.plain_text import one_line, plain

Task = Mapping[str, Any]

SHORT_MAX_CHARS = 160
KEY_MAX_CHARS = 60
APPROVAL_CHARS = 12
"""Of an approval's hash, as people type it."""
BAR = "  | "
"""Before every line of an agent's own text: so it can't pass for one of ours."""

_TELLING = {"Bash": "command", "WebFetch": "url", "WebSearch": "query", "Read": "file_path"}
"""The field that says all of what a call does; other tools' calls are shown as they are."""
_DOES = {"tool": "wants to use", "question": "asks a question", "result": "has a result to be looked at"}


def asks_for(asked: Mapping[str, Any]) -> str:
    """What is asked, on one line. An event of the log leaves out what is empty."""
    kind, tool, text = asked["kind"], asked.get("tool", ""), asked.get("input", "")
    if kind == "question":
        return f"{_DOES[kind]}: {one_line(_question(text), SHORT_MAX_CHARS)}"
    if kind == "result":
        return f"{_DOES[kind]}: {one_line(asked['why'], SHORT_MAX_CHARS)}"
    return f"wants to use {one_line(tool, 80) or 'a tool'}: {one_line(_does(tool, text), SHORT_MAX_CHARS)}"


def answer_with(plan: str, code: str) -> str:
    """What a person types to look at it and to answer."""
    return f"treadle task approve {code} --plan {plan}   (or deny)"


def changes_with(plan: str, code: str) -> str:
    """What a person types to see a result's changes."""
    return f"treadle diff {code} --plan {plan}"


def word_on(plan: str, code: str) -> str:
    """What a person types to settle a task that needs attention. The delivery can only be tried again."""
    verbs = "redispatch" if code == DELIVER else "redispatch|complete|abandon"
    return f"treadle task {verbs} {code} --plan {plan}"


def asked_shortly(plan: str, task: Task) -> list[str]:
    """What a task waits for, in a few lines, with the command that answers."""
    code, asked = task["code"], task["approval"]
    is_result = asked["kind"] == "result"
    return [
        f"{code} {_DOES['result'] if is_result else asks_for(asked)}",
        f"  {one_line(asked['why']).removesuffix('.')}; {_until(asked)}",
        *([f"  {changes_with(plan, code)}"] if is_result else []),
        f"  {answer_with(plan, code)}",
    ]


def asked_at_length(plan: str, task: Task) -> list[str]:
    """Everything that a person has to see before they answer."""
    code, asked = task["code"], task["approval"]
    words = _DOES[asked["kind"]] + (f" {one_line(asked['tool'], 80)}" if asked["kind"] == "tool" else "")
    lines = [f"task {code} of plan {plan} {words}", f"  why: {one_line(asked['why'], 1_000)}"]
    if asked["kind"] == "result":
        lines.append(f"  its changes: {changes_with(plan, code)}   ({asked['commit'][:12]})")
    if asked["input"]:
        lines += input_lines(asked["input"])
    lines.append(f"  {_until(asked)}; approval {asked['approval'][:APPROVAL_CHARS]}")
    return lines


def input_lines(text: str) -> list[str]:
    """A call's input for people: each field of the JSON object, texts of several lines as such."""
    fields = _object(text)
    if fields is None:
        return [BAR + line for line in plain(text).splitlines()]
    lines: list[str] = []
    for name, value in fields.items():
        key = one_line(name, KEY_MAX_CHARS)
        shown = value if isinstance(value, str) else msgspec.json.format(msgspec.json.encode(value), indent=2).decode()
        if isinstance(value, str) and "\n" not in value:
            lines.append(f"{BAR}{key}: {plain(value)}")
        else:
            lines += [f"{BAR}{key}:", *(f"{BAR}  {line}" for line in plain(shown).split("\n"))]
    return lines


def conflict_lines(task: Task) -> Iterator[str]:
    """Which files could not be merged, and whose work it is."""
    if conflict := task.get("conflict"):
        yield f"  work of: {', '.join(conflict.get('tasks', ()))}"
        for path in conflict.get("files", ()):
            yield f"  conflict: {one_line(path)}"


def _until(asked: Mapping[str, Any]) -> str:
    at = datetime.fromisoformat(asked["expires_at"]).astimezone()
    return f"no answer until {at:%Y-%m-%d %H:%M %Z} is a no"


def _does(tool: str, text: str) -> str:
    """What a call would do, such as what a shell would run, and not what the agent says of it."""
    does = (_object(text) or {}).get(_TELLING.get(tool, ""))
    return does if isinstance(does, str) and does.strip() else text


def _question(text: str) -> str:
    """The words of the first question."""
    match _object(text):
        case {"questions": [{"question": str(words)}, *_]} if words.strip():
            return words
    return text


def _object(text: str) -> dict[str, Any] | None:
    try:
        decoded = msgspec.json.decode(text.encode())
    except (msgspec.MsgspecError, RecursionError, UnicodeEncodeError):  # cut, or nothing that we know
        return None
    return decoded if isinstance(decoded, dict) else None
