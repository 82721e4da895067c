"""Where a kept conversation goes on. Decides, from its entries and a person's answer: what Claude is given and told.

A call that waits for a person ends a transcript in a marker (`hook_deferred_tool`). The CLI runs such a call as soon as
it resumes the transcript, sometimes without asking any hook. So it is given the marker only when a person allowed
just this call and nobody has run it. In all other cases the call gets its result from us, in which Claude reads
why it was not run, or what the answer is; it is kept with the conversation, so it is said once.

What a call names is in the transcript twice: in the message as Claude wrote it (`x.txt`), in the marker as hooks and
people see it (`/treadle/code/sub/x.txt`, with what was left out filled in). An answer is bound to the latter. The CLI
runs the former, anew from the directory that it starts in; so what a person allowed is put in its place.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any
from uuid import uuid4

import msgspec

from services.runner.agents import cut
from services.runner.agents.permissions import decide
from services.runner.worktree import Worktree
from shared.task import Approval

Entry = dict[str, Any]

_SHOWN_BYTES = 8000

_INTERRUPTED = (
    "You were interrupted: the process that you worked in ended. Your files are as they were last saved, which may be "
    "some steps ago: look at them before you go on. Then finish the task."
)
_ANSWERED = "You were interrupted to ask a person; the result of your call says what they answered. Go on."
_MOVED = (
    "Your files have moved since.\nWorking directory: {new}\nIt was {old} before: whatever path below that one stands "
    "in this conversation is to be taken from the new one, and the old one does not exist any more."
)
_NOT_ASKED = "This was not run: it needs a person, and nobody was asked. Make the call again if you still need it."
_PLACE_IS_GONE = (
    "A person allowed this, and it was not run: it names a place that your files have moved from since. Make the call "
    "again with the path of now."
)
_NOT_POSSIBLE = "A person allowed this, and it was not run: it can't be any more. {why}"
_MAY_HAVE_RUN = (
    "A person allowed this, and then the process ended: it may have run, or half of it. Look what came of it before "
    "you make the call again."
)

_ENVELOPE = ("userType", "entrypoint", "cwd", "sessionId", "version", "gitBranch", "timestamp")
"""What an entry says of where it was made; ours says what that of the call says."""


class Call(msgspec.Struct, frozen=True):
    """A tool call that waits for a person."""

    id: str
    tool: str
    input: dict[str, Any]
    """As hooks and people see it."""


class TakenUp(msgspec.Struct, frozen=True, kw_only=True):
    """How a conversation goes on."""

    entries: list[Entry]
    """What the CLI is given; nothing: the conversation begins anew."""
    words: str = ""
    """What Claude is told first; empty where `allowed` runs instead."""
    allowed: Call | None = None
    """The call that runs as soon as the CLI has started."""
    added: tuple[Entry, ...] = ()
    """Those of the entries that are to be kept before it goes on."""


def take_up(
    entries: Sequence[Entry], approval: Approval | None, said: str, worktree: Worktree | None = None
) -> TakenUp:
    """Decides how to go on from all entries so far, those of former leases included.

    `said` is what Claude is to be told beside a person's answer; "": only that it was interrupted. `worktree` is
    where it works from now on; None: where it worked before.
    """
    # What is said of a result comes as a message.
    answer = approval if approval and approval.answer and approval.kind != "result" else None
    if not any(entry.get("type") == "assistant" for entry in entries):
        return TakenUp(entries=[], words=_told_anew(answer) if answer else "")
    waiting = list(_waiting(entries))
    hindrance = ""
    if answer and _may_run(answer, [call for call, _ in waiting]):
        call, message = waiting[0]
        hindrance = _hindrance(call, entries, worktree)
        if not hindrance:
            return TakenUp(
                entries=[_as_seen(call, each) if each is message else each for each in entries], allowed=call
            )
    added = [_result(call, entry, answer, hindrance) for call, entry in waiting]
    is_answered = answer is not None and any(_is_same(answer, call) for call, _ in waiting)
    words = said or (_ANSWERED if is_answered and answer and not answer.used_by else _INTERRUPTED)
    words = "\n\n".join(filter(None, (words, _moved(entries, worktree))))
    return TakenUp(entries=[*_without_markers(entries), *added], words=words, added=tuple(added))


def _moved(entries: Sequence[Entry], worktree: Worktree | None) -> str:
    """Where the files are now, for somebody who remembers them elsewhere: without a sandbox, or from before it."""
    old = next((entry["cwd"] for entry in reversed(entries) if isinstance(entry.get("cwd"), str)), None)
    if worktree is None or old is None or _is_of(worktree, old):
        return ""
    return _MOVED.format(new=worktree.inside, old=cut(old, _SHOWN_BYTES))


def _is_of(worktree: Worktree, directory: str) -> bool:
    """Whether it is the worktree, or below it: a shell had gone there."""
    return PurePosixPath(directory).is_relative_to(worktree.inside)


def _hindrance(call: Call, entries: Iterable[Entry], worktree: Worktree | None) -> str:
    """Why a call that a person allowed can't be run where the conversation goes on; "": it can."""
    if worktree is None:
        return ""
    places = {entry["cwd"] for entry in entries if isinstance(entry.get("cwd"), str)}
    # Where a shell had gone further up is no place that the files have moved from.
    gone = [place for place in places if not _is_of(worktree, place) and not worktree.inside.is_relative_to(place)]
    named = json.dumps(call.input)
    if any(json.dumps(place)[1:-1] in named for place in gone):
        return _PLACE_IS_GONE
    verdict = decide(call.tool, call.input, (), worktree)  # what nobody can allow, whatever the rules are
    return _NOT_POSSIBLE.format(why=verdict.why) if verdict.answer == "never" else ""


