"""What becomes of a decision once the reviews that it waits for are there: it is settled, or another round follows.

reviews → weighed → all approve: completed
            ├→ rounds are left: `extended` by fix-2, review-2, … before the decision, which is weighed again behind them
            └→ none is left: a person looks; to redispatch the decision grants one more round
"""

import json
from collections.abc import Iterable

from shared import commands as c
from shared.board import Board
from shared.events import Finding, Review
from shared.spec import TASK_CODE, TaskSpec
from shared.task import TaskState

FINDINGS_TOLD_MAX = 50
"""Of one review, to whoever mends."""
FINDING_MAX_CHARS = 1_000
STEM_MAX_CHARS = 50
"""Leaves room for the round's number in a task's code."""


def weigh(board: Board, code: str) -> c.Extend | c.Decide:
    """The next step of a decision that is ready: everything that it waits for has ended."""
    state = board.tasks[code]
    spec = _spec(state)
    reviews, number = _newest(board, spec)
    counted = [board.tasks[r] for r in reviews if board.tasks[r].status == "completed"]
    if not counted:
        return c.Decide(approved=False, round=number, reason="every review was given up: nobody has judged the work")
    silent = [_spec(r).code for r in counted if r.review is None]
    if silent:
        reason = f"{', '.join(silent)} ended without a verdict: mark this decision complete, or abandon it"
        return c.Decide(approved=False, round=number, reason=reason)
    against = [r for r in counted if _objection(board, r)]
    if not against:
        names = ", ".join(_spec(r).code for r in counted)
        return c.Decide(approved=True, round=number, reason=f"approved by {names} in round {number}")
    if number >= (spec.max_review_rounds or 1) + state.rounds_granted:
        words = "; ".join(f"{_spec(r).code}: {_objection(board, r)}" for r in against)
        reason = (
            f"not approved after {number} {'round' if number == 1 else 'rounds'} ({words}): redispatch this decision "
            f"to grant one more, mark it complete to go on as it is, or abandon it"
        )
        return c.Decide(approved=False, round=number, reason=reason)
    return c.Extend(
        tasks=tuple(_round(board, spec, reviews, number + 1)),
        before=code,
        reason=f"round {number} of {code}: not approved by {', '.join(_spec(r).code for r in against)}",
    )


def _newest(board: Board, decision: TaskSpec) -> tuple[tuple[str, ...], int]:
    """The newest round's reviews, and its number."""
    before = set(board.plan.also_before.get(decision.code, ()))
    added = [spec for spec in board.plan.added if spec.code in before]
    number = max((spec.round for spec in added), default=1)
    newest = tuple(spec.code for spec in added if spec.round == number and spec.reviews)
    return (newest or decision.depends_on), number


def _objection(board: Board, state: TaskState) -> str:
    """Why a review is none that approves, in a few words; empty: it approves."""
    review, work = state.review, board.tasks[_spec(state).reviews]
    if review is None:
        return "no verdict"
    if work.commit and review.commit != work.commit:
        return f"it looked at {review.commit[:12] or 'no commit'}, the work is {work.commit[:12]}"
    if review.round != _spec(state).round:
        return f"it is of round {review.round}"
    if review.approve:
        return ""
    return f"{len(review.findings)} {'finding' if len(review.findings) == 1 else 'findings'}"


def _round(board: Board, decision: TaskSpec, reviews: tuple[str, ...], number: int) -> Iterable[TaskSpec]:
    first = [_spec(board.tasks[code]) for code in decision.depends_on]
    work = _spec(board.tasks[first[0].reviews])
    taken = {known.lower() for known in board.tasks} | {t.code.lower() for t in board.plan.added}
    # Two loops may be weighed at once, each knowing nothing of the other's new tasks: those need names of their own.
    alone = sum(state.is_decision for state in board.tasks.values()) == 1
    fix = TaskSpec(
        code=_free_code(taken, "fix" if alone else f"fix-{work.code}", number),
        name=f"Mend {work.name}"[:200],
        assignee=decision.fixer or work.assignee,
        description=_what_to_mend(board, work, reviews),
        depends_on=tuple(reviews),
        expected_output=work.expected_output,
        timeout_minutes=work.timeout_minutes,
        verify=work.verify,
        retry=work.retry,
        verify_rounds=work.verify_rounds,
        requires_approval=work.requires_approval,
        allow_no_change=True,  # a finding may be wrong: then there is nothing to change, and the reviews say so
        round=number,
        budget_usd=work.budget_usd,
    )
    yield fix
    for review in first:
        yield TaskSpec(
            code=_free_code(taken, review.code, number),
            name=review.name,
            assignee=review.assignee,
            description=review.description,
            depends_on=(fix.code,),
            reviews=fix.code,
            timeout_minutes=review.timeout_minutes,
            retry=review.retry,
            verify_rounds=review.verify_rounds,
            round=number,
            budget_usd=review.budget_usd,
        )


def _what_to_mend(board: Board, work: TaskSpec, reviews: tuple[str, ...]) -> str:
    parts = [
        f"The work of {work.code} was reviewed, and is not approved yet. Mend what the reviews found. Where a finding "
        "is wrong, leave the code as it is and say why in the end."
    ]
    for code in reviews:
        state = board.tasks[code]
        if state.review is not None and _objection(board, state):
            parts.append(f"## What {code} found\n\n{_told(state.review)}")
    if work.description:
        parts.append(f"## What the work was to be\n\n{work.description}")
    return "\n\n".join(parts)


def _told(review: Review) -> str:
    lines = [_line(finding) for finding in review.findings[:FINDINGS_TOLD_MAX]]
    if len(review.findings) > FINDINGS_TOLD_MAX:
        lines.append(f"- and {len(review.findings) - FINDINGS_TOLD_MAX} more")
    return "\n".join(lines) or "It names no finding, but does not approve."


def _line(finding: Finding) -> str:
    """A file and a finding may be written as a model likes, and must not add sections to a prompt."""
    where = ""
    if finding.file:
        where = f" {_on_one_line(finding.file)}" + (f":{finding.line}" if finding.line is not None else "")
    return f"- [{finding.severity}]{where}: {_on_one_line(finding.message[:FINDING_MAX_CHARS])}"


def _on_one_line(text: str) -> str:
    return text if text.isprintable() else json.dumps(text, ensure_ascii=False)


def _free_code(taken: set[str], stem: str, number: int) -> str:
    """`fix-2`, or the next such name that the plan does not have; takes it."""
    code = f"{stem[:STEM_MAX_CHARS]}-{number}"
    again = 1
    while code.lower() in taken or not TASK_CODE.fullmatch(code):
        again += 1
        code = f"{stem[:STEM_MAX_CHARS]}-{number}-{again}"
    taken.add(code.lower())
    return code


def _spec(state: TaskState) -> TaskSpec:
    assert state.spec is not None  # noqa: S101 - every state but `absent` has one
    return state.spec
