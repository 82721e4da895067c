"""What holds a whole plan up, in order of importance."""

from shared import events as e
from shared import plan, task
from shared.history.why_sentence import (
    LISTED_MAX,
    Kind,
    Sentence,
    because,
    consumed,
    count_words,
    listed,
    quoted,
    sentence,
    usd,
    when,
)
from shared.history.why_story import Past, Story
from shared.history.why_waits import IMPORTANCE, Waiting, is_over
from shared.subjects import PLAN

WEIGHED_MAX = 200
"""Tasks of which it is counted how many wait behind them."""
FAULTS_TOLD_MAX = 5
_ONE_BY_ONE: tuple[Kind, ...] = ("needs_attention", "approval", "reopening", "with_person", "readied", "queued")
"""What a person wants to know of each; of the others only their names are said."""
_TOGETHER: dict[Kind, str] = {
    "budget": "could begin, but the plan's budget does not allow it",
    "paused": "could begin, but the plan is paused",
    "cancelling": "asked to stop, and not said yet to have stopped",
    "retry": "waiting for the next attempt",
    "slots": "could begin, but all slots are taken",
    "running": "at work",
    "adding": "being added to the plan",
    "ready": "about to begin",
}


def plan_stands(story: Story, waiting: Waiting) -> tuple[list[Sentence], list[str]]:
    """How the plan stands, then what holds it up; and the tasks that do, the most important first."""
    board = story.board
    told = [_first(story, waiting)]
    roots: list[str] = []
    if board.visible and board.plan.status not in plan.ENDED:
        if board.fault:
            told += _not_ended(story)
        else:
            more, roots = _held_up(story, waiting)
            told += more
    if not board.visible:
        told += _makings(story, waiting)
    return [*told, *_costs(story, waiting), *_lineage(story)], roots


# How it stands --------------------------------------------------------------------------------------------------------


def _first(story: Story, waiting: Waiting) -> Sentence:
    board = story.board
    if board.fault and board.plan.status not in plan.ENDED:
        return waiting.fault()
    match board.plan.status:
        case "absent" | "requested" | "failed" | "drafted":
            return _early(story)
        case "finalizing":
            found = story.newest(PLAN, e.PlanFinalizing)
            text = f"The plan is being finalized: {len(board.tasks)} of {board.plan.count} tasks are written down"
            return sentence("stands", "finalizing", text, _seqs(found, story))
        case "cancelled":
            ended, asked = story.newest(PLAN, e.PlanCancelled), story.newest(PLAN, e.PlanCancelRequested)
            who = f", as {asked[0].actor} wished{because(asked[1].reason)}" if asked else ""
            at = f" at {when(ended[0].time)}" if ended else ""
            seqs = [*_seqs(ended, story), *([asked[0].seq] if asked else [])]
            return sentence("stands", "plan_cancelled", f"The plan was cancelled{at}{who}", seqs)
        case "completed":
            done = story.newest(PLAN, e.PlanCompleted)
            at = f" at {when(done[0].time)}" if done else ""
            text = f"The plan was completed{at}: its branch is at {board.plan.head_commit[:12]}"
            return sentence("stands", "plan_completed", text, _seqs(done, story))
        case "cancelling":
            return waiting.cancelling()
        case "paused":
            return waiting.paused()
    return _active(story)


def _early(story: Story) -> Sentence:
    """Before anything is chosen."""
    state = story.board.plan
    if state.status == "drafted":
        drafts = [p.seq for p in story.of(PLAN) if isinstance(p.event, e.PlanDrafted)]
        names = listed([quoted(name, 40) for name in state.candidates])
        text = f"Nothing is chosen: a person finalizes one of the plan's candidates ({names})"
        return sentence("stands", "drafted", text, drafts[-LISTED_MAX:])
    if state.status == "failed":
        failed = story.newest(PLAN, e.PlanFailed)
        text = "No candidate came about"
        if failed is None:
            return sentence("stands", "failed", text, (story.at,))
        text += because(failed[1].message)
        if failed[1].faults:
            faults = [quoted(fault.message, 200) for fault in failed[1].faults]
            text += f"; {count_words(len(faults), 'fault')}: {listed(faults, FAULTS_TOLD_MAX)}"
        return sentence("stands", "failed", text, (failed[0].seq,))
    if state.status == "requested":
        asked = story.newest(PLAN, e.PlanRequested)
        by = "a person" if asked and asked[1].by_hand else "an agent"
        at = f" since {when(asked[0].time)}" if asked else ""
        text = f"No candidate is there yet: {by} makes {listed(list(state.requests))}{at}"
        return sentence("stands", "requested", text, _seqs(asked, story))
    return sentence("stands", "drafted", "The plan has not begun", (story.at,))


def _active(story: Story) -> Sentence:
    board = story.board
    over = sum(board.counts[status] for status in ("completed", "abandoned", "cancelled"))
    counts = [f"{n} {status.replace('_', ' ')}" for status, n in sorted(board.counts.items()) if n]
    done = f"{over} of {count_words(board.plan.count, 'task')} have ended ({', '.join(counts)})"
    kind: Kind
    match board.standing():
        case "needs_attention":
            kind, text = "needs_attention", f"Nothing of the plan can go on without a person: {done}"
        case "waiting":
            kind, text = "waits_for_people", f"The plan waits for people, and for nothing else: {done}"
        case _:
            kind, text = "running", f"The plan goes on by itself: {done}"
    newest = max(board.seqs.values(), default=0)
    return sentence("stands", kind, text, (story.seq(PLAN, e.PlanFinalized), newest))


