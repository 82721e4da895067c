"""Reviews and decisions in a plan: what their fields mean, and which of them could never come to an end."""

from __future__ import annotations

import msgspec
import pytest

from services.planner.edit import edit_task
from services.planner.estimate import estimate
from services.planner.faults import PlanFaults
from services.planner.parse import read_plan
from services.planner.validate import validate
from shared.requests import EditRequest
from shared.spec import AgentSpec, PlanSpec, TaskSpec
from tests.planner.test_team import CODER, PAULA, PEOPLE, PETER, SHELL, TEAM, TESTER

LOOP = """
name: Loop
tasks:
- {code: work, name: Work, assignee: coder}
- {code: ra, name: First, assignee: tester, reviews: work}
- {code: rb, name: Second, assignee: coder, reviews: work, depends_on: [work]}
- {code: ok, name: Sound, depends_on: [ra, rb], max_review_rounds: 3, fixer: Bob}
- {code: next, name: Next, assignee: shell, depends_on: [ok]}
"""


def task(code: str, **fields: object) -> dict[str, object]:
    return {"code": code, "name": code, "assignee": "coder", **fields}


def decision(code: str, *reviews: str, **fields: object) -> dict[str, object]:
    return {"code": code, "name": code, "depends_on": list(reviews), "max_review_rounds": 2, **fields}


def loop(**of_decision: object) -> list[dict[str, object]]:
    return [task("w"), task("r", reviews="w"), decision("d", "r", **of_decision)]


def faults(*tasks: dict[str, object], **fields: object) -> list[str]:
    with pytest.raises(PlanFaults) as caught:
        validate({"name": "x", "tasks": list(tasks), **fields}, TEAM)
    return [str(fault) for fault in caught.value.faults]


def accepted(*tasks: dict[str, object], **fields: object) -> PlanSpec:
    return validate({"name": "x", "tasks": list(tasks), **fields}, TEAM)


def test_a_loop_reads_with_everything_that_goes_without_saying() -> None:
    spec = read_plan(LOOP, TEAM)
    tasks = {one.code: one for one in spec.tasks}
    assert tasks["ra"].depends_on == tasks["rb"].depends_on == ("work",)
    ok = tasks["ok"]
    assert (ok.assignee, ok.fixer, ok.max_review_rounds, ok.is_decision) == ("", "tester", 3, True)
    assert set(spec.agents) == {"coder", "tester", "shell"}


def test_a_loop_that_was_read_reads_again_the_same() -> None:
    own = "agents: {coder: {sdk_type: claude}, bob: {sdk_type: claude}, shell: {sdk_type: command, command: [make]}}"
    spec = read_plan(LOOP.replace("tester", "bob") + own)
    assert validate(msgspec.to_builtins(spec)) == spec


def test_a_fixer_comes_with_its_agent_though_nobody_else_has_it() -> None:
    assert accepted(*loop(fixer="tester")).agents["tester"] == TESTER.spec


def test_people_review_too() -> None:
    tasks = [task("w", assignee="paula"), task("r", assignee="peter", reviews="w"), decision("d", "r", fixer="peter")]
    spec = validate({"name": "x", "tasks": tasks}, PEOPLE)
    assert spec.agents == {"paula": PAULA.spec, "peter": PETER.spec}


def test_a_review_needs_no_decision_and_work_may_go_on_beside_one() -> None:
    accepted(task("w"), task("r", reviews="w"), task("next", depends_on=["w", "r"]))


NOBODY = "nobody does a decision, so this means nothing: set it where the work is"


@pytest.mark.parametrize(
    ("tasks", "fault"),
    [
        ([task("w"), task("r", reviews="x")], 'task r, reviews: "x" is not a task of this plan'),
        ([task("w"), task("r", reviews="r")],
         "task r, reviews: the task reviews itself: name the task whose work it judges"),
        ([task("w"), task("v"), task("r", reviews="w", depends_on=["w", "v"])],
         "task r, depends_on: a review waits for the work that it judges and for nothing else: write [w], or leave it "
         "out"),
        ([task("w"), task("r", reviews="w", depends_on=[])],
         "task r, depends_on: a review waits for the work that it judges and for nothing else: write [w], or leave it "
         "out"),
        ([*loop(), task("r2", reviews="d")],
         "task r2, reviews: d is a decision, which has no work that could be reviewed"),
        ([task("w"), task("r", reviews="w"), task("r2", reviews="r")],
         "task r2, reviews: r is a review itself: review the work that it judges"),
        ([task("w"), task("r", reviews="w", verify=["make"])],
         "task r, verify: a review changes no file, so there is nothing to verify"),
        ([task("w"), task("r", reviews="w", expected_output="a")],
         "task r, expected_output: a review changes no file: its verdict is all that it delivers"),
        ([task("w"), task("r", reviews="w", allow_no_change=True)],
         "task r, allow_no_change: a review never changes a file"),
        ([task("w"), task("r", reviews="w", requires_approval=True)],
         "task r, requires_approval: a review changes no file that a person could accept; ask for that where the work "
         "is"),
        ([task("w", fixer="tester")], "task w, fixer: only a decision has one: a task with max_review_rounds"),
        (loop(fixer="nobody"),
         'task d, fixer: "nobody" is not an agent of this project; it has "coder", "tester", "shell"'),
        (loop(assignee="coder"),
         "task d, assignee: nobody does a decision, its reviews make it: name whoever mends as fixer"),
        (loop(verify=["make"]), f"task d, verify: {NOBODY}"),
        (loop(budget_usd=1), f"task d, budget_usd: {NOBODY}"),
        (loop(retry={"max_attempts": 2}), f"task d, retry: {NOBODY}"),
        (loop(timeout_minutes=2), f"task d, timeout_minutes: {NOBODY}"),
        (loop(requires_approval=True), f"task d, requires_approval: {NOBODY}"),
        (loop(max_review_rounds=0), "task d, max_review_rounds: 0 is out of range: 1 to 20 rounds"),
        (loop(max_review_rounds=21), "task d, max_review_rounds: 21 is out of range: 1 to 20 rounds"),
        (loop(round=2), "task d, round: only Treadle itself sets it: leave it out"),
        ([task("w"), decision("d")],
         "task d, depends_on: is missing: the reviews that make the decision, tasks with reviews set"),
        ([*loop()[:2], decision("d", "w", "r")],
         'task d, depends_on: a decision waits for reviews only, and these are none: "w"'),
        ([*loop(), task("v"), task("q", reviews="v"), decision("e", "r", "q")],
         'task e, depends_on: a decision is about one task\'s work, and these reviews judge "w", "v"'),
        ([*loop(), task("q", reviews="w"), decision("e", "q")],
         "task e, depends_on: d decides about w already, and two decisions would have it mended twice at once: let one "
         "of them wait for all its reviews"),
        ([task("w", depends_on=["d"]), *loop()[1:]],
         "task w, depends_on: the tasks wait for one another: w → d → r → w"),
        (loop(reviews="w"), "task d, reviews: a task either reviews or decides: remove reviews or max_review_rounds"),
    ],
)  # fmt: skip
def test_what_could_not_come_to_an_end_is_told(tasks: list[dict[str, object]], fault: str) -> None:
    assert faults(*tasks) == [fault]


