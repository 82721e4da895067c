"""What a plan can cost at most."""

from services.planner.estimate import estimate
from services.planner.parse import read_plan

DIAMOND = """
name: Diamond
agents: {coder: {sdk_type: claude}, sh: {sdk_type: command, command: [make]}}
tasks:
- {code: join, name: x, assignee: sh, depends_on: [left, right], timeout_minutes: 1, retry: {max_attempts: 1}}
- {code: left, assignee: coder, name: x, depends_on: [top],
   timeout_minutes: 10, retry: {max_attempts: 1}, budget_usd: 2}
- {code: right, assignee: coder, name: x, depends_on: [top],
   timeout_minutes: 6, retry: {max_attempts: 2, backoff_s: 30}}
- {code: top, assignee: coder, name: x, timeout_minutes: 4, budget_usd: 1}
"""


def test_layers_are_the_order_of_work() -> None:
    assert estimate(read_plan(DIAMOND)).layers == (("top",), ("left", "right"), ("join",))


def test_the_critical_path_counts_attempts_and_the_waits_between_them() -> None:
    bounds = estimate(read_plan(DIAMOND))
    assert bounds.critical_path == ("top", "right", "join")
    assert bounds.most_minutes == (3 * 4 + (5 + 10) / 60) + (2 * 6 + 30 / 60) + 1


def test_the_most_money_is_every_attempts_budget_of_claude_tasks() -> None:
    assert estimate(read_plan(DIAMOND)).most_usd == 1 * 2 + 2 * 5 + 3 * 1


def test_waits_stop_doubling_at_ten_minutes() -> None:
    plan = read_plan(
        "name: x\ntasks: [{code: T1, name: x, timeout_minutes: 1, retry: {max_attempts: 4, backoff_s: 400}}]"
    )
    assert estimate(plan).most_minutes == 4 + (400 + 600 + 600) / 60


def test_a_chain_of_thousands_has_a_path_of_thousands() -> None:
    lines = ["name: x", "tasks:", "- {code: T0, name: x}"]
    lines += [f"- {{code: T{number}, name: x, depends_on: [T{number - 1}]}}" for number in range(1, 5000)]
    bounds = estimate(read_plan("\n".join(lines)))
    assert len(bounds.layers) == 5000
    assert bounds.critical_path == tuple(f"T{number}" for number in range(5000))
