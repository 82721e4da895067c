"""What a task waits for, as far as the root: tasks before it, and what the plan still lets begin."""

from shared import events as e
from shared import plan, task
from shared.history.why_room import Room
from shared.history.why_sentence import LISTED_MAX, Kind, Sentence, because, listed, sentence, when
from shared.history.why_stands import stands
from shared.history.why_story import Story
from shared.subjects import PLAN

WAY_SHOWN_MAX = 5

IMPORTANCE: tuple[Kind, ...] = (
    "fault",
    "needs_attention",
    "approval",
    "reopening",
    "with_person",
    "readied",
    "budget",
    "paused",
    "queued",
    "cancelling",
    "retry",
    "slots",
    "running",
    "adding",
    "ready",
)
"""What a person has to do something about comes before what goes on by itself."""


class Waiting:
    """Answers for one story."""

    def __init__(self, story: Story) -> None:
        self._story = story
        self.room = Room(story)

    # How one task stands ------------------------------------------------------------------------------------------

    def standing(self, code: str) -> Sentence:
        """The first sentence about a task."""
        story, board = self._story, self._story.board
        state = story.state(code)
        if board.fault and not is_over(state):
            return self.fault(code)
        if code in story.coming and state.status == "pending":
            return self._being_added(code)
        return self._pending(code) if state.status == "pending" else stands(story, code)

    def fault(self, code: str = "") -> Sentence:
        """That an event can't be read."""
        story = self._story
        what = f"{code} stands still, as its plan does" if code else "The plan stands still"
        return sentence("stands", "fault", f"{what}: {story.board.fault}", (story.board.fault_seq or story.at,), code)

    def paused(self, code: str = "") -> Sentence:
        """That nothing new begins, by whom and why."""
        what = f"{code} could begin, but its plan" if code else "The plan"
        found = self._story.newest(PLAN, e.PlanPaused)
        if found is None:
            return sentence("stands", "paused", f"{what} is paused", (self._story.at,), code)
        past, event = found
        text = f"{what} is paused since {when(past.time)}, by {past.actor}{because(event.reason)}"
        return sentence("stands", "paused", text, (past.seq,), code)

    def cancelling(self, code: str = "") -> Sentence:
        """That the plan ends, by whom and why."""
        what = f"{code} is not begun any more: its plan" if code else "The plan"
        found = self._story.newest(PLAN, e.PlanCancelRequested)
        if found is None:
            return sentence("stands", "plan_cancelling", f"{what} is over", (self._story.at,), code)
        past, event = found
        text = f"{what} is being cancelled since {when(past.time)}, by {past.actor}{because(event.reason)}"
        return sentence("stands", "plan_cancelling", text, (past.seq,), code)

    def _pending(self, code: str) -> Sentence:
        story, board = self._story, self._story.board
        if code not in board.tasks:
            text = f"{code} makes a candidate of the plan, and is about to be dispatched again"
            return sentence("stands", "ready", text, (story.last_seq(code),), code)
        if board.plan.status in ("cancelling", *plan.ENDED):
            return self.cancelling(code)
        if missing := board.missing(code):
            return self._missing(code, missing)
        if adding := self._adding(code):
            are = "is" if len(adding) == 1 else "are"
            text = f"{code} waits for {listed(adding)}, which {are} being added to the plan"
            return sentence("stands", "adding", text, self._extensions(code), code)
        if board.plan.status == "paused":
            return self.paused(code)
        if code in self.room.next:
            return self._ready(code)
        return self._no_room(code)

    def _being_added(self, code: str) -> Sentence:
        story = self._story
        seqs = [p.seq for p in story.of(PLAN) if _adds(p.event, code)]
        return sentence("stands", "adding", f"{code} is being added to the plan", [*seqs, story.first_seq(code)], code)

    def _no_room(self, code: str) -> Sentence:
        return self.room.slots(code) if self.room.is_full else self.room.budget(code)

    def _missing(self, code: str, missing: list[str]) -> Sentence:
        story, board = self._story, self._story.board
        direct = board.depends_on(code)
        behind = [c for c in missing if c not in direct] if len(missing) <= LISTED_MAX else []
        is_decision = board.tasks[code].is_decision
        reviews = is_decision and all((spec := board.tasks[c].spec) is not None and spec.reviews for c in missing)
        what = ("the review " if len(missing) == 1 else "the reviews ") if reviews else ""
        text = f"{code} waits for {what}{listed(missing)}"
        if behind:
            text += f" ({listed(behind)}: before a task that was given up or marked complete)"
        seqs = [story.first_seq(code), *(board.seqs[c] for c in missing[:LISTED_MAX]), *self._extensions(code)]
        return sentence("stands", "reviews" if is_decision else "waits", text, seqs, code)

    def _ready(self, code: str) -> Sentence:
        board = self._story.board
        state = board.tasks[code]
        does = "weighed" if state.is_decision else "given to its person" if state.is_manual else "dispatched"
        last_of_all = max((board.seqs[before] for before in board.depends_on(code)), default=0)
        text = f"{code} waits for nothing more: it is about to be {does}"
        return sentence("stands", "ready", text, (board.seqs[code], last_of_all), code)

    def _adding(self, code: str) -> list[str]:
        board = self._story.board
        return [c for c in board.plan.also_before.get(code, ()) if c not in board.tasks]

    def _extensions(self, code: str) -> list[int]:
        """The events that put further tasks before it."""
        if code not in self._story.board.plan.also_before:
            return []
        events = self._story.of(PLAN)
        return [p.seq for p in events if isinstance(p.event, e.PlanExtended) and p.event.before == code]

    # The way to the roots -----------------------------------------------------------------------------------------

    def waits_on(self, code: str) -> list[str]:
        """The unfinished tasks that have to end before this one goes on, those that are still being added included."""
        board = self._story.board
        state = board.tasks.get(code)
        if state is None or code in self._story.coming or board.fault:
            return []
        if board.plan.status in ("cancelling", *plan.ENDED):
            return []  # such a plan waits for what runs, and nothing of it for anything else
        if state.status == "needs_attention":
            merges = [t.code for t in board.plan.added if t.resolves == code] if state.conflict else []
            return [c for c in merges if c not in board.tasks or not is_over(board.tasks[c])]
        if state.status in ("pending", "retry_wait") or state.reopening:
            return [*board.missing(code), *self._adding(code)]
        return []

    def roots(self, code: str) -> dict[str, list[str]]:
        """What it waits for in the end, the most important first, each with the way there, which begins here."""
        came_from: dict[str, str] = {}
        roots: list[str] = []
        open_ = [code]
        for one in open_:
            waits_on = self.waits_on(one)
            if not waits_on and one != code:
                roots.append(one)
            for behind in waits_on:
                if behind not in came_from and behind != code:
                    came_from[behind] = one
                    open_.append(behind)
        return {root: _way(code, root, came_from) for root in sorted(roots, key=self.importance)}

    def importance(self, code: str) -> int:
        """The lower, the more a person is needed."""
        return IMPORTANCE.index(self.kind(code))

    def kind(self, code: str) -> Kind:
        """The kind of the first sentence about an unfinished task that waits for no other one, without the words."""
        board = self._story.board
        if code not in board.tasks or code in self._story.coming:
            return "adding"
        state = board.tasks[code]
        if state.reopening:
            return "reopening"
        if state.is_by_hand:
            return "with_person"
        match state.status:
            case "awaiting_approval":
                return "approval"
            case "retry_wait":
                return "retry"
            case "readied" | "queued" | "running" | "cancelling" | "needs_attention" as status:
                return status
        if board.plan.status == "paused":
            return "paused"
        return "ready" if code in self.room.next else "slots" if self.room.is_full else "budget"

    def at_root(self, root: str, way: list[str]) -> Sentence:
        """How a root stands, and how one comes there."""
        story = self._story
        seqs = [story.first_seq(one) for one in way[:WAY_SHOWN_MAX]]
        said = self.standing(root) if root in story.board.tasks else self._being_added(root)
        text = said.text
        if between := way[1:]:
            text = f"By way of {listed(between, WAY_SHOWN_MAX)} it waits for {root}. {text}"
        return sentence("waits", said.kind, text, [*seqs, *said.seqs], root)

    # All of it ----------------------------------------------------------------------------------------------------

    def reasons(self, code: str) -> tuple[list[Sentence], list[str]]:
        """What there is to say behind a task's first sentence, and the tasks that hold it up in the end."""
        story, board = self._story, self._story.board
        if board.fault or code not in board.tasks or is_over(board.tasks[code]):
            return [], []
        state = board.tasks[code]
        roots = self.roots(code)
        told: list[Sentence] = []
        if state.status == "needs_attention" and roots:
            text = f"What {code} starts from is being merged by a task of its own; then it is dispatched again"
            told.append(sentence("waits", "merging", text, self._extensions(code), code))
        told += [self.at_root(root, way) for root, way in list(roots.items())[:LISTED_MAX]]
        if rest := list(roots)[LISTED_MAX:]:
            known = [story.last_seq(c) for c in rest[:LISTED_MAX] if c in board.tasks]
            seqs = [story.first_seq(code), *known]
            told.append(sentence("waits", "waits", f"In the end it waits for {listed(rest)} too", seqs, code))
        if state.watch_fault and (failed := story.newest(code, e.TaskWatchFailed)):
            text = f"Nobody can look for its result since {when(failed[1].since)}, so its time stands still"
            told.append(sentence("waits", "watch_fault", text + because(failed[1].reason), (failed[0].seq,), code))
        if (held := self._held_by_plan(code)) is not None:
            told.append(held)
        return told, list(roots)

    def _held_by_plan(self, code: str) -> Sentence | None:
        """What the plan says that the first sentence has not said."""
        board, state = self._story.board, self._story.board.tasks[code]
        said = self.standing(code).kind
        if board.plan.status == "cancelling" and said != "plan_cancelling":
            return _as_reason(self.cancelling())
        if board.plan.status == "paused" and said != "paused" and state.status not in ("running", "cancelling"):
            return _as_reason(self.paused())
        is_due = state.status == "retry_wait" and state.retry_at is not None and state.retry_at <= self._story.time
        if is_due and board.plan.status == "active" and code not in self.room.next and not self.waits_on(code):
            return _as_reason(self._no_room(code))
        return None


def is_over(state: task.TaskState) -> bool:
    """Whether nothing more is to be waited for."""
    return state.status == "cancelled" or state.satisfied


def _as_reason(found: Sentence) -> Sentence:
    return sentence("waits", found.kind, found.text, found.seqs, found.task)


def _adds(event: e.Event, code: str) -> bool:
    return isinstance(event, e.PlanExtended) and any(t.code == code for t in event.tasks)


def _way(code: str, root: str, came_from: dict[str, str]) -> list[str]:
    way = [came_from[root]]
    while way[-1] != code:
        way.append(came_from[way[-1]])
    return way[::-1]
