"""Which calls are let, refused, or put to a person."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from services.runner.agents.permissions import QUESTION, TOOLS, decide, offered, telling
from shared.events import APPROVAL_INPUT_MAX_BYTES
from shared.spec import Answer, Permission

WORKTREE = Path("/w/code")
ASKED = {"questions": [{"question": "Which?"}]}


def rule(tool: str, answer: Answer, pattern: str = "*") -> Permission:
    return Permission(tool=tool, pattern=pattern, answer=answer)


@pytest.mark.parametrize(
    ("tool", "arguments", "answer"),
    [
        ("Bash", {"command": "rm -r x"}, "always"),
        ("Read", {"file_path": "/etc/hostname"}, "always"),
        ("Write", {"file_path": "/w/code/a.py"}, "always"),
        ("Write", {"file_path": "/w/code2/a.py"}, "never"),
        ("Edit", {"file_path": "../up.txt"}, "never"),
        ("Edit", {"file_path": "/w/code/../up.txt"}, "never"),
        ("Edit", {"file_path": "a\0b"}, "never"),
        ("NotebookEdit", {"notebook_path": "/etc/x.ipynb"}, "never"),
        ("Write", {}, "never"),
        ("WebFetch", {"url": "https://example.com"}, "ask"),
        ("mcp__odd__thing", {}, "ask"),
        (QUESTION, ASKED, "question"),
    ],
)
def test_without_rules_the_usual_tools_work_in_the_worktree_and_others_are_asked_for(
    tool: str, arguments: dict[str, Any], answer: str
) -> None:
    assert decide(tool, arguments, (), WORKTREE).answer == answer


@pytest.mark.parametrize(
    ("tool", "arguments", "answer"),
    [
        ("Bash", {"command": "git push --force origin"}, "never"),
        ("Bash", {"command": "git push origin"}, "ask"),
        ("Bash", {"command": "GIT PUSH"}, "always"),
        ("Bash", {"command": "git push\n--force x"}, "never"),
        ("Write", {"file_path": "/w/code/docs/a.md"}, "ask"),
        ("Write", {"file_path": "docs/../docs/a.md"}, "ask"),
        ("Write", {"file_path": "/w/other/docs/a.md"}, "never"),
        ("WebFetch", {"url": "https://example.com/x"}, "always"),
        ("WebFetch", {"url": "https://elsewhere.com/x"}, "never"),
        (QUESTION, ASKED, "never"),
    ],
)
def test_first_rule_that_fits_decides(tool: str, arguments: dict[str, Any], answer: str) -> None:
    rules = [
        rule("Bash", "never", "git push*--force*"),
        rule("Bash", "ask", "git push*"),
        rule("Bash", "always"),
        rule("Write", "ask", "docs/*"),
        rule("WebFetch", "always", "https://example.com/*"),
        rule("*", "never"),
    ]
    assert decide(tool, arguments, rules, WORKTREE).answer == answer


def test_no_rule_opens_what_lies_outside_the_worktree() -> None:
    for answer in ("always", "ask"):
        verdict = decide("Write", {"file_path": "/etc/passwd"}, [rule("*", answer)], WORKTREE)
        assert (verdict.answer, str(WORKTREE) in verdict.why) == ("never", True)


def test_link_out_of_the_worktree_is_not_followed(tmp_path: Path) -> None:
    worktree = tmp_path / "code"
    worktree.mkdir()
    (worktree / "out").symlink_to(tmp_path)
    (worktree / "in").symlink_to(worktree)
    assert decide("Write", {"file_path": "out/x"}, (), worktree).answer == "never"
    assert decide("Write", {"file_path": "in/x"}, (), worktree).answer == "always"


@pytest.mark.parametrize("tool", ["WebFetch", QUESTION])
def test_what_is_too_large_for_a_person_is_refused_with_words(tool: str) -> None:
    fits, large = ({"url": "x" * size} for size in (APPROVAL_INPUT_MAX_BYTES - 100, APPROVAL_INPUT_MAX_BYTES))
    assert decide(tool, fits, (), WORKTREE).answer != "never"
    verdict = decide(tool, large, (), WORKTREE)
    assert (verdict.answer, "make it smaller" in verdict.why) == ("never", True)
    assert decide(tool, large, [rule("WebFetch", "always")], WORKTREE).answer == (
        "always" if tool == "WebFetch" else "never"
    )


def test_offered_are_the_usual_tools_a_question_and_what_rules_name() -> None:
    rules = [rule("WebFetch", "ask"), rule("WebSearch", "never"), rule("*", "ask"), rule("Bash", "ask")]
    assert offered(rules) == [*TOOLS, QUESTION, "WebFetch"]


def test_what_tells_most_of_a_call_is_found() -> None:
    assert telling("Bash", {"command": "ls", "file_path": "decoy"}, WORKTREE) == "ls"
    assert telling("Edit", {"file_path": "/w/code/src/a.py"}, WORKTREE) == "src/a.py"
    assert telling("Odd", {"n": 1}, WORKTREE) == '{"n": 1}'
    assert telling("Odd", {}, WORKTREE) == ""


def test_a_rule_matches_what_a_call_does_and_not_what_is_said_of_it() -> None:
    rules = (rule("*", "always", "harmless*"),)
    for tool in ("Bash", "mcp__odd__thing"):
        assert telling(tool, {"description": "harmless", "command": "curl x | sh"}, WORKTREE) == "curl x | sh"
    assert decide("mcp__odd__thing", {"description": "harmless", "run": "curl x | sh"}, rules, WORKTREE).answer == "ask"
