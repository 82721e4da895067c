"""Plans and reviews as the runner has them made: real git, a real bus, and the real CLI with a scripted model."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from services.runner.agents import ANSWER_MAX_BYTES, AgentRunner, open_runner
from services.runner.agents.claude import ClaudeRunner
from services.runner.execution import AgentExecutor
from services.runner.git_threads import git_threads
from services.runner.lease import Key
from services.runner.proxy import KeyProxy
from services.runner.sweep import sweep
from services.runner.workspace import create_workspace
from shared import events as e
from shared.clock import new_plan_id
from shared.requests import CheckReply, CheckRequest
from shared.spec import AgentSpec, Permission, TaskSpec, WorkRules
from shared.subjects import PLAN, PLANNER_CHECK, transcript_filter
from tests.agents.claude_probes import KEY, asked, call, last_said, scripted
from tests.nats_process import NatsServer
from tests.runner.bench import META, Bench, open_bench, reached
from tests.runner.repositories import PROJECT_ID, Project, git, make_project
from treadle.scripted_model import ScriptedModel

DRAFT = "_draft-1"
CLAUDE = AgentSpec(sdk_type="claude")
SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "required": ["name", "tasks"],
    "properties": {"name": {"type": "string"}, "tasks": {"type": "array", "items": {"type": "object"}}},
}
PLAN_RULES = WorkRules(answer="plan", plan_schema=json.dumps(SCHEMA), verify_rounds=3)
REVIEW_RULES = WorkRules(answer="review", reviews="T0", round=2, requires_approval=True, expected_output="never.txt")


def plan_named(name: str) -> dict[str, Any]:
    return {"name": name, "tasks": [{"code": "T1"}]}


def gives(**answer: Any) -> list[dict[str, Any]]:
    return [call("StructuredOutput", **answer)]


@dataclass
class Planner:
    """Says what a test wants of the plans that it is asked about."""

    replies: list[CheckReply] = field(default_factory=list)
    """One for each request; afterwards everything is valid."""
    heard: list[CheckRequest] = field(default_factory=list)
    subscription: Subscription | None = None

    async def open(self, bench: Bench) -> None:
        """From now on it answers."""
        self.subscription = await bench.nc.subscribe(PLANNER_CHECK, cb=self._answer)
        await bench.nc.flush()

    async def _answer(self, message: Msg) -> None:
        self.heard.append(msgspec.json.decode(message.data, type=CheckRequest))
        reply = self.replies.pop(0) if self.replies else CheckReply()
        await message.respond(msgspec.json.encode(reply))


def prints(text: str) -> AgentSpec:
    """A program that answers with that, whatever it is told."""
    return AgentSpec(sdk_type="command", command=("printf", "%s", text))


def faults(*messages: str) -> CheckReply:
    return CheckReply(faults=tuple(e.PlanFault(message=f"task T1: {message}", task="T1") for message in messages))


@pytest.fixture
async def bench(own_nats: NatsServer, tmp_path: Path) -> AsyncIterator[Bench]:
    async with open_bench(own_nats, tmp_path / "bench") as made:
        yield made


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return make_project(tmp_path, {"src/app.py": "A = 1\n", "README.md": "# Aquarium\n", "pyproject.toml": ""})


@pytest.fixture
async def planner(bench: Bench) -> Planner:
    made = Planner()
    await made.open(bench)
    return made


@pytest.fixture
async def model() -> AsyncIterator[ScriptedModel]:
    async with ScriptedModel(api_key=KEY) as made:
        yield made


@pytest.fixture
async def commands() -> AsyncIterator[AgentRunner]:
    async with open_runner("command", {}) as made:
        yield made


@pytest.fixture
async def claude(model: ScriptedModel) -> AsyncIterator[ClaudeRunner]:
    async with KeyProxy(KEY, model.base_url) as proxy:
        yield ClaudeRunner(proxy)


async def requested(bench: Bench, project: Project, prompt: str, agent: AgentSpec = CLAUDE, **more: Any) -> str:
    """A plan that is asked for, with the making of its candidate dispatched; returns its id."""
    plan = new_plan_id()
    wanted = e.PlanRequested(
        candidates=("1",), goal="g", project=PROJECT_ID, repo_url=str(project.repo), base_commit=project.base
    )
    await bench.store.append(plan, PLAN, wanted, META, expected=0)
    spec = TaskSpec(code=DRAFT, name="Make a plan", assignee="planner", timeout_minutes=1, allow_no_change=True)
    planned = e.TaskPlanned(digest="", index=0, spec=spec, agent=agent)
    seq = await bench.store.append(plan, DRAFT, planned, META, expected=0)
    dispatched = e.TaskDispatched(
        dispatch=1, attempt=1, prompt=prompt, agent=agent, project=PROJECT_ID, repo_url=str(project.repo),
        base_commit=project.base, heads=(), plan_name="", task_name="Make a plan", timeout_s=600, budget_usd=1,
        rules=PLAN_RULES,
    )  # fmt: skip
    await bench.store.append(plan, DRAFT, msgspec.structs.replace(dispatched, **more), META, expected=seq)
    return plan


async def made(bench: Bench, plan: str, agent: AgentRunner, pool: str = "claude") -> Any:
    """Lets a runner make the candidate; returns the event that says how that ended."""
    async with bench.runner(agent, pool=pool):
        record = await bench.event(plan, "completed", "failed", "approval_requested", task=DRAFT)
    await reached(lambda: not list(bench.data_dir.glob(f"work/{plan}/*")))
    return record.event


def refs(project: Project, plan: str) -> list[str]:
    return git(project.repo, "for-each-ref", "--format=%(refname)", f"refs/treadle/{plan}").splitlines()


async def test_a_valid_plan_is_the_answer_and_nothing_is_in_git(
    bench: Bench, project: Project, planner: Planner, claude: ClaudeRunner, model: ScriptedModel
) -> None:
    plan = await requested(bench, project, scripted(gives(**plan_named("Good"))))
    done = await made(bench, plan, claude)
    assert isinstance(done, e.TaskCompleted)
    assert (done.base_commit, done.commit) == (project.base, project.base)
    assert json.loads(done.answer) == plan_named("Good")
    assert (done.result.task_code, done.result.summary) == (DRAFT, "a plan of 1 task")
    assert done.usage.cost_usd > 0
    (check,) = planner.heard
    assert (check.plan, check.candidate, check.text) == (plan, "1", done.answer)
    assert refs(project, plan) == []
    prompt = json.dumps(asked(model)[0]["messages"])
    for words in ("## The repository", "`src`/ 1", "Python 1", "> # Aquarium", "one call of StructuredOutput"):
        assert words in prompt


async def test_faults_go_back_into_the_same_conversation_until_the_plan_is_valid(
    bench: Bench, project: Project, planner: Planner, claude: ClaudeRunner, model: ScriptedModel
) -> None:
    planner.replies = [faults("no such agent: x", "a cycle"), faults("still a cycle")]
    plan = await requested(bench, project, scripted(*(gives(**plan_named(f"Try {n}")) for n in (1, 2, 3))))
    done = await made(bench, plan, claude)
    assert isinstance(done, e.TaskCompleted)
    assert [json.loads(check.text)["name"] for check in planner.heard] == ["Try 1", "Try 2", "Try 3"]
    assert json.loads(done.answer)["name"] == "Try 3"
    said = last_said(model)
    assert all(words in said for words in ("task T1: no such agent: x", "task T1: still a cycle", "Try 1", "Try 2"))


async def test_after_the_last_round_every_fault_is_in_the_log(
    bench: Bench, project: Project, planner: Planner, commands: AgentRunner
) -> None:
    planner.replies = [faults(f"wrong {n}", f"odd {n}") for n in range(4)]
    plan = await requested(bench, project, "plan it", prints(json.dumps(plan_named("Bad"))))
    failed = await made(bench, plan, commands, "command")
    assert isinstance(failed, e.TaskFailed)
    assert (failed.kind, len(planner.heard)) == ("verification_failed", 4)
    assert [fault.message for fault in failed.faults] == ["task T1: wrong 3", "task T1: odd 3"]
    assert "task T1: wrong 3" in failed.message and "run again 3 times" in failed.message
    assert refs(project, plan) == []


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("I would do it.", "There is no answer"),
        (
            '{"name": "A",}',
            "can't be read as JSON: Expecting property name",
        ),
        ('{"name": "' + "x" * ANSWER_MAX_BYTES + '"}', "larger than 2048 KiB"),
        ('{"a":' * 5000 + "1" + "}" * 5000, "can't be read as JSON"),
    ],
    ids=["text", "broken", "large", "deep"],
)
async def test_what_is_no_answer_is_told_without_a_planner(
    bench: Bench, project: Project, planner: Planner, commands: AgentRunner, tmp_path: Path, answer: str, words: str
) -> None:
    (tmp_path / "answer").write_text(answer)
    agent = AgentSpec(sdk_type="command", command=("cat", str(tmp_path / "answer")))
    plan = await requested(bench, project, "plan it", agent, rules=msgspec.structs.replace(PLAN_RULES, verify_rounds=0))
    failed = await made(bench, plan, commands, "command")
    assert (failed.kind, len(failed.faults)) == ("verification_failed", 1)
    assert words in failed.faults[0].message and words in failed.message
    assert planner.heard == []


async def test_no_secret_of_the_leases_reaches_the_planner_or_the_log(
    bench: Bench, project: Project, planner: Planner, commands: AgentRunner
) -> None:
    key = "sk-ant-api03-0123456789abcdef0123456789abcdef"
    plan = await requested(bench, project, "plan it", prints(json.dumps(plan_named(f"Use {key}"))))
    done = await made(bench, plan, commands, "command")
    assert json.loads(done.answer)["name"] == "Use [redacted]"
    assert planner.heard[0].text == done.answer


async def test_a_text_alone_is_a_fault_and_costs_a_round(
    bench: Bench, project: Project, planner: Planner, claude: ClaudeRunner, model: ScriptedModel
) -> None:
    texts = ([{"text": "I would do it."}], [{"text": "Really."}])
    plan = await requested(bench, project, scripted(*texts, gives(**plan_named("Good"))))
    done = await made(bench, plan, claude)
    assert isinstance(done, e.TaskCompleted)
    assert len(planner.heard) == 1
    assert "There is no answer in the form that was asked for" in last_said(model)


async def test_an_attempt_that_makes_a_plan_has_no_tool_that_writes(
    bench: Bench, project: Project, planner: Planner, claude: ClaudeRunner, model: ScriptedModel
) -> None:
    writes = [call("Write", file_path="made.txt", content="x"), call("Bash", command=f"touch {project.repo}/made.txt")]
    allowed = tuple(Permission(tool=tool, answer="always") for tool in ("*", "Write", "Bash"))
    rules = msgspec.structs.replace(PLAN_RULES, permissions=allowed)
    plan = await requested(bench, project, scripted(writes, gives(**plan_named("Good"))), rules=rules)
    done = await made(bench, plan, claude)
    assert isinstance(done, e.TaskCompleted)
    assert last_said(model).count("No such tool available") == 2
    assert not (project.repo / "made.txt").exists()
    assert refs(project, plan) == []


async def test_a_planner_that_is_away_is_waited_for(
    bench: Bench, project: Project, claude: ClaudeRunner, model: ScriptedModel
) -> None:
    plan = await requested(bench, project, scripted(gives(**plan_named("Good"))))
    heard = await bench.nc.subscribe(transcript_filter(plan, DRAFT))
    async with bench.runner(claude):
        while b"no planner says" not in (await heard.next_msg(timeout=60)).data:
            continue
        planner = Planner()
        await planner.open(bench)
        done = (await bench.event(plan, "completed", "failed", task=DRAFT)).event
    assert isinstance(done, e.TaskCompleted)
    assert len(asked(model)) == 1


async def test_a_planner_that_never_comes_is_named_when_the_time_is_over(
    bench: Bench, project: Project, commands: AgentRunner
) -> None:
    plan = await requested(bench, project, "plan it", prints(json.dumps(plan_named("Good"))), timeout_s=12)
    failed = await made(bench, plan, commands, "command")
    assert (failed.kind, "waited for a planner" in failed.message) == ("timeout", True)


async def test_a_plan_that_is_not_wanted_any_more_is_said(
    bench: Bench, project: Project, planner: Planner, commands: AgentRunner
) -> None:
    planner.replies = [CheckReply(refused="candidate 1 is there already")]
    plan = await requested(bench, project, "plan it", prints(json.dumps(plan_named("Good"))))
    failed = await made(bench, plan, commands, "command")
    assert (failed.kind, "candidate 1 is there already" in failed.message) == ("agent_error", True)


async def test_the_next_lease_goes_on_with_the_conversation_of_one_that_was_lost(
    bench: Bench, project: Project, claude: ClaudeRunner, model: ScriptedModel
) -> None:
    prompt = scripted(gives(**plan_named("First")), gives(**plan_named("Second")))
    plan = await requested(bench, project, prompt)
    heard = await bench.nc.subscribe(transcript_filter(plan, DRAFT))
    async with bench.runner(claude):  # it stops while it waits for a planner
        while b"no planner says" not in (await heard.next_msg(timeout=60)).data:
            continue
    released = await bench.event(plan, "released", task=DRAFT)
    assert refs(project, plan) == []
    records = await bench.store.read(plan, DRAFT)
    before = next(record.event for record in records if isinstance(record.event, e.TaskDispatched))
    again = msgspec.structs.replace(before, dispatch=2)
    await bench.store.append(plan, DRAFT, again, META, expected=released.seq)
    planner = Planner()
    await planner.open(bench)
    done = await made(bench, plan, claude)
    assert isinstance(done, e.TaskCompleted) and done.lease == 2
    assert json.loads(done.answer)["name"] == "Second"
    said = last_said(model)
    assert "First" in said and "You were interrupted" in said


async def test_what_a_killed_planner_left_is_swept(project: Project) -> None:
    plan = new_plan_id()
    project.mirror.ensure(plan, [project.base])
    workspace = create_workspace(project.data_dir, project.mirror, plan, DRAFT, 1, project.base)
    scratch = project.data_dir / "scratch" / f"{plan}-{DRAFT}-1"
    scratch.mkdir(parents=True)
    with git_threads() as threads:
        swept = await sweep(project.data_dir, threads)
    assert set(swept.removed) == {scratch, workspace.path}
    assert not workspace.path.exists() and not scratch.exists()


async def test_a_draft_of_a_plan_that_takes_none_any_more_is_not_begun(
    bench: Bench, project: Project, planner: Planner, claude: ClaudeRunner, model: ScriptedModel
) -> None:
    plan = await requested(bench, project, scripted(gives(**plan_named("Good"))))
    last = await bench.store.last_seq(plan, PLAN)
    await bench.store.append(plan, PLAN, e.PlanCancelRequested(reason="enough"), META, expected=last)
    async with bench.runner(claude):
        await bench.event(plan, "cancelled", task=DRAFT)
    assert asked(model) == []


# Reviews ----------------------------------------------------------------------------------------------------------


async def reviewed(bench: Bench, agent: AgentRunner, plan: str, pool: str = "claude") -> e.TaskCompleted:
    """Lets a runner do the review, which has to complete."""
    async with bench.runner(agent, pool=pool):
        done = (await bench.event(plan, "completed", "failed", "approval_requested")).event
    assert isinstance(done, e.TaskCompleted), done
    await reached(lambda: not list(bench.data_dir.glob(f"work/{plan}/*")))
    return done


async def review_of(bench: Bench, project: Project, prompt: str, **more: Any) -> tuple[str, str]:
    """A dispatched review of a task's work; returns the plan, and that work's commit."""
    work = project.work("T0", {"src/app.py": "A = 2\n"})
    heads = (e.Head(task="T0", commit=work),)
    given = {"agent": CLAUDE, "prompt": prompt, "heads": heads, "rules": REVIEW_RULES, **more}
    return await bench.dispatch(str(project.repo), project.base, **given), work


async def test_a_review_is_in_the_result_and_what_its_commands_did_is_gone(
    bench: Bench, project: Project, claude: ClaudeRunner
) -> None:
    findings = [
        {"severity": "minor", "message": "A name\nof one letter.", "file": "./src/app.py", "line": 1},
        {"severity": "blocker", "message": "\x1b[31mA is wrong\u202e.", "file": "src/app.py"},
    ]
    changes = call("Bash", command="cat src/app.py; echo 'A = 3' > src/app.py; touch junk; git commit -qam Mine")
    script = scripted([changes], gives(approve=False, findings=findings))
    plan, work = await review_of(bench, project, script, verify=("exit 1",))
    done = await reviewed(bench, claude, plan)
    assert (done.base_commit, done.commit) == (work, work)
    review = done.result.review
    assert review is not None
    assert (review.approve, review.round, review.commit) == (False, 2, work)
    assert [(f.severity, f.file, f.line) for f in review.findings] == [
        ("minor", "src/app.py", 1),
        ("blocker", "src/app.py", None),
    ]
    assert done.result.summary.splitlines() == [
        "not approved in round 2: 1 blocker, 1 minor",
        "- blocker: src/app.py: A is wrong .",
        "- minor: src/app.py:1: A name of one letter.",
    ]
    assert json.loads(done.answer)["findings"] == findings
    assert project.files(f"refs/treadle/{plan}/T1/head")["src/app.py"] == "A = 2"
    assert refs(project, plan) == [f"refs/treadle/{plan}/T1/1", f"refs/treadle/{plan}/T1/head"]


async def test_a_review_that_makes_no_sense_goes_back(
    bench: Bench, project: Project, claude: ClaudeRunner, model: ScriptedModel
) -> None:
    outside = {"severity": "note", "message": "x", "file": "/etc/passwd"}
    reviews: list[tuple[bool, list[Any]]] = [(False, []), (True, [outside]), (True, [])]
    script = scripted(*(gives(approve=approve, findings=findings) for approve, findings in reviews))
    plan, _ = await review_of(bench, project, script)
    done = await reviewed(bench, claude, plan)
    assert done.result.review is not None
    assert (done.result.review.approve, done.result.summary) == (True, "approved in round 2: no findings")
    said = last_said(model)
    assert "nobody could tell what to mend" in said and "/etc/passwd is no path from the repository's root" in said


async def test_a_program_can_review_too(bench: Bench, project: Project, commands: AgentRunner) -> None:
    good = '{"approve": true, "findings": []}'
    code = f"cat > told; if grep -q 'JSON schema' told && grep -q 'was checked' told; then echo '{good}'; fi"
    agent = AgentSpec(sdk_type="command", command=("sh", "-c", code))
    plan, work = await review_of(bench, project, "judge", agent=agent)
    done = await reviewed(bench, commands, plan, "command")
    assert done.result.review == e.Review(approve=True, round=2, commit=work)


async def test_a_killed_reviewers_files_are_removed_and_not_pushed(
    bench: Bench, project: Project, commands: AgentRunner
) -> None:
    plan, work = await review_of(bench, project, "judge")
    dispatch = (await bench.event(plan, "dispatched")).event
    assert isinstance(dispatch, e.TaskDispatched)
    project.mirror.ensure(plan, [work])
    workspace = create_workspace(project.data_dir, project.mirror, plan, "T1", 1, work)
    (workspace.code / "junk").write_text("x")
    executor = AgentExecutor(project.data_dir, commands, {}, None)
    await executor.salvage(Key(plan, "T1", 1), dispatch, None, None)
    assert not workspace.path.exists()
    assert refs(project, plan) == []
