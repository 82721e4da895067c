"""What a person should know about the runners: that nothing keeps agents in, and why nobody takes what is queued.

`said_of_sandboxes` and `why_queued` are pure functions from the gateway's resources to words.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import httpx
import msgspec

from treadle.api import Address, ApiError, Gateway, Resource, checked
from treadle.plain_text import one_line

LOOK_EVERY_S = 2.0
KNOCK_EVERY_S = 0.2
"""As long as no runner has shown itself: a short plan must not be over before the words."""
QUEUED_LONG_S = 6.0
"""A runner that was just started shows itself within it, and a free one has taken what is queued."""
SHOWN_WITHIN_S = 6.0
ANSWER_WITHIN_S = 5.0

_REASONS_SHOWN_MAX = 3
_NO_KEY = (
    "no runner has a key for Claude, so a task that needs it stays in the queue: stop the suite with `treadle down`, "
    "set ANTHROPIC_API_KEY, then `treadle watch` goes on"
)

Runner = Mapping[str, Any]


def said_of_sandboxes(runners: Sequence[Runner]) -> str:
    """A line where agents of all the runners can do whatever those can; empty else. Older runners don't say it."""
    if not runners or any(runner.get("sandbox") != "none" for runner in runners):
        return ""
    return (
        "note: no runner has a sandbox, so agents can do whatever you can: `treadle doctor` says why, and how to get "
        "one (bubblewrap); --sandbox required refuses to run without"
    )


def why_queued(runners: Sequence[Runner], tasks: Iterable[Mapping[str, Any]]) -> str:
    """Why no runner takes what is queued; empty where nothing is, or somebody may."""
    if not any(task["status"] == "queued" for task in tasks):
        return ""
    if not runners:
        return "no runner is there to take what is queued: `treadle doctor` tells what hinders one"
    if all(runner.get("full") for runner in runners):
        told = [f"{runner['runner']}: {runner['full']}" for runner in runners[:_REASONS_SHOWN_MAX]]
        return one_line(f"no runner takes what is queued: {'; '.join(told)}", 1_000)
    able = [runner for runner in runners if "claude" in runner["pools"] and not runner.get("full")]
    if able and all(runner.get("without_key") and runner["busy"] < runner["slots"] for runner in able):
        return _NO_KEY
    return ""


def said_once_started(gateway: Gateway) -> str:
    """`said_of_sandboxes`, as soon as a runner shows itself. Blocks, but for seconds only."""
    until_s = time.monotonic() + SHOWN_WITHIN_S
    while not (runners := list(gateway.pages("/runners"))) and time.monotonic() < until_s:
        time.sleep(KNOCK_EVERY_S)
    return said_of_sandboxes(runners)


async def tell(
    address: Callable[[], Address], tasks: Callable[[], Iterable[Mapping[str, Any]]], say: Callable[[str], None]
) -> None:
    """Says both while a plan is watched, each thing once; until cancelled. A gateway that is away is asked again."""
    sandboxes, reason, clear_s, is_seen = "", "", time.monotonic(), False
    while True:
        with contextlib.suppress(httpx.HTTPError, ApiError, msgspec.DecodeError):
            runners = await _runners(address())
            is_seen = is_seen or bool(runners)
            if words := said_of_sandboxes(runners):
                if words != sandboxes:
                    say(words)
                sandboxes = words
            if not (words := why_queued(runners, tasks())):
                clear_s, reason = time.monotonic(), ""
            elif not reason and time.monotonic() - clear_s >= QUEUED_LONG_S:
                reason = words
                say(words)
        await asyncio.sleep(LOOK_EVERY_S if is_seen else KNOCK_EVERY_S)


async def _runners(address: Address) -> list[Resource]:
    async with httpx.AsyncClient(**address.http(), timeout=ANSWER_WITHIN_S) as http:
        answer = checked(await http.get("/runners"))
    found: list[Resource] = msgspec.json.decode(answer.content)["items"]
    return found
