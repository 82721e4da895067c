"""`treadle replay`: which moments are shown, and how."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import msgspec
from rich.console import Console
from rich.text import Text

from shared.history.compare import compare
from shared.history.history import History
from treadle.bad_input import BadInput
from treadle.histories import end_words, open_history, seq_of
from treadle.instance import Instance
from treadle.plain_text import one_line
from treadle.plan_commands import json_option, plan_argument
from treadle.replay.pace import pause_s
from treadle.replay.steps import Step, first_met, steps
from treadle.replay.timeline import Timeline
from treadle.replay.until import FORMS, Condition, parse_condition
from treadle.replay.viewer import Viewer, still
from treadle.replay.words import as_json, compared_lines, moment_lines, step_lines
from treadle.run import say

SPEED_MIN, SPEED_MAX = 0.01, 1_000_000
NEVER_MET = 1


@dataclass(frozen=True)
class _Wish:
    """What is to be shown, of the moments from `begin` to `end`."""

    history: History
    begin: int
    end: int
    steps: bool
    speed: float | None
    as_json: bool


@click.command()
@plan_argument
@click.option("--at", metavar="SEQ|TIME", help="That moment [the newest]; with --step and --speed, where they begin.")
@click.option("--step", is_flag=True, help="Event by event: on a terminal by keys, else each with what it changed.")
@click.option(
    "--speed",
    type=click.FloatRange(SPEED_MIN, SPEED_MAX),
    metavar="FACTOR",
    help="Plays it, so many times as fast as it was recorded; long pauses are cut short.",
)
@click.option("--until", metavar="CONDITION", help=f"Up to where it first is so: {FORMS}.")
@click.option("--diff", nargs=2, metavar="A B", help="What the moment B has otherwise than the moment A.")
@click.option("--verify", is_flag=True, help="Decides everything again with this Treadle, and compares.")
@click.option("--all", "whole_log", is_flag=True, help="With --verify: every plan of the log, for its operator.")
@click.option(
    "--policy",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="What other settings of retries, budgets, concurrency and timeouts would have made of it.",
)
@json_option
@click.pass_obj
def replay(
    instance: Instance,
    plan: str | None,
    at: str | None,
    step: bool,
    speed: float | None,
    until: str | None,
    diff: tuple[str, str] | None,
    verify: bool,
    whole_log: bool,
    policy: Path | None,
    as_json: bool,
) -> None:
    """Shows a plan as it was at any moment.

    PLAN is an id, the beginning of one, or a .treadle file (- is one at standard input); left out, it is the newest
    plan. A moment is a sequence of the log, a time (of this machine's zone unless it names one; the whole second unless
    it has a fraction), or end.

    Exit status: 0; 1 where --until never came true, or --verify or --policy found a difference; 2 bad input; 3 where
    --verify could not decide again what it must, or nothing at all; 130 interrupted.
    """
    looks = step or (at, speed, until, diff) != (None, None, None, None)
    if verify or whole_log or policy is not None:
        if looks:
            raise click.UsageError("--verify and --policy look at the whole history: leave the other options out")
        if whole_log and not verify:
            raise click.UsageError("--all verifies every plan of the log: say --verify --all")
        from treadle.verifying import verify_command  # here, as it takes longer to load than most commands do

        sys.exit(verify_command(instance, plan, whole_log=whole_log, policy=policy, as_json=as_json))
    if diff is not None and (step or (at, speed, until) != (None, None, None)):
        raise click.UsageError("--diff compares two moments: it goes with --json only")
    if step and speed is not None:
        raise click.UsageError("--step goes by keys and --speed by itself: choose one (space plays while stepping)")
    if speed is not None and math.isnan(speed):
        raise BadInput("--speed wants a number, such as 4")
    condition = parse_condition(until) if until is not None else None
    with open_history(instance, plan) as history:
        if diff is not None:
            _compare(history, diff, as_json)
            return
        status = _show(history, at, condition, steps_=step, speed=speed, as_json=as_json)
    if status == NEVER_MET:
        say(f"never came true: {one_line(until or '', 100)}")
    sys.exit(status)


def _show(
    history: History, at: str | None, condition: Condition | None, *, steps_: bool, speed: float | None, as_json: bool
) -> int:
    moves = steps_ or speed is not None
    begin = seq_of(history, at) if at is not None else history.file.first_seq
    looked_from = begin if at is None else begin + 1  # from that moment on, so that the next one can be asked for
    met = first_met(history, condition, looked_from) if condition is not None else None
    if condition is not None and met is None and not moves:
        return NEVER_MET
    if at is not None:
        _say_if_behind_end(history, at)
    end = met or (history.last_seq if moves or at is None else begin)
    wish = _Wish(history, begin, end, steps_, speed, as_json)
    if not moves:
        _one_moment(wish)
    elif _is_terminal() and not as_json:
        _by_eye(wish, is_met=met is not None)
    else:
        _by_lines(wish)
    return NEVER_MET if condition is not None and met is None else 0


def _one_moment(wish: _Wish) -> None:
    if wish.as_json:
        _say_json(wish.history.moment(wish.end))
    elif sys.stdout.isatty():
        console = Console()
        _print(console, still(wish.history.moment(wish.end), Timeline(wish.history.file.read()), console))
    else:
        _say_lines(moment_lines(wish.history.moment(wish.end)))


def _by_eye(wish: _Wish, *, is_met: bool) -> None:
    """On a terminal. Stepping begins where the condition came true: from there one looks around."""
    seq = wish.end if wish.steps and is_met else wish.begin
    viewer = Viewer(wish.history, seq=seq, last=wish.end, speed=wish.speed)
    console = Console()
    viewer.run(console)
    _print(console, viewer.last_screen(console))


def _by_lines(wish: _Wish) -> None:
    for step in _paced(wish):
        if wish.as_json:
            _say_json(_step_json(step))
        else:
            _say_lines(step_lines(step))
        sys.stdout.flush()


def _paced(wish: _Wish) -> Iterator[Step]:
    """The events, after each other as they were recorded if that is wished."""
    before: Step | None = None
    for step in steps(wish.history, wish.begin - 1):
        if step.record.seq > wish.end:
            return
        if wish.speed is not None and before is not None:
            wait_s, word = pause_s(step.record.time - before.record.time, wish.speed)
            if word and not wish.as_json:
                _say_lines([f"{'':19}{word}"])
                sys.stdout.flush()
            time.sleep(wait_s)
        yield step
        before = step


def _step_json(step: Step) -> dict[str, object]:
    return {
        "event": as_json(step.record),
        "changes": step.changes,
        "standing": step.board.standing(),
        "counts": {status: count for status, count in step.board.counts.items() if count},
        "cost_usd": step.cost_usd,
    }


def _say_if_behind_end(history: History, at: str) -> None:
    if words := end_words(history, at):
        say(words)


def _compare(history: History, moments: tuple[str, str], as_json: bool) -> None:
    before, after = (history.moment(seq_of(history, at)) for at in moments)
    # The end is the same for both: it is said once.
    _say_if_behind_end(history, next((at for at in moments if end_words(history, at)), "end"))
    found = compare(before, after)
    if as_json:
        _say_json(found)
    else:
        _say_lines(compared_lines(found))


def _is_terminal() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty() and not Console().is_dumb_terminal


def _print(console: Console, lines: Iterable[Text]) -> None:
    for line in lines:
        console.print(line, no_wrap=True, overflow="ellipsis", soft_wrap=False)


def _say_json(of: object) -> None:
    # As ASCII, so that what an event says steers no terminal and still is what it was.
    click.echo(json.dumps(msgspec.to_builtins(of), separators=(",", ":")))


def _say_lines(lines: Iterable[str]) -> None:
    for line in lines:
        click.echo(line)
