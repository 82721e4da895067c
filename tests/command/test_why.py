"""`treadle why` on a `.treadle` file, and beside a suite."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from shared.history.why import Why
from shared.history.why_sentence import Sentence, sentence
from tests.command.replay_story import BEGAN, HOSTILE, PLAN_ID, archive, story, wide
from treadle.main import main
from treadle.why import OUTSIDE, SEQS_SHOWN_MAX, why_lines

NO_SUITE = ["--data", "/dev/null/none"]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The small story: see `replay_story.story` for its sequences."""
    return archive(story().records, tmp_path)


def asked(file: Path, *words: str) -> Result:
    """Runs the command on a pipe. No suite is needed: its data directory can't be made."""
    result = CliRunner().invoke(main, [*NO_SUITE, "why", *words, "--plan", str(file)], env={"TREADLE_URL": ""})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert not any(ch in result.output for ch in "\x1b\x07\x9b\u202e"), result.output
    return result


def answer(*sentences: Sentence) -> Why:
    return Why(plan=PLAN_ID, task="T1", at=9, time=BEGAN, status="queued", sentences=sentences, roots=())


def test_a_task_is_explained_with_the_events_behind_each_sentence(file: Path) -> None:
    done = asked(file, "T3")
    assert done.exit_code == 0
    first, *rest = done.stdout.splitlines()
    assert first == f"plan {PLAN_ID}, event 200 of 2026-03-01 14:01:47 UTC"
    assert rest[0].startswith("T3 needs a person's attention since") and rest[0].endswith("[#190]")
    assert "What failed:" in rest and "What it cost:" in rest
    assert all("[#" in line for line in rest if line and not line.endswith(":"))


def test_a_moment_before_has_the_answer_of_then(file: Path) -> None:
    then = asked(file, "T3", "--at", "105").stdout.splitlines()
    assert then[0].startswith(f"plan {PLAN_ID}, event 100 of ")
    assert then[1] == "T3 waits for nothing more: it is about to be dispatched [#50, #100]"
    assert "T3 waits for T1 [" in asked(file, "T3", "--at", "90").stdout


def test_without_a_task_it_is_about_the_plan(file: Path) -> None:
    lines = asked(file).stdout.splitlines()
    assert lines[1].startswith("The plan is paused since") and "“a look” [#200]" in lines[1]
    assert any(line.startswith("  T3 needs a person's attention") for line in lines)


def test_json_has_everything_as_it_is(file: Path) -> None:
    found: dict[str, Any] = json.loads(asked(file, "T3", "--json").stdout)
    assert (found["plan"], found["task"], found["at"], found["status"]) == (PLAN_ID, "T3", 200, "needs_attention")
    assert found["sentences"][0]["seqs"] == [190]
    assert "outside_the_log" not in found, "a file has no runners"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["T9"], "had no task T9 at event 200"),
        ([f"T{HOSTILE}"], "had no task"),
        (["T1", "--at", "yesterday"], "is no moment"),
        (["T1", "--at", "5"], "before the plan's first event"),
    ],
)
def test_what_is_no_task_or_no_moment_is_bad_input(file: Path, words: list[str], said: str) -> None:
    refused = asked(file, *words)
    assert refused.exit_code == 2
    assert said in refused.stderr


def test_a_wide_plan_is_answered_in_few_lines(tmp_path: Path) -> None:
    lines = asked(archive(wide(1_000).records, tmp_path), "_deliver").stdout.splitlines()
    assert len(lines) < 20
    assert "waits for T1, T2, T3" in lines[1] and "more" in lines[1]
    assert "T500 needs a person's attention" in lines[4]


def test_hostile_words_steer_no_terminal_and_many_events_are_counted() -> None:
    said = sentence("stands", "queued", f"T1 says {HOSTILE}\nand more", range(1, 31))
    lines = list(why_lines(answer(said)))
    assert not any(ch in "".join(lines) for ch in "\x1b\x07\x9b\u202e\n")
    assert f"#{SEQS_SHOWN_MAX} and {30 - SEQS_SHOWN_MAX} more]" in lines[1]


def test_what_is_known_of_runners_now_is_marked_as_from_outside_the_log() -> None:
    said = sentence("stands", "queued", "T1 was dispatched", (3,))
    assert list(why_lines(answer(said), "no runner is there"))[-1] == f"({OUTSIDE}: no runner is there)"
    assert not any(OUTSIDE in line for line in why_lines(answer(said)))


def test_a_task_that_needs_attention_now_names_the_commands_that_settle_it() -> None:
    told = answer(sentence("stands", "needs_attention", "T1 needs a person's attention", (3,)))
    command = f"  treadle task redispatch|complete|abandon T1 --plan {PLAN_ID}"
    assert list(why_lines(told, can_act=True))[-1] == command
    assert command not in list(why_lines(told)), "of a file, or of an earlier moment, nothing can be done"
