"""What Claude may call by itself, asked before each call: the rules' verdict in the CLI's words."""

from __future__ import annotations

import os
import shlex
from typing import Any, Literal

from claude_agent_sdk import HookContext, HookInput, HookJSONOutput, HookMatcher

from services.runner.agents import Job
from services.runner.agents.claude_conversation import Call
from services.runner.agents.leaves import leaves_changed
from services.runner.agents.permissions import TOOLS, Verdict, decide_for

_ONE_AT_A_TIME = "A person is asked about another call of yours first: make this one again when that one is answered."
_NOT_TO_BE_READ = (
    "A person would have to look at this call, and it holds a password or key, which nobody may read there. Make it "
    "without, with a file or a variable for instance, or find another way."
)
_ELSEWHERE = (
    "A person has to allow this command, and it would run in {root} then, not in {cwd}, where you are. Go there with "
    "`cd {root}`, in a call of its own, and make this call from there, so that they see where it is to run."
)
_NOBODY = "Nobody can be asked here. Find another way, or do without and say so in the end."


class Gate:
    """One CLI's calls. At most one of them waits for a person: the CLI can take up no more."""

    def __init__(self, job: Job, allowed: Call | None) -> None:
        """`allowed` is the one call that a person has allowed."""
        self._job, self._allowed = job, allowed
        self.asks: Verdict | None = None
        """Of the call that waits."""

    def matcher(self) -> HookMatcher:
        """For PreToolUse. What fails here lets no call through."""
        return HookMatcher(hooks=[self._decide], on_failure="block")

    async def _decide(self, call: HookInput, call_id: str | None, _context: HookContext) -> HookJSONOutput:
        fields: dict[str, Any] = {**call}
        tool, arguments = str(fields["tool_name"]), fields["tool_input"]
        if self._allowed == Call(str(call_id), tool, arguments):
            self._allowed = None
            return _answer("allow", "A person allowed it.")
        verdict = decide_for(tool, arguments, self._job.rules, self._job.worktree)
        if verdict.answer in ("ask", "question"):
            verdict = self._elsewhere(tool, arguments, str(fields.get("cwd", ""))) or self._ask(verdict, arguments)
        match verdict.answer:
            case "always" if tool in TOOLS:
                return {}  # the CLI's own rules know these tools, and have the last word
            case "always":
                return _answer("allow", "A rule of the project allows it.")
            case "never":
                return _answer("deny", verdict.why)
            case _:
                return _answer("defer", verdict.why)

    def _elsewhere(self, tool: str, arguments: dict[str, Any], cwd: str) -> Verdict | None:
        """Refuses a command that would run in another directory, once it is allowed, than the one that it is for.

        A conversation goes on in the worktree's root, wherever its shell had gone, and a person sees no directory. (To
        say `cd` in the command itself is no way out: the CLI cuts off one to where the shell is already.)
        """
        root = str(self._job.worktree.inside)
        if tool != "Bash" or os.path.realpath(cwd) == os.path.realpath(root):
            return None
        if str(arguments.get("command")).startswith("cd /"):
            return None
        return Verdict("never", _ELSEWHERE.format(cwd=shlex.quote(cwd), root=root))

    def _ask(self, verdict: Verdict, arguments: dict[str, Any]) -> Verdict:
        if self._job.memory is None:
            return Verdict("never", _NOBODY)
        # Taken out of it, it would not be the call any more that a person's answer is for.
        if leaves_changed(arguments, self._job.without_secrets) != arguments:
            return Verdict("never", _NOT_TO_BE_READ)
        if self.asks is not None:
            return Verdict("never", _ONE_AT_A_TIME)
        self.asks = verdict
        return verdict


def _answer(decision: Literal["allow", "deny", "defer"], why: str) -> HookJSONOutput:
    return {
        "hookSpecificOutput": {
            "hookEventName": "PreToolUse",
            "permissionDecision": decision,
            "permissionDecisionReason": why,
        }
    }
