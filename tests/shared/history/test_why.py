"""What `why` says of histories that are known to the last event."""

from __future__ import annotations

from datetime import timedelta

import pytest

from shared import events as e
from shared.history.why_sentence import QUOTED_MAX_CHARS, NoSuchTask, quoted
from shared.spec import DELIVER
from shared.subjects import PLAN
from tests.shared.history.told import PERSON, PLACE, SH, Told, task


@pytest.fixture
def told() -> Told:
    return Told()


# Why it does not run ----------------------------------------------------------------------------------------------


def test_a_task_that_waits_names_the_way_to_the_root_and_how_that_stands(told: Told) -> None:
    told.finalized(task("T1"), task("T2", "T1"), task("T3", "T2"))
    told.dispatched("T1")
    told.started("T1")
    failed = told.failed("T1", "authentication_refused", message="the key is wrong")
    answer = told.why("T3")
    first, root = answer.sentences[:2]
    assert (first.kind, first.text, answer.roots) == ("waits", "T3 waits for T2", ("T1",))
    assert (root.about, root.kind, root.task) == ("waits", "needs_attention", "T1")
    assert root.text.startswith("By way of T2 it waits for T1. T1 needs a person's attention")
    assert "runner:r1 reported that it failed (authentication refused): “the key is wrong”" in root.text
    assert failed in root.seqs


def test_of_several_roots_those_that_need_a_person_come_first(told: Told) -> None:
    told.finalized(task("A"), task("B"), task("C"), task("D", "A", "B", "C"))
    for code in "ABC":
        told.dispatched(code)
    told.started("B")
    told.started("C")
    told.failed("C")
    assert told.why("D").roots == ("C", "A", "B")
    assert [s.kind for s in told.why("D").sentences if s.about == "waits"] == ["needs_attention", "queued", "running"]
    assert told.why().roots == ("C", "A", "B")


def test_what_waits_behind_an_abandoned_task_waits_for_those_before_it(told: Told) -> None:
    told.finalized(task("T1"), task("T2", "T1"), task("T3", "T2"))
    told.dispatched("T1")
    told.tell("T2", e.TaskAbandoned(note="no use"))
    assert told.said("T3", "waits").text == "T3 waits for T1 (T1: before a task that was given up or marked complete)"
    assert told.why("T3").roots == ("T1",)


def test_a_queued_task_says_which_pool_has_it_since_when_and_nothing_of_runners_that_may_be_there(told: Told) -> None:
    told.finalized(task("T1", assignee="sh"))
    seq = told.dispatched("T1", agent=SH)
    said = told.why("T1").sentences[0]
    assert said.kind == "queued"
    assert said.text == (
        "T1 was dispatched to pool command at 2026-03-01 12:00:06 UTC, as attempt 1; no runner has taken it yet"
    )
    assert said.seqs == (seq,)


def test_an_approval_says_what_was_asked_when_and_until_when(told: Told) -> None:
    told.finalized(task("T1"))
    told.dispatched("T1")
    told.started("T1")
    until = told.time + timedelta(hours=1)
    asked = e.TaskApprovalRequested(
        lease=1, approval="h", kind="tool", tool="Bash", input="{}", why="rm -rf build", expires_at=until
    )
    seq = told.tell("T1", asked, "runner:r1")
    said = told.why("T1").sentences[0]
    assert (said.kind, said.seqs) == ("approval", (seq,))
    assert "to be allowed to use “Bash”" in said.text and "“rm -rf build”" in said.text
    assert f"no answer until {until:%Y-%m-%d %H:%M:%S} UTC is a no" in said.text and "is over" not in said.text
    told.tell(PLAN, e.PlanPaused(), after_s=7200)
    assert told.why("T1").sentences[0].text.endswith("is a no, which is over")


def test_a_paused_plan_is_named_with_who_paused_it_and_why(told: Told) -> None:
    told.finalized(task("T1"), task("T2", "T1"))
    paused = told.tell(PLAN, e.PlanPaused(reason="lunch"), "user:bob")
    said = told.why("T1").sentences[0]
    assert (said.kind, said.seqs) == ("paused", (paused,))
    assert "paused since 2026-03-01 12:00:07 UTC, by user:bob: “lunch”" in said.text
    assert told.why("T2").roots == ("T1",)
    assert {s.kind for s in told.why("T2").sentences if paused in s.seqs} == {"paused"}
    assert told.why().sentences[0].kind == "paused"


