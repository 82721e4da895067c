"""Data → plan: each fault's words, all faults at once, and how fast."""

import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from services.planner.faults import FAULTS_MAX, FAULTS_PRINTED_MAX, Fault, PlanFaults
from services.planner.graph import cycles
from services.planner.parse import read_plan
from services.planner.validate import validate
from shared.spec import DEFAULT_MODEL, HOSTS_MAX, PLAN_MAX_BYTES, TASKS_MAX, AgentSpec, PlanSpec

PLANS = Path(__file__).parent / "plans"
KNOWN = (
    '"code", "name", "assignee", "description", "depends_on", "expected_output", "timeout_minutes", "verify", '
    '"retry", "verify_rounds", "requires_approval", "allow_no_change", "reviews", "max_review_rounds", '
    '"fixer", "budget_usd"'
)
AGENTS: dict[str, object] = {
    "coder": {"sdk_type": "claude"},
    "sh": {"sdk_type": "command", "command": ["sh", "-c", "true"]},
}


def plan_of(*tasks: object, **fields: object) -> dict[str, object]:
    return {"name": "Plan", "tasks": list(tasks), **fields}


def task(code: object = "T1", **fields: object) -> dict[str, object]:
    return {"code": code, "name": "Task", **fields}


def after(code: str, *needed: object, **fields: object) -> dict[str, object]:
    return task(code, depends_on=list(needed), **fields)


def faults_of(data: object) -> list[str]:
    with pytest.raises(PlanFaults) as caught:
        validate(data)
    return [str(fault) for fault in caught.value.faults]


def test_every_fault_of_a_file_is_named_at_once_in_the_files_order() -> None:
    with pytest.raises(PlanFaults) as caught:
        read_plan((PLANS / "faulty.yaml").read_bytes())
    assert str(caught.value).split("\n") == [
        'max_paralel: unknown field; did you mean "max_parallel"? (line 2)',
        'agents.coder.sdk_type: "claud" is no type of agent: one of "claude", "command"; '
        'did you mean "claude"? (line 4)',
        'agents.sh.command: is missing: the program and its arguments, such as ["sh", "-c", "…"] (line 5)',
        "task T1, depends_on: the tasks wait for one another: T1 → T3 → T1 (line 9)",
        'task t1, code: is used twice: T1 in line 7 and "t1"; codes must differ in more than case (line 10)',
        'task t1, assignee: "codr" is not an agent of this plan; did you mean "coder"? (line 11)',
        'task t1, depends_on: "T9" is there twice (line 12)',
        'task t1, depends_on: "T9" is not a task of this plan; did you mean "T3"? (line 12)',
        "task T3, timeout_minutes: 5000.0 is out of range: 0.01 to 1440 minutes (line 16)",
        'task T3, expected_output: "/etc/passwd" is not a path inside the repository: it is absolute (line 17)',
        'task ../x, code: "../x" is not safe: a code is letters, digits, "-" and "_", at most 63, '
        "beginning with a letter or digit (line 18)",
        'task ../x, verify: expected a list of commands, found the text "pytest -q"; '
        'write it as ["pytest -q"] (line 20)',
    ]
    assert caught.value.faults[3] == Fault("the tasks wait for one another: T1 → T3 → T1", "T1", "depends_on", 9)


