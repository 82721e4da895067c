"""`treadle plan`: from a goal to a plan, and on to its branch where that is wished for."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any

import click
import msgspec

from services.planner.estimate import estimate
from shared.spec import PlanSpec
from treadle.api import Gateway, Resource
from treadle.bad_input import BadInput
from treadle.drafting import Drafting, DraftLines, DraftTable
from treadle.found import find_plan
from treadle.instance import Instance, Reached
from treadle.lines import drafted_words, duration, fault_lines, money, tasks_words
from treadle.plain_text import one_line, plain
from treadle.plan_file import describe
from treadle.projects import agent_named, project_for
from treadle.repository import Chosen
from treadle.run import ATTENTION, COMPLETED, EXIT_STATUS, finalize, say, suite_has_key, watch_plan, watched_out
from treadle.supervision.environment import Secrets
from treadle.supervision.suite_info import SuiteOptions
from treadle.watch import JsonView, View

MESSAGE_CHARS = 1_000


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked for; None: as the project says."""

    goal: str | None
    """None: what was asked for before."""
    mode: str | None
    candidates: int
    agent: str | None
    budget_usd: float | None
    project: str | None
    runs: bool
    """Whether the only candidate is finalized at once."""

    def of_person(self, base_commit: str | None) -> dict[str, Any]:
        """What is sent where a person makes the plan."""
        body: dict[str, Any] = {"goal": self.goal, "base_commit": base_commit}
        if self.mode is not None:
            body["planning_mode"] = self.mode
        return body

    def of_agent(self, gateway: Gateway, base_commit: str | None) -> dict[str, Any]:
        """What is sent where an agent does. Raises `BadInput` for one that is not there."""
        body = {**self.of_person(base_commit), "candidates": self.candidates}
        if self.agent is not None:
            body["agent_id"] = agent_named(gateway, self.agent)
        if self.budget_usd is not None:
            body["budget_usd"] = self.budget_usd
        return body


def plan_goal(wanted: Wanted, repo: Chosen, instance: Instance, options: SuiteOptions, *, as_json: bool) -> int:
    """Has candidates made and watches that; returns the exit status. Raises `BadInput` and `ApiError`."""
    for note in repo.notes:
        say(f"note: {note}")
    asks_runner = instance.elsewhere is None and wanted.agent is None and wanted.project is None
    if asks_runner and not Secrets.of(os.environ).anthropic_api_key and not suite_has_key(options):
        raise BadInput(
            "a plan is made by Claude, and there is no key: set ANTHROPIC_API_KEY and run this again, name an agent "
            "that has one (--agent), or make the plan by hand (--by-hand)"
        )
    with instance.reach(options) as reached:
        gateway = reached.gateway()
        project = project_for(gateway, repo.url, wanted.project)
        body = wanted.of_agent(gateway, repo.commit)
        if wanted.runs:
            # So that it goes on where nobody watches any longer; without a budget nobody but whoever looks may choose.
            body["auto_finalize"] = gateway.get(f"/projects/{project}", Resource)["budget_usd"] is not None
        made = gateway.post(f"/projects/{project}/plans/generate", body)
        return _see_asked(made, wanted, reached, instance, options, as_json=as_json)


def plan_more(wanted: Wanted, plan: str, instance: Instance, options: SuiteOptions, *, as_json: bool) -> int:
    """Has more candidates of a plan made, as `plan_goal` does."""
    with instance.reach(options) as reached:
        gateway = reached.gateway()
        found = find_plan(gateway, plan)["plan"]
        made = gateway.post(f"/plans/{found}/generate", wanted.of_agent(gateway, None))
        return _see_asked(made, wanted, reached, instance, options, as_json=as_json)


def _see_asked(
    made: Resource, wanted: Wanted, reached: Reached, instance: Instance, options: SuiteOptions, *, as_json: bool
) -> int:
    plan, before = made["plan"], made["seq"] - 1
    count = f"{wanted.candidates} candidates are" if wanted.candidates > 1 else "a candidate is"
    say(f"plan {plan}: {count} being made; the repository is only read")
    return see_drafted(plan, reached, instance, options, runs=wanted.runs, as_json=as_json, after=before)


def see_drafted(
    plan: str,
    reached: Reached,
    instance: Instance,
    options: SuiteOptions,
    *,
    runs: bool,
    as_json: bool,
    after: int = 0,
) -> int:
    """Watches the making of the candidates that were asked for after that sequence, and shows what came of it.

    Returns the exit status.
    """
    watched = Drafting(plan, after)
    outcome = watched_out(watched, reached, instance, options, _view(watched, as_json), "is being made")
    if outcome == "detached":
        then = "is finalized and runs once it is there" if watched.finalizes_itself else "is being made"
        say(f"detached: plan {plan} {then}; `treadle watch {plan}` takes it up again")
        return EXIT_STATUS[outcome]
    if outcome == "cancelled":
        say(f"plan {plan} is cancelled: nothing of it is made any longer")
        return EXIT_STATUS[outcome]
    if not as_json:
        for event in watched.drafted:
            click.echo(drafted_text(event))
    for event in watched.failed:
        say(failed_text(plan, event))
    if outcome == "failed":
        return ATTENTION
    goes_on = runs or (watched.finalizes_itself and len(watched.drafted) == 1)
    if not goes_on:
        done = watched.chosen and f"candidate {watched.chosen} was finalized; `treadle watch {plan}` shows its tasks"
        say(done or what_next(plan, [event["candidate"] for event in watched.drafted]))
        return COMPLETED
    if not runs:
        say("it was asked for so that it is finalized by itself")
    with instance.reach(options) as again:
        if not watched.chosen:  # the gateway does so as well, and can't say here what hinders it
            finalize(again.gateway(), plan, watched.drafted[-1]["candidate"])
        return watch_plan(plan, again, instance, options, as_json=as_json, after=watched.seq)


