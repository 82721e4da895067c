"""What a task starts from: the plan's base commit, and whose work is merged onto it."""

from shared import events as e
from shared.history.why_sentence import LISTED_MAX, Sentence, listed, sentence, short, when
from shared.history.why_story import Past, Story
from shared.spec import DELIVER

EARLIER_TOLD_MAX = 5

Opened = tuple[Past, e.TaskDispatched | e.TaskReadied]


def bases(story: Story, code: str) -> list[Sentence]:
    """The commits that its dispatches started from, the newest in full; and what its work would be based on now."""
    inherited = story.newest(code, e.TaskInherited)
    if inherited is not None:
        past, event = inherited
        kept = event.kept
        if not kept.commit:
            return []
        text = f"{code} has commit {short(kept.commit)} from plan {kept.plan}"
        if kept.base_commit:
            text += f", where it was started from {short(kept.base_commit)}"
        return [sentence("base", "base", text, (past.seq,), code)]
    opened: list[Opened] = [
        (past, past.event) for past in story.of(code) if isinstance(past.event, e.TaskDispatched | e.TaskReadied)
    ]
    if not opened:
        return _would_be(story, code)
    newest = opened[-1]
    told = [_base(story, code, newest), *_contents(story, code, newest), *_left_out(story, code, newest)]
    differing = [one for one in opened[:-1] if _from(one) != _from(newest)]
    told += [_earlier(code, one) for one in differing[-EARLIER_TOLD_MAX:]]
    return told


def _base(story: Story, code: str, opened: Opened) -> Sentence:
    past, event = opened
    text = f"Dispatch {event.dispatch} of {code} starts from {_start(event)}"
    seqs = [past.seq, *(story.last_seq(head.task) for head in event.heads[:LISTED_MAX])]
    for later in story.of(code):
        found = later.event
        if later.seq > past.seq and isinstance(found, e.TaskCompleted | e.TaskApprovalRequested):
            if words := _came_to(code, event, found):
                text += words
                seqs.append(later.seq)
            break
    return sentence("base", "base", text, seqs, code)


def _came_to(
    code: str, event: e.TaskDispatched | e.TaskReadied, ended: e.TaskCompleted | e.TaskApprovalRequested
) -> str:
    """Which commit that was, in words; empty where it is said already, or nobody knows."""
    if code == DELIVER:  # names the plan's own base, which all of its changes are shown against
        return f"; the plan's branch with all of it is at commit {short(ended.commit)}" if ended.commit else ""
    known = ended.base_commit
    return f"; together that is commit {short(known)}" if known and known != event.base_commit else ""


def _start(event: e.TaskDispatched | e.TaskReadied) -> str:
    base = f"the plan's base commit {short(event.base_commit)}"
    return f"{base}, merged with the work of {_heads(event.heads)}" if event.heads else base


def _heads(heads: tuple[e.Head, ...]) -> str:
    return listed([_head(head) for head in heads])


def _head(head: e.Head) -> str:
    whose = f", inherited from plan {head.plan}" if head.plan else ""
    return f"{head.task} (commit {short(head.commit)}{whose})"


def _contents(story: Story, code: str, opened: Opened) -> list[Sentence]:
    """Whose work else is in the heads: a task's commit contains those of all that had ended before it."""
    past, event = opened
    told: list[Sentence] = []
    for head in event.heads[:LISTED_MAX]:
        within = _work_before(story, head.task)
        if within:
            text = f"The work of {head.task} contains that of {listed(within)}"
            seqs = [story.last_seq(one) for one in (head.task, *within[:LISTED_MAX])]
            told.append(sentence("base", "contents", text, [past.seq, *seqs], code))
    return told


def _work_before(story: Story, code: str) -> list[str]:
    """The tasks before a task that have a commit, in the plan's order."""
    board = story.board
    seen: set[str] = set()
    open_ = list(board.depends_on(code)) if code in board.tasks else []
    while open_:
        one = open_.pop()
        if one not in seen:
            seen.add(one)
            open_ += board.depends_on(one)
    return [one for one in board.codes if one in seen and board.tasks[one].commit]


def _left_out(story: Story, code: str, opened: Opened) -> list[Sentence]:
    """What was given up, or has no commit, and so is not in there."""
    past, event = opened
    told: list[Sentence] = []
    if event.abandoned:
        text = f"Nothing is in it of {listed(event.abandoned)}: given up when dispatch {event.dispatch} was made"
        seqs = [_given_up(story, one, past.seq) for one in event.abandoned[:LISTED_MAX]]
        told.append(sentence("base", "left_out", text, [past.seq, *seqs], code))
    board = story.board
    before = board.depends_on(code) if code in board.tasks else ()
    empty = [c for c in before if (s := board.tasks[c]).status == "completed" and not s.commit and not s.is_decision]
    empty = [c for c in empty if board.seqs[c] < past.seq]
    if empty:
        text = f"Nothing is in it of {listed(empty)}, completed without a commit"
        seqs = [story.last_seq(one) for one in empty[:LISTED_MAX]]
        told.append(sentence("base", "left_out", text, [past.seq, *seqs], code))
    return told


def _given_up(story: Story, code: str, before: int) -> int:
    given_up = (p.seq for p in story.of(code) if p.seq < before and isinstance(p.event, e.TaskAbandoned))
    return max(given_up, default=0)


def _earlier(code: str, opened: Opened) -> Sentence:
    past, event = opened
    text = f"Dispatch {event.dispatch} of {code}, at {when(past.time)}, started from {_start(event)}"
    return sentence("base", "base", text, (past.seq,), code)


def _from(opened: Opened) -> tuple[object, ...]:
    return opened[1].base_commit, opened[1].heads, opened[1].abandoned


def _would_be(story: Story, code: str) -> list[Sentence]:
    """Of a task that was never dispatched, what it would start from now; nothing as long as that is not known."""
    board = story.board
    chosen = board.plan.chosen
    if chosen is None or code not in board.tasks or not board.visible or code in story.coming or board.fault:
        return []
    if board.tasks[code].status != "pending" or board.tasks[code].is_decision or board.missing(code):
        return []
    heads = board.heads(code)
    base = f"the plan's base commit {short(chosen.base_commit)}"
    text = f"Were {code} dispatched now, it would start from {base}"
    if heads:
        text += f", merged with the work of {_heads(heads)}"
    seqs = [story.first_seq(code), *(board.seqs[head.task] for head in heads[:LISTED_MAX])]
    return [sentence("base", "base", text, seqs, code)]
