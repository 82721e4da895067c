"""Whatever goes in: a plan or its faults come out, and a plan that was accepted keeps every promise."""

import json
from typing import Any

import msgspec
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from services.planner.estimate import estimate
from services.planner.faults import PlanFaults
from services.planner.graph import cycles, layers
from services.planner.parse import read_plan
from services.planner.validate import validate
from shared.spec import AgentSpec, PlanSpec, Retry, TaskSpec, encode_spec

WORDS = ["name", "tasks", "code", "task_code", "plan_name", "agents", "depends_on", "assignee", "T1", "T2", "x"]
WORDS += ["sdk_type", "claude", "command", "retry", "max_attempts", "agent_id", "title", "predecessors", "description"]
SNIPPETS = [
    "{",
    "}",
    "[",
    "]",
    ":",
    ": ",
    ",",
    "- ",
    "\n",
    "  ",
    '"',
    "'",
    "&a ",
    "*a",
    "!x ",
    "|",
    ">",
    "#",
    "---\n",
    "```\n",
]
SNIPPETS += [
    "```json\n",
    "%",
    "\t",
    "1",
    "-1",
    "1e3",
    "null",
    "NaN",
    "true",
    "~",
    "? ",
    "\r",
    "\\",
    "\ufeff",
    "\ud800",
    "é",
]

texts = st.one_of(st.text(max_size=200), st.lists(st.sampled_from(WORDS + SNIPPETS), max_size=60).map("".join))
leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(WORDS),
    st.binary(max_size=3),
)
keys = st.one_of(st.sampled_from(WORDS), st.text(max_size=5), st.integers(), st.none())
data = st.recursive(
    leaves,
    lambda inner: st.one_of(st.lists(inner, max_size=5), st.dictionaries(keys, inner, max_size=6)),
    max_leaves=40,
)
codes = st.sampled_from(["T1", "T2", "T3", "t1", 4, "_x", "a b", "", None])
tasks_near_valid = st.fixed_dictionaries(
    {"code": codes},
    optional={
        "name": st.one_of(st.text(max_size=5), leaves),
        "depends_on": st.one_of(st.lists(codes, max_size=3), leaves),
        "assignee": st.one_of(st.sampled_from(["claude", "sh", "command", "SH"]), leaves),
        "retry": st.one_of(st.dictionaries(st.sampled_from(["max_attempts", "backoff_s", "x"]), leaves), leaves),
        "timeout_minutes": leaves,
        "requires_approval": leaves,
        "allow_no_change": leaves,
        "verify_rounds": leaves,
        "expected_output": leaves,
    },
)
plans_near_valid = st.fixed_dictionaries(
    {"name": st.just("x"), "tasks": st.lists(tasks_near_valid, max_size=4)},
    optional={
        "agents": st.one_of(st.just({"sh": {"sdk_type": "command", "command": ["x"]}}), data),
        "setup": data,
        "network_allow": data,
        "max_parallel": leaves,
    },
)

lines = st.text(st.characters(categories=["L", "N", "P", "S", "Zs"]), min_size=1, max_size=12).filter(
    lambda text: text.strip()
)
lines = st.one_of(
    lines, st.sampled_from(["no", "on", "1e3", "0123", "2026-01-31", "null", "~", "true", "1:30", "- a", "a: b"])
)
long_texts = st.text(st.characters(exclude_categories=["Cs", "Cc"], include_characters="\n\t"), max_size=40)
agents = st.one_of(
    st.builds(AgentSpec, sdk_type=st.just("claude"), model=st.sampled_from(["claude-sonnet-4-5-20250929", "m:1/2"])),
    st.builds(AgentSpec, sdk_type=st.just("command"), command=st.lists(lines, min_size=1, max_size=3).map(tuple)),
)


