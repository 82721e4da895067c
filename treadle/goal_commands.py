"""Subcommands: plans from a goal, and the candidates that come of it."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import click
import msgspec

from shared.spec import BUDGET_MIN_USD, DESCRIPTION_MAX_BYTES, PLAN_BUDGET_MAX_USD, PlanningMode
from treadle import repository
from treadle.api import Resource
from treadle.bad_input import BadInput, not_utf8
from treadle.found import find_plan
from treadle.goal import Wanted, by_number, candidate_line, plan_by_hand, plan_goal, plan_more, request_lines
from treadle.instance import Instance
from treadle.lines import money, tasks_words
from treadle.plain_text import one_line
from treadle.plan_commands import json_option
from treadle.plan_file import check_size, read_plan_file
from treadle.run import faults_told, finalize, say, watch_plan
from treadle.suite_choice import suite_options
from treadle.supervision.suite_info import SuiteOptions

AT_ONCE_MAX = 5
"""Candidates, as the gateway has it."""
_COMPARED_MAX = 20
"""Tasks of a kind that a comparison spells out."""


@click.command()
@click.argument("goal", required=False)
@click.option("--plan", "more_of", metavar="PLAN", help="Make more candidates of that plan [a new plan].")
@click.option("--repo", default=".", show_default=True, help="A path in a git repository, or a clone URL.")
@click.option("--mode", type=click.Choice(get_args(PlanningMode)), help="What it is to be good for [the project's].")
@click.option("--candidates", type=click.IntRange(1, AT_ONCE_MAX), default=1, show_default=True, help="How many.")
@click.option("--agent", help="Who makes the plan: an agent's slug, name or id [the project says].")
@click.option(
    "--budget",
    "budget_usd",
    type=click.FloatRange(BUDGET_MIN_USD, PLAN_BUDGET_MAX_USD),
    metavar="USD",
    help="The most that the making of each candidate may cost.",
)
@click.option("--run", "runs", is_flag=True, help="Finalize the plan that comes, and watch it to its end.")
@click.option("--by-hand", is_flag=True, help="Print the prompt instead, for an agent of your own.")
@click.option("--project", help="Id or name of the project [the repository's oldest automatic one, made if missing].")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per event.")
@suite_options
@click.pass_obj
def plan(
    instance: Instance,
    goal: str | None,
    more_of: str | None,
    repo: str,
    mode: str | None,
    candidates: int,
    agent: str | None,
    budget_usd: float | None,
    runs: bool,
    by_hand: bool,
    project: str | None,
    as_json: bool,
    options: SuiteOptions,
) -> None:
    """Makes a plan from a GOAL: an agent reads the repository, and changes nothing in it.

    `-` takes the goal from standard input; with --plan it may be left out and stays as it was. Ctrl-C asks whether the
    making goes on without you.

    Exit status: 0 a plan is there (with --run: completed), 1 none came about, 2 bad input, 130 interrupted.
    """
    wanted = Wanted(
        goal=_goal(goal, more_of),
        mode=mode,
        candidates=candidates,
        agent=agent,
        budget_usd=budget_usd,
        project=project,
        runs=runs,
    )
    if budget_usd is not None and math.isnan(budget_usd):
        raise BadInput("--budget wants a number of US dollars")
    if runs and candidates > 1:
        raise BadInput("--run takes the only candidate: without it, `treadle choose` takes one of several")
    if by_hand and (runs or candidates > 1 or agent is not None or budget_usd is not None):
        raise BadInput("--by-hand prints a prompt, and runs nothing: leave out --run, --candidates, --agent, --budget")
    if more_of is not None:
        if by_hand or runs or project is not None:
            raise BadInput("--plan makes more candidates to choose from: leave out --run, --by-hand and --project")
        sys.exit(plan_more(wanted, more_of, instance, options, as_json=as_json))
    chosen = repository.choose(repo, allow_local=instance.elsewhere is None)
    made = plan_by_hand if by_hand else plan_goal
    sys.exit(made(wanted, chosen, instance, options, as_json=as_json))


def _goal(text: str | None, more_of: str | None) -> str | None:
    """None: as before. Raises `BadInput`."""
    if text is None and more_of is not None:
        return None
    try:
        content = sys.stdin.buffer.read(DESCRIPTION_MAX_BYTES + 1) if text == "-" else (text or "").encode()
        if len(content) > DESCRIPTION_MAX_BYTES:
            raise BadInput(
                f"a goal has at most {DESCRIPTION_MAX_BYTES:,} bytes: put the rest into a file of the repository"
            )
        goal = content.decode()
    except UnicodeError as error:
        raise not_utf8(error, "the goal") from None
    if not goal.strip():
        raise BadInput('say what the plan is for: treadle plan "…"')
    return goal


@click.command()
@click.argument("plan", required=False)
@click.option("--text", "named", metavar="CANDIDATE", help="That one as a plan file (JSON), to be changed or kept.")
@json_option
@click.pass_obj
def candidates(instance: Instance, plan: str | None, named: str | None, as_json: bool) -> None:
    """Lists the candidates of a plan, and those that are still being made. Once one is chosen, only that one is kept.

    PLAN is an id or the beginning of one; left out, it is the newest plan.
    """
    with instance.reach() as reached:
        gateway = reached.gateway()
        found = find_plan(gateway, plan)
        if named is not None:
            _check_named(found, named)
            spec = gateway.get(f"/plans/{found['plan']}/spec", Resource, candidate=named)
            click.echo(msgspec.json.format(msgspec.json.encode(spec), indent=2).decode())
            return
        listed = gateway.get(f"/plans/{found['plan']}/candidates", Resource)
    if as_json:
        click.echo(msgspec.json.encode({**listed, "requests": found.get("requests", [])}).decode())
        return
    for one in sorted(listed["items"], key=by_number):
        chosen = "  (chosen)" if one["candidate"] == listed["chosen"] else ""
        click.echo(candidate_line(one) + chosen)
    open_ = request_lines(found)
    for line in open_:
        click.echo(line)
    if not listed["items"] and not open_:
        say(f"plan {found['plan']} has no candidates")


@click.command()
@click.argument("plan")
@click.argument("a")
@click.argument("b")
@json_option
@click.pass_obj
def compare(instance: Instance, plan: str, a: str, b: str, as_json: bool) -> None:
    """Tells what differs from candidate A to candidate B, and what is to be expected of each."""
    with instance.reach() as reached:
        gateway = reached.gateway()
        found = find_plan(gateway, plan)
        for name in (a, b):
            _check_named(found, name)
        told = gateway.get(f"/plans/{found['plan']}/compare", Resource, a=a, b=b)
    click.echo(msgspec.json.encode(told).decode() if as_json else "\n".join(compared_lines(told)))


def compared_lines(told: Mapping[str, Any]) -> list[str]:
    """A comparison in words."""
    lines = []
    for one in told.get("estimates") or ():
        path = " → ".join(one["critical_path"][:12]) + (" → …" if len(one["critical_path"]) > 12 else "")
        known = one["from_past_runs"]
        basis = f"{known} of them by past runs, the others at most" if known else "at most"
        lines.append(
            f"candidate {one_line(one['candidate'], 60)}: {tasks_words(one['tasks'])}, {basis} "
            f"{money(one['cost_usd'])} and {one['minutes']:g} minutes along {path}"
        )
    for sign, codes in (("+", told.get("added") or ()), ("-", told.get("removed") or ())):
        lines += [f"{sign} {one_line(code, 63)}" for code in codes[:_COMPARED_MAX]]
        lines += [f"{sign} … and {len(codes) - _COMPARED_MAX} more"] if len(codes) > _COMPARED_MAX else []
    changed = told.get("changed") or ()
    lines += [f"~ {one_line(one['code'], 63)}: {', '.join(one['fields'])}" for one in changed[:_COMPARED_MAX]]
    lines += [f"~ … and {len(changed) - _COMPARED_MAX} more"] if len(changed) > _COMPARED_MAX else []
    if not any(line[0] in "+-~" for line in lines):
        lines.append("their tasks are the same")
    return lines


@click.command()
@click.argument("plan")
@click.argument("candidate", required=False)
@click.option("--run", "runs", is_flag=True, help="Watch it to its end.")
@click.option("--json", "as_json", is_flag=True, help="JSON instead of words; with --run, one object per event.")
@click.pass_obj
def choose(instance: Instance, plan: str, candidate: str | None, runs: bool, as_json: bool) -> None:
    """Finalizes a candidate: its tasks start. Where there is only one, it need not be named.

    Exit status with --run: as of `run`.
    """
    with instance.reach() as reached:
        gateway = reached.gateway()
        found = find_plan(gateway, plan)
        done = finalize(gateway, found["plan"], candidate or _only_candidate(found))
        if as_json and not runs:
            click.echo(msgspec.json.encode(done).decode())
        say(f"plan {found['plan']}: {'its tasks start' if done['changed'] else 'that was chosen already'}")
        if runs:
            sys.exit(watch_plan(found["plan"], reached, instance, instance.usual_options(), as_json=as_json))


def _check_named(plan: Mapping[str, Any], name: str) -> None:
    """Raises `BadInput` for a candidate that the plan does not have, or has no longer."""
    chosen = plan.get("candidate")
    if chosen and name != chosen:
        raise BadInput(f"of the candidates of plan {plan['plan']} only the chosen one, {one_line(chosen, 60)}, is kept")
    names = [one["candidate"] for one in sorted(plan.get("candidates") or (), key=by_number)]
    if names and name not in names:
        known = ", ".join(one_line(one, 60) for one in names)
        raise BadInput(f"plan {plan['plan']} has no candidate {one_line(name, 60)}: it has {known}")


def _only_candidate(plan: Resource) -> str:
    names = [one["candidate"] for one in sorted(plan["candidates"], key=by_number)] or [plan["candidate"]] * bool(
        plan["candidate"]
    )
    if len(names) == 1:
        return str(names[0])
    if not names:
        raise BadInput(f"plan {plan['plan']} has no candidate yet: `treadle candidates {plan['plan']}` tells why")
    listed = ", ".join(one_line(name, 60) for name in names)
    raise BadInput(f"plan {plan['plan']} has {len(names)} candidates: name one of {listed}")


@click.command()
@click.argument("plan")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="JSON instead of words.")
@click.pass_obj
def add(instance: Instance, plan: str, file: Path, as_json: bool) -> None:
    """Adds a plan file to a plan as a further candidate; `-` is standard input.

    It is what a prompt of `treadle plan --by-hand` is answered with, too: a Markdown fence around it does no harm.
    """
    read = read_plan_file(file)
    check_size(read)
    with instance.reach() as reached:
        gateway = reached.gateway()
        found = find_plan(gateway, plan)["plan"]
        with faults_told(f"{read.shown} is not a valid plan"):
            made = gateway.post(f"/plans/{found}/candidates", {"text": read.text})
        gateway.wait_for(found, made["seq"])
    if as_json:
        click.echo(msgspec.json.encode(made).decode())
    else:
        say(f"candidate {made['candidate']} of plan {found} is there: `treadle choose {found} {made['candidate']}`")


goal_commands: tuple[click.Command, ...] = (plan, candidates, compare, choose, add)
