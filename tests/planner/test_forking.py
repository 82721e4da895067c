"""A fork as a person wants it: their changes in the origin's plan file, and every fault of them in its place."""

from __future__ import annotations

import pytest

from services.planner.compare import expect
from services.planner.faults import PlanFaults
from services.planner.forking import _told, forked
from services.planner.past_runs import PastRuns
from shared import events as e
from shared.history.fork import CantFork, ForkPlan
from shared.plan import Candidate
from shared.requests import ForkRequest
from shared.spec import AgentSpec, Mode, PlanSettings, ProjectAgent, TaskSpec, settled
from shared.store import Recorded
from shared.subjects import PLAN
from tests.shared.history.test_fork import ORIGIN, Log, codes, task

CODER = ProjectAgent(
    slug="coder", name="Ada", type_name="Big", spec=AgentSpec(sdk_type="claude", model="m", agent_id="1")
)


def wish(edit: str = "", mode: Mode = "auto", agents: tuple[ProjectAgent, ...] = (), **more: object) -> ForkRequest:
    fields: dict[str, object] = {"at": "end", **more}
    return ForkRequest(
        plan="pbbbbbbbbbbbb", candidate="1", origin=ORIGIN, edit=edit, actor="user:ann", correlation="c", project="",
        mode=mode, agents=agents, **fields,  # type: ignore[arg-type]  # as ForkRequest has them
    )  # fmt: skip


def chain(*done: str) -> Log:
    """A → B → C, each with a description, and a lonely D."""
    log = Log(
        task("A", description="a"), task("B", "A", description="b"), task("C", "B", description="c"), task("D"),
    )  # fmt: skip
    for code in done:
        log.complete(code, 1.0)
    return log


def fork(log: Log, edit: str = "", **more: object) -> ForkPlan:
    return forked(log.records, wish(edit, **more))  # type: ignore[arg-type]  # as `wish` has them


def faults(log: Log, edit: str, **more: object) -> list[str]:
    with pytest.raises(PlanFaults) as found:
        fork(log, edit, **more)
    return [str(fault) for fault in found.value.faults]


def test_without_changes_it_is_the_same_plan() -> None:
    log = chain("A", "B")
    made = fork(log)
    drafted = log.records[0].event
    assert isinstance(drafted, e.PlanDrafted) and made.spec == drafted.spec
    assert (codes(made.kept), codes(made.runs)) == (["A", "B"], ["C", "D"])


def test_an_edited_description_runs_its_task_and_all_behind_it_again() -> None:
    made = fork(chain("A", "B", "C", "D"), "name: Other\ntasks:\n- {code: B, description: better}\n")
    assert (codes(made.kept), codes(made.runs)) == (["A", "D"], ["B", "C"])
    assert {one.code: one.description for one in made.spec.tasks}["B"] == "better"
    assert made.spec.name == "Other"


def test_an_edit_that_changes_nothing_keeps_what_was_done() -> None:
    edit = '{"tasks": [{"task_code": "B", "description": "b", "agent_id": "SH", "depends_on": ["A"], "retry": null}]}'
    made = fork(chain("A", "B"), edit)
    assert codes(made.kept) == ["A", "B"]


def test_an_agent_that_is_declared_otherwise_does_its_tasks_again() -> None:
    made = fork(chain("A", "D"), "agents: {sh: {sdk_type: command, command: [make]}}")
    assert not made.kept and made.runs[0].why == "its agent sh is changed"
    assert made.spec.agents["sh"].command == ("make",)


def test_tasks_may_be_added_and_removed() -> None:
    log = chain("A", "B", "C")
    made = fork(log, "tasks: [{code: E, depends_on: [C], name: E, assignee: sh}]\nremove: [B, D]\n")
    assert (codes(made.kept), codes(made.runs)) == (["A"], ["C", "E"])
    specs = {one.code: one for one in made.spec.tasks}
    assert specs["C"].depends_on == ("A",), "what waited for B waits for what that one waited for"
    assert {fate.code: fate.why for fate in made.runs}["C"] == "it waited for B, which is removed"
    assert codes(made.left_out) == ["B", "D"]


def test_what_was_given_up_may_be_removed_without_running_what_came_after() -> None:
    log = chain("A")
    log.add("B", e.TaskAbandoned(note="no"))
    log.complete("C")
    assert codes(fork(log).kept) == ["A"]
    made = fork(log, "remove: [B]")
    assert codes(made.kept) == ["A", "C"] and codes(made.runs) == ["D"]


def test_faults_are_named_in_their_places() -> None:
    edit = "tasks:\n- code: A\n  depends_on: [C]\n- code: E\n  depends_on: [Q]\n  assignee: sh\nremove: [X]\nfoo: 1\n"
    told = faults(chain(), edit)
    assert told[-2] == 'remove: "X" is not a task of this plan (line 7)', "all of them at once, in the text's order"
    assert any("the tasks wait for one another: A → C → B → A" in fault and "line 3" in fault for fault in told)
    assert any('"Q" is not a task of this plan' in fault and "line 5" in fault for fault in told)
    assert any("foo" in fault and "unknown field" in fault for fault in told)
    assert faults(chain(), "- a list")
    assert any("only Treadle itself sets it" in one for one in faults(chain(), "tasks: [{code: A, round: 2}]"))


