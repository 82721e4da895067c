"""Templates: slots and inputs filled in as data, with everything that is wrong named at once."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.planner.agents import Team
from services.planner.faults import PlanFaults
from services.planner.parse import parse_text, read_plan
from services.planner.plantext import plan_text
from services.planner.template import answer, check, render
from services.planner.template_values import Given
from services.planner.tree import Plain
from shared.requests import RenderRequest, TemplateInput, TemplateRole, TemplateText
from shared.spec import PLAN_MAX_BYTES, AgentSpec, PlanSpec, ProjectAgent

TEXT = """
name: "{{title}}"
goal: |
  {{issue}}

  (as {{title}} says)
max_parallel: "{{width}}"
tasks:
- code: do
  name: Do {{title}}
  assignee: agent-1
  description: "{{issue}}"
  budget_usd: 2.5
  verify: ["{{test}}", "make {{target}}"]
  allow_no_change: "{{may_do_nothing}}"
- code: look
  assignee: agent-2
  reviews: do
  description: "Look at\\n{{issue}}"
- {code: decide, name: "Decide", depends_on: [look], max_review_rounds: "{{rounds}}", fixer: agent-1}
"""
ROLES = (TemplateRole(slot="agent-1", description="writes"), TemplateRole(slot="agent-2"))
INPUTS = (
    TemplateInput(name="title"),
    TemplateInput(name="issue", description="what is wrong"),
    TemplateInput(name="width", type="number", required=False),
    TemplateInput(name="test", required=False),
    TemplateInput(name="target", type="choice", choices=("test", "check"), default="check"),
    TemplateInput(name="may_do_nothing", type="boolean", default=False),
    TemplateInput(name="rounds", type="number", default=3),
)
TEMPLATE = TemplateText(text=TEXT, roles=ROLES, inputs=INPUTS)
AGENTS = {"agent-1": "ann", "agent-2": "bob"}
NEEDED: dict[str, Given] = {"title": "Sort", "issue": "It is not sorted."}


def team() -> Team:
    spec = AgentSpec(sdk_type="command", command=("true",))
    slugs = ("ann", "bob", "cyd")
    return Team(agents=tuple(ProjectAgent(slug=s, name=s, type_name="sh", spec=spec) for s in slugs))


def template(text: str = TEXT, **fields: Any) -> TemplateText:
    return msgspec.structs.replace(TEMPLATE, text=text, **fields)


def small(task: str = "", plan: str = "", *inputs: TemplateInput, slots: tuple[str, ...] = ("a",)) -> TemplateText:
    roles = tuple(TemplateRole(slot=slot) for slot in slots)
    text = f"name: x\n{plan}\ntasks:\n- {{code: T1, name: x, assignee: a{task}}}\n"
    return TemplateText(text=text, roles=roles, inputs=inputs)


def plan(inputs: dict[str, Given], of: TemplateText = TEMPLATE) -> PlanSpec:
    return read_plan(render(of, AGENTS, inputs), team())


def faults(of: TemplateText, roles: dict[str, str], inputs: dict[str, Given]) -> dict[str | None, str]:
    with pytest.raises(PlanFaults) as stopped:
        render(of, roles, inputs)
    return {fault.field: fault.message for fault in stopped.value.faults}


def told(of: TemplateText) -> list[tuple[str | None, str | None, str]]:
    return [(fault.task, fault.field, fault.message) for fault in check(of)]


def test_slots_become_agents_and_placeholders_what_is_given() -> None:
    made = plan({**NEEDED, "width": 2.0, "test": "make -k", "may_do_nothing": True, "rounds": 5})
    do, look, decide = made.tasks
    assert (made.name, made.max_parallel) == ("Sort", 2)
    assert made.goal.startswith("It is not sorted.\n\n(as Sort says)\n\nWho has which part:\n- ann: writes\n\n")
    assert made.goal.endswith(
        "- issue: It is not sorted.\n- width: 2\n- test: make -k\n- target: check\n- may_do_nothing: true\n- rounds: 5"
    )
    assert (do.assignee, look.assignee, decide.assignee, decide.fixer) == ("ann", "bob", "", "ann")
    assert (do.name, do.budget_usd, do.allow_no_change) == ("Do Sort", 2.5, True)
    assert do.verify == ("make -k", "make check")
    assert (look.description, decide.max_review_rounds) == ("Look at\nIt is not sorted.", 5)


def test_an_optional_input_that_is_not_given_leaves_its_value_out() -> None:
    for blank in ({}, {"test": "  \n"}):
        made = plan({**NEEDED, **blank})
        assert (made.max_parallel, made.tasks[0].verify, made.tasks[2].max_review_rounds) == (None, ("make check",), 3)


def test_everything_that_is_wrong_with_what_is_given_is_named_at_once() -> None:
    found = faults(
        TEMPLATE,
        {"agent-1": "ann", "agent1": "bob"},
        {"issue": " \n", "rounds": "three", "may_do_nothing": 1.0, "target": "tset", "width": True, "tilte": "x"},
    )
    assert found == {
        "roles.agent1": 'the template has no such slot; did you mean "agent-1"?',
        "roles.agent-2": "is missing: name an agent",
        "inputs.tilte": 'the template has no such input; did you mean "title"?',
        "inputs.title": "is missing: a text is wanted",
        "inputs.issue": "is missing: a text is wanted (what is wrong)",
        "inputs.width": "expected a number, found true",
        "inputs.target": '"tset" is none of its choices: "test", "check"',
        "inputs.may_do_nothing": "expected true or false, found the number 1.0",
        "inputs.rounds": 'expected a number, found the text "three"',
    }


@pytest.mark.parametrize("second", ["ann", "ANN"])
def test_an_agent_can_not_have_two_slots(second: str) -> None:
    found = faults(TEMPLATE, {"agent-1": "ann", "agent-2": second}, NEEDED)
    assert found == {"roles.agent-2": f'"{second}" has the slot agent-1 already: each needs its own'}


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_is_refused_as_one(number: float) -> None:
    assert list(faults(TEMPLATE, AGENTS, {**NEEDED, "rounds": number})) == ["inputs.rounds"]


@pytest.mark.parametrize("text", ["a\x00b", "a\x1b[31mb", "\ud800", "x" * (256 * 1024 + 1)])
def test_a_text_that_no_plan_can_hold_is_refused_by_its_input(text: str) -> None:
    assert list(faults(TEMPLATE, AGENTS, {**NEEDED, "issue": text})) == ["inputs.issue"]


def test_a_long_input_that_stands_very_often_is_refused_before_it_is_written_out() -> None:
    of = template(TEXT.replace("{{issue}}", "{{issue}}" * 50_000))
    found = faults(of, AGENTS, {**NEEDED, "issue": "x" * 200_000})
    assert found == {None: f"with these inputs the plan would have more than {PLAN_MAX_BYTES:,} bytes"}


def test_an_input_that_holds_a_placeholder_stays_as_it_is() -> None:
    made = plan({"title": "{{issue}}", "issue": "{{title}} {{nothing}} {{agent-1}}"})
    assert made.name == "{{issue}}"
    assert made.tasks[0].description == "{{title}} {{nothing}} {{agent-1}}"


TRAPS = ["\n", "\n- ", "\n  ", ": ", " #", '"', "'", "{{title}}", "{{", "}}", "```\n", "\n---\n", "\n%TAG", "&a", "*a"]
TRAPS += [
    "!x",
    "|",
    ">",
    "tasks:",
    "\ncode: T9",
    "null",
    "~",
    "true",
    "12",
    "1e3",
    "\\",
    "\\n",
    "\u2028",
    "\u2029",
    "\x85",
]
TRAPS += ["\ufeff", "\ufffe", "\xa0", "\t", "\r", " ", "é", "\U0001f600", "$(reboot)", "[", "]", ",", "? ", "- ", "{"]
texts = st.one_of(st.text(max_size=60), st.lists(st.sampled_from(TRAPS), min_size=1, max_size=12).map("".join))


def shape(tree: object) -> object:
    """Everything of it but what its texts say."""
    if isinstance(tree, dict):
        return {key: shape(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [shape(item) for item in tree]
    return "text" if isinstance(tree, str) else tree


def wordless(spec: PlanSpec) -> PlanSpec:
    tasks = tuple(msgspec.structs.replace(task, name="", description="") for task in spec.tasks)
    return msgspec.structs.replace(spec, name="", goal="", tasks=tasks)


@settings(deadline=None)
@given(title=texts, issue=texts)
def test_no_input_text_changes_the_structure_of_the_plan(title: str, issue: str) -> None:
    try:
        text = render(TEMPLATE, AGENTS, {"title": title, "issue": issue})
    except PlanFaults as stopped:
        assert {fault.field for fault in stopped.faults} <= {"inputs.title", "inputs.issue"}
        return
    harmless, tree = render(TEMPLATE, AGENTS, NEEDED), parse_text(text)
    assert shape(tree) == shape(parse_text(harmless))
    assert isinstance(tree, dict)
    assert tree["tasks"][0]["description"] == issue.replace("\r\n", "\n").replace("\r", "\n").strip("\n")
    try:
        made = read_plan(text, team())
    except PlanFaults as stopped:  # a name of two lines, say
        assert {fault.field for fault in stopped.faults} <= {"name", "goal", "description"}
    else:
        assert wordless(made) == wordless(read_plan(harmless, team()))


scalars = st.one_of(
    texts,
    st.sampled_from(["1", "-2.5", "+.5", "1.", "1e9", "true", "FALSE", "-", ".", "+"]).map(Plain),
    st.none(),
    st.booleans(),
    st.integers(-(10**18), 10**18),
)
trees = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(texts, inner, max_size=4)),
    max_leaves=20,
)


@settings(deadline=None)
@given(st.dictionaries(texts, trees, min_size=1, max_size=4))
def test_a_tree_that_is_written_reads_back_as_the_same_tree(tree: dict[str, object]) -> None:
    assert comparable(parse_text(plan_text(tree))) == comparable(tree)


PLAIN = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e\d+)?|true|FALSE|false")


def comparable(tree: object) -> object:
    """As its fields read it: what is unquoted and a number or a yes or no is that, everything else a text."""
    if isinstance(tree, dict):
        return {key: comparable(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [comparable(item) for item in tree]
    if isinstance(tree, bool | int):
        return ("plain", str(tree).lower())
    return ("plain", str(tree)) if isinstance(tree, Plain) and PLAIN.fullmatch(tree) else tree


def test_a_template_is_valid_with_all_inputs_and_with_the_needed_ones_alone() -> None:
    assert check(TEMPLATE) == ()
    needs_test = template(inputs=tuple(one for one in INPUTS))
    assert check(needs_test) == ()
    optional_name = TemplateInput(name="n", required=False)
    of = TemplateText(text='name: "{{n}}"\ntasks: [{code: a, name: b}]', inputs=(optional_name,))
    assert told(of) == [(None, "name", "is missing")]


def test_what_is_wrong_with_a_template_is_named_with_its_line() -> None:
    of = template(
        TEXT.replace("{{title}}", "{{tilte}}")
        .replace("assignee: agent-2", "assignee: agent-22")
        .replace("reviews: do", "reviews: nothing")
        .replace("make {{target}}", "make {{target}} {{test}}")
    )
    found = {(fault.task, fault.field): (fault.line, fault.message) for fault in check(of)}
    assert found[None, "name"] == (2, '{{tilte}} is no input of this template; did you mean "title"?')
    assert found[None, "roles.agent-2"][1] == "no task is given to this slot: use it or remove it"
    assert found[None, "inputs.title"][1] == "{{title}} stands nowhere: use it or remove it"
    assert found["look", "assignee"] == (17, '"agent-22" is no slot of this template; did you mean "agent-2"?')
    assert found["look", "reviews"][1].startswith('"nothing" is not a task of this plan')
    assert "not a part of one" in found["do", "verify"][1]


@pytest.mark.parametrize(
    ("task", "field"),
    [
        (', code: "{{i}}"', "code"),
        (', depends_on: ["x", "{{i}}"]', "depends_on"),
        (', reviews: "{{i}}"', "reviews"),
        (', fixer: "{{i}}"', "fixer"),
        (', task_code: "{{i}}"', "task_code"),
    ],
)
def test_an_input_can_not_say_which_tasks_there_are(task: str, field: str) -> None:
    code = "" if "code" in field else "code: T1, "
    text = f'name: x\ngoal: "{{{{i}}}}"\ntasks:\n- {{{code}name: x, assignee: a{task}}}\n'
    of = TemplateText(text=text, roles=(TemplateRole(slot="a"),), inputs=(TemplateInput(name="i"),))
    assert field in [told_field for _, told_field, _ in told(of)]
    assert field in faults(of, {"a": "ann"}, {"i": "x"})


@pytest.mark.parametrize(
    ("of", "field", "message"),
    [
        (small(plan="goal: {{i}}"), None, "needs quotes"),
        (small("", 'goal: "{{ i }} {{i}}"', TemplateInput(name="i")), "goal", "without blanks"),
        (small("", '"{{i}}": "{{i}}"', TemplateInput(name="i")), "{{i}}", "only values can"),
        (small("", "", TemplateInput(name="i")), "inputs.i", "stands nowhere"),
        (small(slots=("a", "A")), "roles", "differ in more than case"),
        (small(slots=("a", "b c")), "roles", "is no name for it"),
        (small("", "", TemplateInput(name="i", type="choice")), "inputs.i", "needs its choices"),
        (small("", "", TemplateInput(name="i", choices=("x",))), "inputs.i", "a text has no choices"),
        (small("", "", TemplateInput(name="i", type="choice", choices=("x", "x"))), "inputs.i", "each there once"),
        (small("", "", TemplateInput(name="i", type="number", default="x")), "inputs.i", "its default does not fit"),
        (small("", "agents: {a: {sdk_type: claude}}"), "roles.a", "both a slot and an agent"),
        (small("", 'setup: ["pip install {{i}}"]', TemplateInput(name="i")), "setup", "not a part of one"),
        (TemplateText(text="name: x\ntasks: [{code: T1}]", roles=ROLES), "assignee", "is missing: name a slot"),
        (TemplateText(text="- x"), None, "a plan is a mapping"),
        (TemplateText(text=""), None, "it is empty"),
        (template(inputs=tuple(TemplateInput(name=f"i{n}") for n in range(101))), "inputs", "101 are too many"),
    ],
)  # fmt: skip
def test_a_text_that_is_no_template_says_why(of: TemplateText, field: str | None, message: str) -> None:
    assert any(told_field == field and message in words for _, told_field, words in told(of)), told(of)


def test_braces_that_are_no_placeholder_stay_as_they_are() -> None:
    of = small("", 'goal: "${{ github.sha }} {{}} {{a b}} {x} {{i}}"', TemplateInput(name="i"))
    assert check(of) == ()
    made = read_plan(render(of, {"a": "ann"}, {"i": "!"}), team())
    assert made.goal == "${{ github.sha }} {{}} {{a b}} {x} !\n\nWhat was said for this plan:\n- i: !"


def test_a_template_may_be_json_or_in_halfs_words() -> None:
    text = '{"plan_name": "{{n}}", "tasks": [{"task_code": "T1", "title": "x", "agent_id": "a", "predecessors": []}]}'
    of = TemplateText(text=text, roles=(TemplateRole(slot="a"),), inputs=(TemplateInput(name="n"),))
    assert check(of) == ()
    made = read_plan(render(of, {"a": "ann"}, {"n": "12"}), team())
    assert (made.name, made.tasks[0].assignee) == ("12", "ann")


def test_the_planner_answers_with_a_text_or_with_every_fault() -> None:
    good = answer(RenderRequest(template=TEMPLATE, roles=AGENTS, inputs=NEEDED))
    assert (read_plan(good.text, team()).name, good.faults) == ("Sort", ())
    bad = answer(RenderRequest(template=TEMPLATE))
    assert (bad.text, len(bad.faults)) == ("", 4)
    assert bad.faults[0].message == "roles.agent-1: is missing: name an agent (writes)"
    assert answer(RenderRequest(template=TEMPLATE, check_only=True)) == answer(
        RenderRequest(template=template(), check_only=True)
    )
    assert answer(RenderRequest(template=template("- x"), check_only=True)).faults
