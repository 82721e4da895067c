"""`treadle run` and `treadle watch`: from a plan file to its branch."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from services.planner.estimate import estimate
from treadle.api import ApiError, Gateway, Resource
from treadle.bad_input import BadInput
from treadle.instance import Instance, Reached
from treadle.lines import money, tasks_words
from treadle.plain_text import one_line, plain
from treadle.plan_file import PlanFile, check_size
from treadle.projects import project_for
from treadle.repository import Chosen, merge_notes
from treadle.standstill import said_once_started, tell
from treadle.supervision.data_dir import DataDir
from treadle.supervision.environment import Secrets
from treadle.supervision.suite_info import SuiteOptions, running_suite
from treadle.watch import Outcome, View, Watched, choose_view, watch

COMPLETED, ATTENTION, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
EXIT_STATUS: dict[Outcome, int] = {
    "completed": COMPLETED,
    "needs_attention": ATTENTION,
    "paused": ATTENTION,
    "cancelled": ATTENTION,
    "detached": INTERRUPTED,
    "drafted": COMPLETED,
    "failed": ATTENTION,
}
REASON_MAX_CHARS = 2_000


def run_plan(
    file: PlanFile,
    repo: Chosen,
    instance: Instance,
    options: SuiteOptions,
    *,
    project: str | None,
    as_json: bool,
    detach: bool,
) -> int:
    """Submits the plan and watches it to its end; returns the exit status. `project` is an id or a name.

    A gateway elsewhere and a named project may have agents that only they know: there the gateway validates.
    """
    if instance.elsewhere is None and project is None:
        file.alone()
    check_size(file)
    for note in repo.notes:
        say(f"note: {note}")
    wants_key = instance.elsewhere is None and file.uses_claude(of_declared=project is not None)
    if wants_key and not Secrets.of(os.environ).anthropic_api_key and not suite_has_key(options):
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
        plan = submit(reached.gateway(), file, repo, project)
        told = (
            f"{tasks_words(len(file.spec.tasks))}, at most {money(estimate(file.spec).most_usd)}; " if file.spec else ""
        )
        return see_run(plan, told, reached, instance, options, as_json=as_json, detach=detach)


def see_run(
    plan: str, told: str, reached: Reached, instance: Instance, options: SuiteOptions, *, as_json: bool, detach: bool
) -> int:
    """Watches a plan that was just finalized, or leaves it; returns the exit status. `told` is known of its size."""
    say(f"plan {plan}: {told}branch treadle/{plan}")
    if not detach:
        return watch_plan(plan, reached, instance, options, as_json=as_json)
    if words := said_once_started(reached.gateway()):
        say(words)
    say(f"it runs in the background: `treadle watch {plan}` shows it")
    return COMPLETED


def submit(gateway: Gateway, file: PlanFile, repo: Chosen, project: str | None = None) -> str:
    """Makes a plan of the file's text and finalizes it; returns its id. Raises `BadInput` and `ApiError`."""
    body = {"text": file.text, "base_commit": repo.commit}
    wanted = project_to_run_in(gateway, repo, project)
    with faults_told(f"{file.shown} is not a valid plan"):
        made = gateway.post(f"/projects/{wanted}/plans", body)
    finalize(gateway, made["plan"], made["candidate"])
    return str(made["plan"])


def project_to_run_in(gateway: Gateway, repo: Chosen, wanted: str | None) -> str:
    """The project's id; says what would hinder its delivery. Raises `BadInput` and `ApiError`."""
    project = project_for(gateway, repo.url, wanted)
    settings = gateway.get(f"/projects/{project}", Resource)
    for note in merge_notes(repo.url, settings["delivery_branch"]) if settings["delivery"] == "merge" else ():
        say(f"note: {note}")
    return project


@contextlib.contextmanager
def faults_told(words: str) -> Iterator[None]:
    """Where the gateway finds faults, each of them is told. Raises `BadInput`."""
    try:
        yield
    except ApiError as error:
        if not error.faults:
            raise
        raise BadInput(f"{words}:\n" + "\n".join(error.faults)) from error


