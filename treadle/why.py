"""`treadle why`: why a task, or a plan, stands as it does; each sentence with the events that say so."""

from __future__ import annotations

import json
from collections.abc import Iterator

import click
import msgspec

from shared.history.why import Why, why
from shared.history.why_sentence import About, NoSuchTask, Sentence, when
from shared.skipped import what_to_do
from treadle.asking import word_on
from treadle.bad_input import BadInput
from treadle.histories import named_file, open_history
from treadle.instance import Instance
from treadle.plain_text import one_line
from treadle.plan_commands import json_option
from treadle.standstill import why_queued

SENTENCE_MAX_CHARS = 3_000
SEQS_SHOWN_MAX = 12
OUTSIDE = "not from the log, but now"

_HEADINGS: dict[About, str] = {
    "waits": "What holds it up:",
    "repeats": "Why it began more than once, or was changed:",
    "failures": "What failed:",
    "cost": "What it cost:",
    "base": "What it rests on:",
}


@click.command(name="why")
@click.argument("code", required=False, metavar="[TASK]")
@click.option("--plan", help="The plan: its id, the beginning of it, or a .treadle file [the newest plan].")
@click.option("--at", metavar="SEQ|TIME", default="end", help="As it was then [now].")
@json_option
@click.pass_obj
def why_command(instance: Instance, code: str | None, plan: str | None, at: str, as_json: bool) -> None:
    """Says from the event log why a task stands as it does; without TASK, what holds its plan up.

    Why it does not run, why it ran more than once, why it failed, what it cost, and whose work it starts from. The
    numbers behind a sentence are the events that say so: `treadle replay --at NUMBER` shows the plan as it was then.
    """
    with open_history(instance, plan) as history:
        try:
            answer = why(history, code, history.seq_of(at))
        except NoSuchTask as error:
            shown = f"`treadle replay {one_line(plan or history.plan, 300)} --at {one_line(at, 40)}` shows its tasks"
            raise BadInput(f"{one_line(str(error))}: {shown}") from error
    is_live = at == "end" and named_file(plan) is None
    outside = _said_of_runners(instance) if is_live and _has_queued(answer) else ""
    if as_json:
        more = {"outside_the_log": outside} if is_live else {}
        click.echo(json.dumps({**msgspec.to_builtins(answer), **more}))  # ASCII: nothing in it steers a terminal
        return
    is_imported = history.asked != history.plan
    for line in why_lines(answer, outside, can_act=is_live and not is_imported):
        click.echo(line)


def why_lines(answer: Why, outside: str = "", *, can_act: bool = False) -> Iterator[str]:
    """The answer as a terminal may show it. `outside` is what is known now of the runners, and not from the log.

    `can_act`: it is about now, and a person's word on the task would count.
    """
    first, *rest = answer.sentences
    yield f"plan {answer.plan}, event {answer.at} of {when(answer.time)}"
    yield _line(first)
    about: About = "stands"
    for said in rest:
        if said.about != about:
            about = said.about
            yield ""
            yield _HEADINGS[about]
        yield f"  {_line(said)}"
    if first.kind == "fault":
        yield ""
        yield f"  {what_to_do(answer.plan, first.text.partition(': ')[2])}"
    if can_act and answer.task and first.kind == "needs_attention":
        yield ""
        yield f"  {word_on(answer.plan, answer.task)}"
    if outside:
        yield ""
        yield f"({OUTSIDE}: {one_line(outside, SENTENCE_MAX_CHARS)})"


def _line(said: Sentence) -> str:
    return f"{one_line(said.text, SENTENCE_MAX_CHARS)} {_numbers(said.seqs)}"


def _numbers(seqs: tuple[int, ...]) -> str:
    more = f" and {len(seqs) - SEQS_SHOWN_MAX} more" if len(seqs) > SEQS_SHOWN_MAX else ""
    return f"[{', '.join(f'#{seq}' for seq in seqs[:SEQS_SHOWN_MAX])}{more}]"


def _has_queued(answer: Why) -> bool:
    return any(said.kind == "queued" for said in answer.sentences)


def _said_of_runners(instance: Instance) -> str:
    """Why nobody takes what is queued, as the runners that are there now tell; empty where they don't."""
    with instance.reach() as reached:
        return why_queued(list(reached.gateway().pages("/runners")), [{"status": "queued"}])
