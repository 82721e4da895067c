"""A plan in its project: whom tasks may be given to, and who is whose."""

from __future__ import annotations

import msgspec
import pytest

from services.planner.agents import Team
from services.planner.estimate import estimate
from services.planner.faults import PlanFaults
from services.planner.parse import read_plan
from services.planner.validate import validate
from shared.spec import DEFAULT_MODEL, AgentSpec, PlanSettings, PlanSpec, ProjectAgent, SdkType, digest, encode_spec


def agent(
    slug: str, name: str, type_name: str, sdk_type: SdkType | None = "claude", unusable: str = ""
) -> ProjectAgent:
    spec = AgentSpec(
        sdk_type=sdk_type,
        model="m" if sdk_type == "claude" else None,
        command=("x",) if sdk_type == "command" else (),
        agent_id=f"id of {slug}",
        agent_type_id=f"type of {slug}",
    )
    return ProjectAgent(slug=slug, name=name, type_name=type_name, spec=spec, unusable=unusable)


CODER, TESTER = agent("coder", "Ada", "Big"), agent("tester", "Bob", "Small")
SHELL = agent("shell", "Ada", "Program", "command")
TEAM = Team(agents=(CODER, TESTER, SHELL))
PAULA, PETER = agent("paula", "Paula", "Person", None), agent("peter", "Peter", "Person", None)
PEOPLE = Team(mode="manual", agents=(PAULA, PETER))


def plan(assignee: object = None, **fields: object) -> dict[str, object]:
    task = {"code": "T1", "name": "x"} | ({"assignee": assignee} if assignee is not None else {})
    return {"name": "Plan", "tasks": [task], **fields}


def faults(data: object, team: Team) -> list[str]:
    with pytest.raises(PlanFaults) as caught:
        validate(data, team)
    return [str(fault) for fault in caught.value.faults]


def who(spec: PlanSpec) -> str:
    return spec.tasks[0].assignee


@pytest.mark.parametrize(
    ("wanted", "found"),
    [("coder", "coder"), ("CODER", "coder"), (" tester ", "tester"), ("bob", "tester"), ("Big", "coder"),
     ("small", "tester"), ("command", "shell"), ("Program", "shell")],
)  # fmt: skip
def test_an_assignee_is_a_slug_else_a_name_else_a_type(wanted: str, found: str) -> None:
    spec = validate(plan(wanted), TEAM)
    assert who(spec) == found
    known = {one.slug: one.spec for one in TEAM.agents}
    assert spec.agents == {found: known[found]}


@pytest.mark.parametrize(
    ("wanted", "fault"),
    [
        ("Ada", 'task T1, assignee: 2 agents have the name "Ada"; name one: "coder", "shell"'),
        ("claude", 'task T1, assignee: 2 agents are of the type "claude"; name one: "coder", "tester"'),
        ("codre", 'task T1, assignee: "codre" is not an agent of this project; did you mean "coder"?'),
        ("zzz", 'task T1, assignee: "zzz" is not an agent of this project; it has "coder", "tester", "shell"'),
        (None, 'task T1, assignee: is missing: the project has 3 agents; name one: "coder", "tester", "shell"'),
    ],
)
def test_what_is_not_one_agent_is_a_fault(wanted: str | None, fault: str) -> None:
    assert faults(plan(wanted), TEAM) == [fault]


def test_a_slug_comes_before_a_name_and_a_name_before_a_type() -> None:
    odd = Team(agents=(agent("a", "b", "c"), agent("b", "c", "a"), agent("c", "a", "b")))
    assert [who(validate(plan(name), odd)) for name in "abc"] == ["a", "b", "c"]
    named = Team(agents=(agent("x", "claude", "t"), agent("y", "z", "t")))
    assert who(validate(plan("claude"), named)) == "x"


def test_the_only_agent_needs_no_naming() -> None:
    assert who(validate(plan(), Team(agents=(TESTER,)))) == "tester"
    assert who(validate(plan(), Team(mode="manual", agents=(PAULA,)))) == "paula"


def test_a_project_without_agents_has_claude_only_in_auto_mode() -> None:
    spec = validate(plan(), Team())
    assert spec.agents == {"claude": AgentSpec(sdk_type="claude", model=DEFAULT_MODEL)}
    nobody = Team(mode="manual")
    assert faults(plan(), nobody) == ["task T1, assignee: is missing: the project has no agents yet; add some to it"]
    assert faults(plan("claude"), nobody) == [
        'task T1, assignee: "claude" is not an agent of this project; it has none yet'
    ]