UNSAFE = 'is not safe: a code is letters, digits, "-" and "_", at most 63, beginning with a letter or digit'


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        ([], 'a plan is a mapping with "name" and "tasks", found a list'),
        (None, 'a plan is a mapping with "name" and "tasks", found nothing'),
        ({"name": "x"}, "tasks: a plan needs at least one task"),
        ({"name": "x", "tasks": []}, "tasks: a plan needs at least one task"),
        ({"name": "x", "tasks": {"T1": {}}}, "tasks: expected a list of tasks, found a mapping"),
        ({"tasks": [task()]}, "name: is missing"),
        (plan_of(task(), name=5), "name: expected a text, found the number 5"),
        (plan_of(task(), name=" "), "name: is blank"),
        (plan_of(task(), name="x" * 201), "name: has 201 characters; at most 200"),
        (plan_of(task(), name="a\x1b[2J"), 'name: holds the control character U+001B: "a\\u{1b}[2J"'),
        (plan_of(task(), name="a\u202eb"), 'name: holds the control character U+202E: "a\\u{202e}b"'),
        (plan_of(task(), name="a\nb"), 'name: holds the control character U+000A: "a\\nb"'),
        (plan_of(task(), goal=["x"]), "goal: expected a text, found a list"),
        (plan_of(task(), goal="é" * 131073), "goal: has 262,146 bytes; at most 262,144"),
        (plan_of(task(), goal="a\x00"), "goal: holds the control character U+0000"),
        (plan_of(task(), goal="\ud800"), "goal: holds the control character U+D800"),
        (plan_of(task(), max_parallel=0), "max_parallel: 0 is out of range: 1 to 1000 tasks"),
        (
            plan_of(task(), max_parallel=1.5),
            "max_parallel: expected a whole number, 1 to 1000 tasks, found the number 1.5",
        ),
        (plan_of(task(), max_parallel=True), "max_parallel: expected a whole number, 1 to 1000 tasks, found true"),
        (
            plan_of(task(), max_parallel="8"),
            'max_parallel: expected a whole number, 1 to 1000 tasks, found the text "8"',
        ),
        (plan_of(task(), max_parallel=10**99), "max_parallel: of more than 19 digits is out of range: 1 to 1000 tasks"),
        (plan_of(task(), setup=["a", None]), "setup: an item is empty"),
        (plan_of(task(), setup=["a", 5]), "setup: expected a text, found the number 5"),
        (plan_of(task(), setup=[" "]), "setup: an item is blank"),
        (plan_of(task(), setup=["a"] * 65), "setup: 65 are too many: at most 64 commands"),
        (plan_of(task(), setup=["a" * 16385]), "setup: has 16,385 bytes; at most 16,384"),
        (plan_of(task(), env_allow=["A-B"]), 'env_allow: "A-B" is no name of an environment variable'),
        (
            plan_of(task(), env_allow=["ANTHROPIC_API_KEY"]),
            'env_allow: "ANTHROPIC_API_KEY" can\'t be passed on: the runner sets such variables itself',
        ),
        (
            plan_of(task(), budget_usd=0),
            "budget_usd: 0 is out of range: 0.01 to 1e+06 US dollars for the whole plan",
        ),
        (
            plan_of(task(), task("T2"), task("T3", budget_usd=2), budget_usd=3),
            "budget_usd: the plan's budget_usd is 3, and task T1 alone may cost 5 (2 tasks are so): "
            "lower a task's budget_usd, or raise the plan's",
        ),
        (
            plan_of(task(), description="x"),
            'description: unknown field; known are "name", "tasks", "agents", "goal", '
            '"max_parallel", "budget_usd", "setup", "env_allow", "network_allow"',
        ),
        (plan_of(task(), agents=[1]), "agents: expected a mapping, found a list"),
        (
            plan_of(task(), agents={"a": "claude"}),
            'agents.a: expected a mapping such as {sdk_type: claude} or {sdk_type: command, command: ["sh", "-c", "…"]'
            '}, found the text "claude"',
        ),
        (plan_of(task(), agents={"a": {}}), 'agents.a.sdk_type: is missing: one of "claude", "command"'),
        (
            plan_of(task(), agents={"a": {"sdk_type": "command", "command": ["x"], "model": "m"}}),
            "agents.a.model: an agent of the type command has no model",
        ),
        (
            plan_of(task(), agents={"a": {"sdk_type": "command", "command": []}}),
            'agents.a.command: is missing: the program and its arguments, such as ["sh", "-c", "…"]',
        ),
        (
            plan_of(task(), agents={"a": {"sdk_type": "claude", "command": ["x"]}}),
            "agents.a.command: an agent of the type claude has no command",
        ),
        (
            plan_of(task(), agents={"a": {"sdk_type": "claude", "model": "--help"}}),
            'agents.a.model: "--help" is no name of a model',
        ),
        (
            plan_of(task(assignee="A"), agents={"A": {"sdk_type": "claude"}, "a": {"sdk_type": "claude"}}),
            'agents: the names "A" and "a" differ only in case',
        ),
        (
            plan_of(task(), agents={"x" * 64: {"sdk_type": "claude"}}),
            f'agents: "{"x" * 60}…" is no name for an agent: 1 to 63 printable characters',
        ),
        (
            plan_of(task(), agents={5: {"sdk_type": "claude"}}),
            "agents: a field's name must be a text, found the number 5",
        ),
        (plan_of("T1"), 'task #1: a task is a mapping, found the text "T1"'),
        (plan_of({"name": "x"}), "task #1, code: is missing"),
        (plan_of(task("")), "task #1, code: is blank"),
        (plan_of(task([])), "task #1, code: expected a text, found a list"),
        (plan_of(task("../x")), f'task ../x, code: "../x" {UNSAFE}'),
        (plan_of(task("a b")), f'task a b, code: "a b" {UNSAFE}'),
        (plan_of(task("-x")), f'task -x, code: "-x" {UNSAFE}'),
        (plan_of(task("T1.lock")), f'task T1.lock, code: "T1.lock" {UNSAFE}'),
        (plan_of(task("T\u0661")), f'task T\u0661, code: "T\u0661" {UNSAFE}'),
        (plan_of(task("T1\n")), 'task T1\\n, code: holds the control character U+000A: "T1\\n"'),
        (plan_of(task(-1)), f'task -1, code: "-1" {UNSAFE}'),
        (plan_of(task(1.5)), "task #1, code: expected a text, found the number 1.5"),
        (plan_of(task("_deliver")), 'task _deliver, code: codes that begin with "_" are reserved'),
        (
            plan_of(task("x" * 300)),
            f"task {'x' * 60}…, code: has 300 characters: {UNSAFE.removeprefix('is not safe: ')}",
        ),
        (plan_of(task(), task()), 'task T1, code: is used twice: T1 and "T1"; codes must differ in more than case'),
        (plan_of(task(), after("T2", "T2")), "task T2, depends_on: the task depends on itself"),
        (
            plan_of(task(), after("T2", "t1")),
            'task T2, depends_on: "t1" is not a task of this plan; did you mean "T1"?',
        ),
        (
            plan_of(task("T8"), after("T3", "T9")),
            'task T3, depends_on: "T9" is not a task of this plan; did you mean "T8"?',
        ),
        (plan_of(after("T1", "build")), 'task T1, depends_on: "build" is not a task of this plan'),
        (plan_of(task(), after("T2", "T1", "T1")), 'task T2, depends_on: "T1" is there twice'),
        (plan_of(task(), after("T2", None)), "task T2, depends_on: expected a task's code, found nothing"),
        (
            plan_of(task(), task("T2", depends_on="T1")),
            'task T2, depends_on: expected a list of task codes, found the text "T1"; write it as ["T1"]',
        ),
        (plan_of(task(name=True)), "task T1, name: expected a text, found true"),
        (plan_of(task(name="a\tb")), 'task T1, name: holds the control character U+0009: "a\\u{9}b"'),
        (
            plan_of({"code": "T1"}),
            "task T1, description: is missing, and so is a name: there is nothing to tell the agent",
        ),
        (plan_of(task(timout_minutes=1)), 'task T1, timout_minutes: unknown field; did you mean "timeout_minutes"?'),
        (
            plan_of(task(**{"\x1b[2J": 1})),
            f"task T1, \\u{{1b}}[2J: unknown field; known are {KNOWN}",
        ),
        (plan_of(task(timeout_minutes=0)), "task T1, timeout_minutes: 0 is out of range: 0.01 to 1440 minutes"),
        (
            plan_of(task(timeout_minutes=float("nan"))),
            "task T1, timeout_minutes: nan is out of range: 0.01 to 1440 minutes",
        ),
        (
            plan_of(task(timeout_minutes=float("inf"))),
            "task T1, timeout_minutes: inf is out of range: 0.01 to 1440 minutes",
        ),
        (
            plan_of(task(budget_usd=1001)),
            "task T1, budget_usd: 1001 is out of range: 0.01 to 1000 US dollars per attempt",
        ),
        (plan_of(task(retry=3)), "task T1, retry: expected a mapping, found the number 3"),
        (
            plan_of(task(retry={"max_attempts": 21})),
            "task T1, retry.max_attempts: 21 is out of range: 1 to 20 attempts",
        ),
        (plan_of(task(retry={"backoff_s": -1})), "task T1, retry.backoff_s: -1 is out of range: 0 to 600 seconds"),
        (
            plan_of(task(retry={"attempts": 2})),
            'task T1, retry.attempts: unknown field; did you mean "max_attempts"?',
        ),
        (
            plan_of(task(allow_no_change=1)),
            "task T1, allow_no_change: expected true or false, found the number 1",
        ),
        (plan_of(task(verify_rounds=11)), "task T1, verify_rounds: 11 is out of range: 0 to 10 rounds"),
        (
            plan_of(task(verify_rounds=1.5)),
            "task T1, verify_rounds: expected a whole number, 0 to 10 rounds, found the number 1.5",
        ),
        (plan_of(task(resolves="T2")), "task T1, resolves: only Treadle itself sets it: leave it out"),
        (
            plan_of(task(), network_allow=["https://example.com"]),
            'network_allow: "https://example.com" is no host to reach: it has a scheme; name the host alone',
        ),
        (
            plan_of(task(), network_allow=["\x1b[2J"]),
            "network_allow: holds the control character U+001B",
        ),
        (
            plan_of(task(), network_allow=["a.example"] * (HOSTS_MAX + 1)),
            "network_allow: 201 are too many: at most 200 hosts",
        ),
        (
            plan_of(task(requires_approval="no")),
            'task T1, requires_approval: expected true or false, found the text "no"',
        ),
        (
            plan_of(task(expected_output="a/../b")),
            'task T1, expected_output: "a/../b" is not a path inside the repository: it has ".."',
        ),
        (
            plan_of(task(expected_output="a\\b")),
            'task T1, expected_output: "a\\b" is not a path inside the repository: it has a backslash; write "/"',
        ),
        (
            plan_of(task(expected_output="C:/x")),
            'task T1, expected_output: "C:/x" is not a path inside the repository: it is absolute',
        ),
        (
            plan_of(task(expected_output=".GIT/config")),
            'task T1, expected_output: ".GIT/config" is not a path inside the repository: it lies in git\'s own folder',
        ),
        (
            plan_of(task(assignee="codex")),
            'task T1, assignee: "codex" is not an agent of this plan; it declares none, and only "claude" needs no '
            'declaration under "agents"',
        ),
        (
            plan_of(task(assignee="x"), agents=AGENTS),
            'task T1, assignee: "x" is not an agent of this plan; it has "coder", "sh"',
        ),
        (
            plan_of(task(), agents=AGENTS),
            'task T1, assignee: is missing: the plan has 2 agents; name one: "coder", "sh"',
        ),
        (
            plan_of(task(assignee="claude"), agents={"a": {"sdk_type": "claude"}, "b": {"sdk_type": "claude"}}),
            'task T1, assignee: 2 agents are of the type "claude"; name one: "a", "b"',
        ),
        (plan_of(task(task_code="T1")), 'task T1: "code" and "task_code" mean the same; keep one of them'),
        (
            plan_of({"task_code": "T1", "title": "x", "predecessors": ["T9"]}),
            'task T1, predecessors: "T9" is not a task of this plan',
        ),
        (plan_of({"task_code": "a b", "title": "x"}), f'task a b, task_code: "a b" {UNSAFE}'),
        ({"plan_name": "x", "name": "y", "tasks": [task()]}, '"plan_name" and "name" mean the same; keep one of them'),
    ],
)
def test_each_fault_is_told_in_words_with_its_task_and_field(data: object, fault: str) -> None:
    assert faults_of(data) == [fault]


