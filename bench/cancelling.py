"""Cancel: from the request to the confirmation, for an agent in a Bash call and for one whose API hangs."""

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import quantiles
from typing import Literal

from bench.figures import Figure, Goal, Series
from tests.end_to_end.plans import lease_processes, make_repo
from tests.end_to_end.suite import Suite, until
from treadle.scripted_model import Block, ScriptedModel, Turn

KEY = "sk-bench-made-up"
CANCELS_PER_ROUND = 7
"""Three rounds make the twenty that a p95 needs."""
GOAL_S = 2.0

What = Literal["bash", "api"]
_WORDS = {"bash": "a running Bash", "api": "a hanging API"}


async def measure(directory: Path, rounds: int) -> Figure:
    """Cancels tasks in both situations, in turn."""
    latencies: dict[What, list[float]] = {"bash": [], "api": []}
    async with ScriptedModel(_scripts(rounds * CANCELS_PER_ROUND), api_key=KEY) as model:
        suite = Suite(directory / "suite")
        del suite.environment["TREADLE_SANDBOX"]  # as on a person's machine
        suite.environment |= {"ANTHROPIC_API_KEY": KEY, "ANTHROPIC_BASE_URL": model.base_url}
        repo = make_repo(directory / "repository")
        try:
            await asyncio.to_thread(suite.up, "--slots", "1")
            for number in range(rounds * CANCELS_PER_ROUND):
                for what, seconds in latencies.items():
                    seconds.append(await asyncio.to_thread(_cancel, suite, repo, model, what, number))
        finally:
            await asyncio.to_thread(suite.down)
    series = [Series(f"cancel of {_WORDS[what]}: request → confirmed", "s", found) for what, found in latencies.items()]
    goals = [
        goal
        for one in series
        for goal in (
            Goal(f"{one.label}, p50", one.median, "s"),
            Goal(f"{one.label}, p95", p95(one.values), "s", at_most=GOAL_S),
        )
    ]
    return Figure(f"Cancel, {rounds * CANCELS_PER_ROUND} of each", series, goals)


def p95(values: Sequence[float]) -> float:
    """The 95th percentile; of few values, the largest."""
    return quantiles(values, n=20, method="inclusive")[-1] if len(values) >= 20 else max(values)


def _cancel(suite: Suite, repo: Path, model: ScriptedModel, what: What, number: int) -> float:
    """Seconds from the request to the event that confirms it, by when no process may be left."""
    code = f"{what}-{number}"
    task = {"code": code, "name": "A task", "assignee": "coder", "description": "Work."}
    plan = suite.submit({"name": "Cancel", "agents": {"coder": {"sdk_type": "claude"}}, "tasks": [task]}, repo)
    if what == "bash":
        until(lambda: list(suite.data.glob(f"work/{plan}/{code}-*/code/started")), "Bash runs")
    else:
        until(lambda: any(f"# Task {code}:" in str(request.body) for request in model.requests), "the API is asked")
    model.requests.clear()
    started = time.perf_counter()
    suite.post(f"/plans/{plan}/cancel")
    suite.event(plan, "cancelled", code)
    seconds = time.perf_counter() - started
    if left := lease_processes(plan):
        raise RuntimeError(f"{code} was said to be cancelled while its processes {left} lived")
    suite.standing(plan, "cancelled")
    return seconds


def _scripts(count: int) -> dict[str, list[Turn]]:
    waits = Block(tool="Bash", input={"command": "(trap '' TERM; setsid sleep 600) & touch started; sleep 600"})
    bash = {f"bash-{number}": [Turn(blocks=[waits])] for number in range(count)}
    return bash | {f"api-{number}": [Turn(fault="hang")] for number in range(count)}
