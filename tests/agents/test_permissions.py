"""Which calls are let, refused, or put to a person."""

from __future__ import annotations

import time
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from services.runner.agents.permissions import QUESTION, TOOLS, decide, offered, telling
from services.runner.worktree import INSIDE, Worktree
from shared.events import APPROVAL_INPUT_MAX_BYTES
from shared.spec import Answer, Permission

WORKTREE = Worktree(Path("/w/code"), PurePosixPath("/w/code"))
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
        assert (verdict.answer, str(WORKTREE.inside) in verdict.why) == ("never", True)


def test_link_out_of_the_worktree_is_not_followed(tmp_path: Path) -> None:
    worktree = tmp_path / "code"
    worktree.mkdir()
    (worktree / "out").symlink_to(tmp_path)
    (worktree / "in").symlink_to(worktree)
    (worktree / "up").symlink_to("..")
    (worktree / "round").symlink_to("round")
    (worktree / "inside").symlink_to("/treadle/code/sub")
    (worktree / "sub").mkdir()
    (worktree / "sub/out").symlink_to("/etc")
    for both in (Worktree(worktree, PurePosixPath(worktree)), Worktree(worktree, INSIDE)):
        answers = {name: decide("Write", {"file_path": f"{name}/x"}, (), both).answer for name in ("out", "up", "sub")}
        assert answers == {"out": "never", "up": "never", "sub": "always"}
    assert decide("Write", {"file_path": "in/x"}, (), Worktree(worktree, PurePosixPath(worktree))).answer == "always"
    within = {"inside/x": "always", "inside/../x": "always", "inside/out/x": "never", "inside/out/../x": "never"}
    # In the sandbox, a link to this machine's name of the worktree is gone with the next lease.
    for path, answer in {**within, "round/x": "never", "in/x": "never"}.items():
        assert decide("Write", {"file_path": path}, (), Worktree(worktree, INSIDE)).answer == answer, path


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        ("a.py", "always"),
        ("/treadle/code/a.py", "always"),
        ("/treadle/../treadle/code/a.py", "always"),
        ("/treadle/code/../code/a.py", "always"),
        ("/treadle/code/../..", "never"),
        ("/treadle/code/../a.py", "never"),
        ("/treadle/code2/a.py", "never"),
        ("/treadle", "never"),
        ("..", "never"),
        ("{outside}/a.py", "never"),
        ("{outside}/../code/a.py", "never"),
        ("{outside}/../repo.git/config", "never"),
        ("a\0b", "never"),
    ],
)
def test_in_a_sandbox_only_what_lies_below_its_name_of_the_worktree_is_changed(
    tmp_path: Path, path: str, answer: str
) -> None:
    (tmp_path / "code").mkdir()
    worktree = Worktree(tmp_path / "code", INSIDE)
    verdict = decide("Write", {"file_path": path.format(outside=worktree.outside)}, (), worktree)
    assert verdict.answer == answer
    assert answer == "always" or "Only files in /treadle/code can be changed" in verdict.why


@pytest.mark.parametrize("outside", ["/w/code", "/treadle/code"])
@pytest.mark.parametrize(
    "path",
    [
        "secret/a",
        "/treadle/code/secret/a",
        "//treadle/code/secret/a",
        "/treadle/code/x/../secret/a",
        "{outside}/secret/a",
        "///{outside}/./secret/a",
    ],
)
def test_a_rule_fits_a_file_by_whatever_name(path: str, outside: str) -> None:
    worktree = Worktree(Path(outside), INSIDE)
    arguments = {"file_path": path.format(outside=outside)}
    assert decide("Read", arguments, [rule("Read", "never", "secret/*")], worktree).answer == "never"
    assert telling("Read", arguments, worktree) == "secret/a"


@pytest.mark.parametrize("pattern", ["secret/*", "/treadle/code/secret/*"])
@pytest.mark.parametrize("inside", ["/treadle/code", "/w/code"])
def test_a_rule_may_name_a_file_as_questions_show_it_with_and_without_a_sandbox(pattern: str, inside: str) -> None:
    worktree = Worktree(Path("/w/code"), PurePosixPath(inside))
    for path in ("secret/a", f"{inside}/secret/a"):
        assert decide("Read", {"file_path": path}, [rule("Read", "never", pattern)], worktree).answer == "never"
    for path in ("/secret/a", "secrets/a", f"{inside}/a"):
        assert decide("Read", {"file_path": path}, [rule("Read", "never", pattern)], worktree).answer == "always"
    command = decide("Bash", {"command": "secret/a"}, [rule("Bash", "never", pattern)], worktree)
    assert command.answer == ("never" if pattern == "secret/*" else "always")


def test_a_rule_fits_a_file_that_is_reached_by_a_link(tmp_path: Path) -> None:
    worktree = Worktree(tmp_path / "code", INSIDE)
    (tmp_path / "code/secret").mkdir(parents=True)
    (tmp_path / "code/open").symlink_to("secret")
    never = [rule("*", "never", "secret/*")]
    for path in ("open/a", "/treadle/code/open/a", "x/../open/a"):
        assert decide("Read", {"file_path": path}, never, worktree).answer == "never", path
    assert decide("Read", {"file_path": "opened/a"}, never, worktree).answer == "always"


@pytest.mark.parametrize(
    "path",
    [
        "/proc/self/root/treadle/code/secret/a",
        "//proc/thread-self/cwd/secret/a",
        "/proc/1/task/1/root/treadle/code/secret/a",
        "/dev/fd/3/secret/a",
        "../../proc/self/cwd/secret/a",
    ],
)
def test_names_that_the_kernel_makes_of_files_are_neither_read_nor_changed(tmp_path: Path, path: str) -> None:
    (tmp_path / "code").mkdir()
    worktree = Worktree(tmp_path / "code", INSIDE)
    assert "by its own name" in decide("Read", {"file_path": path}, (), worktree).why
    assert decide("Write", {"file_path": path}, (), worktree).answer == "never"
    assert decide("Read", {"file_path": "/proc/cpuinfo"}, (), worktree).answer == "always"


def test_no_name_takes_long_to_judge(tmp_path: Path) -> None:
    code = tmp_path / "code"
    code.mkdir()
    (code / "a").mkdir()
    for number in range(39):
        (code / f"l{number}").symlink_to("a/../" * 800 + f"l{number + 1}")
    worktree = Worktree(code, INSIDE)
    begun_s = time.process_time()
    for path in ("l0/x", "a/" * 6000, "a/" * 2000, "../" * 2000 + "treadle/code/a", "x" * 5000, "\ud800x", "l38"):
        assert not worktree.holds(path), path[:20]
    assert time.process_time() - begun_s < 1
    assert worktree.holds("a/" * 200)


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