@pytest.mark.parametrize(
    ("edges", "spelled"),
    [
        ({"A": "B", "B": "C", "C": "A"}, ["A → B → C → A"]),
        ({"A": "B", "B": "A", "C": "A", "D": "C"}, ["A → B → A"]),
        ({"A": "BC", "B": "C", "C": "A"}, ["A → C → A"]),
        ({"A": "B", "B": "A", "C": "D", "D": "C", "E": "AD"}, ["A → B → A", "C → D → C"]),
        ({"A": "D", "D": "C", "C": "B", "B": "AC"}, ["C → B → C"]),
    ],
)
def test_the_shortest_cycle_of_each_knot_is_spelled_out_once(edges: dict[str, str], spelled: list[str]) -> None:
    tasks = [after(code, *needed) for code, needed in edges.items()]
    told = [fault.partition("one another: ")[2] for fault in faults_of(plan_of(*tasks))]
    assert told == spelled


def test_a_long_cycle_is_shortened_in_words() -> None:
    codes = [f"T{number}" for number in range(100)]
    tasks = [after(code, codes[place - 1]) for place, code in enumerate(codes)]
    (fault,) = faults_of(plan_of(*tasks))
    assert fault.startswith("task T0, depends_on: the tasks wait for one another: T0 → T99 → T98 → ")
    assert fault.endswith(" → (80 more) → T1 → T0")


