"""Watches a plan until it ends or needs a person: a live table, plain lines, or JSON.

The stream resumes at the last event seen. A suite that was killed is started again: the plan is in the log.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Literal, Protocol

import httpx
import msgspec
from httpx_sse import ServerSentEvent, aconnect_sse
from rich.console import Console
from rich.live import Live

from treadle.api import ApiError, checked
from treadle.instance import Reached
from treadle.lines import event_line, standing_line
from treadle.table import render

AGAIN_S = 0.3
SILENCE_MAX_S = 40.0
"""The gateway sends something every 15 s; silence for longer is a dead connection."""
DRAWS_PER_S = 8
ROWS_AROUND = 9
"""Lines of the screen that are not tasks."""

NOT_SHOWN = ("diff", "thinking")
"""What says little in half a line; `treadle logs` has it."""

Outcome = Literal["completed", "cancelled", "needs_attention", "paused", "detached", "drafted", "failed"]
"""The last two are of a plan that is made from a goal: see `treadle.drafting`."""
ENDS: tuple[Outcome, ...] = ("completed", "cancelled", "needs_attention")
DISPATCHER = "dispatcher"
"""The actor of a pause that no person wished for: the plan's budget is spent, or there was a fault."""


class View(Protocol):
    """How what happens is shown."""

    def event(self, event: dict[str, Any]) -> None:
        """An event of the log."""

    def activity(self, told: dict[str, Any]) -> None:
        """What an agent does."""

    def changed(self, watched: Watched) -> None:
        """Something stands otherwise than before."""

    def pause(self) -> None:
        """The person is asked something: leave the screen alone."""

    def go_on(self) -> None:
        """The person has answered."""

    def close(self, watched: Watched) -> None:
        """The watching is over."""


class Watched:
    """What is known of the plan right now."""

    def __init__(self, plan: str, after: int = 0) -> None:
        self.id = plan
        self.seq = after
        self.live = False
        self.plan: dict[str, Any] = {}
        self.tasks: dict[str, dict[str, Any]] = {}
        self.actions: dict[str, str] = {}
        self._paused_by = ""

    def take(self, message: ServerSentEvent, view: View) -> None:
        """Takes one message of the stream."""
        body = msgspec.json.decode(message.data) if message.data else {}
        match message.event:
            case "log":
                self.seq = body["seq"]
                self.learn(body)
                view.event(body)
            case "plan":
                self.plan = body
            case "task":
                self.tasks[body["code"]] = body
            case "live":
                self.live = True
            case "activity":
                self.act(body)
                view.activity(body)
        view.changed(self)

    def learn(self, event: dict[str, Any]) -> None:
        """Takes an event of the log."""
        if event["task"] is None:
            self._paused_by = event["actor"] if event["type"] == "paused" else ""

    def act(self, body: dict[str, Any]) -> None:
        """Takes what an agent does."""
        activity, code = body["activity"], body["task"]
        if usage := activity.get("usage"):
            if code in self.tasks:
                self.tasks[code] = {**self.tasks[code], "usage": usage}
        elif activity.get("text") and activity.get("kind") not in NOT_SHOWN:
            self.actions[code] = activity["text"][-500:]

    @property
    def at_work(self) -> Iterable[Mapping[str, Any]]:
        """What runners are needed for."""
        return self.tasks.values()

    @property
    def outcome(self) -> Outcome | None:
        """How the plan ended, or why it can't go on without a person; None as long as it may go on."""
        if not self.live:
            return None
        standing = self.plan.get("standing")
        if standing == "paused" and self._paused_by == DISPATCHER and not self.plan["is_busy"]:
            return "paused"
        return next((end for end in ENDS if end == standing), None)


class _Stream:
    """What needs no care while the person is asked."""

    def activity(self, told: dict[str, Any]) -> None:
        """Nothing: `treadle logs` has it."""

    def pause(self) -> None:
        """Nothing: the question goes to standard error."""

    def go_on(self) -> None:
        """Nothing."""


class JsonView(_Stream):
    """One JSON object per event."""

    def event(self, event: dict[str, Any]) -> None:
        """See `View`."""
        sys.stdout.write(msgspec.json.encode(event).decode() + "\n")
        sys.stdout.flush()

    def changed(self, watched: Watched) -> None:
        """Nothing: the events say all."""

    def close(self, watched: Watched) -> None:
        """Nothing is left to say."""


