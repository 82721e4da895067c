"""What the commands about goals, candidates, templates and people's tasks send, and say: over real HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result

from services.gateway.plans.tasks import TaskChanges
from services.gateway.projects import work_rules
from shared.spec import Permission
from tests.command.test_api import Stub, project
from tests.end_to_end.plans import git, make_repo
from treadle.main import main
from treadle.task_commands import EDITABLE

PLAN_ID = "p" + "a" * 12
PLAN = {"plan": PLAN_ID, "status": "drafted", "standing": "drafted", "candidate": "", "requests": []}


@pytest.fixture
def stub() -> Iterator[Stub]:
    made = Stub()
    yield made
    made.close()


def said(stub: Stub, *words: str, text: str | None = None) -> Result:
    """Runs the command against the stub, which is a gateway elsewhere for it."""
    address = f"http://127.0.0.1:{stub.port}"
    result = CliRunner().invoke(main, ["--url", address, *words], env={"TREADLE_TOKEN": "t"}, input=text)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def page(*items: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    return 200, {"items": list(items), "next": None}


def posted(stub: Stub) -> tuple[str, dict[str, Any]]:
    """The one command that was sent."""
    (sent,) = [asked for asked in stub.asked if asked[0] in ("POST", "PATCH")]
    return sent[1], json.loads(sent[3])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["plan", ""], 'treadle plan "…"'),
        (["plan"], 'treadle plan "…"'),
        (["plan", "x", "--run", "--candidates", "2"], "--run takes the only candidate"),
        (["plan", "x", "--by-hand", "--run"], "--by-hand prints a prompt"),
        (["plan", "x", "--by-hand", "--agent", "a"], "--by-hand prints a prompt"),
        (["plan", "x", "--plan", "p", "--run"], "--plan makes more candidates"),
        (["plan", "x", "--candidates", "6"], "6 is not in the range"),
        (["plan", "x", "--mode", "cheap"], "'cheap' is not one of"),
        (["plan", "x", "--budget", "nan"], "number of US dollars"),
        (["plan", "x" * 2_000_000], "a goal has at most"),
        (["plan", "x", "--repo", "/"], "give --repo a clone URL"),
        (["run"], "name what to run"),
        (["run", "plan.yaml", "--template", "t"], "name what to run"),
        (["run", "plan.yaml", "--role", "a=b"], "name it by --template"),
        (["run", "--template", "t", "--role", "agent-1"], "write SLOT=AGENT"),
        (["run", "--template", "t", "--input", "=x"], "write NAME=VALUE"),
        (["run", "--template", "t", "--input", "a=x", "--input", "a=y"], "--input a is given twice"),
        (["task", "edit", "T1"], "Missing argument"),
    ],
)
def test_bad_input_is_named_before_anything_is_asked(stub: Stub, words: list[str], told: str) -> None:
    done = said(stub, *words)
    assert done.exit_code == 2 and told in done.stderr.replace("\n", " "), done.stderr
    assert not stub.asked


def test_no_key_is_said_before_a_suite_is_started(tmp_path: Path) -> None:
    repo = make_repo(tmp_path / "repo")
    words = ["--data", str(tmp_path / "data"), "plan", "Greet", "--repo", str(repo)]
    done = CliRunner().invoke(main, words, env={"TREADLE_URL": "", "ANTHROPIC_API_KEY": ""})
    assert done.exit_code == 2 and "there is no key" in done.stderr and "--by-hand" in done.stderr
    assert not (tmp_path / "data" / "suite.json").exists()


@pytest.fixture
def remote(stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """A clone URL that git takes for a repository here, and its head."""
    repo = make_repo(tmp_path / "repo")
    url = "https://git.example.com/loom.git"
    for name, value in {"COUNT": "1", "KEY_0": f"url.file://{repo}.insteadOf", "VALUE_0": url}.items():
        monkeypatch.setenv(f"GIT_CONFIG_{name}", value)
    return url, git(repo, "rev-parse", "HEAD")


def test_prompt_by_hand_goes_out_and_where_the_plan_is_put_beside_it(stub: Stub, remote: tuple[str, str]) -> None:
    url, head = remote
    reply: dict[str, Any] = {
        "plan": PLAN_ID,
        "path": f"treadle/plan-{PLAN_ID}.json",
        "repo_url": url,
        "prompt": "Plan\x1b it",
        "seq": 3,
    }
    stub.answers = [page(project("a", code_repo_url=url)), (200, reply)] * 2
    done = said(stub, "plan", "Greet", "--repo", url, "--by-hand", "--mode", "speed")
    assert done.exit_code == 0 and done.stdout == "Plan\ufffd it\n"
    assert f"treadle add {PLAN_ID} FILE" in done.stderr and str(reply["path"]) in done.stderr and url in done.stderr
    assert posted(stub) == (
        "/api/projects/a/plans/prompt",
        {"goal": "Greet", "base_commit": head, "planning_mode": "speed"},
    )
    as_json = said(stub, "plan", "-", "--repo", url, "--by-hand", "--json", text="Greet\n")
    assert json.loads(as_json.stdout) == reply


def test_wishes_for_a_plan_are_sent_and_others_left_to_the_project(stub: Stub, remote: tuple[str, str]) -> None:
    url, head = remote
    agents = page({"id": "i1", "slug": "coder", "name": "Coder"}, {"id": "i2", "slug": "other", "name": "Coder"})
    refused = 409, {"code": "agent_unusable", "detail": "agent coder is inactive: choose another one"}
    stub.answers = [page(project("a", code_repo_url=url)), agents, refused]
    done = said(
        stub,
        "plan",
        "Greet",
        "--repo",
        url,
        "--candidates",
        "3",
        "--agent",
        "coder",
        "--budget",
        "2",
        "--mode",
        "quality",
    )
    assert done.exit_code == 2 and "coder is inactive" in done.stderr
    assert posted(stub)[0] == "/api/projects/a/plans/generate"
    assert posted(stub)[1] == {
        "goal": "Greet", "base_commit": head, "planning_mode": "quality", "candidates": 3, "agent_id": "i1",
        "budget_usd": 2.0,
    }  # fmt: skip
    for budget_usd, goes_on_alone in ((30, True), (None, False)):
        stub.asked.clear()
        of_repo = project("a", code_repo_url=url, budget_usd=budget_usd)
        stub.answers = [page(of_repo), (200, of_repo), refused]
        said(stub, "plan", "Greet", "--repo", url, "--run")
        assert posted(stub)[1] == {
            "goal": "Greet", "base_commit": head, "candidates": 1, "auto_finalize": goes_on_alone
        }  # fmt: skip


@pytest.mark.parametrize(
    ("wanted", "told"), [("Coder", "2 agents have the name Coder"), ("no\x1bne", "no agent “no\ufffdne”")]
)
def test_agent_that_is_not_one_is_refused(stub: Stub, remote: tuple[str, str], wanted: str, told: str) -> None:
    agents = page({"id": "i1", "slug": "coder", "name": "Coder"}, {"id": "i2", "slug": "other", "name": "Coder"})
    stub.answers = [page(project("a", code_repo_url=remote[0])), agents]
    done = said(stub, "plan", "Greet", "--repo", remote[0], "--agent", wanted)
    assert done.exit_code == 2 and told in done.stderr


def test_candidates_are_listed_and_given_as_files(stub: Stub) -> None:
    one: dict[str, Any] = {
        "candidate": "1",
        "name": "Greet",
        "tasks": 2,
        "model": "m",
        "cost_usd": 0.5,
        "duration_s": 9.0,
    }
    listed: dict[str, Any] = {"items": [one, {**one, "candidate": "2"}], "chosen": None}
    spec = {"name": "Greet", "tasks": []}
    stub.answers = [(200, PLAN), (200, listed), (200, PLAN), (200, listed), (200, PLAN), (200, spec)]
    assert said(stub, "candidates", PLAN_ID).stdout.splitlines() == [
        "1    Greet  (2 tasks, m, $0.50, 9s)",
        "2    Greet  (2 tasks, m, $0.50, 9s)",
    ]
    assert json.loads(said(stub, "candidates", PLAN_ID, "--json").stdout) == {**listed, "requests": []}
    assert json.loads(said(stub, "candidates", PLAN_ID, "--text", "1").stdout) == spec
    assert stub.asked[-1][1] == f"/api/plans/{PLAN_ID}/spec?candidate=1"


def test_only_candidate_is_chosen_without_being_named_and_of_several_one_has_to_be(stub: Stub) -> None:
    several = {**PLAN, "candidates": [{"candidate": "1"}, {"candidate": "2"}]}
    only = {**PLAN, "candidates": [{"candidate": "2"}]}
    stub.answers = [(200, several), (200, only), (202, {"seq": 7, "changed": True}), (200, only)]
    refused = said(stub, "choose", PLAN_ID)
    assert refused.exit_code == 2 and "2 candidates: name one of 1, 2" in refused.stderr
    done = said(stub, "choose", PLAN_ID)
    assert done.exit_code == 0 and "its tasks start" in done.stderr
    assert posted(stub) == (f"/api/plans/{PLAN_ID}/finalize", {"candidate": "2"})
    stub.answers = [(200, {**PLAN, "candidates": []})]
    none = said(stub, "choose", PLAN_ID)
    assert none.exit_code == 2 and "no candidate yet" in none.stderr


def test_plan_file_is_added_from_standard_input_and_every_fault_of_it_is_told(stub: Stub) -> None:
    text = '```json\n{"name": "Greet", "tasks": [{"code": "T1", "name": "x", "description": "y"}]}\n```\n'
    stub.answers = [(200, PLAN), (201, {"plan": PLAN_ID, "candidate": "2", "seq": 8}), (200, PLAN)]
    done = said(stub, "add", PLAN_ID, "-", text=text)
    assert done.exit_code == 0 and f"treadle choose {PLAN_ID} 2" in done.stderr
    assert posted(stub) == (f"/api/plans/{PLAN_ID}/candidates", {"text": text})
    faults = [{"message": "task T1, assignee: nobody"}, {"message": "task T2, code: twice"}]
    stub.answers = [(200, PLAN), (422, {"code": "invalid_plan", "detail": "d", "faults": faults})]
    refused = said(stub, "add", PLAN_ID, "-", text=text)
    assert refused.exit_code == 2 and all(fault["message"] in refused.stderr for fault in faults)


def test_candidates_are_compared(stub: Stub) -> None:
    told = {"added": ["T9"], "removed": [], "changed": []}
    stub.answers = [(200, PLAN), (200, told)] * 2
    assert said(stub, "compare", PLAN_ID, "1", "2").stdout == "+ T9\n"
    assert json.loads(said(stub, "compare", PLAN_ID, "1", "2", "--json").stdout) == told
    assert stub.asked[-1][1] == f"/api/plans/{PLAN_ID}/compare?a=1&b=2"


def test_candidate_that_is_not_there_is_answered_with_those_that_are(stub: Stub) -> None:
    drafted = {**PLAN, "candidates": [{"candidate": "2"}, {"candidate": "1"}]}
    chosen = {**PLAN, "status": "completed", "candidate": "2", "candidates": []}
    for plan, words, told in (
        (drafted, ["compare", PLAN_ID, "1", "9"], f"plan {PLAN_ID} has no candidate 9: it has 1, 2"),
        (drafted, ["candidates", PLAN_ID, "--text", "9"], "it has 1, 2"),
        (chosen, ["compare", PLAN_ID, "1", "2"], "only the chosen one, 2, is kept"),
        (chosen, ["candidates", PLAN_ID, "--text", "1"], "only the chosen one, 2, is kept"),
    ):
        stub.answers = [(200, plan)]
        done = said(stub, *words)
        assert done.exit_code == 2 and told in done.stderr and "GET" not in done.stderr


def test_plan_without_tasks_shows_its_candidates_and_what_to_do_with_them(stub: Stub) -> None:
    one = {"candidate": "1", "name": "Greet", "tasks": 1}
    usage = {"counts": {}, "usage": {}, "name": "Greet", "reason": ""}
    stub.answers = [(200, {**PLAN, **usage, "candidates": [{**one, "candidate": "2"}, one]}), page()]
    shown = said(stub, "status", PLAN_ID).stdout
    assert "(2 candidates)" in shown and "1    Greet  (1 task)" in shown and "2    Greet" in shown
    assert f"treadle choose {PLAN_ID} CANDIDATE" in shown and f"treadle compare {PLAN_ID} 1 2" in shown
    assert "tokens" not in shown and "no task yet" not in shown


def test_choice_is_told_as_json_too(stub: Stub) -> None:
    only = {**PLAN, "candidates": [{"candidate": "1"}]}
    stub.answers = [(200, only), (202, {"seq": 7, "changed": True}), (200, only)]
    assert json.loads(said(stub, "choose", PLAN_ID, "--json").stdout) == {"seq": 7, "changed": True}


def test_plan_that_is_named_by_nothing_is_none(stub: Stub) -> None:
    done = said(stub, "compare", "", "1", "2")
    assert done.exit_code == 2 and "a plan's id is empty" in done.stderr


def test_goal_from_standard_input_that_is_no_text_is_refused(stub: Stub) -> None:
    address = f"http://127.0.0.1:{stub.port}"
    words = ["--url", address, "plan", "-"]
    done = CliRunner().invoke(main, words, env={"TREADLE_TOKEN": "t"}, input=b"Gr\xff\xfe\x80")
    assert done.exit_code == 2 and "the goal is no text in UTF-8" in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ["plan", "a\udcff b"],
        ["task", "complete", "T1", "--plan", PLAN_ID, "--note", "a\udcff b"],
        ["task", "edit", "T1", "name=a\udcff b", "--plan", PLAN_ID],
        ["add", "p\udcff", "-"],
        ["compare", "p\udcff", "1", "2"],
    ],
)
def test_arguments_that_are_no_utf8_are_refused_without_a_traceback(stub: Stub, words: list[str]) -> None:
    stub.tags = {"ETag": '"5"'}
    stub.answers = [(200, PLAN), (200, {"code": "T1"})]
    text = '{"name": "Greet", "tasks": [{"code": "T1", "name": "x", "description": "y"}]}'
    done = said(stub, *words, text=text)
    assert done.exit_code == 2 and "is no text in UTF-8" in done.stderr
    assert not [asked for asked in stub.asked if asked[0] != "GET"]


def test_word_on_a_review_or_a_decision_is_told_as_what_it_means_there(stub: Stub) -> None:
    for verb, task, told in (
        ("complete", {"reviews": "T0", "review": None}, "without a verdict"),
        ("redispatch", {"is_decision": True}, "one more round is granted"),
        ("redispatch", {"is_decision": False}, "another attempt was asked for"),
    ):
        stub.answers = [(200, PLAN), (202, {"seq": 7, "changed": True}), (200, PLAN), (200, {"status": "x", **task})]
        assert told in said(stub, "task", verb, "T1", "--plan", PLAN_ID).stderr


def test_prompt_of_a_task_that_waits_names_what_for(stub: Stub) -> None:
    refused = 409, {"code": "not_dispatched", "detail": "task T2 has not been dispatched yet"}
    stub.answers = [(200, PLAN), refused, (200, {"waiting_for": ["T1"]})]
    done = said(stub, "task", "prompt", "T2", "--plan", PLAN_ID)
    assert done.exit_code == 2 and "has not been dispatched yet: it waits for T1" in done.stderr


def test_field_that_a_task_does_not_have_is_answered_with_those_that_it_has(stub: Stub) -> None:
    done = said(stub, "task", "edit", "T1", "bogus=1", "--plan", PLAN_ID)
    assert done.exit_code == 2 and "bogus is no field" in done.stderr and "timeout_minutes" in done.stderr
    assert not stub.asked


def test_editable_fields_of_a_task_are_those_that_the_gateway_takes() -> None:
    taken = set(TaskChanges.__struct_fields__) - {"note"}
    assert taken - {"code", "depends_on", "reviews"} == EDITABLE


def test_projects_agents_are_named_by_their_slugs(stub: Stub) -> None:
    before = project("a", name="Ours", agent_ids=[], auto_finalize=False)
    agents = page({"id": "i1", "slug": "ann", "name": "Ann"}, {"id": "i2", "slug": "ben", "name": "Ben"})
    after = {**before, "agent_ids": ["i1", "i2"], "mode": "auto"}
    stub.answers = [page(before), agents, agents, (200, after)]
    done = said(stub, "projects", "set", "Ours", 'agent_ids=["ann", "i2"]')
    assert done.exit_code == 0 and posted(stub) == ("/api/projects/a", {"agent_ids": ["i1", "i2"]})
    for given, answers, told in (
        ("agent_ids=ann", [], "agent_ids is a list of agents"),
        ('agent_ids=[""]', [agents], "there is no agent “”: there are ann, ben"),
        ('agent_ids=["ann"]', [page()], "Agents of your own"),
        ("auto_finalize=maybe", [], "auto_finalize is true or false, not maybe"),
    ):
        stub.answers = [page(before), *answers]
        refused = said(stub, "projects", "set", "Ours", given)
        assert refused.exit_code == 2 and told in refused.stderr, refused.stderr


@pytest.mark.parametrize(
    ("given", "detail"),
    [
        ("permissions=nonsense", "permissions: Expected `array | null`, got `str`"),
        ('permissions=[{"tool": "Bash", "who": 1}]', "permissions[0]: Object contains unknown field `who`"),
    ],
)
def test_rule_that_is_none_is_answered_with_one_that_is(stub: Stub, given: str, detail: str) -> None:
    stub.answers = [page(project("a", name="Ours", permissions=[])), (400, {"code": "bad_request", "detail": detail})]
    refused = said(stub, "projects", "set", "Ours", given)
    assert refused.exit_code == 2 and "a rule has tool, pattern, answer" in refused.stderr
    shown = refused.stderr.partition("permissions='")[2].rstrip("'\n")
    (rule,) = msgspec.json.decode(shown, type=list[Permission])
    assert work_rules.permissions([rule]) == []


TEMPLATE = {
    "id": "t1",
    "name": "issue",
    "description": "An issue \x1bto a pull request",
    "roles": [{"slot": "agent-1", "description": "Implements"}],
    "inputs": [
        {"name": "issue", "type": "text", "required": True, "description": "What is wrong"},
        {"name": "rounds", "type": "number", "required": False, "default": 3},
        {"name": "fast", "type": "boolean", "required": False},
        {"name": "how", "type": "choice", "choices": ["a", "b"], "required": False},
    ],
    "text": "name: '{{issue}}'\n",
}


def test_template_is_shown_with_what_it_asks_for(stub: Stub) -> None:
    stub.answers = [page(TEMPLATE), page(TEMPLATE), (200, TEMPLATE), page(TEMPLATE)]
    assert said(stub, "templates").stdout == "t1  issue  An issue \ufffdto a pull request\n"
    shown = said(stub, "templates", "show", "issue").stdout
    for words in (
        "--role agent-1=AGENT  Implements", "--input issue=TEXT  (needed) What is wrong", "rounds=NUMBER  [3]",
        "fast=true|false", "how=a|b", "name: '{{issue}}'",
    ):  # fmt: skip
        assert words in shown
    missing = said(stub, "templates", "show", "none")
    assert missing.exit_code == 2 and "there is no template none" in missing.stderr


def test_template_is_filled_in_with_typed_inputs_and_what_is_missing_is_named(
    stub: Stub, remote: tuple[str, str]
) -> None:
    url, head = remote
    settings = {**project("a", code_repo_url=url), "delivery": "branch", "delivery_branch": ""}
    faults = [{"message": "input issue is missing (line 51)"}, {"message": "roles.agent-1: is missing"}]
    refused = 422, {"code": "invalid_template", "detail": "d", "faults": faults}
    stub.answers = [page(TEMPLATE), (200, TEMPLATE), page(project("a", code_repo_url=url)), (200, settings), refused]
    given = ["--input", "rounds=2", "--input", "fast=yes", "--input", "how=a=b", "--role", "agent-2=coder"]
    done = said(stub, "run", "--template", "issue", "--repo", url, *given)
    assert done.exit_code == 2
    assert "input issue is missing\n" in done.stderr and "roles.agent-1: is missing" in done.stderr
    assert "treadle projects set a agent_ids=" in done.stderr and "Agents of your own" in done.stderr
    assert posted(stub) == (
        "/api/projects/a/plans/from-template",
        {
            "template_id": "t1",
            "roles": {"agent-2": "coder"},
            "inputs": {"rounds": 2.0, "fast": True, "how": "a=b"},
            "base_commit": head,
        },
    )


@pytest.mark.parametrize("verb", ["dispatch", "complete", "abandon", "redispatch", "cancel"])
def test_word_on_a_task_goes_with_its_note(stub: Stub, verb: str) -> None:
    stub.answers = [(200, PLAN), (202, {"seq": 7, "changed": True}), (200, PLAN), (200, {"status": "running"})]
    done = said(stub, "task", verb, "T1", "--plan", PLAN_ID, "--note", "Ann has it")
    assert done.exit_code == 0 and f"task T1 of plan {PLAN_ID}: " in done.stderr
    assert posted(stub) == (f"/api/plans/{PLAN_ID}/tasks/T1/{verb}", {"note": "Ann has it"})


def test_prompt_of_a_task_goes_out_alone(stub: Stub) -> None:
    stub.answers = [(200, PLAN), (200, {"task": "T1", "prompt": "Do\x1b it\nwell"})] * 2
    done = said(stub, "task", "prompt", "T1", "--plan", PLAN_ID)
    assert (done.stdout, done.stderr) == ("Do\ufffd it\nwell\n", "")
    as_json = said(stub, "task", "prompt", "T1", "--plan", PLAN_ID, "--json")
    assert json.loads(as_json.stdout)["prompt"] == "Do\x1b it\nwell"


def test_task_is_changed_only_as_it_was_seen(stub: Stub) -> None:
    stub.tags = {"ETag": '"5"'}
    stub.answers = [(200, PLAN), (200, {"code": "T1"}), (202, {"seq": 7, "changed": True}), (200, PLAN)]
    fields = ["timeout_minutes=20", 'verify=["pytest -q"]', "assignee=coder", "expected_output=null"]
    done = said(stub, "task", "edit", "T1", *fields, "--plan", PLAN_ID, "--note", "slower")
    assert done.exit_code == 0 and "changed" in done.stderr
    assert posted(stub) == (
        f"/api/plans/{PLAN_ID}/tasks/T1",
        {
            "timeout_minutes": 20, "verify": ["pytest -q"], "assignee": "coder", "expected_output": None,
            "note": "slower",
        },
    )  # fmt: skip
    assert stub.if_match == '"5"'
    faults = [{"message": "verify: a list is expected"}]
    stub.answers = [(200, PLAN), (200, {"code": "T1"}), (422, {"code": "invalid", "detail": "d", "faults": faults})]
    refused = said(stub, "task", "edit", "T1", "verify=7", "--plan", PLAN_ID)
    assert refused.exit_code == 2 and "verify: a list is expected" in refused.stderr
    of_type = 400, {"code": "bad_request", "detail": "verify: Expected `array | null`, got `int`"}
    stub.answers = [(200, PLAN), (200, {"code": "T1"}), of_type]
    refused = said(stub, "task", "edit", "T1", "verify=7", "--plan", PLAN_ID)
    assert "verify: has to be a list or null, not a whole number" in refused.stderr


def test_task_that_is_none_is_named(stub: Stub) -> None:
    stub.answers = [(200, PLAN), (404, {"code": "not_found", "detail": "there is no task T9"})] * 2
    for words in (["task", "prompt", "T9"], ["task", "refresh", "T9"]):
        done = said(stub, *words, "--plan", PLAN_ID)
        assert done.exit_code == 2 and f"plan {PLAN_ID} has no task T9" in done.stderr
    stub.answers = [(200, PLAN)]
    odd = said(stub, "task", "dispatch", "../x", "--plan", PLAN_ID)
    assert odd.exit_code == 2 and "is not a task code" in odd.stderr


def test_look_for_a_result_says_what_was_found(stub: Stub) -> None:
    task = {"code": "T1", "status": "needs_attention"}
    looked = {"path": "treadle/x/T1/result.json", "blob": "ab" * 20}
    stub.answers = [(200, PLAN), (200, looked), (200, task)] * 2
    done = said(stub, "task", "refresh", "T1", "--plan", PLAN_ID)
    assert done.stdout.splitlines() == [
        "treadle/x/T1/result.json is there (abababababab); if it is new, it is being taken",
        "task T1 needs attention",
    ]
    assert json.loads(said(stub, "task", "refresh", "T1", "--plan", PLAN_ID, "--json").stdout) == looked