def test_an_unsafe_code_does_not_make_its_successors_faulty() -> None:
    assert len(faults_of(plan_of(task("a b"), after("T2", "a b")))) == 1


def test_a_faulty_agent_does_not_make_its_tasks_faulty() -> None:
    assert len(faults_of(plan_of(task(assignee="x"), agents={"x": {"sdk_type": "y"}}))) == 1


@pytest.mark.parametrize(
    ("assignee", "agents", "resolved"),
    [
        ("coder", AGENTS, "coder"),
        ("CODER", AGENTS, "coder"),
        ("claude", AGENTS, "coder"),
        ("Command", AGENTS, "sh"),
        (None, {"sh": AGENTS["sh"]}, "sh"),
        (None, {}, "claude"),
        ("Claude", None, "claude"),
        ("claude", {"sh": AGENTS["sh"]}, "claude"),
        (7, {"7": AGENTS["sh"]}, "7"),
        ("command", {"command": {"sdk_type": "claude"}, "sh": AGENTS["sh"]}, "command"),
    ],
)
def test_an_assignee_is_a_name_else_a_type(assignee: object, agents: object, resolved: str) -> None:
    plan = validate(plan_of(task(assignee=assignee), agents=agents))
    assert plan.tasks[0].assignee == resolved
    assert resolved in plan.agents


