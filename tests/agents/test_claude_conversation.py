"""Where a kept conversation goes on, decided from entries alone."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import pytest

from services.runner.agents.claude_conversation import Call, Entry, take_up
from services.runner.worktree import Worktree
from shared.events import ApprovalKind
from shared.task import Approval

PUSH = {"command": "git push"}


def worktree(inside: str) -> Worktree:
    return Worktree(Path(inside), PurePosixPath(inside))


def entry(uuid: str, parent: str | None, kind: str, **fields: Any) -> Entry:
    return {"type": kind, "uuid": uuid, "parentUuid": parent, "sessionId": "s", "cwd": "/w", **fields}


def said(role: str, *blocks: dict[str, Any]) -> dict[str, Any]:
    return {"message": {"role": role, "id": "m", "content": list(blocks)}}


def use(number: str, arguments: dict[str, Any], tool: str = "Bash") -> dict[str, Any]:
    return {"type": "tool_use", "id": number, "name": tool, "input": arguments}


def marker(uuid: str, parent: str, number: str, arguments: dict[str, Any], tool: str = "Bash") -> Entry:
    """The input that it names is what a person saw."""
    attachment = {"type": "hook_deferred_tool", "toolUseID": number, "toolName": tool, "toolInput": arguments}
    return entry(uuid, parent, "attachment", attachment=attachment)


def result(uuid: str, parent: str, number: str) -> Entry:
    return entry(uuid, parent, "user", **said("user", {"type": "tool_result", "tool_use_id": number, "content": "ok"}))


ASKS = [
    entry("u", None, "user", message={"role": "user", "content": "Do it."}),
    entry("a1", "u", "assistant", **said("assistant", {"type": "text", "text": "I push."})),
    entry("a2", "a1", "assistant", **said("assistant", use("t1", {"command": "ls"}))),
    entry("a3", "a2", "assistant", **said("assistant", use("t2", PUSH))),
    result("r1", "a2", "t1"),
    marker("d", "r1", "t2", PUSH),
    entry("x", "d", "attachment", attachment={"type": "other"}),
    {"type": "last-prompt", "text": "no uuid"},
]


def answer(
    given: Literal["", "granted", "denied"] = "granted",
    *,
    kind: ApprovalKind = "tool",
    tool: str = "Bash",
    input: object = PUSH,  # noqa: A002 - the field's word
    note: str = "",
    used_by: int = 0,
) -> Approval:
    return Approval(
        approval="hash", lease=1, kind=kind, tool=tool, input=json.dumps(input), why="", answer=given, note=note,
        expires_at=datetime.now(UTC), used_by=used_by,
    )  # fmt: skip


def test_allowed_call_runs_from_the_transcript_as_it_is() -> None:
    taken_up = take_up(ASKS, answer(), "")
    assert taken_up.entries == ASKS
    assert taken_up.allowed == Call("t2", "Bash", PUSH)
    assert (taken_up.words, taken_up.added) == ("", ())


OTHERS: list[tuple[Approval | None, str]] = [
    (None, "nobody was asked"),
    (answer(""), "nobody was asked"),
    (answer("denied", note="not on a Friday"), "not on a Friday"),
    (answer("denied"), "not allowed"),
    (answer(used_by=2), "may have run"),
    (answer(input={"command": "git push -f"}), "nobody was asked"),
    (answer(tool="Write"), "nobody was asked"),
    (answer(kind="question"), "A person answers"),
    (answer("denied", kind="result"), "nobody was asked"),
]


@pytest.mark.parametrize(("approval", "words"), OTHERS)
def test_any_other_call_that_waits_gets_a_result_instead_of_running(approval: Approval | None, words: str) -> None:
    taken_up = take_up(ASKS, approval, "")
    assert taken_up.allowed is None
    assert taken_up.words
    (added,) = taken_up.added
    assert taken_up.entries[-1] == added
    assert (added["parentUuid"], added["sessionId"]) == ("a3", "s")
    (block,) = added["message"]["content"]
    assert (block["tool_use_id"], words in block["content"]) == ("t2", True)
    kept = [each.get("uuid") for each in taken_up.entries]
    assert kept == ["u", "a1", "a2", "a3", "r1", "x", None, added["uuid"]]
    assert taken_up.entries[5]["parentUuid"] == "r1", "the child of the marker hangs where that one hung"


@pytest.mark.parametrize("approval", [None, answer(), answer("denied"), answer(used_by=2)])
def test_answer_is_given_once(approval: Approval | None) -> None:
    first = take_up(ASKS, approval or answer("denied"), "")
    results = first.added or (result("r2", "a3", "t2"),)
    again = take_up([*ASKS, *results], approval, "")
    assert (again.added, again.allowed) == ((), None)
    assert "interrupted" in again.words
    assert not [each for each in again.entries if each.get("attachment", {}).get("type") == "hook_deferred_tool"]


def test_of_two_calls_that_wait_none_runs() -> None:
    both = [*ASKS, marker("d2", "x", "t1", {})]
    entries = [each for each in both if each.get("uuid") != "r1"]
    taken_up = take_up(entries, answer(), "")
    assert taken_up.allowed is None
    assert len(taken_up.added) == 2


def asks_with(raw: dict[str, Any], seen: dict[str, Any], tool: str = "Bash") -> list[Entry]:
    message, mark = (
        entry("a3", "a2", "assistant", **said("assistant", use("t2", raw))),
        marker("d", "r1", "t2", seen, tool),
    )
    return [{"a3": message, "d": mark}.get(str(each.get("uuid")), each) for each in ASKS]


def test_what_a_person_saw_runs_in_place_of_what_the_message_says() -> None:
    raw = {"command": "git push", "timeout": "5"}
    entries = asks_with(raw, PUSH)
    taken_up = take_up(entries, answer(), "")
    assert taken_up.allowed == Call("t2", "Bash", PUSH)
    assert taken_up.entries == ASKS
    assert entries[3]["message"]["content"][0]["input"] == raw, "what is kept stays as it is"


@pytest.mark.parametrize(
    "entries", [asks_with(PUSH, {"command": "ls"}), asks_with(PUSH, PUSH, "Write"), asks_with({}, {})]
)
def test_answer_to_what_the_marker_does_not_show_runs_nothing(entries: list[Entry]) -> None:
    taken_up = take_up(entries, answer(), "")
    assert (taken_up.allowed, len(taken_up.added)) == (None, 1)
    assert "nobody was asked" in taken_up.added[0]["message"]["content"][0]["content"]


def test_of_two_messages_with_the_same_call_none_runs() -> None:
    twice = [*ASKS, entry("a4", "x", "assistant", **said("assistant", use("t2", {"command": "ls"})))]
    assert take_up(twice, answer(), "").allowed is None


def test_marker_alone_runs_nothing() -> None:
    forged = [*ASKS[:2], marker("d", "a1", "t9", PUSH)]
    taken_up = take_up(forged, answer(), "")
    assert (taken_up.allowed, taken_up.added) == (None, ())
    assert [each["uuid"] for each in taken_up.entries] == ["u", "a1"]


def test_words_of_the_runner_take_the_place_of_those_about_the_interruption() -> None:
    assert take_up(ASKS[:2], None, "A person does not accept it.").words == "A person does not accept it."


def test_who_goes_on_in_another_directory_is_told_where_the_files_are_now() -> None:
    entries = [{**entry, "cwd": "/leases/T1-1/code"} for entry in ASKS[:2]]
    for now in ("/leases/T1-2/code", "/treadle/code"):
        moved = take_up(entries, None, "", worktree(now)).words
        assert f"Working directory: {now}\nIt was /leases/T1-1/code before" in moved
    unmoved = take_up(entries, None, "").words
    assert take_up(entries, None, "", worktree("/leases/T1-1/code")).words == unmoved


def test_whose_shell_had_gone_further_down_has_not_moved() -> None:
    entries = [*ASKS[:1], {**ASKS[1], "cwd": "/treadle/code/src"}]
    assert take_up(entries, None, "", worktree("/treadle/code")).words == take_up(entries, None, "").words
    assert "It was /treadle/code/src before" in take_up(entries, None, "", worktree("/treadle/cod")).words


@pytest.mark.parametrize("entries", [[], [{"type": "summary"}], ASKS[:1]])
def test_conversation_without_an_answer_of_claude_begins_anew(entries: list[Entry]) -> None:
    asked = {"questions": [{"question": "Which colour?", "options": [{"label": "red"}, {"label": "blue"}]}]}
    assert take_up(entries, None, "").entries == []
    anew = take_up(entries, answer(kind="question", tool="AskUserQuestion", input=asked, note="blue"), "")
    assert anew.entries == []
    assert "Which colour? (red, blue)" in anew.words
    assert "A person answers: blue" in anew.words