def _may_run(answer: Approval, waiting: Sequence[Call]) -> bool:
    is_free = answer.kind == "tool" and answer.answer == "granted" and answer.used_by == 0
    return is_free and len(waiting) == 1 and _is_same(answer, waiting[0])


def _is_same(answer: Approval, call: Call) -> bool:
    """Whether it is this call, to the letter as it was shown, that was answered."""
    try:
        return answer.tool == call.tool and bool(msgspec.json.decode(answer.input) == call.input)
    except msgspec.DecodeError:
        return False


def _waiting(entries: Sequence[Entry]) -> Iterator[tuple[Call, Entry]]:
    """Calls with a marker and without a result, and the entry of each."""
    seen = {entry["attachment"].get("toolUseID"): entry["attachment"] for entry in entries if _is_marker(entry)}
    done = {block.get("tool_use_id") for entry in entries for block in _blocks(entry, "user", "tool_result")}
    for entry in entries:
        for block in _blocks(entry, "assistant", "tool_use"):
            if isinstance(number := block.get("id"), str) and number in seen.keys() - done:
                tool, marker = str(block.get("name")), seen[number]
                is_of_it = marker.get("toolName") == tool and isinstance(marker.get("toolInput"), dict)
                yield Call(number, tool, marker["toolInput"] if is_of_it else {}), entry


def _as_seen(call: Call, entry: Entry) -> Entry:
    """The message with the call, which would do what a person saw, and nothing else, whatever the message said."""
    message = entry["message"]
    calls = [block for block in _blocks(entry, "assistant", "tool_use") if block.get("id") == call.id]
    content = [{**block, "input": call.input} if block in calls else block for block in message["content"]]
    return {**entry, "message": {**message, "content": content}}


def _result(call: Call, of: Entry, answer: Approval | None, hindrance: str) -> Entry:
    """A call's result, in the form in which the CLI keeps them. `of` is the entry with the call."""
    text = hindrance or (_said(answer) if answer and _is_same(answer, call) else _NOT_ASKED)
    is_answer = answer is not None and answer.kind == "question" and answer.answer == "granted"
    block = {"type": "tool_result", "tool_use_id": call.id, "content": text, "is_error": not is_answer}
    return {
        **{name: of[name] for name in _ENVELOPE if name in of},
        "type": "user",
        "uuid": str(uuid4()),
        "parentUuid": of.get("uuid"),
        "sourceToolAssistantUUID": of.get("uuid"),
        "isSidechain": False,
        "message": {"role": "user", "content": [block]},
    }


def _without_markers(entries: Iterable[Entry]) -> list[Entry]:
    """The entries but for markers, each child of a marker hung up where that one was."""
    parents: dict[str | None, str | None] = {}
    kept = []
    for entry in entries:
        parent = entry.get("parentUuid")
        parent = parents.get(parent, parent)
        if _is_marker(entry):
            parents[entry.get("uuid")] = parent
        else:
            kept.append({**entry, "parentUuid": parent} if "parentUuid" in entry else entry)
    return kept


def _is_marker(entry: Entry) -> bool:
    attachment = entry.get("attachment")
    return isinstance(attachment, dict) and attachment.get("type") == "hook_deferred_tool"


def _blocks(entry: Entry, role: str, kind: str) -> list[dict[str, Any]]:
    message = entry.get("message")
    content = message.get("content") if entry.get("type") == role and isinstance(message, dict) else None
    blocks = content if isinstance(content, list) else []
    return [block for block in blocks if isinstance(block, dict) and block.get("type") == kind]


def _said(answer: Approval) -> str:
    """A person's answer, for the result of the call that it is about."""
    note = f": {answer.note.strip()}" if answer.note.strip() else "."
    if answer.kind == "question":
        if answer.answer == "granted":
            return f"{_question(answer.input)}\n\nA person answers{note}"
        return f"There is no answer{note}\n\nDecide for yourself, and say in the end what you assumed."
    if answer.answer == "denied":
        return f"This was not allowed, and not run{note}\n\nFind another way, or do without and say so in the end."
    return _MAY_HAVE_RUN if answer.used_by else _NOT_ASKED


def _told_anew(answer: Approval) -> str:
    """A person's answer, for somebody who does not remember what it is about."""
    about = _question(answer.input) if answer.kind == "question" else f"{answer.tool} {answer.input}"
    return f"You have worked on this before, and asked a person:\n\n{cut(about, _SHOWN_BYTES)}\n\n{_said(answer)}"


def _question(text: str) -> str:
    """What was asked, for a person's eyes and the agent's."""
    try:
        asked = msgspec.json.decode(text, type=_Questions)
    except (msgspec.DecodeError, RecursionError):
        return cut(text, _SHOWN_BYTES)
    lines = []
    for question in asked.questions:
        choices = ", ".join(option.label for option in question.options)
        lines.append(question.question + (f" ({choices})" if choices else ""))
    return cut("\n".join(lines), _SHOWN_BYTES)


class _Option(msgspec.Struct):
    label: str


class _Question(msgspec.Struct):
    question: str
    options: list[_Option] = []


class _Questions(msgspec.Struct):
    """The input of `AskUserQuestion`."""

    questions: list[_Question]
