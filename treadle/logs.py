"""`treadle logs`: what a task's agents did, and how it goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

import click
import httpx
import msgspec
from httpx_sse import connect_sse

from treadle.api import CONNECT_TIMEOUT_S, Address, ApiError, Gateway, checked
from treadle.asking import answer_with
from treadle.found import Plan, find_plan, known_task
from treadle.instance import AWAY_MAX_S, Instance
from treadle.plain_text import one_line, plain
from treadle.plan_commands import json_option, plan_option
from treadle.run import say

OVER = ("completed", "cancelled", "abandoned", "needs_attention")
"""A task that stands so says nothing more unless a person asks for it."""
ENTRIES = 500
"""Asked for at once."""
SILENCE_MAX_S = 40.0
"""The gateway sends something every 15 s at least; silence for longer is a dead connection."""
AGAIN_S = 0.3
KIND_CHARS = 8


@click.command()
@click.argument("code", metavar="TASK")
@click.option("-f", "--follow", is_flag=True, help="Go on as it comes, until the task is over.")
@plan_option
@json_option
@click.pass_obj
def logs(instance: Instance, code: str, plan: str | None, follow: bool, as_json: bool) -> None:
    """Shows what a task's agents did."""
    with instance.reach() as reached:
        gateway = reached.gateway()
        known = find_plan(gateway, plan)
        found, follow = known["plan"], follow and not known.get("imported")  # its tasks are over
        with known_task(found, code) as path:

            def tell(status: str) -> None:
                if status == "awaiting_approval":
                    say(f"it waits for an answer: {answer_with(found, code)}")

            for entry in followed(reached.address, path, tell) if follow else _pages(gateway, path):
                if as_json:
                    click.echo(msgspec.json.encode(entry).decode())
                elif shown := entry_text(entry):
                    click.echo(shown)


def followed(address: Address, path: str, tell: Callable[[str], None]) -> Iterator[Plan]:
    """The entries, and those to come, until the task is over. `tell` hears each new status.

    A stream that breaks is taken up again behind the last entry. Raises `ApiError` and httpx's errors where the gateway
    stays away.
    """
    last, told, heard_s = 0, "", time.monotonic()
    while True:
        try:
            for name, id_, body in _messages(address, path, last):
                heard_s = time.monotonic()
                if name == "activity":
                    last = int(id_)
                    yield body
                elif name == "live" and body["status"] != told:
                    told = body["status"]
                    tell(told)
                if name == "live" and body["status"] in OVER:
                    return
        except (httpx.HTTPError, ApiError) as error:
            is_refused = isinstance(error, ApiError) and error.status < 500
            if is_refused or time.monotonic() - heard_s > AWAY_MAX_S:
                raise
        time.sleep(AGAIN_S)


def _messages(address: Address, path: str, after: int) -> Iterator[tuple[str, str, Plan]]:
    timeout = httpx.Timeout(CONNECT_TIMEOUT_S, read=SILENCE_MAX_S)
    headers = {"Last-Event-ID": str(after)}
    with (
        httpx.Client(**address.http(), timeout=timeout) as http,
        connect_sse(http, "GET", f"{path}/transcript/stream", headers=headers) as source,
    ):
        checked(source.response)
        for message in source.iter_sse():
            if message.data:
                yield message.event, message.id, msgspec.json.decode(message.data)


def _pages(gateway: Gateway, path: str) -> Iterator[Plan]:
    after: int | None = 0
    while after is not None:
        page = gateway.get(f"{path}/transcript", Plan, after=after, limit=ENTRIES)
        yield from page["items"]
        after = page["next_after"]


def entry_text(entry: Plan) -> str:
    """An entry as people read it; empty where it says nothing. Further lines are indented, under the first one."""
    activity: dict[str, Any] = entry["activity"]
    text = activity.get("text")
    if not isinstance(text, str) or not text.strip():
        return ""
    at = datetime.fromisoformat(entry["time"]).astimezone().strftime("%H:%M:%S")
    head = f"{at} {one_line(str(activity.get('kind', '')), KIND_CHARS):<{KIND_CHARS}} "
    return head + plain(text.rstrip()).replace("\n", "\n" + " " * len(head))
