"""The interactive replay: one event after the other, forwards and backwards, by keys or by itself."""

from __future__ import annotations

import time
from itertools import islice
from textwrap import wrap

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from shared.history.history import History, NoSuchMoment
from shared.history.moment import Moment
from treadle.bad_input import BadInput
from treadle.histories import end_words, seq_of
from treadle.plain_text import one_line
from treadle.replay.keys import CLOSED, Keys
from treadle.replay.letters import in_letters
from treadle.replay.pace import pause_s
from treadle.replay.screen import moment_screen
from treadle.replay.steps import Step, first_met, steps
from treadle.replay.timeline import Timeline
from treadle.replay.until import parse_condition
from treadle.replay.words import step_lines

RESIZE_NOTICED_S = 0.3
DRAWS_PER_S = 12
"""While it plays; what an eye can follow."""
PAGE_EVENTS = 20
CHANGES_SHOWN = 4
ANSWER_MAX_CHARS = 100
SAID_MAX_CHARS = 1_000
WHERE_LINES = 8
"""A wrong condition names all that it could have been."""
HELP = (
    "q quits", "enter next", "b back", "space plays/stops", "j jump", "u until", "+/- speed", "g/G first/last",
)  # fmt: skip
"""The first is what nobody may miss: it is there on the smallest screen."""
HELP_SHARE = 6
"""The keys take one line of so many, and at least one."""

_FORWARD = {"enter": 1, "n": 1, "right": 1, "down": 1, "page-down": PAGE_EVENTS}
_BACK = {"b": 1, "p": 1, "left": 1, "up": 1, "backspace": 1, "page-up": PAGE_EVENTS}
_QUIT = ("q", "Q", CLOSED)