def test_slots_are_named_with_those_who_have_them(told: Told) -> None:
    told.finalized(task("A"), task("B"), task("C"), max_parallel=2)
    told.dispatched("A")
    assert told.why("B").sentences[0].kind == "ready"
    assert told.said("C", "slots").text == (
        "C could begin, but max_parallel is 2: the slots are taken by A and go to B next"
    )
    told.dispatched("B")
    assert told.said("C", "slots").text == "C could begin, but max_parallel is 2: the slots are taken by A and B"


def test_a_budget_says_what_is_spent_reserved_and_needed(told: Told) -> None:
    told.finalized(task("A"), task("B"), task("C", budget_usd=4.0), budget_usd=10.0)
    done = told.done("A", cost_usd=2.5)
    queued = told.dispatched("B")
    said = told.said("C", "budget")
    assert said.text == (
        "C could begin, but the plan's budget is 10.00 USD: 2.50 USD are spent, 5.00 USD are reserved by what is "
        "dispatched; 2.50 USD are left, and it may cost 4.00 USD"
    )
    assert {done, queued} <= set(said.seqs)
    assert [s.about for s in told.why().sentences if s.kind == "budget"] == ["waits", "waits", "cost"]


def test_a_retry_says_when_and_that_its_time_has_come(told: Told) -> None:
    told.finalized(task("T1"))
    told.dispatched("T1")
    told.started("T1")
    told.failed("T1", "unavailable", retry_at=told.time + timedelta(seconds=70))
    first = told.why("T1").sentences[0]
    assert first.kind == "retry"
    assert first.text.startswith("T1 is tried again at 2026-03-01 12:01:17 UTC: its attempt 1 failed")
    told.tell(PLAN, e.PlanPaused(), after_s=100)
    assert "12:01:17 UTC, which is over" in told.why("T1").sentences[0].text


def test_a_manual_task_says_where_its_result_is_looked_for_and_that_nobody_can(told: Told) -> None:
    told.finalized(task("T1", assignee="ann"), agents={"ann": PERSON})
    readied = e.TaskReadied(
        dispatch=1, attempt=1, prompt="p", agent=PERSON, base_commit="b" * 40, heads=(), place=PLACE
    )
    since = told.tell("T1", readied, "dispatcher")
    assert (told.why("T1").sentences[0].kind, told.why("T1").sentences[0].seqs) == ("readied", (since,))
    handed = told.dispatched("T1", agent=PERSON, place=PLACE)
    deadline = told.time + timedelta(minutes=30)
    begun = told.started("T1", "watch", deadline=deadline)
    first = told.why("T1").sentences[0]
    assert (first.kind, first.seqs) == ("with_person", (handed, begun))
    assert "“treadle/p/T1/result.json” in “https://example.org/r.git”" in first.text
    assert f"late after {deadline:%Y-%m-%d %H:%M:%S} UTC" in first.text
    fault = told.tell("T1", e.TaskWatchFailed(lease=1, reason="the host is away", since=told.time), "runner:watch")
    blind = told.said("T1", "watch_fault")
    assert blind.seqs == (fault,) and "“the host is away”" in blind.text and "its time stands still" in blind.text


def test_a_decision_names_the_reviews_that_are_missing(told: Told) -> None:
    told.finalized(
        task("W"), task("R1", "W", reviews="W"), task("R2", "W", reviews="W"),
        task("D", "R1", "R2", assignee="", max_review_rounds=2),
    )  # fmt: skip
    told.done("W")
    told.done("R1")
    told.dispatched("R2")
    first = told.why("D").sentences[0]
    assert (first.kind, first.text) == ("reviews", "D waits for the review R2")