def _seqs(found: tuple[Past, e.Event] | None, story: Story) -> list[int]:
    return [found[0].seq if found else story.at]


# What holds it up -----------------------------------------------------------------------------------------------------


def _not_ended(story: Story) -> list[Sentence]:
    left = [c for c in story.board.codes if not is_over(story.board.tasks[c])]
    if not left:
        return []
    text = f"Not ended: {listed(left)}"
    return [sentence("waits", "fault", text, [story.last_seq(c) for c in left[:LISTED_MAX]])]


def _held_up(story: Story, waiting: Waiting) -> tuple[list[Sentence], list[str]]:
    """The tasks that wait for no other one: what everything else waits for."""
    board = story.board
    by_kind: dict[Kind, list[str]] = {}
    is_cancelling = board.plan.status == "cancelling"
    for code in (*board.codes, *sorted(story.coming)):
        state = board.tasks[code]
        if is_over(state) or (is_cancelling and state.status not in task.LEASED) or waiting.waits_on(code):
            continue
        by_kind.setdefault(waiting.kind(code), []).append(code)
    told: list[Sentence] = []
    roots: list[str] = []
    for kind in sorted(by_kind, key=IMPORTANCE.index):
        codes = by_kind[kind]
        if kind in _ONE_BY_ONE:
            behind = {code: _behind(story, code) for code in codes[:WEIGHED_MAX]}
            codes.sort(key=lambda code: -behind.get(code, 0))
            told += [_one(waiting, code, behind.get(code, 0)) for code in codes[:LISTED_MAX]]
            if len(codes) > LISTED_MAX:
                told.append(_together(story, kind, codes[LISTED_MAX:], "likewise"))
        else:
            told.append(_together(story, kind, codes, _TOGETHER[kind]))
            if kind in ("slots", "budget"):
                told.append(_as_reason(waiting.standing(codes[0])))
        roots += codes
    return told, roots


def _one(waiting: Waiting, code: str, behind: int) -> Sentence:
    said = waiting.standing(code)
    more = f"; {count_words(behind, 'task')} wait{'s' if behind == 1 else ''} behind it" if behind else ""
    return sentence("waits", said.kind, said.text + more, said.seqs, code)


def _together(story: Story, kind: Kind, codes: list[str], words: str) -> Sentence:
    seqs = [story.last_seq(c) for c in codes[:LISTED_MAX]]
    return sentence("waits", kind, f"{count_words(len(codes), 'task')} {words}: {listed(codes)}", seqs)


def _behind(story: Story, code: str) -> int:
    """How many unfinished tasks wait for this one, directly or not."""
    board = story.board
    seen: set[str] = set()
    open_ = list(board.successors(code))
    while open_:
        one = open_.pop()
        if one not in seen:
            seen.add(one)
            open_ += board.successors(one)
    return sum(not is_over(board.tasks[one]) for one in seen)


def _makings(story: Story, waiting: Waiting) -> list[Sentence]:
    """How the making of candidates stands."""
    open_ = [code for code, state in story.board.drafts.items() if not is_over(state)]
    return [_as_reason(waiting.standing(code)) for code in open_[:LISTED_MAX]]


def _as_reason(said: Sentence) -> Sentence:
    return sentence("waits", said.kind, said.text, said.seqs, said.task)


# What it cost, and where it comes from --------------------------------------------------------------------------------


def _costs(story: Story, waiting: Waiting) -> list[Sentence]:
    states = story.board.tasks
    usage = sum((state.usage for state in states.values()), e.Usage())
    told: list[Sentence] = []
    dearest = sorted((c for c in states if states[c].usage != e.Usage()), key=lambda c: -states[c].usage.cost_usd)
    if dearest:
        names = listed([f"{code} ({usd(states[code].usage.cost_usd)})" for code in dearest], 5)
        text = f"Its tasks took {consumed(usage)}; most of it by {names}"
        told.append(sentence("cost", "cost", text, [story.last_seq(c) for c in dearest[:LISTED_MAX]]))
    if words := waiting.room.budget_words():
        text = words[0].upper() + words[1:]
        told.append(sentence("cost", "budget", text, waiting.room.budget_seqs()))
    return told


def _lineage(story: Story) -> list[Sentence]:
    told: list[Sentence] = []
    for past in story.of(PLAN):
        event = past.event
        if isinstance(event, e.PlanDrafted) and event.fork is not None:
            kept = listed([one.task for one in event.fork.kept])
            text = f"The plan is a fork of {event.fork.plan} as it was at event {event.fork.seq}; kept of it: {kept}"
            told.append(sentence("base", "lineage", text, (past.seq,)))
        if isinstance(event, e.PlanForked):
            text = f"Plan {event.plan} is a fork of this one, as it was at event {event.seq}"
            told.append(sentence("base", "lineage", text, (past.seq,)))
        if isinstance(event, e.PlanSkipped):
            text = f"Event {event.seq}, which could not be read, was left out by {past.actor}{because(event.reason)}"
            told.append(sentence("base", "skipped", text, (past.seq,)))
    return told
