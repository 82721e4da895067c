"""What becomes of a task whose start met a conflict, where an agent may merge: a task of its own before it.

conflict → `extended` by merge-<task> → that one completes → the task is dispatched again, from what was merged.
"""

import json

from shared import commands as c
from shared.board import SETTLED, Board
from shared.spec import DELIVER, TaskSpec

MERGES_MAX = 3
"""Tasks of this kind before one and the same task: a fourth conflict is for a person."""
CODE_MAX_CHARS = 60


def next_step(board: Board, code: str) -> c.Extend | c.Redispatch | None:
    """What the dispatcher does about the task's conflict now; None where there is none, where nobody is to merge it, or
    somebody is at it."""
    if board.plan.settings.on_conflict != "agent" or board.plan.status != "active":
        return None
    state = board.tasks[code]
    if state.status != "needs_attention" or state.conflict is None:
        return None
    if state.spec is not None and state.spec.resolves:
        return None  # what can't even be merged by itself so that it can be merged is for a person
    merges = [t.code for t in board.plan.added if t.resolves == code]
    if any(m not in board.tasks or board.tasks[m].status not in SETTLED for m in merges):
        return None
    if merges and board.seqs[merges[-1]] > board.seqs[code]:  # it was merged since, or given up
        newest = board.tasks[merges[-1]]
        return c.Redispatch(note=f"{merges[-1]} has merged it") if newest.status == "completed" else None
    if len(merges) >= MERGES_MAX or (assignee := _assignee(board, code)) is None:
        return None
    return c.Extend(
        tasks=(_merge_task(board, code, assignee, len(merges) + 1),),
        before=code,
        reason=f"{code} starts from work that can't be merged by itself",
    )


def _merge_task(board: Board, code: str, assignee: str, number: int) -> TaskSpec:
    state = board.tasks[code]
    assert state.conflict is not None and state.spec is not None  # noqa: S101 - next_step has looked
    tasks = " and ".join(state.conflict.tasks)
    files = "\n".join(f"- {_on_one_line(file)}" for file in state.conflict.files)
    return TaskSpec(
        code=_free_code(board, code, number),
        name=f"Merge the work of {tasks}",
        assignee=assignee,
        description=(
            f"The work of {tasks} changes the same places, so it can't be merged by itself. The files below hold both "
            f"sides between conflict markers. Edit them so that what both tasks wanted is kept, and no marker is left. "
            f"Do nothing else.\n\n{files}\n"
        ),
        depends_on=state.spec.depends_on,
        timeout_minutes=state.spec.timeout_minutes,
        allow_no_change=True,
        resolves=code,
        budget_usd=state.spec.budget_usd or TaskSpec(code="", name="", assignee="").budget_usd,
    )


def _on_one_line(name: str) -> str:
    """A file may be called as it likes, and must not add words to a prompt."""
    return name if name.isprintable() else json.dumps(name)


def _assignee(board: Board, code: str) -> str | None:
    """The agent of the task itself, or of the last one whose work it is; only one that runs by itself.

    A model before a program: that one does what it always does, and hardly what it is told.
    """
    state = board.tasks[code]
    programs: list[str] = []
    for candidate in (code, *reversed(state.conflict.tasks if state.conflict else ())):
        of = board.tasks.get(candidate)
        if of is not None and of.spec is not None and of.agent is not None and of.agent.is_auto:
            if of.agent.sdk_type == "claude":
                return of.spec.assignee
            programs.append(of.spec.assignee)
    return next(iter(programs), None)


def _free_code(board: Board, code: str, number: int) -> str:
    stem = f"merge-{'deliver' if code == DELIVER else code}"[:CODE_MAX_CHARS]
    taken = {known.lower() for known in board.tasks} | {t.code.lower() for t in board.plan.added}
    wanted = stem if number == 1 else f"{stem}-{number}"
    while wanted.lower() in taken:
        number += 1
        wanted = f"{stem}-{number}"
    return wanted