def test_a_model_that_nobody_named_is_pinned() -> None:
    assert validate(plan_of(task(), agents={"a": {"sdk_type": "claude"}})).agents == {
        "a": AgentSpec(sdk_type="claude", model=DEFAULT_MODEL)
    }


def test_null_counts_as_not_given() -> None:
    fields = {name: None for name in PlanSpec.__struct_fields__ if name not in ("name", "tasks")}
    bare = dict.fromkeys(("depends_on", "retry", "verify", "timeout_minutes", "requires_approval", "assignee"))
    bare |= dict.fromkeys(("verify_rounds", "allow_no_change"))
    assert validate(plan_of(task(**bare), **fields)) == validate(plan_of(task()))


def test_what_people_decide_and_how_often_verification_goes_back_is_read() -> None:
    read = validate(plan_of(task(requires_approval=True, allow_no_change=True, verify_rounds=0))).tasks[0]
    assert (read.requires_approval, read.allow_no_change, read.verify_rounds) == (True, True, 0)
    bare = validate(plan_of(task())).tasks[0]
    assert (bare.requires_approval, bare.allow_no_change, bare.verify_rounds) == (False, False, None)


def test_hosts_get_the_one_spelling_and_come_once() -> None:
    written = ["Example.COM", "example.com.", "*.Example.com:8443", "192.0.2.7", "[2001:DB8:0::1]:443"]
    assert validate(plan_of(task(), network_allow=written)).network_allow == (
        "example.com",
        "*.example.com:8443",
        "192.0.2.7",
        "[2001:db8::1]:443",
    )


