"""Attempts whose answer is what they are for: the real CLI against the scripted model, and programs."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from services.runner.agents import ANSWER_MAX_BYTES, Asks, Finished, open_runner
from services.runner.agents.claude import ClaudeRunner
from services.runner.agents.last_object import last_object
from services.runner.agents.permissions import decide_for, offered_for
from shared.spec import AgentSpec, Permission, WorkRules
from tests.agents.claude_probes import asked, call, last_said, scripted
from tests.agents.kept import Kept
from tests.agents.probes import MakeJob, Reported, processes, run_agent, run_turn
from treadle.scripted_model import ScriptedModel

SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "required": ["name", "tasks"],
    "properties": {"name": {"type": "string"}, "tasks": {"type": "array", "items": {"type": "object"}}},
}
PLAN_RULES = WorkRules(answer="plan", plan_schema=json.dumps(SCHEMA))
REVIEW_RULES = WorkRules(answer="review", reviews="T1")
GOOD = {"name": "A plan", "tasks": [{"code": "T1"}]}
EVERYTHING = tuple(Permission(tool=tool, answer="always") for tool in ("*", "Write", "Bash", "WebFetch"))


def gives(**answer: Any) -> dict[str, Any]:
    return call("StructuredOutput", **answer)


async def test_a_plan_is_given_by_a_tool_and_comes_back_as_json(
    model: ScriptedModel, runner: ClaudeRunner, make_job: MakeJob, reported: Reported
) -> None:
    job = make_job(prompt=scripted([call("Glob", pattern="*")], [gives(**GOOD)]), rules=PLAN_RULES)
    (job.cwd / "a.txt").write_text("a\n")
    end = await run_agent(runner, job, reported.append)
    assert (end.kind, json.loads(end.answer), end.message) == ("completed", GOOD, "")
    assert any("a.txt" in text for text in reported.texts("result"))
    tools = {tool["name"] for tool in asked(model)[0]["tools"]}
    assert {"Read", "Glob", "Grep", "StructuredOutput"} <= tools
    assert not tools & {"Bash", "Write", "Edit", "AskUserQuestion", "NotebookEdit", "WebFetch"}
    assert not processes(job)


async def test_an_attempt_that_makes_a_plan_changes_nothing_whatever_the_project_allows(
    runner: ClaudeRunner, make_job: MakeJob, reported: Reported
) -> None:
    attempts = [
        call("Write", file_path="made.txt", content="x"),
        call("Bash", command="touch made.txt"),
        call("AskUserQuestion", questions=[{"question": "May I?", "header": "h", "options": [], "multiSelect": False}]),
    ]
    rules = WorkRules(answer="plan", plan_schema=PLAN_RULES.plan_schema, permissions=EVERYTHING)
    job = make_job(prompt=scripted(attempts, [gives(**GOOD)]), rules=rules, memory=Kept().lease())
    end = await run_turn(runner, job, reported.append)
    assert isinstance(end, Finished)
    assert (end.kind, json.loads(end.answer)) == ("completed", GOOD)
    assert sorted(path.name for path in job.cwd.iterdir()) == [".git"]
    refused = [text for text in reported.texts("result") if "No such tool available" in text]
    assert len(refused) == 3, reported


async def test_a_review_may_run_commands_and_may_not_write_files(
    model: ScriptedModel, runner: ClaudeRunner, make_job: MakeJob, reported: Reported
) -> None:
    review = {"approve": False, "findings": [{"severity": "major", "message": "It is wrong.", "file": "a", "line": 3}]}
    script = ([call("Bash", command="echo tests ran"), call("Write", file_path="b", content="x")], [gives(**review)])
    job = make_job(prompt=scripted(*script), rules=REVIEW_RULES)
    end = await run_agent(runner, job, reported.append)
    assert json.loads(end.answer) == review
    assert "tests ran" in reported.texts("result")
    assert not (job.cwd / "b").exists()


async def test_the_cli_holds_a_review_to_its_form(runner: ClaudeRunner, make_job: MakeJob, reported: Reported) -> None:
    wrong: list[dict[str, Any]] = [
        {"approve": "yes", "findings": []},
        {"approve": True, "findings": [{"severity": "awful", "message": "x"}]},
        {"approve": True, "findings": [{"severity": "note", "message": "x", "line": 0}]},
    ]
    right: dict[str, Any] = {"approve": True, "findings": []}
    job = make_job(prompt=scripted(*([gives(**one)] for one in (*wrong, right))), rules=REVIEW_RULES)
    end = await run_agent(runner, job, reported.append)
    assert json.loads(end.answer) == right
    assert [text.startswith("Output does not match") for text in reported.texts("result")] == [True] * 3 + [False]


async def test_a_text_alone_is_no_answer_and_the_conversation_goes_on_to_one(
    model: ScriptedModel, runner: ClaudeRunner, make_job: MakeJob, reported: Reported
) -> None:
    texts = ([{"text": "Here is my plan: do it."}], [{"text": "As I said."}])
    job = make_job(prompt=scripted(*texts, [gives(**GOOD)]), rules=PLAN_RULES, memory=Kept().lease())
    async with runner.open(job, reported.append) as session:
        first = await session.turn(job.prompt)
        second = await session.turn("There is no answer: give one.")
    assert isinstance(first, Finished) and isinstance(second, Finished)
    assert (first.kind, first.answer, first.summary) == ("completed", "", "As I said.")
    assert (second.kind, json.loads(second.answer)) == ("completed", GOOD)
    assert "As I said." in last_said(model) and "There is no answer: give one." in last_said(model)


async def test_answers_that_never_fit_the_schema_end_without_one_and_say_why(
    runner: ClaudeRunner, make_job: MakeJob, reported: Reported
) -> None:
    job = make_job(prompt=scripted(*([gives(name=1)],) * 5, [gives(**GOOD)]), rules=PLAN_RULES, memory=Kept().lease())
    async with runner.open(job, reported.append) as session:
        first = await session.turn(job.prompt)
        second = await session.turn("Mend it.")
    assert isinstance(first, Finished) and isinstance(second, Finished)
    assert (first.kind, first.answer, "must be string" in first.message) == ("completed", "", True)
    assert json.loads(second.answer) == GOOD


async def test_another_lease_goes_on_with_a_conversation_that_has_answered_before(
    model: ScriptedModel, runner: ClaudeRunner, make_job: MakeJob, reported: Reported
) -> None:
    kept, prompt = Kept(), scripted([gives(**GOOD)], [gives(**(GOOD | {"name": "Better"}))])
    first = await run_agent(runner, make_job(prompt=prompt, rules=PLAN_RULES, memory=kept.lease()), reported.append)
    memory = kept.lease(resumes=True)
    second = await run_agent(runner, make_job(prompt=prompt, rules=PLAN_RULES, memory=memory, lease=4), reported.append)
    assert json.loads(first.answer)["name"] == "A plan"
    assert json.loads(second.answer)["name"] == "Better"
    assert "interrupted" in last_said(model)


async def test_what_a_project_wants_asked_about_is_asked_in_a_review_and_refused_in_a_plan(
    runner: ClaudeRunner, make_job: MakeJob, reported: Reported
) -> None:
    rules = WorkRules(answer="review", permissions=(Permission(tool="Bash", answer="ask"),))
    job = make_job(prompt=scripted([call("Bash", command="make test")]), rules=rules, memory=Kept().lease())
    end = await run_turn(runner, job, reported.append)
    assert isinstance(end, Asks) and (end.kind, end.input) == ("tool", {"command": "make test"})
    read = (Permission(tool="Read", pattern="secret/*", answer="ask"),)
    verdict = decide_for("Read", {"file_path": "secret/a"}, WorkRules(answer="plan", permissions=read), job.worktree)
    assert verdict.answer == "never"


def test_no_rule_gives_an_attempt_that_answers_another_tool(make_job: MakeJob) -> None:
    worktree = make_job().worktree
    for rules in (PLAN_RULES, REVIEW_RULES):
        all_allowed = WorkRules(answer=rules.answer, permissions=EVERYTHING)
        assert offered_for(all_allowed) == offered_for(rules)
        for tool in ("Write", "Edit", "NotebookEdit", "WebFetch", "AskUserQuestion", "Agent", "mcp__x__y"):
            assert decide_for(tool, {"file_path": "a"}, all_allowed, worktree).answer == "never"
        assert decide_for("StructuredOutput", {}, WorkRules(answer=rules.answer), worktree).answer == "always"
    assert (
        decide_for("Bash", {"command": "x"}, WorkRules(answer="plan", permissions=EVERYTHING), worktree).answer
        == "never"
    )
    assert "Write" in offered_for(WorkRules(permissions=EVERYTHING))


# Programs ---------------------------------------------------------------------------------------------------------


async def said_by(make_job: MakeJob, reported: Reported, code: str) -> Finished:
    agent = AgentSpec(sdk_type="command", command=(sys.executable, "-c", code))
    async with open_runner("command", {}) as runner:
        return await run_agent(runner, make_job(agent=agent, rules=PLAN_RULES), reported.append)


async def test_a_programs_last_json_object_is_its_answer(make_job: MakeJob, reported: Reported) -> None:
    code = "import json; print('thinking'); print(json.dumps({'name': 'x' * 40_000, 'tasks': []})); print('bye')"
    end = await said_by(make_job, reported, code)
    assert json.loads(end.answer) == {"name": "x" * 40_000, "tasks": []}
    assert end.summary == "bye"
    end = await said_by(make_job, reported, "import sys; sys.stderr.write('{}'); print('none')")
    assert (end.kind, end.answer) == ("completed", "")


async def test_a_program_that_prints_without_end_is_heard_to_its_end_in_bounded_memory(
    make_job: MakeJob, reported: Reported
) -> None:
    code = f"for _ in range(200): print('{{' * {ANSWER_MAX_BYTES // 20})\nprint('{{\"name\": 1}}')"
    assert (await said_by(make_job, reported, code)).answer == '{"name": 1}'


@pytest.mark.parametrize(
    ("output", "found"),
    [
        ("", ""),
        ("nothing {here: 1}", ""),
        ('{"a": 1}', '{"a": 1}'),
        ('words\n```json\n{\n  "a": {"b": [1]}\n}\n```\nmore', '{\n  "a": {"b": [1]}\n}'),
        ('{"a": 1}\n{"a": 2}\n', '{"a": 2}'),
        ('{not json}\n  {"a": 2}', '{"a": 2}'),
        ('{"a": 1,}\n```\nbye', '{"a": 1,}'),
        ('{"a": "}\\n{\\"b\\": 1}"}', '{"a": "}\\n{\\"b\\": 1}"}'),
        ('{"a": 1}\n{"b":', '{"a": 1}'),
    ],
)
def test_an_object_is_found_where_a_line_begins_with_it(output: str, found: str) -> None:
    assert last_object(output) == found


@pytest.mark.timeout(120)
@pytest.mark.parametrize("line", ["{\n", '{"\n', '{"a":\n', '{"a":1,"b":[\n', '{"' + "a" * 2000 + '": [\n'])
def test_what_only_looks_like_objects_is_given_up_in_bounded_time(line: str) -> None:
    """Some seconds on a busy machine; what counts lines from the beginning at each fault takes many minutes."""
    output = line * (ANSWER_MAX_BYTES // 4 // len(line))
    assert last_object(output) == output.rstrip()
    assert last_object(f'{output}\n{{"c": 1}}') == '{"c": 1}'


def test_an_object_is_found_however_deep_it_is_and_whatever_stands_before_it() -> None:
    deep = '{"a":\n' * 100_000 + "1" + "}" * 100_000
    assert last_object(deep) == deep
    number = '{"a": ' + "1" * 5000 + "}"
    assert last_object(f"{number}\nbye") == number
    whole_within_broken = '{"a": [\n{"b": 1},\n oops'
    assert last_object(whole_within_broken) == '{"b": 1}'