class LineView(_Stream):
    """Plain lines, for pipes and logs."""

    def event(self, event: dict[str, Any]) -> None:
        """See `View`."""
        if line := event_line(event):
            sys.stdout.write(line + "\n")
            sys.stdout.flush()

    def changed(self, watched: Watched) -> None:
        """Nothing: the events say all."""

    def close(self, watched: Watched) -> None:
        """The plan in one line."""
        if watched.plan:
            sys.stdout.write(standing_line(watched.plan) + "\n")


class TableView:
    """The live table."""

    def __init__(self) -> None:
        self._console = Console()
        self._live = Live(console=self._console, auto_refresh=False, transient=False)
        self._live.start()
        self._drawn_s = 0.0
        self._paused = False

    def event(self, event: dict[str, Any]) -> None:
        """Nothing: the table shows states."""

    def activity(self, told: dict[str, Any]) -> None:
        """Nothing: its place in the table is drawn with the rest."""

    def changed(self, watched: Watched) -> None:
        """Draws, but not more often than an eye can follow."""
        now_s = datetime.now(UTC).timestamp()
        if watched.live and not self._paused and now_s - self._drawn_s >= 1 / DRAWS_PER_S:
            self._drawn_s = now_s
            self._draw(watched)

    def pause(self) -> None:
        """Leaves the table where it is; the question comes below it."""
        self._paused = True
        self._live.stop()

    def go_on(self) -> None:
        """Draws a new table below the answer."""
        self._paused = False
        self._live = Live(console=self._console, auto_refresh=False, transient=False)
        self._live.start()

    def close(self, watched: Watched) -> None:
        """Leaves the last state on the screen."""
        if watched.live and not self._paused:
            self._draw(watched)
        self._live.stop()

    def _draw(self, watched: Watched) -> None:
        rows = max(3, self._console.size.height - ROWS_AROUND)
        self._live.update(render(watched.plan, watched.tasks, watched.actions, datetime.now(UTC), rows), refresh=True)


def choose_view(as_json: bool) -> View:
    """The table on a terminal, lines elsewhere, JSON when asked."""
    if as_json:
        return JsonView()
    return TableView() if sys.stdout.isatty() else LineView()


async def watch(
    watched: Watched,
    reached: Reached,
    reach_again: Callable[[], Reached],
    view: View,
    on_interrupt: Callable[[asyncio.Event], Awaitable[Outcome | None]],
) -> Outcome:
    """Shows the plan until it ends. `on_interrupt` answers a Ctrl-C: an outcome ends the watching, None goes on.

    While it asks the person, nothing is drawn; the event that it is given is set by a second Ctrl-C.
    `reach_again` finds or starts the suite again when the connection is lost; it blocks. Raises what it raises, and
    `ApiError` where there is no such plan.
    """
    interrupted = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupted.set)
    reading = asyncio.create_task(_read(watched, reached, reach_again, view))
    try:
        while True:
            waiting = asyncio.create_task(interrupted.wait())
            ticking = asyncio.create_task(asyncio.sleep(1))
            await asyncio.wait({reading, waiting, ticking}, return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            ticking.cancel()
            if reading.done():
                return reading.result()
            if interrupted.is_set():
                interrupted.clear()
                view.pause()
                answer = await on_interrupt(interrupted)
                if answer is not None:
                    return answer
                view.go_on()
            view.changed(watched)  # so that times go on where nothing happens
    finally:
        reading.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await reading
        view.close(watched)
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


async def _read(watched: Watched, reached: Reached, reach_again: Callable[[], Reached], view: View) -> Outcome:
    while True:
        try:
            async for message in _messages(watched, reached):
                watched.take(message, view)
                if (outcome := watched.outcome) is not None:
                    return outcome
        except (httpx.HTTPError, ApiError) as error:
            if isinstance(error, ApiError) and error.status < 500:
                raise
            watched.live = False
            await asyncio.sleep(AGAIN_S)
            reached = await asyncio.to_thread(reach_again)


async def _messages(watched: Watched, reached: Reached) -> AsyncIterator[ServerSentEvent]:
    timeout = httpx.Timeout(5.0, read=SILENCE_MAX_S)
    async with httpx.AsyncClient(**reached.address.http(), timeout=timeout) as http:
        params = {"after": watched.seq, "activity": True}
        async with aconnect_sse(http, "GET", f"/plans/{watched.id}/stream", params=params) as source:
            if not source.response.is_success:
                await source.response.aread()
            checked(source.response)
            async for message in source.aiter_sse():
                yield message
