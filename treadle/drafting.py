"""Watches how plans are made from a goal, until each of them has come about or failed."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from shared.subjects import draft, is_draft
from treadle.lines import duration, event_line, money, tasks_words, tokens
from treadle.plain_text import one_line, plain
from treadle.watch import DRAWS_PER_S, Outcome, Watched

TOLD = ("tool", "verify", "treadle", "output")
"""Of what an agent does while it plans: what it reads, what was wrong with its answer, what its program prints."""
ACTION_CHARS = 160


class Making(msgspec.Struct):
    """How far the making of one candidate has come."""

    candidate: str
    stands: str = "asked for"
    usage: dict[str, Any] = {}
    began: datetime | None = None
    action: str = ""
    drafted: dict[str, Any] | None = None
    """The event that brought it."""
    failed: dict[str, Any] | None = None

    @property
    def is_open(self) -> bool:
        return self.drafted is None and self.failed is None


class Drafting(Watched):
    """What is known of the candidates that an agent is to make."""

    def __init__(self, plan: str, after: int = 0) -> None:
        super().__init__(plan, after)
        self.makings: dict[str, Making] = {}
        self.waits_for_person = False
        self.finalizes_itself = False
        """Whether the one candidate is finalized without a person."""
        self.chosen = ""
        """The candidate that was finalized meanwhile."""

    def learn(self, event: dict[str, Any]) -> None:
        """See `Watched`."""
        super().learn(event)
        if event["task"] is None:
            self._learn_of_plan(event)
            return
        making = self._making_of(event["task"])
        if making is None:
            return
        match event["type"]:
            case "dispatched" | "released":
                making.stands = "waits for a runner"
            case "started":
                making.stands, making.began = "at work", datetime.fromisoformat(event["time"])
            case "failed" if event.get("retry_at"):
                making.stands = "is tried again"
            case "completed":
                making.stands, making.usage = "is looked at", event.get("usage") or making.usage

    def _learn_of_plan(self, event: dict[str, Any]) -> None:
        match event["type"]:
            case "requested" if event.get("by_hand"):
                self.waits_for_person = True
            case "requested":
                self.makings |= {name: Making(name) for name in event["candidates"]}
                self.finalizes_itself = event.get("auto_finalize", False)
            case "drafted":
                self.waits_for_person = False
                self.makings.setdefault(event["candidate"], Making(event["candidate"])).drafted = event
            case "failed" if (making := self.makings.get(event["candidate"])) is not None:
                making.failed = event
            case "finalizing":
                self.chosen = event["candidate"]

    def act(self, body: dict[str, Any]) -> None:
        """See `Watched`."""
        making, activity = self._making_of(body["task"]), body["activity"]
        if making is None:
            super().act(body)
        elif usage := activity.get("usage"):
            making.usage = usage
        elif activity.get("kind") in TOLD and activity.get("text"):
            making.action = activity["text"][-2_000:]

    def _making_of(self, entity: str) -> Making | None:
        """The candidate that is being made under this name."""
        if not is_draft(entity):
            return None
        return next((one for one in self.makings.values() if draft(one.candidate) == entity), None)

    @property
    def at_work(self) -> Iterable[Mapping[str, Any]]:
        """See `Watched`."""
        return [{"status": "queued"} for one in self.open if one.stands == "waits for a runner"]

    @property
    def open(self) -> list[Making]:
        """Those that may still come."""
        return [one for one in self.makings.values() if one.is_open]

    @property
    def drafted(self) -> list[dict[str, Any]]:
        """The events that brought those which have come."""
        return [one.drafted for one in self.makings.values() if one.drafted is not None]

    @property
    def failed(self) -> list[dict[str, Any]]:
        """Why others have not."""
        return [one.failed for one in self.makings.values() if one.failed is not None and one.drafted is None]

    @property
    def outcome(self) -> Outcome | None:
        """How it ended; None as long as a candidate may come."""
        if not self.live:
            return None
        if self.plan.get("standing") == "cancelled":
            return "cancelled"
        if self.chosen:
            return "drafted"
        if self.open or (self.waits_for_person and not self.drafted):
            return None
        return "drafted" if self.drafted else "failed"


class DraftLines:
    """Plain lines on standard error, where nobody looks at a terminal."""

    def __init__(self, watched: Drafting) -> None:
        self._watched = watched

    def event(self, event: dict[str, Any]) -> None:
        """See `View`."""
        if line := event_line(event):
            self._write(line)

    def activity(self, told: dict[str, Any]) -> None:
        """What the agent reads, and what was wrong with its answer."""
        activity = told["activity"]
        if is_draft(told["task"]) and activity.get("kind") in TOLD and activity.get("text"):
            time = datetime.now().astimezone()  # what is told live is told at once
            self._write(f"{time:%H:%M:%S}  {told['task']:<12}  {_spent(self._cost(told['task']))}{_said(activity)}")

    def _cost(self, entity: str) -> dict[str, Any]:
        return next((one.usage for one in self._watched.makings.values() if draft(one.candidate) == entity), {})

    def _write(self, line: str) -> None:
        sys.stderr.write(line + "\n")
        sys.stderr.flush()

    def changed(self, watched: Watched) -> None:
        """Nothing: the lines say all."""

    def pause(self) -> None:
        """Nothing: the question goes below the lines."""

    def go_on(self) -> None:
        """Nothing."""

    def close(self, watched: Watched) -> None:
        """Nothing is left to say."""


class DraftTable(DraftLines):
    """A live line for each candidate, on the terminal of standard error: standard output is for the plan."""

    def __init__(self, watched: Drafting) -> None:
        super().__init__(watched)
        self._console = Console(stderr=True)
        self._drawn_s = 0.0
        self._live: Live | None = None
        self.go_on()

    def event(self, event: dict[str, Any]) -> None:
        """Nothing: the lines show how it stands."""

    def activity(self, told: dict[str, Any]) -> None:
        """Nothing: its last words are drawn with the rest."""

    def changed(self, watched: Watched) -> None:
        """Draws, but not more often than an eye can follow."""
        now_s = datetime.now(UTC).timestamp()
        if self._live is not None and now_s - self._drawn_s >= 1 / DRAWS_PER_S:
            self._drawn_s = now_s
            self._live.update(self._drawn(), refresh=True)

    def pause(self) -> None:
        """Leaves the lines where they are; the question comes below them."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def go_on(self) -> None:
        """Draws new lines below."""
        self._live = Live(console=self._console, auto_refresh=False, transient=False)
        self._live.start()

    def close(self, watched: Watched) -> None:
        """Leaves the last state on the screen."""
        if self._live is not None:
            self._live.update(self._drawn(), refresh=True)
        self.pause()

    def _drawn(self) -> Group:
        now = datetime.now(UTC)
        lines = [making_line(one, now) for one in self._watched.makings.values()]
        return Group(*(Text(line, no_wrap=True, overflow="ellipsis") for line in lines))


def making_line(making: Making, now: datetime) -> str:
    """How far a candidate has come, on one line."""
    head = f"candidate {making.candidate:<2} "
    if making.drafted is not None:
        return f"{head} is there: {tasks_words(len(making.drafted['spec']['tasks']))}"
    if making.failed is not None:
        return f"{head} did not come about"
    time = f" {duration((now - making.began).total_seconds())}" if making.began else ""
    said = f"  {one_line(making.action, ACTION_CHARS)}" if making.action else ""
    return f"{head} {making.stands}{time}  {_spent(making.usage)}{said}".rstrip()


def _spent(usage: Mapping[str, Any]) -> str:
    cost = usage.get("cost_usd", 0)
    return f"{tokens(usage)} tokens, {money(cost)}  " if cost else ""


def _said(activity: Mapping[str, Any]) -> str:
    """What counts stands at the beginning: of a program's many lines, and of a long list of faults."""
    return one_line(plain(activity["text"]), ACTION_CHARS)