class Viewer:
    """Where in the history the person is, and what their keys do."""

    def __init__(self, history: History, *, seq: int, last: int | None = None, speed: float | None = None) -> None:
        """Begins at the event `seq`; with a `speed` it plays from there and ends behind the event `last`."""
        self._history = history
        self._timeline = Timeline(history.file.read())
        self._horizon = history.file.time_of(history.last_seq)
        self._place = history.file.place_of(seq) - 1
        self._stop = history.file.place_of(history.last_seq if last is None else last) - 1
        self._ends_itself = speed is not None
        self.playing = speed is not None
        self._speed = speed or 1.0
        self._walk = steps(history, seq)
        self._step: Step = self._step_at(self._place)
        self._due_s: float | None = None
        self._said = ""
        self._is_changed = True
        """Since it was drawn."""
        self._asking = ""
        """What the keys are an answer to: `j` or `u`; empty: they are commands."""
        self._answer = ""
        self.over = False

    @property
    def seq(self) -> int:
        """The event that is looked at."""
        return self._history.file.seq_at_place(self._place)

    def run(self, console: Console) -> None:
        """Until the person quits, or all was played. Whatever ends it, the terminal is as it was before."""
        with Keys() as keys, Live(console=console, auto_refresh=False, screen=True) as live:
            try:
                self._run(console, keys, live)
            finally:
                console.clear()  # a terminal without a second screen would keep the last picture above what follows

    def _run(self, console: Console, keys: Keys, live: Live) -> None:
        drawn_size, drawn_s = (0, 0), 0.0
        while not self.over:
            size = (console.size.width, console.size.height)
            may_wait = self.playing and time.monotonic() - drawn_s < 1 / DRAWS_PER_S
            if size != drawn_size or (self._is_changed and not may_wait):
                live.update(self.screen(*size, console.encoding), refresh=True)
                drawn_size, drawn_s, self._is_changed = size, time.monotonic(), False
            key = keys.next(self._wait_s())
            if key is not None:
                self.press(key)
            elif self.playing:
                self.play()

    def _wait_s(self) -> float:
        if not self.playing:
            return RESIZE_NOTICED_S
        if self._due_s is None:
            self._due_s = time.monotonic() + self._pause_s()
            self._is_changed = True
        noticed_s = 1 / DRAWS_PER_S if self._is_changed else RESIZE_NOTICED_S
        return min(noticed_s, max(0.0, self._due_s - time.monotonic()))

    def _pause_s(self) -> float:
        if self._place >= self._stop:
            return 0.0
        file = self._history.file
        following = file.time_of(file.seq_at_place(self._place + 1))
        wait_s, self._said = pause_s(following - self._step.record.time, self._speed)
        return wait_s

    def play(self) -> None:
        """Shows the next event if its time has come."""
        if self._place >= self._stop:
            self.playing, self.over = False, self._ends_itself
            self._said = "this is the last event"
        elif self._due_s is not None and time.monotonic() >= self._due_s:
            self._due_s, self._is_changed = None, True
            self._go(self._place + 1)

    # Keys ---------------------------------------------------------------------------------------------------------

    def press(self, key: str) -> None:
        """Does what the key says."""
        self._said, self._is_changed = "", True
        if self._asking and key != CLOSED:
            self._type(key)
        elif key in _QUIT:
            self.over = True
        elif key in ("j", "/", "u"):
            self.playing, self._asking, self._answer = False, "u" if key == "u" else "j", ""
        elif key == " ":
            self.playing, self._due_s = not self.playing, None
            self._stop = len(self._history.file) - 1
            self._ends_itself = False  # who has stopped it once ends it themselves
        elif key in ("+", "-"):
            self._speed = min(1e6, max(0.01, self._speed * (2 if key == "+" else 0.5)))
            self._due_s = None
        else:
            self._move(key)

    def _move(self, key: str) -> None:
        last = len(self._history.file) - 1
        if key in _FORWARD:
            wanted = self._place + _FORWARD[key]
        elif key in _BACK:
            wanted = self._place - _BACK[key]
        elif key in ("g", "home"):
            wanted = 0
        elif key in ("G", "end"):
            wanted = last
        else:
            return
        self.playing, self._due_s = False, None
        if wanted > last and self._place == last:
            self._said = "this is the last event"
        elif wanted < 0 and self._place == 0:
            self._said = "this is the first event"
        self._go(min(last, max(0, wanted)))

    def _type(self, key: str) -> None:
        if key == "enter":
            asked, answer = self._asking, self._answer.strip()
            self._asking = self._answer = ""
            if answer:
                self._jump(asked, answer)
        elif key == "escape":
            self._asking = self._answer = ""
        elif key == "backspace":
            self._answer = self._answer[:-1]
        elif len(key) == 1 and key.isprintable() and len(self._answer) < ANSWER_MAX_CHARS:
            self._answer += key

    def _jump(self, asked: str, answer: str) -> None:
        file = self._history.file
        try:
            if asked == "j":
                self._go(file.place_of(seq_of(self._history, answer)) - 1)
                self._said = end_words(self._history, answer)
                return
            met = first_met(self._history, parse_condition(answer), self.seq + 1)
        except (NoSuchMoment, BadInput) as error:
            self._said = one_line(str(error), SAID_MAX_CHARS)
            return
        if met is None:
            self._said = f"from here on it never comes true: {one_line(answer, 60)}"
        else:
            self._go(file.place_of(met) - 1)

    # Where we are -------------------------------------------------------------------------------------------------

    def _go(self, place: int) -> None:
        if place == self._place + 1:
            following = next(self._walk, None)
            if following is not None:
                self._place, self._step = place, following
        elif place != self._place:
            self._place = place
            self._step = self._step_at(place)
            self._walk = steps(self._history, self.seq)

    def _step_at(self, place: int) -> Step:
        before = self._history.file.seq_at_place(place - 1) if place else 0
        (step,) = islice(steps(self._history, before), 1)
        return step

    def screen(self, width: int, height: int, encoding: str = "utf-8") -> RenderableType:
        """What is shown now, in lines that fit, of what the terminal's encoding has."""
        where = [Text(line, "bold") for line in wrap(self._where(), width)[:WHERE_LINES]]
        if self._asking:
            keys = [Text(self._question())]
        else:
            keys = [Text(line, "dim") for line in _help_lines(width)[: max(1, height // HELP_SHARE)]]
        for line in keys:
            line.truncate(width, overflow="ellipsis")
        room = max(1, height - len(where) - len(keys))
        told = step_lines(self._step)[: 1 + CHANGES_SHOWN]
        moment = self._history.moment(self.seq)
        lines = moment_screen(
            moment, self._timeline, width=width, height=room, until=self._horizon, told=told, encoding=encoding
        )[:room]
        below = [in_letters(line, encoding) for line in (*where, *keys)]
        return Group(*lines, *[Text()] * (room - len(lines)), *below)

    def _where(self) -> str:
        count = len(self._history.file)
        mode = f"plays ×{self._speed:g}" if self.playing else "stopped"
        said = f"  {self._said}" if self._said else ""
        return f"event {self._place + 1} of {count}  {mode}{said}"

    def _question(self) -> str:
        wanted = "to which SEQ, TIME or end" if self._asking == "j" else "until (task CODE failed, cost > 2, …)"
        return f"{wanted}: {self._answer}▏"

    def last_screen(self, console: Console) -> list[Text]:
        """The moment as it stays on the terminal afterwards: on one screen, as it was looked at."""
        width, height = console.size
        moment, told = self._history.moment(self.seq), step_lines(self._step)[:1]
        return moment_screen(
            moment,
            self._timeline,
            width=width,
            height=height - 1,
            until=moment.time,
            told=told,
            encoding=console.encoding,
        )


def still(moment: Moment, timeline: Timeline, console: Console) -> list[Text]:
    """A moment to be printed once, with every task: the terminal scrolls by itself."""
    return moment_screen(
        moment, timeline, width=console.size.width, height=None, until=moment.time, encoding=console.encoding
    )


def _help_lines(width: int) -> list[str]:
    """The keys, in lines that end between two of them."""
    lines = [HELP[0]]
    for key in HELP[1:]:
        if len(longer := f"{lines[-1]} · {key}") <= width:
            lines[-1] = longer
        else:
            lines.append(key)
    return lines