def test_what_is_left_out_has_its_name() -> None:
    log = Log(task("A", name="Spin"), task("B", "A", name="Weave"), task("C", "B", name="Dye"))
    log.complete("A")
    made = fork(log, "tasks: [{code: E, name: Sew, assignee: sh}]\nremove: [C]", only=("B",))
    told = {one.code: one.name for one in _told(made).left_out}
    assert told == {"C": "Dye", "E": "Sew"}


def test_limits_and_agents_are_those_that_the_project_has_now() -> None:
    log = chain("A")
    gone = "is not an agent of this project"
    told = faults(log, "tasks: [{code: C, assignee: nobody}]", agents=(CODER,))
    assert any(gone in fault for fault in told)
    unusable = ProjectAgent(slug="coder", name="Ada", type_name="Big", spec=CODER.spec, unusable="is inactive")
    assert any(
        "it is inactive" in one for one in faults(log, "tasks: [{code: C, assignee: coder}]", agents=(unusable,))
    )
    assert fork(log, "tasks: [{code: C, assignee: coder}]", agents=(CODER,)).spec.agents["coder"] == CODER.spec


def test_what_is_kept_may_be_of_an_agent_that_is_gone() -> None:
    log = Log(task("A", assignee="coder"), task("B", "A", assignee="coder"))
    log.complete("A")
    other = ProjectAgent(
        slug="other", name="Bob", type_name="Big", spec=AgentSpec(sdk_type="claude", model="m", agent_id="2")
    )
    assert any("not an agent of this project" in fault for fault in faults(log, "", agents=(other,)))
    made = fork(log, "tasks: [{code: B, assignee: other}]", agents=(other,))
    assert codes(made.kept) == ["A"] and set(made.spec.agents) == {"other"} | ({"sh"} & made.spec.agents.keys())
    assert "coder" not in made.spec.agents


def test_what_the_project_has_filled_in_is_not_filled_in_twice() -> None:
    log = chain("A")
    settings = PlanSettings(setup=("make deps",), task_timeout_minutes=7, budget_usd=3)
    drafted = log.records[0].event
    assert isinstance(drafted, e.PlanDrafted)
    log.records[1] = changed(log.records[1], e.PlanFinalizing(candidate="1", digest="d", count=5, settings=settings))
    [b] = [one for one in settled(drafted.spec, settings).tasks if one.code == "B"]
    log.add("B", e.TaskEdited(spec=edited(b), agent=AgentSpec(sdk_type="command", command=("true",))))
    made = fork(log)
    specs = {one.code: one for one in made.spec.tasks}
    assert (made.spec.setup, made.spec.budget_usd, specs["C"].timeout_minutes) == ((), None, None)
    assert (specs["B"].description, specs["B"].timeout_minutes) == ("by a person", None)


def changed(record: Recorded, event: e.Event) -> Recorded:
    return Recorded(
        seq=record.seq, time=record.time, plan=record.plan, entity=PLAN, type=record.type, event=event, meta=record.meta
    )


def edited(spec: TaskSpec) -> TaskSpec:
    return TaskSpec(
        code=spec.code, name=spec.name, assignee=spec.assignee, depends_on=spec.depends_on, description="by a person",
        timeout_minutes=spec.timeout_minutes,
    )  # fmt: skip


def test_what_is_inherited_costs_nothing_in_an_estimate() -> None:
    log = Log(task("A", assignee="claude", budget_usd=9.0), task("B", "A", assignee="claude", budget_usd=1.0))
    log.complete("A", 8.0)
    made = fork(log)
    candidate = Candidate(made.spec, "u", "0" * 40, fork=made.fork)
    assert expect("1", candidate, PastRuns()).cost_usd == 3.0  # three attempts of B


def test_another_projects_plan_is_refused() -> None:
    with pytest.raises(CantFork, match="another project"):
        forked(chain().records, ForkRequest(
            plan="pbbbbbbbbbbbb", candidate="1", origin=ORIGIN, at="end", actor="user:ann", correlation="c",
            project="other", mode="auto", agents=(),
        ))  # fmt: skip


def test_what_has_no_code_is_numbered_as_the_person_wrote_it() -> None:
    told = faults(chain(), "tasks:\n- code: A\n- code: B\n- just a text\n- name: No code\n  assignee: sh\n")
    assert any(fault.startswith("task #3: a task is a mapping") for fault in told), told
    assert any(fault.startswith("task #4") and "code" in fault for fault in told), told


def test_a_task_that_is_not_there_is_answered_with_some_that_are() -> None:
    with pytest.raises(CantFork, match=r"^only: the plan has no task nope: it has A, B, C, D$"):
        fork(chain(), only=("nope",))
