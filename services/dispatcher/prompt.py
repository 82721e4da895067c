"""What a task's agent or person is told: the whole prompt, from the plan, the task and what came before it."""

from services.dispatcher.by_hand import how_a_person_works, what_to_start_from
from shared.board import Board
from shared.spec import DELIVER, TaskSpec

SUMMARY_MAX_CHARS = 2_000
SUMMARIES_MAX_CHARS = 32_000
"""A join of five hundred must not spend the agent's context on news."""


HOW_AN_AGENT_WORKS = (
    "## How to work\n\n"
    "The current directory is a git worktree of your own, which holds the work of all the tasks before this one. "
    "Change files in it only. You need not commit: what you leave there is committed for you. "
    "End with a short summary of what you did, for those who do the next tasks."
)
NO_CHANGE_IS_A_FAILURE = "To change no file at all counts as a failure."
HOW_AN_AGENT_REVIEWS = (
    "## How to work\n\n"
    "The current directory is a git worktree of your own, which holds the work to be judged. Read it, compare it with "
    "what was asked for, run what tells you more. What you change there is thrown away. Your answer is the verdict: "
    "approve it, or don't, and name every finding with its file, line and severity. Approve only what needs no change; "
    "findings of the severity `note` may stand beside an approval."
)


def build_prompt(board: Board, plan_id: str, code: str) -> str:
    """The prompt of a ready task; empty for `_deliver`, which has no agent."""
    chosen = board.plan.chosen
    spec = board.tasks[code].spec
    if code == DELIVER or chosen is None or spec is None:
        return ""
    is_manual = board.tasks[code].is_manual
    plan = chosen.spec
    parts = [f"# Task {code}: {spec.name}"]
    goal = f"\nIts goal: {plan.goal}" if plan.goal else ""
    parts.append(f"This task is part of the plan “{plan.name}”.{goal}")
    if is_manual:
        parts.append(f"## Your role\n\nYou do this task as {spec.assignee}.")
    if spec.description:
        parts.append(f"## What to do\n\n{spec.description}" if is_manual else spec.description)
    if spec.reviews:
        parts.append(_what_to_judge(board, spec))
    if spec.expected_output:
        parts.append(f"## What to deliver\n\n`{spec.expected_output}` has to be there when you are done.")
    if earlier := _earlier(board, code):
        parts.append("## What the tasks before this one report\n\n" + earlier)
    if is_manual:
        parts += [what_to_start_from(board, code), how_a_person_works(board, plan_id, code)]
        return "\n\n".join(parts) + "\n"
    if spec.reviews:
        return "\n\n".join([*parts, HOW_AN_AGENT_REVIEWS]) + "\n"
    parts.append(HOW_AN_AGENT_WORKS if spec.allow_no_change else f"{HOW_AN_AGENT_WORKS} {NO_CHANGE_IS_A_FAILURE}")
    if spec.verify:
        commands = "\n".join(f"- `{command}`" for command in spec.verify)
        parts.append(f"Afterwards each of these commands must succeed in the worktree:\n{commands}")
    return "\n\n".join(parts) + "\n"


def _what_to_judge(board: Board, spec: TaskSpec) -> str:
    work = board.tasks[spec.reviews].spec
    told = f"## What to judge\n\nThe work of task {spec.reviews}" + (f" ({work.name})" if work else "")
    again = f", in round {spec.round} of its review" if spec.round > 1 else ""
    asked = f"\n\nThat task was told:\n\n{_quoted(work.description)}" if work and work.description else ""
    return f"{told}{again}.{asked}"


def _within_the_list(said: str) -> str:
    """What somebody else wrote: of several lines, none must look like a part of the prompt."""
    return said if "\n" not in said else "\n" + "\n".join(f"  > {line}" for line in said.splitlines())


def _quoted(text: str) -> str:
    return "\n".join(f"> {line}" for line in text.splitlines())


def _earlier(board: Board, code: str) -> str:
    lines: list[str] = []
    room = SUMMARIES_MAX_CHARS
    states = list(board.predecessors(code))
    for place, state in enumerate(states):
        if state.spec is None:
            continue
        said = state.summary[:SUMMARY_MAX_CHARS] if state.status == "completed" else "given up: its work is not there"
        line = f"- {state.spec.code} ({state.spec.name}): {_within_the_list(said or 'nothing')}"
        if len(line) > room:
            lines.append(f"- and {len(states) - place} more")
            break
        room -= len(line)
        lines.append(line)
    return "\n".join(lines)
