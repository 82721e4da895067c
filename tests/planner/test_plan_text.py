"""Text → data: what is accepted, what is refused, and how fast."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from services.planner.faults import PlanFaults
from services.planner.parse import TEXT_MAX_BYTES, parse_text, read_plan
from shared.spec import DEFAULT_MODEL, AgentSpec, PlanSpec, Retry

PLANS = Path(__file__).parent / "plans"
TASK = "tasks: [{code: T1, name: x}]"
REFUSAL_MAX_S = 60.0
"""Of processor time, which is worth less where others share the processors; the slowest takes some 4 to 11 s."""


def only_fault(text: bytes | str) -> str:
    with pytest.raises(PlanFaults) as caught:
        read_plan(text)
    assert len(caught.value.faults) == 1, str(caught.value)
    return str(caught.value)


def named(value: str) -> PlanSpec:
    return read_plan(f"name: {value}\n{TASK}\n")


def test_the_example_plan_is_read_with_every_field() -> None:
    plan = read_plan((PLANS / "login.yaml").read_bytes())
    first, second, third, fourth = plan.tasks
    assert (plan.name, plan.max_parallel, plan.setup, plan.env_allow) == (
        "Add login",
        2,
        ("pip install -e .",),
        ("LANG",),
    )
    assert plan.goal == "People can log in with a name and a password."
    assert plan.agents == {
        "coder": AgentSpec(sdk_type="claude", model="claude-sonnet-4-5-20250929"),
        "sh": AgentSpec(sdk_type="command", command=("sh", "-c", "cat > NOTES.txt")),
    }
    assert first.description == "Write `src/auth/session.py`.\nA session has an owner and an end.\n"
    assert first.retry == Retry(max_attempts=2, backoff_s=1.5)
    assert (first.expected_output, first.timeout_minutes, first.budget_usd) == ("src/auth/session.py", 10.0, 2.0)
    assert first.verify == ("pytest -q tests/auth",)
    assert [task.assignee for task in plan.tasks] == ["coder", "coder", "sh", "coder"]
    assert (second.depends_on, third.depends_on, fourth.depends_on) == (("T1",), ("T1",), ("T2", "T3"))


def test_a_plan_of_half_is_read_from_a_models_answer() -> None:
    plan = read_plan((PLANS / "half.md").read_text())
    assert plan.name == "Fix the parser"
    assert plan.goal == "Dates with a time zone are refused."
    assert [(task.code, task.name, task.assignee, task.depends_on) for task in plan.tasks] == [
        ("BUG-001", "Find the cause", "7", ()),
        ("BUG-002", "Mend it", "7", ("BUG-001",)),
        ("BUG-003", "Test it", "tester", ("BUG-002",)),
    ]
    assert plan.tasks[0].description == 'Reproduce it, then say why it happens: "[1,]" and {,} are not the cause.'
    assert plan.tasks[0].expected_output == "outputs/BUG-001/result.json"


def test_the_smallest_plan_has_a_claude_agent_with_a_pinned_model() -> None:
    plan = read_plan((PLANS / "smallest.yaml").read_bytes())
    assert plan.agents == {"claude": AgentSpec(sdk_type="claude", model=DEFAULT_MODEL)}
    assert (plan.tasks[0].code, plan.tasks[0].assignee) == ("1", "claude")


@pytest.mark.parametrize(
    "word", ["no", "on", "yes", "1e3", "0123", "2026-01-31", "1:30", "0x1f", "true", ".inf", "=", "5"]
)
def test_an_unquoted_word_stays_the_text_that_was_written(word: str) -> None:
    assert named(word).name == word


def test_codes_that_look_like_numbers_match_their_dependencies() -> None:
    plan = read_plan("name: x\ntasks: [{code: 0123, name: a}, {code: no, name: b, depends_on: [0123]}]")
    assert [(task.code, task.depends_on) for task in plan.tasks] == [("0123", ()), ("no", ("0123",))]
    plan = read_plan(
        '{"name": "x", "tasks": [{"code": 1, "name": "a"}, {"code": "2", "name": "b", "depends_on": [1]}]}'
    )
    assert plan.tasks[1].depends_on == ("1",)


@pytest.mark.parametrize(
    "text",
    [
        f"\ufeffname: x\n{TASK}",
        f"\ufeffname: x\n{TASK}".encode(),
        f"name: x\r\n{TASK}\r\n",
        f"# why\n---\nname: x # because\n{TASK}\n...\n",
        "{name: x, tasks: [{code: T1, name: x,},],}",
        '{"name": "x", "tasks": [{"code": "T1", "name": "x",},],}',
        ' \n{"name": "x",\r\n\t"tasks": [{"code": "T1", "name": "x"} ,\n] }\n',
        '```json\n{"name": "x", "tasks": [{"code": "T1", "name": "x"}]}\n```\n',
        '~~~~\n{"name": "x", "tasks": [{"code": "T1", "name": "x"}]}\n~~~~',
        f"Sure!\n\n```yaml\nname: x\n{TASK}\n```\nDone.",
        '```json\n{"name": "x", "tasks": [{"code": "T1", "name": "x"}]}',
        "name: x\ntasks:\n- &t {code: T1, name: x}\n",
    ],
)
def test_every_accepted_spelling_gives_the_same_plan(text: bytes | str) -> None:
    assert read_plan(text) == read_plan(f"name: x\n{TASK}")


def test_a_fence_inside_a_description_is_left_alone() -> None:
    plan = read_plan("name: x\ntasks:\n- code: T1\n  description: |\n    ```json\n    {}\n    ```\n")
    assert plan.tasks[0].description == "```json\n{}\n```\n"


def test_an_alias_stands_for_what_it_names() -> None:
    plan = read_plan(
        "name: x\ntasks:\n- {code: T1, name: &n hello, verify: &v [a, b]}\n- {code: T2, name: *n, verify: *v}"
    )
    assert plan.tasks[1].name == "hello"
    assert plan.tasks[1].verify == ("a", "b")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "the text holds no plan: it is empty"),
        ("# nothing", "the text holds no plan: it is empty"),
        ("- a", 'a plan is a mapping with "name" and "tasks", found a list'),
        ("Here is your plan", 'a plan is a mapping with "name" and "tasks", found the text "Here is your plan"'),
        (b"name: \xff", "the plan is not UTF-8 text: byte 7 is 0xff; save it as UTF-8 (line 1)"),
        ("name: x\na: \0", "the control character U+0000 in column 4 can't be part of a plan (line 2)"),
        ("name: \x1b[31m", "the control character U+001B in column 7 can't be part of a plan (line 1)"),
        ("name: \ud800", "the control character U+D800 in column 7 can't be part of a plan (line 1)"),
        (
            "name: x\n\ttasks: []",
            "not valid YAML at column 1: found a tab character that violates indentation; indent with spaces, "
            "not with tabs (line 2)",
        ),
        ("name: 'x", "not valid YAML at column 9: found unexpected end of stream (line 1)"),
        (
            "name: !!python/object:os.system x",
            'YAML tags are not accepted: "tag:yaml.org,2002:python/object:os.system" (line 1)',
        ),
        ("tasks: !x []", 'YAML tags are not accepted: "!x" (line 1)'),
        ("%TAG ! x\n---\nname: x", 'YAML directives (a line that begins with "%") are not accepted (line 1)'),
        ("name: x\n---\nname: y", 'a second document begins here ("---"): one file holds one plan (line 2)'),
        ("name: *x", "the alias *x stands for nothing that ends before it (line 1)"),
        ("tasks: &t [*t]", "the alias *t stands for nothing that ends before it (line 1)"),
        ("[a]: b", "a mapping or a list can't be a key (line 1)"),
        ("a: &x b\n*x : c", "an alias can't be a key: write the key out (line 2)"),
        ('{"name": NaN}', "not valid JSON at column 10: NaN is not a number that a plan can hold (line 1)"),
        (
            '{"name":\n -Infinity}',
            "not valid JSON at column 2: -Infinity is not a number that a plan can hold (line 2)",
        ),
        ('{"name": 1e999}', "not valid JSON at column 10: the number 1e999 is too large (line 1)"),
        ('{"name": 12345678901234567890123}', "not valid JSON at column 10: a number of more than 19 digits (line 1)"),
        ('{"name": "x"\n "tasks": []}', 'not valid JSON at column 2: expected "," or "}" (line 2)'),
        ('{"name": "x", , }', "not valid JSON at column 15: expected a key in double quotes (line 1)"),
        ('{"tasks": [,]}', "not valid JSON at column 12: expecting value (line 1)"),
        ('{"tasks": [}', "not valid JSON at column 12: expecting value (line 1)"),
        ('{"tasks" []}', 'not valid JSON at column 10: expected ":" (line 1)'),
        ('{"tasks": [1, 2', 'not valid JSON at column 16: expected "," or "]"; the text ends here (line 1)'),
        ('{"name": "x\ny"}', "not valid JSON at column 12: invalid control character at (line 1)"),
        ('{"name": "x"} {}', "not valid JSON at column 15: more text follows the end of the plan (line 1)"),
        (
            "```json\n{}\n```\n```json\n{}\n```\n",
            "the text has 2 fenced blocks that may be the plan; leave only one (line 5)",
        ),
        ('Well:\n```json\n{"a": tru}\n```', "not valid JSON at column 7: expecting value (line 3)"),
    ],
)
def test_a_text_that_cannot_be_read_is_refused_with_its_place(text: bytes | str, fault: str) -> None:
    assert only_fault(text) == fault


def test_keys_that_come_twice_are_named_with_both_lines() -> None:
    yaml = only_fault("name: x\ntasks:\n- code: T1\n  name: a\n  name: b\n")
    assert yaml == "task T1, name: is there twice, first in line 4 (line 5)"
    as_json = only_fault('{"name": "x",\n "tasks": [{"code": "T1", "name": "a"}],\n "name": "y"}')
    assert as_json == "name: is there twice, first in line 1 (line 3)"


def test_the_first_of_two_equal_keys_counts_while_faults_are_collected() -> None:
    data = parse_text('{"a": 1, "a": {"b": 2}, "c": 3}')
    assert data == {"a": 1, "c": 3}


def nested_aliases() -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]" for level in range(1, 30)]
    return "\n".join(lines)


HOSTILE: dict[str, tuple[Callable[[], str], str]] = {
    "alias bomb": (nested_aliases, "more than 1,000,000 values"),
    "alias bomb of text": (lambda: "a: &a " + "x" * 2**20 + "\nb: [" + "*a, " * 9000 + "]", "larger than 32 MiB"),
    "many aliases": (lambda: "a: &a x\nb: [" + "*a, " * 20_000 + "]", "more than 10,000 aliases"),
    "deep alias": (lambda: "a: &a " + "[" * 60 + "]" * 60 + "\nb: [[[[[*a]]]]]", "nested deeper than 64 levels"),
    "too large": (lambda: "x" * (TEXT_MAX_BYTES + 1), "larger than 32 MiB"),
    "brackets": (lambda: "[" * TEXT_MAX_BYTES, "nested deeper than 64 levels"),
    "braces": (lambda: "{a: " * (TEXT_MAX_BYTES // 4), "nested deeper than 64 levels"),
    "dashes": (lambda: "- " * (TEXT_MAX_BYTES // 2), "nested deeper than 64 levels"),
    "indents": (lambda: "\n".join(" " * level + "a:" for level in range(5000)), "nested deeper than 64 levels"),
    "json brackets": (lambda: '{"a": ' + "[" * (TEXT_MAX_BYTES - 8), "nested deeper than 64 levels"),
    "json braces": (lambda: '{"a":' * (TEXT_MAX_BYTES // 5), "nested deeper than 64 levels"),
    "json numbers": (lambda: '{"a": [' + "1," * (TEXT_MAX_BYTES // 2 - 8), "more than 1,000,000 values"),
    "json mappings": (lambda: '{"a": [' + "{}," * (TEXT_MAX_BYTES // 3 - 8), "more than 1,000,000 values"),
    "json digits": (lambda: '{"a": ' + "9" * (TEXT_MAX_BYTES - 8), "more than 19 digits"),
    "json open string": (lambda: '{"a": "' + "\\n" * (TEXT_MAX_BYTES // 2 - 8), "unterminated string"),
    "list": (lambda: "- a\n" * (TEXT_MAX_BYTES // 4), "more than 1,000,000 values"),
    "keys": (lambda: "a: b\n" * (TEXT_MAX_BYTES // 5), "more than 1,000,000 values"),
    "mappings": (lambda: "- {a: }\n" * (TEXT_MAX_BYTES // 8), "more than 1,000,000 values"),
    "documents": (lambda: "---\n" * (TEXT_MAX_BYTES // 4), "a second document"),
    "directives": (lambda: "".join(f"%TAG !a{n}! x\n" for n in range(1_500_000)), "directives"),
    "late directives": (lambda: "a: 1\n...\n" + "".join(f"%TAG !a{n}! x\n" for n in range(1_500_000)), "directives"),
    "fences": (lambda: "```\n" * (TEXT_MAX_BYTES // 4), "more than 1000 Markdown fences"),
    "backticks": (lambda: "`" * TEXT_MAX_BYTES, "it is empty"),
    "spaces": (lambda: " " * TEXT_MAX_BYTES, "it is empty"),
    "one word": (lambda: "a" * TEXT_MAX_BYTES, "a plan is a mapping"),
    "emoji": (lambda: "\U0001f600" * (TEXT_MAX_BYTES // 4), "a plan is a mapping"),
    "open quote": (lambda: '"' + "a\n" * (TEXT_MAX_BYTES // 2 - 1), "not valid YAML"),
}
"""Made when a test asks: together they are hundreds of MiB."""


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_text_is_refused_quickly(kind: str) -> None:
    make, fault = HOSTILE[kind]
    content = make().encode()
    began = time.process_time()
    assert fault in only_fault(content)
    assert time.process_time() - began < REFUSAL_MAX_S


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the peak of one program")
@pytest.mark.parametrize("kind", ["alias bomb", "mappings", "json numbers", "emoji"])
def test_hostile_text_is_refused_in_little_memory(kind: str, tmp_path: Path) -> None:
    """In a process of its own, whose peak is its own (`ru_maxrss` would begin with its parent's)."""
    path = tmp_path / "plan"
    path.write_bytes(HOSTILE[kind][0]().encode())
    program = (
        "import json, re, sys\n"
        "from pathlib import Path\n"
        "from services.planner.parse import read_plan\n"
        "from services.planner.faults import PlanFaults\n"
        "peak_kib = lambda: int(re.search(r'VmHWM:\\s*(\\d+)', Path('/proc/self/status').read_text()).group(1))\n"
        "before = peak_kib()\n"
        "try: read_plan(Path(sys.argv[1]).read_bytes())\n"
        "except PlanFaults as faults: refused = str(faults)\n"
        "print(json.dumps([refused, peak_kib() - before]))\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, check=True, timeout=200)
    refused, grown_kib = json.loads(done.stdout)
    assert HOSTILE[kind][1] in refused
    assert 0 < grown_kib < 400 * 1024


def test_depth_is_counted_the_same_in_both_languages() -> None:
    fine = "[" * 63 + "]" * 63
    parse_text(f'{{"a": {fine}}}')
    parse_text(f"a: {fine}")
    for text in (f'{{"a": [{fine}]}}', f"a: [{fine}]"):
        with pytest.raises(PlanFaults, match="64 levels"):
            parse_text(text)