def finalize(gateway: Gateway, plan: str, candidate: str) -> Resource:
    """Chooses a candidate, and returns once reads show it. Raises `ApiError`."""
    done = gateway.post(f"/plans/{plan}/finalize", {"candidate": candidate})
    gateway.wait_for(plan, done["seq"])
    return done


def watch_plan(
    plan: str, reached: Reached, instance: Instance, options: SuiteOptions, *, as_json: bool, after: int = 0
) -> int:
    """Watches a plan to its end; returns the exit status. Events up to the sequence `after` are not told again."""
    watched = Watched(plan, after)
    outcome = watched_out(watched, reached, instance, options, choose_view(as_json), "is running")
    if outcome == "needs_attention":
        say(_advice(plan))
    elif outcome == "paused":
        say(_advice_to_resume(plan, watched.plan["reason"]))
    elif outcome == "detached":
        say(f"detached: plan {plan} goes on; `treadle watch {plan}` takes it up again")
    return EXIT_STATUS[outcome]


def watched_out(
    watched: Watched, reached: Reached, instance: Instance, options: SuiteOptions, view: View, stands: str
) -> Outcome:
    """Watches until there is an outcome; `stands` says of the plan what is asked about at a Ctrl-C."""
    current = reached

    def reach_again() -> Reached:
        nonlocal current
        current.close()
        current = instance.reach_again(options)
        return current

    async def ask(interrupted: asyncio.Event) -> Outcome | None:
        return await _ask_at_interrupt(watched.id, stands, current, interrupted)

    async def watching() -> Outcome:
        telling = asyncio.create_task(tell(lambda: current.address, lambda: watched.at_work, say))
        try:
            return await watch(watched, reached, reach_again, view, ask)
        finally:
            telling.cancel()

    outcome = asyncio.run(watching())
    if outcome != "detached":
        current.gateway().wait_for(watched.id, watched.seq)  # whoever reads next sees the end as well
    if current is not reached:
        current.close()
    return outcome


async def _ask_at_interrupt(plan: str, stands: str, reached: Reached, interrupted: asyncio.Event) -> Outcome | None:
    """Detach or cancel? Where nobody can answer, and at a second Ctrl-C, it is detach: nothing is lost by that."""
    if not sys.stdin.isatty():
        return "detached"
    say(f"\nplan {plan} {stands}. Let it go on without you (d), cancel it (c), or keep watching (nothing)?")
    say("d, c or nothing, then Enter: ", end="")
    line = asyncio.create_task(_line())
    second = asyncio.create_task(interrupted.wait())
    await asyncio.wait({line, second}, return_when=asyncio.FIRST_COMPLETED)
    second.cancel()
    if not line.done():
        line.cancel()
        say("")
        return "detached"
    if not line.result():  # nobody can answer any more
        return "detached"
    answer = line.result().strip()
    if answer.lower() in ("c", "cancel"):
        await asyncio.to_thread(reached.gateway().post, f"/plans/{plan}/cancel", {"note": "Ctrl-C"})
        say("cancelling: what runs is being stopped")
        return None
    if answer.lower() in ("d", "detach"):
        return "detached"
    say(f"{f'“{one_line(answer, 40)}” is neither d nor c: ' if answer else ''}watching goes on")
    return None


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


def suite_has_key(options: SuiteOptions) -> bool:
    """Whether a suite runs that was started with a key for Claude."""
    info = running_suite(DataDir(Path(options.data_dir)))
    return info is not None and info.has_claude_key


def _advice(plan: str) -> str:
    return (
        f"plan {plan} can't go on by itself: `treadle status {plan}` tells why; then "
        f"`treadle task redispatch|complete|abandon TASK --plan {plan}`, and `treadle watch {plan}`"
    )


def _advice_to_resume(plan: str, reason: str) -> str:
    return (
        f"plan {plan} is paused and can't go on by itself: {one_line(reason, REASON_MAX_CHARS)}\n"
        f"`treadle resume {plan}` goes on, with `--budget USD` if it is the budget; then `treadle watch {plan}`"
    )


def say(text: str, end: str = "\n") -> None:
    """Words for the person, beside the output."""
    with contextlib.suppress(BrokenPipeError):
        sys.stderr.write(plain(text) + end)
        sys.stderr.flush()
