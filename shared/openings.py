"""How the dispatcher opens a ready task: everything that its runner or its person is given but the words of the prompt.

The words may change with every version. All else follows from the plan, and is worked out again where a history is
verified.
"""

from datetime import datetime

from shared import commands as c
from shared.board import Board
from shared.spec import DELIVER, DeliveryRules, ResultPlace, WorkRules


def opening(board: Board, plan: str, code: str, now: datetime, prompt: str) -> c.Dispatch | c.Ready:
    """The command that dispatches the task, or gives a manual one to its person. Raises ValueError without a choice."""
    chosen, settings, state = board.plan.chosen, board.plan.settings, board.tasks[code]
    if chosen is None:
        raise ValueError(f"plan {plan} runs without a chosen candidate")
    if state.agent is not None and state.is_manual:
        return c.Ready(
            now=now,
            revision=state.revision,
            prompt=prompt,
            agent=state.agent,
            base_commit=chosen.base_commit,
            heads=board.heads(code),
            abandoned=board.abandoned_before(code),
            place=place_of_result(board, plan, code),
        )
    delivery = DeliveryRules(kind=settings.delivery, branch=settings.delivery_branch, command=settings.delivery_command)
    return c.Dispatch(
        now=now,
        revision=state.revision,
        prompt=prompt,
        agent=state.agent,
        project=chosen.project,
        repo_url=chosen.repo_url,
        base_commit=chosen.base_commit,
        heads=board.heads(code),
        abandoned=board.abandoned_before(code),
        plan_name=chosen.spec.name,
        setup=() if code == DELIVER else chosen.spec.setup,
        env_allow=chosen.spec.env_allow,
        rules=WorkRules(
            network_allow=chosen.spec.network_allow,
            permissions=settings.permissions,
            approval_timeout_s=settings.approval_timeout_minutes * 60,
            verify_rounds=settings.verify_rounds,
        ),
        delivery=delivery if code == DELIVER else DeliveryRules(),
    )


def place_of_result(board: Board, plan: str, code: str) -> ResultPlace:
    """Where a manual task's result will be looked for."""
    collab, chosen = board.plan.settings.collab, board.plan.chosen
    return ResultPlace(
        repo_url=collab.repo_url or (chosen.repo_url if chosen else ""),
        path=f"{collab.directory}/{plan}/{code}/result.json",
        poll_interval_s=collab.poll_interval_s,
    )