def plan_by_hand(wanted: Wanted, repo: Chosen, instance: Instance, options: SuiteOptions, *, as_json: bool) -> int:
    """Prints the prompt with which a person has the plan made, and where it is to be put."""
    with instance.reach(options) as reached:
        gateway = reached.gateway()
        project = project_for(gateway, repo.url, wanted.project)
        found = gateway.post(f"/projects/{project}/plans/prompt", wanted.of_person(repo.commit))
    if as_json:
        click.echo(msgspec.json.encode(found).decode())
        return COMPLETED
    click.echo(plain(found["prompt"].rstrip()))
    plan = found["plan"]
    say(
        f"\nplan {plan}: give this to an agent of yours. What it answers comes back by "
        f"`treadle add {plan} FILE` (- is standard input),\nor as {one_line(found['path'])} pushed to "
        f"{one_line(found['repo_url'])}"
    )
    return COMPLETED


def drafted_text(event: Resource) -> str:
    """A candidate as `treadle validate` shows a plan, under what its making took."""
    spec = msgspec.convert(event["spec"], PlanSpec)
    return f"candidate {one_line(event['candidate'], 60)}: {drafted_words(event)}\n\n{describe(spec, estimate(spec))}\n"


def failed_text(plan: str, event: Resource) -> str:
    """Why a candidate did not come about, with every fault."""
    cost = ((event.get("origin") or {}).get("usage") or {}).get("cost_usd", 0)
    paid = f" (it cost {money(cost)})" if cost else ""
    lines = [f"candidate {event['candidate']} of plan {plan} did not come about{paid}: "
             + one_line(event["message"], MESSAGE_CHARS)]  # fmt: skip
    lines += [f"  {fault}" for fault in fault_lines(event)]
    entity = (event.get("origin") or {}).get("draft") or f"_draft-{event['candidate']}"
    return "\n".join([*lines, f"`treadle logs {entity} --plan {plan}` shows what its agent did"])


def is_being_made(plan: Mapping[str, Any]) -> bool:
    """Whether what a plan is waited for now is a candidate, or the choice of one: it has no tasks yet."""
    return plan["status"] in ("requested", "failed", "drafted")


def by_number(one: Mapping[str, Any]) -> tuple[int, str]:
    """Candidates come in any order, and are called 1, 2, 3."""
    return len(one["candidate"]), one["candidate"]


def candidate_line(one: Mapping[str, Any]) -> str:
    """A candidate: its size, and what its making took."""
    told = [tasks_words(one["tasks"])]
    if one.get("model"):
        told.append(one_line(one["model"], 60))
    if one.get("cost_usd"):
        told.append(money(one["cost_usd"]))
    if one.get("duration_s"):
        told.append(duration(one["duration_s"]))
    if one.get("template"):
        told.append("from a template")
    return f"{one_line(one['candidate'], 60):<4} {one_line(one['name'], 60)}  ({', '.join(told)})"


def candidate_lines(plan: Mapping[str, Any]) -> list[str]:
    """The candidates among which a person may choose, and how; none where there is nothing to choose."""
    found = sorted(plan.get("candidates") or (), key=by_number)
    if not found:
        return []
    return [*map(candidate_line, found), what_next(plan["plan"], [one["candidate"] for one in found])]


def request_lines(plan: Mapping[str, Any]) -> list[str]:
    """What was asked for and has not come, or has failed: with every fault."""
    lines: list[str] = []
    for one in plan.get("requests") or ():
        failed = one["state"] == "failed"
        stands = f"did not come about: {one_line(one['message'], MESSAGE_CHARS)}" if failed else "is being made"
        if one["by_hand"]:
            stands = f"is waited for, as {one_line(one['path'])} or by `treadle add {plan['plan']} FILE`" + (
                f"; what came last is no plan: {one_line(one['message'], MESSAGE_CHARS)}" if failed else ""
            )
        elif not failed and one.get("cost_usd"):
            stands += f", {money(one['cost_usd'])} so far"
        lines.append(f"{one_line(one['candidate'], 60):<4} {stands}")
        lines += [f"     {line}" for line in fault_lines(one)]
        if failed and one["draft"]:
            lines.append(f"     `treadle logs {one['draft']} --plan {plan['plan']}` shows what its agent did")
    return lines


def what_next(plan: str, candidates: list[str]) -> str:
    """What a person can do with the candidates."""
    first = candidates[0]
    look = f"`treadle candidates {plan} --text {first} > plan.json` gives it as a file, `treadle add {plan} plan.json` "
    choice = "CANDIDATE" if len(candidates) > 1 else first
    lines = [f"`treadle choose {plan} {choice} --run` runs it", look + "takes the changed one"]
    if len(candidates) > 1:
        lines.insert(0, f"`treadle compare {plan} {first} {candidates[1]}` tells what differs")
    return "\n".join(lines)


def _view(watched: Drafting, as_json: bool) -> View:
    if as_json:
        return JsonView()
    return DraftTable(watched) if sys.stderr.isatty() else DraftLines(watched)
