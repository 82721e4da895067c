"""Which tool calls an agent may make by itself. Decides, from a project's rules and a call: let it, refuse it, or ask.

The rules steer an agent that means well: `git push*` does not stop `cd . && git push`. What an agent can't do, whatever
it means, is the sandbox's business.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any, Literal

import msgspec

from services.runner.worktree import INSIDE, Worktree
from shared.events import APPROVAL_INPUT_MAX_BYTES
from shared.spec import Answer, Permission, Wanted, WorkRules

TOOLS = ("Bash", "Read", "Edit", "Write", "Glob", "Grep")
"""What an agent is offered, and may do, when no rule speaks of it."""

ANSWERING: Mapping[Wanted, tuple[str, ...]] = {
    "plan": ("Read", "Glob", "Grep"),
    "review": ("Bash", "Read", "Glob", "Grep"),
}
"""All that an agent is offered whose answer is what it is for: it changes nothing. A review may run the tests, and what
its commands leave behind is thrown away."""

READ = "Read"
QUESTION = "AskUserQuestion"
ANSWER = "StructuredOutput"
"""How such an answer is given. It does nothing else."""

_CHANGING = {"Edit": "file_path", "MultiEdit": "file_path", "Write": "file_path", "NotebookEdit": "notebook_path"}
_FILES = (*_CHANGING, READ)
_ALIAS = re.compile(r"/proc/[^/]+/(?:root|cwd|fd|task|map_files)\b|/dev/(?:fd/|std)")
"""Names that the kernel makes, of files that have others; what they mean depends on who opens them."""
_TELLING = {
    **_CHANGING,
    "Bash": "command",
    "Glob": "pattern",
    "Grep": "pattern",
    READ: "file_path",
    "WebFetch": "url",
    "WebSearch": "query",
}
_TELLING_OF_OTHERS = ("file_path", "path", "url", "command", "query", "pattern")
"""Never what the agent says of a call: a rule must match what the call does."""


class Verdict(msgspec.Struct, frozen=True):
    """What becomes of a call."""

    answer: Answer | Literal["question"]
    why: str = ""
    """For the agent when it is refused, for a person when they are asked."""


def offered(rules: Iterable[Permission]) -> list[str]:
    """The tools that an agent is shown: the usual ones, a question to a person, and those that the rules name."""
    named = [rule.tool for rule in rules if rule.tool != "*" and rule.answer != "never"]
    return list(dict.fromkeys((*TOOLS, QUESTION, *named)))


def offered_for(rules: WorkRules) -> list[str]:
    """The tools that an attempt with these rules is shown."""
    return list(ANSWERING[rules.answer]) if rules.answer else offered(rules.permissions)


def decide_for(tool: str, arguments: Mapping[str, Any], rules: WorkRules, worktree: Worktree) -> Verdict:
    """`decide`, for an attempt with these rules: no rule of a project gives one that answers a tool more."""
    if not rules.answer:
        return decide(tool, arguments, rules.permissions, worktree)
    if tool == ANSWER:
        return Verdict("always")
    if tool not in ANSWERING[rules.answer]:
        return Verdict("never", f"Nothing is changed here, and nobody asked: there is no {tool}. Give your answer.")
    verdict = decide(tool, arguments, rules.permissions, worktree)
    if verdict.answer == "ask" and rules.answer == "plan":
        return Verdict("never", f"{verdict.why} Nobody is asked while a plan is made: do without.")
    return verdict


def decide(tool: str, arguments: Mapping[str, Any], rules: Iterable[Permission], worktree: Worktree) -> Verdict:
    """The first rule that fits decides. Without one, the usual tools are let, and a person is asked about others.

    Some things no rule and no person can allow: to change a file outside the worktree, and what is too large to be
    shown to a person. A question is asked unless a rule refuses it.
    """
    if (name := _CHANGING.get(tool)) is not None and not _is_inside(arguments.get(name), worktree):
        return Verdict("never", f"Only files in {worktree.inside} can be changed with {tool}.")
    names = _names(tool, arguments, worktree)
    if tool == READ and any(_ALIAS.match(name) for name in names):
        return Verdict("never", "No rule can tell which file that is: call it by its own name.")
    fitting = (rule for rule in rules if rule.tool in ("*", tool) and any(fnmatchcase(n, rule.pattern) for n in names))
    rule = next(fitting, None)
    answer: Answer = rule.answer if rule else "always" if tool in TOOLS else "ask"
    said = f"The project's rule for {rule.tool} {rule.pattern}" if rule else ""
    if answer == "never":
        return Verdict("never", f"{said} refuses this call. Find another way, or do without and say so in the end.")
    if tool == QUESTION:
        verdict = Verdict("question", "The agent has a question.")
    elif answer == "ask":
        verdict = Verdict("ask", f"{said} asks for a person." if said else f"No rule of the project allows {tool}.")
    else:
        return Verdict("always")
    if len(json.dumps(arguments).encode()) > APPROVAL_INPUT_MAX_BYTES:
        words = f"A person would have to look at this call. Its input may have {APPROVAL_INPUT_MAX_BYTES // 1024} KiB"
        return Verdict("never", f"{words} at the most: make it smaller.")
    return verdict


def telling(tool: str, arguments: Mapping[str, Any], worktree: Worktree) -> str:
    """What tells most of a call: a command, an address, a path (from the worktree, where it is in it)."""
    names = (_TELLING[tool],) if tool in _TELLING else _TELLING_OF_OTHERS
    told = next((value for name in names if isinstance(value := arguments.get(name), str)), None)
    if told is None:
        return json.dumps(arguments, sort_keys=True) if arguments else ""
    if tool in _FILES:
        return worktree.shortened(told)
    return told


def _names(tool: str, arguments: Mapping[str, Any], worktree: Worktree) -> list[str]:
    """What a rule's pattern may be of: what tells most of the call; of a file, all that it is called.

    The whole path is what questions and transcripts show. It means the same file where there is no sandbox: a `never`
    that fits nothing would let everything.
    """
    told = telling(tool, arguments, worktree)
    said = arguments.get(_TELLING.get(tool, ""))
    if tool not in _FILES or not isinstance(said, str):
        return [told]
    return [str(name) for one in (told, worktree.followed(said)) if one is not None for name in (one, INSIDE / one)]


def _is_inside(path: object, worktree: Worktree) -> bool:
    """Whether a change of it stays in the worktree, links followed."""
    return isinstance(path, str) and worktree.holds(path)
