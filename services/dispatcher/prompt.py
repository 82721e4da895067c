"""What a task's agent is told: the whole prompt, from the plan, the task and what came before it."""

from shared.board import Board
from shared.spec import DELIVER

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
HOW_A_PERSON_WORKS = (
    "## How to work\n\n"
    "This is a manual task: nobody prepares a worktree for you, and nothing is committed for you. Work where you like, "
    "say when you begin (dispatch the task), and mark it complete with a note when it is done."
)


def build_prompt(board: Board, code: str) -> str:
    """The prompt of a ready task; empty for `_deliver`, which has no agent."""
    chosen = board.plan.chosen
    spec = board.tasks[code].spec
    if code == DELIVER or chosen is None or spec is None:
        return ""
    plan = chosen.spec
    parts = [f"# Task {code}: {spec.name}"]
    goal = f"\nIts goal: {plan.goal}" if plan.goal else ""
    parts.append(f"This task is part of the plan “{plan.name}”.{goal}")
    if spec.description:
        parts.append(spec.description)
    if spec.expected_output:
        parts.append(f"## What to deliver\n\n`{spec.expected_output}` has to be there when you are done.")
    if earlier := _earlier(board, code):
        parts.append("## What the tasks before this one report\n\n" + earlier)
    agent = board.tasks[code].agent
    if agent is not None and not agent.is_auto:
        return "\n\n".join([*parts, HOW_A_PERSON_WORKS]) + "\n"
    parts.append(HOW_AN_AGENT_WORKS if spec.allow_no_change else f"{HOW_AN_AGENT_WORKS} {NO_CHANGE_IS_A_FAILURE}")
    if spec.verify:
        commands = "\n".join(f"- `{command}`" for command in spec.verify)
        parts.append(f"Afterwards each of these commands must succeed in the worktree:\n{commands}")
    return "\n\n".join(parts) + "\n"


def _earlier(board: Board, code: str) -> str:
    lines: list[str] = []
    room = SUMMARIES_MAX_CHARS
    states = list(board.predecessors(code))
    for place, state in enumerate(states):
        if state.spec is None:
            continue
        said = state.summary[:SUMMARY_MAX_CHARS] if state.status == "completed" else "given up: its work is not there"
        line = f"- {state.spec.code} ({state.spec.name}): {said or 'nothing'}"
        if len(line) > room:
            lines.append(f"- and {len(states) - place} more")
            break
        room -= len(line)
        lines.append(line)
    return "\n".join(lines)