@st.composite
def plans(draw: st.DrawFn) -> PlanSpec:
    crew = draw(st.dictionaries(lines, agents, min_size=1, max_size=3))
    crew = {name: agent for name, agent in crew.items() if name.isprintable() and name == name.casefold()} or {
        "sh": AgentSpec(sdk_type="command", command=("x",))
    }
    count = draw(st.integers(1, 8))
    order = draw(st.permutations(range(count)))
    tasks = []
    for place, number in enumerate(order):
        needed = draw(st.sets(st.sampled_from(order[:place]), max_size=3)) if place else set()
        tasks.append(
            TaskSpec(
                code=f"T{number}",
                name=draw(lines),
                assignee=draw(st.sampled_from(sorted(crew))),
                description=draw(long_texts),
                depends_on=tuple(f"T{other}" for other in sorted(needed)),
                expected_output=draw(st.sampled_from([None, "src/a b.py", "no"])),
                timeout_minutes=draw(st.floats(0.01, 1440)),
                verify=tuple(draw(st.lists(lines, max_size=2))),
                retry=draw(st.none() | st.builds(Retry, max_attempts=st.integers(1, 20), backoff_s=st.floats(0, 600))),
                verify_rounds=draw(st.none() | st.integers(0, 10)),
                requires_approval=draw(st.booleans()),
                allow_no_change=draw(st.booleans()),
                budget_usd=draw(st.floats(0.01, 1000)),
            )
        )
    return PlanSpec(
        name=draw(lines),
        tasks=tuple(draw(st.permutations(tasks))),
        agents=crew,
        goal=draw(long_texts),
        max_parallel=draw(st.integers(1, 1000)),
        setup=tuple(draw(st.lists(lines, max_size=2))),
        env_allow=tuple(draw(st.lists(st.sampled_from(["PATH", "no", "_X1"]), max_size=2))),
        network_allow=tuple(draw(st.sets(st.sampled_from(["a.example", "*.b.example:22", "[::1]:80"])))),
    )


def check_promises(plan: PlanSpec) -> None:
    needs = {task.code: task.depends_on for task in plan.tasks}
    assert len({code.casefold() for code in needs}) == len(plan.tasks)
    order, stuck = layers(needs)
    assert not stuck
    assert sum(map(len, order)) == len(plan.tasks)
    assert {task.assignee for task in plan.tasks} <= plan.agents.keys()
    assert msgspec.json.decode(encode_spec(plan), type=PlanSpec) == plan
    assert estimate(plan).most_minutes > 0


def outcome(read: Any, given_in: object) -> None:
    try:
        plan = read(given_in)
    except PlanFaults as faults:
        assert faults.faults
        assert all(line.isprintable() for line in str(faults).split("\n"))
    else:
        check_promises(plan)


@given(texts)
def test_any_text_gives_a_plan_or_its_faults(text: str) -> None:
    outcome(read_plan, text)


@given(st.binary(max_size=200))
def test_any_bytes_give_a_plan_or_its_faults(octets: bytes) -> None:
    outcome(read_plan, octets)


@given(st.one_of(data, plans_near_valid))
@settings(max_examples=400)
def test_any_data_gives_a_plan_or_its_faults(value: object) -> None:
    outcome(validate, value)


@given(plans_near_valid)
def test_yaml_that_is_almost_a_plan_gives_a_plan_or_its_faults(value: dict[str, Any]) -> None:
    outcome(read_plan, yaml.safe_dump(value, allow_unicode=True))


def rendered(plan: PlanSpec) -> dict[str, Any]:
    built: dict[str, Any] = msgspec.to_builtins(plan)
    return built


@given(plans())
def test_a_plan_written_as_yaml_reads_back_the_same(plan: PlanSpec) -> None:
    check_promises(plan)
    for allow_unicode in (True, False):
        assert read_plan(yaml.safe_dump(rendered(plan), allow_unicode=allow_unicode, sort_keys=False)) == plan
    assert read_plan(yaml.safe_dump(rendered(plan), default_flow_style=True)) == plan


@given(plans())
def test_a_plan_written_as_json_reads_back_the_same(plan: PlanSpec) -> None:
    assert read_plan(encode_spec(plan)) == plan
    assert read_plan(json.dumps(rendered(plan), indent=1)) == plan
    assert read_plan("```json\n" + json.dumps(rendered(plan), indent=1, ensure_ascii=False) + "\n```") == plan


@given(plans())
def test_validating_a_plan_again_changes_nothing(plan: PlanSpec) -> None:
    assert validate(rendered(plan)) == plan


@given(st.dictionaries(st.sampled_from("ABCDEFG"), st.sets(st.sampled_from("ABCDEFG")), min_size=1))
def test_a_cycle_is_found_exactly_where_no_order_exists(edges: dict[str, set[str]]) -> None:
    graph = {node: sorted(needed & edges.keys()) for node, needed in edges.items()}
    _, stuck = layers(graph)
    found = cycles(graph)
    assert bool(found) == bool(stuck)
    for cycle in found:
        assert len(set(cycle)) == len(cycle)
        for place, node in enumerate(cycle):
            assert cycle[(place + 1) % len(cycle)] in graph[node]
