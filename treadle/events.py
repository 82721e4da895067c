"""`treadle events`: a plan's log, printed, filtered and followed; and leaving out what nobody can read."""

from __future__ import annotations

import sys
import time
from base64 import b64decode
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any, cast

import click
import httpx
import msgspec
from httpx_sse import connect_sse

from shared.events import REGISTRY
from shared.subjects import PLAN, is_draft
from treadle.api import ApiError, Gateway, Resource, checked
from treadle.bad_input import BadInput
from treadle.found import find_plan, known_task
from treadle.instance import Instance, Reached
from treadle.lines import saying
from treadle.plain_text import one_line, plain
from treadle.run import say

PAGE_EVENTS = 500
AGAIN_S = 0.3
SILENCE_MAX_S = 40.0
"""The gateway sends something every 15 s; silence for longer is a dead connection."""
SAID_CHARS = 160
DUMP_BYTES = 256
DUMP_ROW_BYTES = 16
TEXT_CHARS = 1_000
TYPES = tuple(sorted({name.partition(".")[2] for name in REGISTRY}))
"""What an event can be."""

Event = dict[str, Any]


class _Page(msgspec.Struct):
    events: list[Event]
    next_after: int | None


class EventsGroup(click.Group):
    """`treadle events [PLAN]`, and what can be done with an event by name."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """What is no subcommand is the plan, or an option."""
        if not args or (args[0] not in self.commands and args[0] not in ctx.help_option_names):
            args = ["show", *args]
        return super().parse_args(ctx, args)


@click.group(cls=EventsGroup)
def events() -> None:
    """Shows the events of a plan: `treadle events [PLAN] [OPTIONS]`; its options: `treadle events show --help`."""


@events.command()
@click.argument("plan", required=False)
@click.option("--task", help="Only of this task; _plan: only the plan's own.")
@click.option("--type", "type_", help="Only of this type, such as completed.")
@click.option("--actor", help="Only what they did, such as user:ann; user or runner for all of them.")
@click.option("--since", metavar="TIME|SEQ", help="Only from then on.")
@click.option("--until", metavar="TIME|SEQ", help="Only up to then.")
@click.option("--after", type=click.IntRange(min=0), default=0, metavar="SEQ", help="Only behind this sequence.")
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes, until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per event.")
@click.pass_obj
def show(
    instance: Instance,
    plan: str | None,
    task: str | None,
    type_: str | None,
    actor: str | None,
    since: str | None,
    until: str | None,
    after: int,
    follow: bool,
    as_json: bool,
) -> None:
    """Prints the plan's events from the log. PLAN is an id or the beginning of one; left out, it is the newest plan.

    What is followed resumes after an outage, without losing an event or showing one twice.
    """
    if follow and until:
        raise BadInput("--until ends what --follow would go on with: leave one of them out")
    if type_ is not None and type_ not in TYPES:
        raise BadInput(f"{one_line(type_, 40)} is no type of an event: give one of {', '.join(TYPES)}")
    filters = {name: value for name, value in (("task", task), ("type", type_), ("actor", actor)) if value is not None}
    bounds = {name: _moment(value) for name, value in (("since", since), ("until", until)) if value is not None}
    with instance.reach() as reached:
        gateway = reached.gateway()
        known = find_plan(gateway, plan)
        found = known["plan"]
        print_event = _print_json if as_json else _Lines(gateway, found).show
        is_any = False
        for event in _stored(gateway, found, after, {**filters, **bounds}):
            after, is_any = max(after, event["seq"]), True
            print_event(event)
        if not is_any:
            if task is not None and task != PLAN and not is_draft(task):
                with known_task(found, task) as path:
                    gateway.get(path, Resource)
            say("no event matches")
        if follow and known.get("imported"):
            say(f"plan {found} was imported from a file: nothing happens to it any more")
        elif follow:
            _follow(instance, reached, found, after, filters, print_event)


@events.command()
@click.argument("plan")
@click.argument("seq", type=click.IntRange(min=1))
@click.option("--reason", required=True, help="Why; kept with the word that leaves it out.")
@click.pass_obj
def skip(instance: Instance, plan: str, seq: int, reason: str) -> None:
    """Leaves out the event SEQ that can't be read, so that PLAN goes on without it. For admins; look at it first.

    The log keeps the event. Where a newer Treadle wrote it, run that one instead: what it said is lost to the plan.
    """
    with instance.reach() as reached:
        gateway = reached.gateway()
        found = find_plan(gateway, plan)["plan"]
        done = gateway.post(f"/plans/{found}/events/{seq}/skip", {"reason": reason})
        gateway.wait_for(found, done["seq"])
        stands = gateway.get(f"/plans/{found}", Event)
    what = "is left out from now on" if done["changed"] else "was left out already"
    say(f"plan {found}: event {seq} {what} (event {done['seq']}); the plan is {stands['standing'].replace('_', ' ')}")
    if stands["fault"]:
        say(f"it still stands still: {one_line(stands['fault'], TEXT_CHARS)}")


def _moment(text: str) -> str:
    """A time without a zone is this machine's, as the times that are shown are. Raises `BadInput`."""
    if text.isascii() and text.isdecimal():
        return text
    try:
        return datetime.fromisoformat(text).astimezone().isoformat()
    except (ValueError, OverflowError, OSError):
        raise BadInput(
            f"{one_line(text, 40)} is neither a sequence nor a time: give one such as 1200 or 2026-01-31T12:00"
        ) from None