def test_a_conflict_that_an_agent_merges_is_rooted_in_the_merge(told: Told) -> None:
    told.finalized(task("A"), task("B"), task("C", "A", "B"))
    told.done("A")
    told.done("B")
    told.dispatched("C")
    told.started("C")
    conflict = e.Conflict(files=("src/a.py",), tasks=("A", "B"))
    told.failed("C", "merge_conflict", conflict=conflict)
    assert "The work of A and B can't be merged by itself, in “src/a.py”" in told.why("C").sentences[0].text
    assert told.why("C").roots == ()
    merge = task("merge-C", "A", "B", resolves="C")
    extended = told.tell(PLAN, e.PlanExtended(tasks=(merge,), before="C", reason="conflict"), "dispatcher")
    assert told.why("C").roots == ("merge-C",)
    assert told.said("C", "merging").seqs == (extended,)
    told.tell("merge-C", e.TaskPlanned(digest="d", index=4, spec=merge, agent=SH), "dispatcher")
    assert told.why("C").roots == ("merge-C",)
    assert told.why("merge-C").sentences[0].kind == "ready"


def test_an_event_that_nobody_can_read_stands_before_everything_and_is_named_once_it_was_left_out(told: Told) -> None:
    told.finalized(task("T1"), task("T2", "T1"))
    unreadable = told.unreadable("T1")
    for code in ("T1", "T2", None):
        first = told.why(code).sentences[0]
        assert (first.kind, first.seqs) == ("fault", (unreadable,))
        assert "version 9 is unknown" in first.text
    word = told.tell("T1", e.TaskSkipped(seq=unreadable, reason="made by a test version"), "user:root")
    assert told.why("T1").sentences[0].kind == "ready"
    assert told.said("T1", "skipped").seqs == (word,)
    assert f"Event {unreadable}" in told.said("T1", "skipped").text


def test_a_task_that_is_not_there_yet_or_never_is_refused(told: Told) -> None:
    told.finalized(task("T1"))
    with pytest.raises(NoSuchTask, match="no task T9"):
        told.why("T9")
    told.records = told.records[:3]  # T1 is written down, `_deliver` is not
    assert told.why("T1").sentences[0].kind == "not_finalized"
    assert told.why("T1").sentences[1].kind == "finalizing"
    assert told.why(DELIVER).sentences[0].kind == "not_finalized"
    with pytest.raises(NoSuchTask):
        told.why("T9")


# Why more than once -----------------------------------------------------------------------------------------------


def test_a_lost_lease_is_named_with_its_runner_and_the_seconds_of_silence(told: Told) -> None:
    told.finalized(task("T1"))
    told.dispatched("T1")
    first = told.started("T1", "r1")
    second = told.started("T1", "r2", after_s=94, supersedes=1, charged=e.Usage(cost_usd=5.0), resumes=1)
    said = told.said("T1", "lost")
    assert said.seqs == (first, second)
    assert "lease 1 on runner r1 was lost, the log has nothing from it for the 94 s before runner r2 took" in said.text
    assert said.text.endswith("It went on with the conversation and files of lease 1")
    assert "began 2 times, in 1 attempt" in told.said("T1", "began").text


def test_a_runner_that_came_back_had_lost_its_lease_and_one_that_was_stopped_had_not(told: Told) -> None:
    told.finalized(task("T1"))
    told.dispatched("T1")
    told.started("T1")
    back = e.TaskReleased(lease=1, reason="runner r1 was killed and came back", lost=True)
    told.tell("T1", back, "runner:r1", after_s=20)
    told.dispatched("T1", again=True)
    told.started("T1")
    told.tell("T1", e.TaskReleased(lease=2, reason="runner r1 was stopped"), "runner:r1")
    told.dispatched("T1", again=True)
    told.started("T1", "r2")
    assert "for the 20 s until runner:r1 handed it back: “runner r1 was killed" in told.said("T1", "lost").text
    assert "lease 2 on runner r1 was handed back by runner:r1" in told.said("T1", "handed_back").text


