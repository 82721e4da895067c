"""Why a task or a plan stands as it does, from the log alone; each sentence names the events that say so.

    why_stands   how a task stands, and since when      why_ran    why it ran more than once, why it failed, its cost
    why_waits    what it waits for, as far as the root  why_base   whose work it starts from
    why_room     the plan's slots and budget            why_plan   a plan as a whole

What is not in the log (which runners are there now) is not said here. Pure, but for reading the history's file.
"""

from collections.abc import Iterable
from datetime import datetime

import msgspec

from shared.history.history import History
from shared.history.why_base import bases
from shared.history.why_plan import plan_stands
from shared.history.why_ran import costs, failures, repeats
from shared.history.why_sentence import NoSuchTask, Sentence, sentence
from shared.history.why_story import Story
from shared.history.why_waits import Waiting
from shared.plan import ENDED
from shared.spec import DELIVER
from shared.store import Recorded


class Why(msgspec.Struct, frozen=True, kw_only=True):
    """An answer, true of one moment."""

    plan: str
    task: str
    """Empty: it is about the plan as a whole."""
    at: int
    """The sequence of the moment's last event."""
    time: datetime
    """That event's."""
    status: str
    """The task's, or the plan's."""
    sentences: tuple[Sentence, ...]
    """The first one says how it stands."""
    roots: tuple[str, ...]
    """The unfinished tasks that everything waits for in the end, the most important first; empty where nothing does."""


class _FromFile:
    """`why_story.Log`: a history's events up to a moment."""

    def __init__(self, history: History, at: int) -> None:
        self._file = history.file
        self._at = at

    def of(self, entity: str) -> Iterable[Recorded]:
        """See `why_story.Log.of`."""
        place = self._file.place_of(self._at)
        for record in self._file.read(entity=entity):
            if record.seq > self._at:
                break
            if not self._file.is_left_out(entity, record.seq, place):
                yield record

    def first_seq(self, entity: str) -> int:
        """See `why_story.Log.first_seq`."""
        first = next(self._file.read(entity=entity, limit=1), None)
        return first.seq if first is not None and first.seq <= self._at else 0


def why(history: History, code: str | None, at: int) -> Why:
    """Why the task (or, for None, the plan) stood so after the newest event up to `at`.

    Raises `NoSuchTask`, `NoSuchMoment`, `HistoryDamaged`.
    """
    board = history.board_at(at)
    seq = history.seq_of(str(at))
    story = Story(board, _FromFile(history, seq), seq, history.file.time_of(seq))
    return why_told(story, history.plan, code)


def why_told(story: Story, plan: str, code: str | None) -> Why:
    """The same, of a story. Its board is used up. Raises `NoSuchTask`."""
    waiting = Waiting(story)
    if code is None:
        told, roots = plan_stands(story, waiting)
        return _answer(story, plan, "", story.board.plan.status, told, roots)
    if code not in story.board.drafts and not story.board.visible:
        return _too_early(story, waiting, plan, code)
    if code not in story.board.tasks and code not in story.board.drafts:
        raise NoSuchTask(f"plan {plan} had no task {code[:80]} at event {story.at}")
    reasons, roots = waiting.reasons(code)
    told = [waiting.standing(code), *reasons]
    told += [*repeats(story, code), *failures(story, code), *costs(story, code), *bases(story, code)]
    return _answer(story, plan, code, story.state(code).status, told, roots)


def _too_early(story: Story, waiting: Waiting, plan: str, code: str) -> Why:
    """About a task of a plan that is not finalized: half a plan is never shown."""
    state = story.board.plan
    known = {t.code for one in (*state.candidates.values(), state.chosen) if one for t in one.spec.tasks}
    if code not in known and (code != DELIVER or not known):
        raise NoSuchTask(f"plan {plan} had no task {code[:80]} at event {story.at}")
    first, *rest = plan_stands(story, waiting)[0]
    text = f"{code} was never begun: its plan ended before it was finalized"
    if state.status not in ENDED:
        text = f"{code} has not begun: its plan is not finalized"
    own = sentence("stands", "not_finalized", text, first.seqs, code)
    as_reason = sentence("waits", first.kind, first.text, first.seqs, first.task)
    waits = [one for one in rest if one.about == "waits"]
    return _answer(story, plan, code, "absent", [own, as_reason, *waits], [])


def _answer(story: Story, plan: str, code: str, status: str, told: Iterable[Sentence], roots: Iterable[str]) -> Why:
    return Why(
        plan=plan,
        task=code,
        at=story.at,
        time=story.time,
        status=status,
        sentences=tuple(told),
        roots=tuple(roots),
    )