def _stored(gateway: Gateway, plan: str, after: int, params: Mapping[str, str]) -> Iterator[Event]:
    """What the log has, page by page; a page may be empty."""
    following: int | None = after
    while following is not None:
        page = gateway.get(f"/plans/{plan}/events", _Page, after=following, limit=PAGE_EVENTS, **params)
        yield from page.events
        following = page.next_after


def _follow(
    instance: Instance,
    reached: Reached,
    plan: str,
    after: int,
    filters: Mapping[str, str],
    print_event: Callable[[Event], None],
) -> None:
    """For ever. The last sequence that was shown is where it goes on after an outage."""
    current = reached
    try:
        while True:
            try:
                for event in _stream(current, plan, after, filters):
                    if event["seq"] > after:
                        after = event["seq"]
                        print_event(event)
            except (httpx.HTTPError, ApiError) as error:
                if isinstance(error, ApiError) and error.status < 500:
                    raise
            time.sleep(AGAIN_S)
            again = instance.reach_again(instance.usual_options())
            if current is not reached:
                current.close()
            current = again
    finally:
        if current is not reached:
            current.close()


def _stream(reached: Reached, plan: str, after: int, filters: Mapping[str, str]) -> Iterator[Event]:
    timeout = httpx.Timeout(5.0, read=SILENCE_MAX_S)
    with httpx.Client(**reached.address.http(), timeout=timeout) as http:
        params: dict[str, Any] = {"after": after, **filters}
        with connect_sse(http, "GET", f"/plans/{plan}/stream", params=params) as source:
            checked(source.response)
            for message in source.iter_sse():
                if message.event == "log":
                    yield cast(Event, msgspec.json.decode(message.data))


def _print_json(event: Event) -> None:
    sys.stdout.write(msgspec.json.encode(event).decode() + "\n")
    sys.stdout.flush()


class _Lines:
    """Events of one plan, for people."""

    def __init__(self, gateway: Gateway, plan: str) -> None:
        self._gateway = gateway
        self._plan = plan

    def show(self, event: Event) -> None:
        """Prints one."""
        for line in event_lines(event, self._skipped(event) if "unreadable" in event else None):
            sys.stdout.write(line + "\n")
        sys.stdout.flush()

    def _skipped(self, unreadable: Event) -> Event | None:
        """The word that has left the event out; None where nobody has said it."""
        words = _stored(self._gateway, self._plan, unreadable["seq"], {"type": "skipped"})
        here = (unreadable["seq"], unreadable["task"])
        return next((word for word in words if (word.get("skipped_seq"), word["task"]) == here), None)


def event_lines(event: Event, skipped: Event | None = None) -> list[str]:
    """An event for people: where it stands and what it says; of one that can't be read also its bytes.

    `skipped` is the word that has left it out, where there is one.
    """
    at = datetime.fromisoformat(event["time"]).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    what = "plan" if event["task"] is None else one_line(event["task"], 63)
    head = f"{event['seq']:>7}  {at}  {what:<12}  {one_line(event['type'], 40):<20}  {one_line(event['actor'], 40)}"
    unreadable = event.get("unreadable")
    if unreadable is None:
        said = saying(event)
        return [f"{head}  {one_line(said, SAID_CHARS)}" if said else head]
    shown = b64decode(unreadable["bytes"])
    lines = [f"{head}  can't be read: {one_line(unreadable['fault'], 300)}"]
    lines.append(f"         version {unreadable['version']}, {unreadable['size']} bytes:")
    lines += [f"         {row}" for row in hexdump(shown[:DUMP_BYTES])]
    if len(shown) > DUMP_BYTES or unreadable["size"] > len(shown):
        lines.append(f"         … the first {DUMP_BYTES} of them; --json has more")
    if text := unreadable["text"]:
        lines.append(f"         as text: {one_line(plain(text), TEXT_CHARS)}")
    if skipped is None:
        lines.append(f"         to leave it out: treadle events skip {event['plan']} {event['seq']} --reason …")
    else:
        who, why = one_line(skipped["actor"], 40), one_line(skipped.get("reason", ""), TEXT_CHARS)
        lines.append(f"         left out by {who}, event {skipped['seq']}: {why}")
    return lines


def hexdump(data: bytes) -> Iterator[str]:
    """Rows of offset, bytes in hexadecimal, and those that are printable ASCII."""
    for offset in range(0, len(data), DUMP_ROW_BYTES):
        row = data[offset : offset + DUMP_ROW_BYTES]
        letters = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in row)
        yield f"{offset:08x}  {row.hex(' '):<{DUMP_ROW_BYTES * 3 - 1}}  {letters}"
