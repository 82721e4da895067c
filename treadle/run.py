"""`treadle run` and `treadle watch`: from a plan file to its branch."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from pathlib import Path

from services.planner.estimate import Estimate, estimate
from services.planner.faults import PlanFaults
from services.planner.parse import read_plan
from shared.spec import PlanSpec, encode_spec
from treadle.api import Gateway
from treadle.bad_input import BadInput
from treadle.instance import Instance, Reached
from treadle.lines import money
from treadle.plain_text import one_line, plain
from treadle.projects import project_for
from treadle.repository import Chosen
from treadle.supervision.data_dir import DataDir
from treadle.supervision.environment import Secrets
from treadle.supervision.suite_info import SuiteOptions, running_suite
from treadle.watch import Outcome, Watched, choose_view, watch

COMPLETED, ATTENTION, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
EXIT_STATUS: dict[Outcome, int] = {
    "completed": COMPLETED,
    "needs_attention": ATTENTION,
    "cancelled": ATTENTION,
    "detached": INTERRUPTED,
}


def read_plan_file(path: Path) -> PlanSpec:
    """Reads and validates a plan file; `-` is standard input. Raises `BadInput` with every fault."""
    shown = "standard input" if str(path) == "-" else str(path)
    try:
        text = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
    except OSError as error:
        raise BadInput(f"{shown} can't be read: {error.strerror}") from error
    try:
        return read_plan(text)
    except PlanFaults as faults:
        raise BadInput(f"{shown} is not a valid plan:\n{faults}") from faults


def describe(spec: PlanSpec, told: Estimate) -> str:
    """The order of work and the most it can cost, for people."""
    lines = [f"“{one_line(spec.name)}”: {len(spec.tasks)} tasks, at most {spec.max_parallel} at once", ""]
    names = {task.code: task for task in spec.tasks}
    for number, layer in enumerate(told.layers, 1):
        lines.append(f"step {number}:")
        for code in layer[:50]:
            task = names[code]
            after = f"  after {', '.join(task.depends_on[:8])}" if task.depends_on else ""
            lines.append(f"  {code:<12} {one_line(task.name, 50):<50} {one_line(task.assignee, 20)}{after}")
        if len(layer) > 50:
            lines.append(f"  … and {len(layer) - 50} more")
    path = " → ".join(told.critical_path[:12]) + (" → …" if len(told.critical_path) > 12 else "")
    lines += ["", f"longest chain: {path}"]
    lines.append(f"at most {money(told.most_usd)} (each attempt's budget times its attempts; one answer may overshoot)")
    lines.append(f"at most {told.most_minutes:g} minutes along the longest chain, if every task finds a free slot")
    return "\n".join(lines)


def uses_claude(spec: PlanSpec) -> bool:
    """Whether any task needs a key."""
    return any(spec.agents[task.assignee].sdk_type == "claude" for task in spec.tasks)


def run_plan(
    spec: PlanSpec,
    repo: Chosen,
    instance: Instance,
    options: SuiteOptions,
    *,
    project: str | None,
    as_json: bool,
    detach: bool,
) -> int:
    """Submits the plan and watches it to its end; returns the exit status. `project` is an id or a name."""
    for note in repo.notes:
        say(f"note: {note}")
    wants_key = instance.elsewhere is None and uses_claude(spec)
    if wants_key and not Secrets.of(os.environ).anthropic_api_key and not _suite_has_key(options):
        raise BadInput(
            "the plan has tasks for Claude, and there is no key: set ANTHROPIC_API_KEY and run this again "
            "(`treadle demo` shows everything without one)"
        )
    with instance.reach(options) as reached:
        if wants_key and reached.suite is not None and not reached.suite.info.has_claude_key:
            raise BadInput(
                "the plan has tasks for Claude, but the running suite was started without a key: "
                "stop it with `treadle down`, set ANTHROPIC_API_KEY and run this again"
            )
        plan = submit(reached.gateway(), spec, repo, project)
        say(f"plan {plan}: {len(spec.tasks)} tasks, at most {money(estimate(spec).most_usd)}; branch treadle/{plan}")
        if detach:
            say(f"it runs in the background: `treadle watch {plan}` shows it")
            return COMPLETED
        return watch_plan(plan, reached, instance, options, as_json=as_json)


def submit(gateway: Gateway, spec: PlanSpec, repo: Chosen, project: str | None = None) -> str:
    """Makes a plan of the spec and finalizes it; returns its id. Raises `BadInput` and `ApiError`."""
    body = {"text": encode_spec(spec).decode(), "base_commit": repo.commit}
    made = gateway.post(f"/projects/{project_for(gateway, repo.url, project)}/plans", body)
    plan: str = made["plan"]
    done = gateway.post(f"/plans/{plan}/finalize", {"candidate": made["candidate"]})
    gateway.wait_for(plan, done["seq"])
    return plan


def watch_plan(plan: str, reached: Reached, instance: Instance, options: SuiteOptions, *, as_json: bool) -> int:
    """Watches a plan to its end; returns the exit status."""
    current, watched = reached, Watched(plan)

    def reach_again() -> Reached:
        nonlocal current
        current.close()
        current = instance.reach_again(options)
        return current

    async def ask(interrupted: asyncio.Event) -> Outcome | None:
        return await _ask_at_interrupt(plan, current, interrupted)

    outcome = asyncio.run(watch(watched, reached, reach_again, choose_view(as_json), ask))
    if outcome != "detached":
        current.gateway().wait_for(plan, watched.seq)  # whoever reads next sees the end as well
    if current is not reached:
        current.close()
    if outcome == "needs_attention":
        say(_advice(plan))
    elif outcome == "detached":
        say(f"detached: plan {plan} goes on; `treadle watch {plan}` takes it up again")
    return EXIT_STATUS[outcome]


async def _ask_at_interrupt(plan: str, reached: Reached, interrupted: asyncio.Event) -> Outcome | None:
    """Detach or cancel? Where nobody can answer, and at a second Ctrl-C, it is detach: nothing is lost by that."""
    if not sys.stdin.isatty():
        return "detached"
    say(f"\nplan {plan} is running. Let it go on without you (d), cancel it (c), or keep watching (nothing)?")
    say("d, c or nothing, then Enter: ", end="")
    line = asyncio.create_task(_line())
    second = asyncio.create_task(interrupted.wait())
    await asyncio.wait({line, second}, return_when=asyncio.FIRST_COMPLETED)
    second.cancel()
    if not line.done():
        line.cancel()
        say("")
        return "detached"
    answer = line.result().strip().lower()
    if answer.startswith("c"):
        await asyncio.to_thread(reached.gateway().post, f"/plans/{plan}/cancel", {"note": "Ctrl-C"})
        say("cancelling: what runs is being stopped")
        return None
    return "detached" if answer.startswith("d") or not line.result() else None


async def _line() -> str:
    """One line of standard input, without a thread that could not be stopped."""
    loop = asyncio.get_running_loop()
    arrived: asyncio.Future[str] = loop.create_future()

    def readable() -> None:
        if not arrived.done():
            arrived.set_result(sys.stdin.readline())

    loop.add_reader(sys.stdin.fileno(), readable)
    try:
        return await arrived
    finally:
        loop.remove_reader(sys.stdin.fileno())


def _suite_has_key(options: SuiteOptions) -> bool:
    info = running_suite(DataDir(Path(options.data_dir)))
    return info is not None and info.has_claude_key


def _advice(plan: str) -> str:
    return (
        f"plan {plan} can't go on by itself: `treadle status {plan}` tells why; then "
        f"`treadle task redispatch|complete|abandon TASK --plan {plan}`, and `treadle watch {plan}`"
    )


def say(text: str, end: str = "\n") -> None:
    """Words for the person, beside the output."""
    with contextlib.suppress(BrokenPipeError):
        sys.stderr.write(plain(text) + end)
        sys.stderr.flush()