def test_a_whole_number_and_a_fraction_give_the_same_plan() -> None:
    assert repr(validate(plan_of(task(timeout_minutes=5)))) == repr(validate(plan_of(task(timeout_minutes=5.0))))


def test_too_many_tasks_are_refused_with_the_limit() -> None:
    assert faults_of(plan_of(*([task()] * (TASKS_MAX + 1)))) == ["tasks: 20,001 are too many: at most 20,000 tasks"]


def test_a_plan_larger_than_an_event_is_refused() -> None:
    tasks = [task(f"T{number}", description="x" * 250_000) for number in range(30)]
    (fault,) = faults_of(plan_of(*tasks))
    assert fault.endswith(f"at most {PLAN_MAX_BYTES:,}: shorten the descriptions")


def test_of_thousands_of_faults_the_first_are_printed() -> None:
    with pytest.raises(PlanFaults) as caught:
        validate(plan_of(*(task(f"T{number}", x=1) for number in range(5000))))
    assert len(caught.value.faults) == FAULTS_MAX
    lines = str(caught.value).split("\n")
    assert len(lines) == FAULTS_PRINTED_MAX + 1
    assert lines[-1] == f"… and {FAULTS_MAX - FAULTS_PRINTED_MAX} more, at least"


def layered(count: int, width: int, needs: int) -> dict[str, object]:
    chance = random.Random(7)  # noqa: S311 - a made-up graph, the same each time
    tasks = []
    for number in range(count):
        below = number - number % width
        earlier = range(max(0, below - width), below)
        needed = chance.sample(earlier, min(needs, len(earlier)))
        tasks.append(after(f"T{number}", *(f"T{other}" for other in needed)))
    return plan_of(*tasks)


def test_ten_thousand_tasks_are_validated_quickly() -> None:
    data = layered(10_000, 100, 3)
    began = time.process_time()
    plan = validate(data)
    assert time.process_time() - began < 12  # some 1 s
    assert len(plan.tasks) == 10_000


def ring(count: int) -> dict[str, object]:
    return plan_of(*(after(f"T{number}", f"T{(number + 1) % count}") for number in range(count)))


def knot(count: int, needs: int) -> dict[str, object]:
    chance = random.Random(7)  # noqa: S311 - a made-up graph, the same each time
    return plan_of(
        *(after(f"T{number}", *{f"T{chance.randrange(count)}" for _ in range(needs)}) for number in range(count))
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda: ring(20_000),
        lambda: knot(20_000, 10),
        lambda: plan_of(*(task(f"T{number}", **{f"x{n}": n for n in range(30)}) for number in range(20_000))),
        lambda: plan_of(*(after(f"T{number}", *(f"U{n}" for n in range(10_000))) for number in range(80))),
        lambda: plan_of(*(task(f"T{number}", assignee=f"agent{number}") for number in range(20_000)), agents=AGENTS),
        lambda: plan_of(task(), agents={f"a{number}": {"sdk_type": "claude"} for number in range(100_000)}),
        lambda: plan_of(task(), **{f"x{number}": 1 for number in range(300_000)}),
    ],
    ids=["ring", "knot", "unknown fields", "unknown dependencies", "unknown assignees", "agents", "plan fields"],
)
def test_a_plan_that_is_all_faults_is_refused_quickly(make: Callable[[], dict[str, object]]) -> None:
    data = make()
    began = time.process_time()
    with pytest.raises(PlanFaults):
        validate(data)
    assert time.process_time() - began < 30


def test_cycles_of_a_dag_are_none_and_a_self_loop_is_one() -> None:
    assert cycles({"A": [], "B": ["A"]}) == []
    assert cycles({"A": ["A"], "B": ["A"]}) == [["A"]]
