"""Judges what an agent says where its answer is what the attempt is for: a plan or a review (`WorkRules.answer`).

Whether a plan is valid the planner says, for what its log asks for. A review's shape is looked at here.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from nats.aio.client import Client
from nats.errors import Error as NatsError

from services.runner.agents import ANSWER_MAX_BYTES, Finished
from services.runner.failed import Failed
from services.runner.git import printable
from services.runner.lease import AskPlanner, Key, PlannerAway
from services.runner.reviews import BadReview, read_review, review_summary
from services.runner.worktree import Worktree
from shared.events import PlanFault, Review, TaskDispatched
from shared.requests import CheckReply, CheckRequest
from shared.subjects import PLANNER_CHECK, is_draft

PLANNER_ANSWERS_WITHIN_S = 30.0
"""Of one request: a plan of a thousand tasks takes a second."""
AGAIN_S = 1.0
FAULTS_MAX = 500
"""Of what is kept and told."""
_TOLD_MAX_CHARS = 500


@dataclass(frozen=True)
class Answered:
    """An answer with which nothing is wrong."""

    text: str
    summary: str
    review: Review | None = None


@dataclass(frozen=True)
class Faulty:
    """What is wrong with an answer, in words for the agent and for people."""

    words: str
    faults: tuple[PlanFault, ...] = ()
    """Of a plan."""


_PLAN_FORM = 'a plan as one JSON object: {"name": …, "tasks": [{"code": …, "name": …, "description": …}]}'
_REVIEW_FORM = (
    'one JSON object: {"approve": true or false, "findings": [{"file": …, "line": …, "severity": …, "message": …}]}'
)


class Answers:
    """One lease's."""

    def __init__(
        self,
        key: Key,
        dispatch: TaskDispatched,
        worktree: Worktree,
        base: str,
        ask_planner: AskPlanner,
        without_secrets: Callable[[str], str],
        tell: Callable[[str], None],
    ) -> None:
        """`base` is the commit that the agent looks at; `tell` is for people who watch."""
        self._key, self._dispatch, self._worktree, self._base = key, dispatch, worktree, base
        self._ask_planner, self._without_secrets, self._tell = ask_planner, without_secrets, tell
        self.held_up = ""
        """What it waits for, in words; empty: for nothing."""

    async def judge(self, end: Finished) -> Answered | Faulty:
        """Looks at a turn's answer. Asks until a planner answers. Raises `Failed`: it can't be judged at all."""
        # Before it is checked: what is stored must be what was found valid.
        text = self._without_secrets(end.answer)
        if not text:
            why = f" ({end.message})" if end.message else ""
            form = _PLAN_FORM if self._dispatch.rules.answer == "plan" else _REVIEW_FORM
            return self._faulty(f"There is no answer in the form that was asked for, {form}{why}.")
        if len(text.encode()) > ANSWER_MAX_BYTES:
            return self._faulty(f"The answer is larger than {ANSWER_MAX_BYTES // 1024} KiB: make it shorter.")
        try:
            said = await asyncio.to_thread(json.loads, text)
        except (ValueError, RecursionError) as fault:
            return self._faulty(f"The answer can't be read as JSON: {printable(str(fault))}.")
        if not isinstance(said, dict):
            return self._faulty("The answer is no JSON object.")
        return await self._plan(text, said) if self._dispatch.rules.answer == "plan" else self._review(text, said)

    async def _plan(self, text: str, said: dict[str, Any]) -> Answered | Faulty:
        plan, draft = self._key.plan, self._key.task
        if not is_draft(draft):
            raise Failed("agent_error", f"{draft} is to make a plan, and is no candidate's entity.")
        reply = await self._checked(CheckRequest(plan=plan, candidate=draft.rpartition("-")[2], text=text))
        if reply.refused:
            raise Failed("agent_error", f"The planner does not take this plan: {reply.refused}")
        if reply.faults:
            return Faulty(f"The plan is not valid yet:\n{_listed(reply.faults)}", reply.faults[:FAULTS_MAX])
        tasks = said.get("tasks")
        count = len(tasks) if isinstance(tasks, list) else 0
        return Answered(text, f"a plan of {'1 task' if count == 1 else f'{count} tasks'}")

    async def _checked(self, request: CheckRequest) -> CheckReply:
        while True:
            try:
                reply = await self._ask_planner(request)
            except PlannerAway as away:
                if not self.held_up:
                    self._tell(f"the plan is there; no planner says whether it is valid ({away}): asking on")
                self.held_up = f"Its plan waited for a planner to check it ({away}): is one running?"
            else:
                self.held_up = ""
                return reply
            await asyncio.sleep(AGAIN_S)

    def _review(self, text: str, said: dict[str, Any]) -> Answered | Faulty:
        rules = self._dispatch.rules
        judged = next((head.commit for head in self._dispatch.heads if head.task == rules.reviews), self._base)
        try:
            review = read_review(said, self._worktree, round_=rules.round, commit=judged)
        except BadReview as bad:
            return Faulty(f"The review is not as it was asked for:\n{bad}")
        return Answered(text, review_summary(review), review)

    def _faulty(self, words: str) -> Faulty:
        is_plan = self._dispatch.rules.answer == "plan"
        return Faulty(words, (PlanFault(message=words),) if is_plan else ())


def again(faulty: Faulty, *, by_tool: bool) -> str:
    """What the agent is told to mend its answer."""
    how = "in one call of StructuredOutput" if by_tool else "as one JSON object, last of all on standard output"
    return f"Your answer was checked. {faulty.words}\n\nMend it, and give the whole answer again, {how}."


async def ask_planner(nc: Client, request: CheckRequest) -> CheckReply:
    """One request to whichever planner is there. Raises `PlannerAway`."""
    try:
        body = msgspec.json.encode(request)
        answer = await nc.request(PLANNER_CHECK, body, timeout=PLANNER_ANSWERS_WITHIN_S)
        return msgspec.json.decode(answer.data, type=CheckReply)
    except (NatsError, TimeoutError, OSError, msgspec.DecodeError) as error:
        raise PlannerAway(type(error).__name__) from error


def _listed(faults: Sequence[PlanFault]) -> str:
    lines = [f"- {_line(fault)}" for fault in faults[:FAULTS_MAX]]
    more = [f"- and {len(faults) - FAULTS_MAX} more"] if len(faults) > FAULTS_MAX else []
    return "\n".join([*lines, *more])


def _line(fault: PlanFault) -> str:
    """Its message says where it is."""
    words = fault.message if fault.message.isprintable() else printable(fault.message)
    return words[:_TOLD_MAX_CHARS]
