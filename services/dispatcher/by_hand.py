"""What only the person of a manual task has to be told: where to start from, and how to hand in."""

import json

from shared.board import Board
from shared.events import Head
from shared.openings import place_of_result

ABANDONED_SHOWN_MAX = 50


def what_to_start_from(board: Board, code: str) -> str:
    """The repository, and the commits that hold the work of the tasks before this one."""
    chosen = board.plan.chosen
    if chosen is None:
        return ""
    told = f"## The code\n\nRepository: {chosen.repo_url}\n"
    heads = board.heads(code)
    if not heads:
        told += f"Start from commit {chosen.base_commit}."
    elif len(heads) == 1:
        told += f"Start from {_named(heads[0])}."
    else:
        names = "\n".join(f"- {_named(head)}" for head in heads)
        told += f"Start from commit {chosen.base_commit}, merged with:\n{names}"
    abandoned = board.abandoned_before(code)
    if abandoned:
        told += f"\nGiven up, so that their work is not there: {', '.join(abandoned[:ABANDONED_SHOWN_MAX])}."
    return told


def _named(head: Head) -> str:
    return f"commit {head.commit}, the work of {head.task}"


def how_a_person_works(board: Board, plan: str, code: str) -> str:
    """How to begin and how to hand in, with the contract of `result.json`."""
    spec = board.tasks[code].spec
    if spec is None:
        return ""
    place = place_of_result(board, plan, code)
    example: dict[str, object] = {
        "task_code": code,
        "summary": "what was done, for those who do the next tasks",
        "artifacts": [spec.expected_output or "path/of/a/changed/file"],
    }
    fields = (
        f'`task_code` is "{code}". `summary` must not be empty. `artifacts` are paths in the code repository, with '
        '"/", not absolute, without `..`.'
    )
    if spec.reviews:
        example["artifacts"] = []
        example["review"] = {
            "approve": False,
            "findings": [
                {
                    "file": "src/a.py",
                    "line": 12,
                    "severity": "major",
                    "message": "what is wrong, and what would be right",
                }
            ],
            "round": spec.round,
            "commit": _reviewed(board, code),
        }
        fields += (
            " `review` is the verdict: `severity` is one of blocker, major, minor, note; `commit` is what you looked "
            "at (a review of another commit does not count)."
        )
    else:
        example["commit"] = "0" * 40
        fields += (
            " Push your work to the code repository, on a branch of your own, and name its last commit in full as "
            "`commit`: it has to contain what you started from. Leave it out where you changed no code."
        )
    shown = json.dumps(example, indent=2, ensure_ascii=False)
    return (
        "## How to hand in\n\n"
        "Say that you begin (dispatch the task), do it wherever you like, then commit and push this file:\n\n"
        f"- repository: {place.repo_url}, on its default branch\n"
        f"- path: `{place.path}`\n\n"
        f"```json\n{shown}\n```\n\n"
        f"{fields} A `usage.json` beside it (`input_tokens`, `output_tokens`, `cost_usd`) is read if it is there. "
        "It is looked for regularly; the task is completed as soon as it is found."
    )


def _reviewed(board: Board, code: str) -> str:
    spec = board.tasks[code].spec
    return board.tasks[spec.reviews].commit if spec is not None else ""