def test_an_agent_of_the_other_mode_is_a_fault() -> None:
    mixed = (CODER, PAULA)
    assert faults(plan("paula"), Team(agents=mixed)) == [
        'task T1, assignee: "paula" is a manual agent: this project is auto and takes only auto ones'
    ]
    assert faults(plan("coder"), Team(mode="manual", agents=mixed)) == [
        'task T1, assignee: "coder" is an automatic agent: this project is manual and takes only manual ones'
    ]


def test_an_unusable_agent_is_a_fault_that_says_why() -> None:
    gone = Team(agents=(agent("old", "Old", "t", unusable="expired on 2026-01-01"), CODER))
    assert faults(plan("old"), gone) == [
        'task T1, assignee: "old" can\'t be given a task now: it expired on 2026-01-01'
    ]
    assert who(validate(plan("coder"), gone)) == "coder"


def test_a_plan_s_own_agents_stand_beside_the_project_s() -> None:
    own = {"mine": {"sdk_type": "command", "command": ["y"]}}
    spec = validate(plan("mine", agents=own), TEAM)
    assert spec.agents == {"mine": AgentSpec(sdk_type="command", command=("y",))}
    assert "2 agents are of the type" in faults(plan("command", agents=own), TEAM)[0]
    for taken in ("coder", "Coder"):
        same = faults(plan("tester", agents={taken: {"sdk_type": "claude"}}), TEAM)
        assert same == ['agents: the project has an agent "coder" already: call this one otherwise']
    assert faults(plan("paula", agents=own), PEOPLE) == [
        "agents: a manual project's plan can't declare agents: give the project the agents it needs"
    ]


@pytest.mark.parametrize("field", ["agent_id", "agent_type_id"])
def test_a_plan_s_own_agent_can_not_name_credentials(field: str) -> None:
    own = {"mine": {"sdk_type": "claude", field: CODER.spec.agent_type_id}}
    (fault,) = faults(plan("mine", agents=own), TEAM)
    assert fault.startswith(f"agents.mine.{field}: unknown field")
    (manual,) = faults(plan("mine", agents={"mine": {"sdk_type": None}}), TEAM)
    assert manual.startswith("agents.mine.sdk_type: is missing")


def test_a_half_plan_s_agent_id_is_an_assignee() -> None:
    text = '{"plan_name": "x", "tasks": [{"task_code": 1, "task_name": "y", "agent_id": "Bob", "predecessors": []},]}'
    assert who(read_plan(text, TEAM)) == "tester"
    half = {"plan_name": "x", "tasks": [{"task_code": "1", "task_name": "y", "agent_id": "nobody"}]}
    assert faults(half, TEAM)[0].startswith('task 1, agent_id: "nobody" is not an agent of this project')


def test_what_a_plan_leaves_to_its_project_stays_open() -> None:
    spec = validate(plan("coder"), TEAM)
    assert (spec.max_parallel, spec.budget_usd, spec.tasks[0].timeout_minutes) == (None, None, None)
    spec = validate(plan("coder", max_parallel=3, budget_usd=12.5), TEAM)
    assert (spec.max_parallel, spec.budget_usd) == (3, 12.5)


def test_a_spec_without_the_project_s_agents_reads_back_as_itself() -> None:
    data = plan("Bob", agents={"mine": {"sdk_type": "claude"}})
    spec = validate(data, TEAM)
    shown = validate(data, TEAM).agents["mine"]
    written = encode_spec(msgspec.structs.replace(spec, agents={"mine": shown}))
    assert digest(read_plan(written, TEAM)) == digest(spec)


def test_a_plan_s_budget_and_its_project_s_bound_what_it_can_cost() -> None:
    spec = read_plan("name: x\nbudget_usd: 7\ntasks: [{code: T1, name: x, budget_usd: 4, retry: {max_attempts: 3}}]")
    assert estimate(spec).most_usd == 7
    assert estimate(spec, PlanSettings(budget_usd=3)).most_usd == 3
    assert estimate(spec, PlanSettings(budget_usd=300)).most_usd == 7
    assert estimate(spec, PlanSettings(task_timeout_minutes=2)).most_minutes == 3 * 2 + 15 / 60