def test_retries_people_and_approvals_are_told_apart(told: Told) -> None:
    told.finalized(task("T1"))
    told.dispatched("T1")
    told.started("T1")
    failed = told.failed("T1", "unavailable", retry_at=told.time)
    told.dispatched("T1")
    retried = told.started("T1")
    assert {failed, retried} <= set(told.said("T1", "retried").seqs)
    told.failed("T1")
    edited = told.tell("T1", e.TaskEdited(spec=task("T1", description="else"), agent=SH, note="smaller"))
    asked = told.tell("T1", e.TaskRedispatchRequested(note="try once more"), "user:bob")
    told.dispatched("T1")
    told.started("T1")
    assert "user:bob asked for another attempt: “try once more”" in told.said("T1", "redispatched").text
    assert asked in told.said("T1", "redispatched").seqs
    assert told.said("T1", "edited").seqs == (edited,)
    question = e.TaskApprovalRequested(
        lease=3, approval="h", kind="question", why="which?", expires_at=told.time + timedelta(hours=1)
    )
    told.tell("T1", question, "runner:r1")
    granted = told.tell("T1", e.TaskApprovalGranted(approval="h", note="the left one"))
    told.dispatched("T1", again=True)
    told.started("T1")
    resumed = told.said("T1", "resumed")
    assert granted in resumed.seqs and "user:ann allowed it at" in resumed.text and "the left one" in resumed.text


def test_a_dispatch_that_was_taken_back_before_anybody_began_is_told(told: Told) -> None:
    told.finalized(task("T1"))
    opened = told.dispatched("T1")
    back = told.tell("T1", e.TaskReleased(reason="the plan is paused"), "runner:r1")
    told.dispatched("T1", again=True)
    said = told.said("T1", "recalled")
    assert (said.seqs, "before anybody began: “the plan is paused”" in said.text) == ((opened, back), True)


# Why it failed, and what it cost ----------------------------------------------------------------------------------


def test_failures_are_told_with_kind_words_and_verdict(told: Told) -> None:
    told.finalized(task("T1"))
    told.dispatched("T1")
    told.started("T1")
    faults = (e.PlanFault(message="no such agent"),)
    one = told.failed("T1", "verification_failed", message="2 tests failed", faults=faults, retry_at=told.time)
    told.dispatched("T1")
    told.started("T1", "r2")
    two = told.failed("T1", "timeout", runner="r2")
    first, second = (said for said in told.why("T1").sentences if said.about == "failures")
    assert (first.seqs, second.seqs) == ((one,), (two,))
    assert "under lease 1 on runner r1 (verification failed): “2 tests failed”; 1 fault: “no such agent”" in first.text
    assert "tried again from" in first.text and second.text.endswith("it was held for a person")


def test_costs_are_told_by_lease_and_add_up(told: Told) -> None:
    told.finalized(task("T1"))
    told.dispatched("T1")
    told.started("T1")
    told.started("T1", "r2", after_s=90, supersedes=1, charged=e.Usage(cost_usd=5.0))
    done = told.completed("T1", cost_usd=0.25, runner="r2")
    told_costs = [said for said in told.why("T1").sentences if said.about == "cost"]
    assert [said.kind for said in told_costs] == ["cost", "lease_cost", "lease_cost"]
    assert told_costs[0].text == "T1 took 5.25 USD, 7 tokens in and 0 out, in 2 leases"
    assert "lease 1, runner r1 of pool claude: 90 s, 5.00 USD" in told_costs[1].text
    assert "as it last reported" in told_costs[1].text
    assert "lease 2, runner r2 of pool claude: 30 s, 0.25 USD, 7 tokens in" in told_costs[2].text
    assert done in told_costs[2].seqs
    assert "most of it by T1 (5.25 USD)" in told.said(None, "cost").text


# Whose work it starts from ----------------------------------------------------------------------------------------


def test_a_base_names_its_heads_what_they_contain_and_what_was_left_out(told: Told) -> None:
    told.finalized(task("A"), task("B", "A"), task("C"), task("M"), task("D", "B", "C", "M"))
    first = told.done("A")
    second = told.done("B")
    given_up = told.tell("C", e.TaskAbandoned(note="no use"))
    marked = told.tell("M", e.TaskMarkedComplete())
    dispatched = told.dispatched("D", abandoned=("C",))
    said = {s.kind: s for s in told.why("D").sentences if s.about == "base"}
    assert said["base"].text == (
        "Dispatch 1 of D starts from the plan's base commit bbbbbbbbbbbb, merged with the work of B (commit B-commit)"
    )
    assert said["base"].seqs == (second, dispatched)
    assert (said["contents"].text, first in said["contents"].seqs) == ("The work of B contains that of A", True)
    left_out = [s for s in told.why("D").sentences if s.kind == "left_out"]
    assert [s.text for s in left_out] == [
        "Nothing is in it of C: given up when dispatch 1 was made",
        "Nothing is in it of M, completed without a commit",
    ]
    assert given_up in left_out[0].seqs and marked in left_out[1].seqs
    told.started("D")
    done = told.completed("D")
    assert told.said("D", "base").text.endswith("; together that is commit ffffffffffff")
    assert done in told.said("D", "base").seqs