def test_mending_that_the_plans_budget_never_allows_is_told() -> None:
    tasks = [task("w", assignee="shell"), task("r", assignee="shell", reviews="w"), decision("d", "r", fixer="coder")]
    assert faults(*tasks, budget_usd=3) == [
        "budget_usd: the plan's budget_usd is 3, and task w may cost in its next round of reviews 5: "
        "lower a task's budget_usd, or raise the plan's"
    ]
    accepted(*tasks, budget_usd=5)


def test_a_bound_holds_with_every_round_that_a_decision_may_add() -> None:
    once: dict[str, object] = {"retry": {"max_attempts": 1}, "timeout_minutes": 10}
    tasks = [
        task("w", budget_usd=2, **once),
        task("r", reviews="w", budget_usd=1, **once),
        task("q", reviews="w", budget_usd=3, retry={"max_attempts": 1}, timeout_minutes=20),
        decision("d", "r", "q", max_review_rounds=3),
    ]
    bound = estimate(accepted(*tasks))
    assert bound.most_usd == (2 + 1 + 3) * 3
    assert bound.most_minutes == (10 + 20) * 3
    assert bound.critical_path == ("w", "q", "d")


REVIEW = TaskSpec(code="r-2", name="R", assignee="tester", depends_on=("fix-2",), reviews="fix-2", round=2)
DECISION = TaskSpec(code="d", name="D", assignee="", depends_on=("r",), max_review_rounds=2)


def edit(task: TaskSpec, agent: AgentSpec | None, **changes: object) -> tuple[TaskSpec | None, list[str]]:
    declared = {"coder": CODER.spec, "tester": TESTER.spec}
    request = EditRequest(
        task=task, agent=agent, changes=changes, mode="auto", agents=(*TEAM.agents, SHELL), declared=declared
    )
    reply = edit_task(request)
    assert reply.faults or reply.agent == agent or "assignee" in changes
    return reply.task, [fault.message for fault in reply.faults]


def test_an_edit_of_a_decision_changes_its_rounds_and_who_mends() -> None:
    assert edit(DECISION, None) == (DECISION, [])
    changed, none = edit(DECISION, None, max_review_rounds=5, fixer="Tester", description="why")
    assert none == []
    assert changed == msgspec.structs.replace(DECISION, max_review_rounds=5, fixer="tester", description="why")


def test_an_edit_of_a_review_keeps_its_round_and_its_work() -> None:
    changed, none = edit(REVIEW, TESTER.spec, description="look closer", assignee="coder")
    assert none == []
    assert changed == msgspec.structs.replace(REVIEW, description="look closer", assignee="coder")


@pytest.mark.parametrize(
    ("task", "agent", "changes", "fault"),
    [
        (REVIEW, TESTER.spec, {"reviews": "other"},
         "task r-2, reviews: can't be changed: plan it otherwise in a new plan"),
        (REVIEW, TESTER.spec, {"max_review_rounds": 2},
         "task r-2, max_review_rounds: makes a task a decision, and none can become one or cease to be one"),
        (DECISION, None, {"max_review_rounds": None},
         "task d, max_review_rounds: makes a task a decision, and none can become one or cease to be one"),
        (DECISION, None, {"round": 3}, "task d, round: only Treadle itself sets it: leave it out"),
        (DECISION, None, {"assignee": "coder"},
         "task d, assignee: nobody does a decision, its reviews make it: name whoever mends as fixer"),
        (DECISION, None, {"fixer": "shell"},
         'task d, fixer: "shell" is not an agent of this plan; it has "coder", "tester"'),
    ],
)  # fmt: skip
def test_an_edit_can_make_no_loop_that_has_no_end(
    task: TaskSpec, agent: AgentSpec | None, changes: dict[str, object], fault: str
) -> None:
    assert fault in edit(task, agent, **changes)[1]


def test_a_plan_that_runs_takes_in_no_agent_that_could_mend() -> None:
    request = EditRequest(
        task=DECISION,
        agent=None,
        changes={"fixer": "claude"},
        mode="auto",
        agents=TEAM.agents,
        declared={"shell": SHELL.spec},
    )
    [fault] = edit_task(request).faults
    assert fault.message == 'task d, fixer: the plan has no agent claude that could mend: it has "shell"'