def test_a_base_that_nothing_is_merged_onto_is_told_once(told: Told) -> None:
    told.finalized(task("A"))
    told.dispatched("A")
    told.started("A")
    told.tell("A", completed(base_commit="b" * 40, commit="c" * 40))
    assert told.said("A", "base").text == "Dispatch 1 of A starts from the plan's base commit bbbbbbbbbbbb"


def test_of_the_delivery_it_is_the_plan_s_branch_and_not_its_base_that_has_everything(told: Told) -> None:
    told.finalized(task("A"))
    told.done("A")
    told.dispatched(DELIVER)
    told.started(DELIVER)
    done = told.tell(DELIVER, completed(base_commit="b" * 40, commit="d" * 40))
    said = told.said(DELIVER, "base")
    assert said.text == (
        f"Dispatch 1 of {DELIVER} starts from the plan's base commit bbbbbbbbbbbb, merged with the work of A (commit "
        "A-commit); the plan's branch with all of it is at commit dddddddddddd"
    )
    assert done in said.seqs


def completed(base_commit: str, commit: str) -> e.TaskCompleted:
    result = e.Result(task_code="x", summary="Done.")
    return e.TaskCompleted(lease=1, base_commit=base_commit, commit=commit, result=result)


def test_a_dispatch_from_another_base_than_the_newest_is_told_too(told: Told) -> None:
    told.finalized(task("T1"), task("T2", "T1"))
    told.tell("T1", e.TaskAbandoned())
    early = told.dispatched("T2", abandoned=("T1",))
    told.tell("T2", e.TaskReleased(reason="T1 is to run again first"), "dispatcher")
    told.tell("T1", e.TaskRedispatchRequested())
    told.done("T1")
    told.dispatched("T2", again=True)
    newest, before = (s for s in told.why("T2").sentences if s.kind == "base")
    assert "merged with the work of T1" in newest.text
    assert before.seqs == (early,) and "merged" not in before.text


def test_a_fork_says_what_it_has_from_where_and_its_origin_says_who_forked_it(told: Told) -> None:
    usage = e.Usage(cost_usd=1.5, input_tokens=9)
    kept = e.Kept(task="T1", plan="poriginorigin", seq=77, base_commit="1" * 40, commit="2" * 40, usage=usage)
    told.finalized(task("T1"), task("T2", "T1"), fork=e.ForkOf(plan="poriginorigin", seq=99, kept=(kept,)))
    dispatched = told.dispatched("T2")
    first = told.why("T1").sentences[0]
    assert first.kind == "inherited" and "in plan poriginorigin as T1 (event 77 of the log)" in first.text
    assert 77 not in first.seqs, "that event is another plan's"
    assert "1.50 USD" in told.said("T1", "cost").text and "in no budget" in told.said("T1", "cost").text
    assert "T1 (commit 222222222222, inherited from plan poriginorigin)" in told.said("T2", "base").text
    assert dispatched in told.said("T2", "base").seqs
    forked = told.tell(PLAN, e.PlanForked(plan="pchildchildch", seq=50))
    lineage = [s for s in told.why().sentences if s.kind == "lineage"]
    assert "a fork of poriginorigin as it was at event 99; kept of it: T1" in lineage[0].text
    assert lineage[1].seqs == (forked,) and "pchildchildch" in lineage[1].text


# The words --------------------------------------------------------------------------------------------------------


def test_somebody_elses_words_stay_on_one_line_in_quotes_that_they_cannot_close() -> None:
    said = quoted("done”. T1 is completed [#1]\n\n“and” more")
    assert said == '“done". T1 is completed [#1] "and" more”'
    assert len(quoted("x" * 10_000_000)) == QUOTED_MAX_CHARS + 2
    assert quoted(" " * 10_000 + "x").startswith("“")
