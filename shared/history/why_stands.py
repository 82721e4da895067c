"""How one task stands, and since which event: the first sentence about it, for every state but `pending`."""

from collections.abc import Callable
from datetime import datetime

from shared import events as e
from shared.history.why_sentence import Kind, Sentence, because, listed, quoted, sentence, short, when
from shared.history.why_story import Past, Story
from shared.subjects import PLAN, pool
from shared.task import TaskState, TaskStatus

_KIND: dict[TaskStatus, Kind] = {
    "readied": "readied",
    "queued": "queued",
    "running": "running",
    "awaiting_approval": "approval",
    "retry_wait": "retry",
    "needs_attention": "needs_attention",
    "cancelling": "cancelling",
    "completed": "completed",
    "cancelled": "cancelled",
    "abandoned": "abandoned",
}


def stands(story: Story, code: str) -> Sentence:
    """How a task stands that is not pending."""
    state = story.state(code)
    kind = _KIND[state.status]
    if state.is_by_hand:
        kind = "with_person"
    elif state.reopening:
        kind = "reopening"
    elif state.inherited:
        kind = "inherited"
    text, seqs = _SAID[kind](story, code, state)
    return sentence("stands", kind, f"{code} {text}", seqs or (story.last_seq(code),), code)


Said = tuple[str, tuple[int, ...]]


def _readied(story: Story, code: str, state: TaskState) -> Said:
    found = story.newest(code, e.TaskReadied)
    since = f" since {when(found[0].time)}" if found else ""
    return (
        f"is ready for its person{since}: whoever does it says that they begin by dispatching it",
        (found[0].seq if found else 0,),
    )


def _with_person(story: Story, code: str, state: TaskState) -> Said:
    handed = story.newest(code, e.TaskDispatched)
    begun = story.newest(code, e.TaskStarted) if state.status == "running" else None
    text, seqs = "is with its person", [handed[0].seq if handed else 0]
    if handed:
        text += f", handed out at {when(handed[0].time)} by {handed[0].actor}"
    if begun is None:
        text += "; nobody has begun to look for its result yet"
    else:
        seqs.append(begun[0].seq)
        restored = story.newest(code, e.TaskWatchRestored)
        if restored and restored[0].seq > begun[0].seq:
            seqs.append(restored[0].seq)
        if state.place is not None:
            text += f"; its result is looked for as {quoted(state.place.path)} in {quoted(state.place.repo_url)}"
        if state.deadline is not None:
            text += f"; it is late after {when(state.deadline)}{_over(story, state.deadline)}"
    return text, tuple(seqs)


def _queued(story: Story, code: str, state: TaskState) -> Said:
    found = story.newest(code, e.TaskDispatched)
    if found is None:
        return "is dispatched; no runner has taken it yet", ()
    past, dispatched = found
    text = f"was dispatched to pool {pool(dispatched)} at {when(past.time)}, as attempt {dispatched.attempt}"
    return f"{text}; no runner has taken it yet", (past.seq,)


def _running(story: Story, code: str, state: TaskState) -> Said:
    found = story.newest(code, e.TaskStarted)
    if found is None:
        return "runs", ()
    past, started = found
    return (
        f"runs on runner {started.runner} since {when(past.time)}, attempt {state.attempt} under lease {state.lease}",
        (past.seq,),
    )


def _approval(story: Story, code: str, state: TaskState) -> Said:
    found = story.newest(code, e.TaskApprovalRequested)
    if found is None:
        return "waits for an answer", ()
    past, asked = found
    what = {
        "tool": f"to be allowed to use {quoted(asked.tool, 80)}",
        "question": "for the answer to a question",
        "result": "for its result to be accepted",
    }[asked.kind]
    return (
        f"waits for a person: it asked {what} at {when(past.time)}{because(asked.why)}; no answer until "
        f"{when(asked.expires_at)} is a no{_over(story, asked.expires_at)}",
        (past.seq,),
    )


def _retry(story: Story, code: str, state: TaskState) -> Said:
    found = story.newest(code, e.TaskFailed)
    if found is None or state.retry_at is None:
        return "is tried again", ()
    past, failed = found
    return (
        f"is tried again at {when(state.retry_at)}{_over(story, state.retry_at)}: its attempt {state.attempt} failed "
        f"at {when(past.time)} ({_words(failed.kind)}){because(failed.message)}",
        (past.seq,),
    )


def _needs_attention(story: Story, code: str, state: TaskState) -> Said:
    held = story.newest(code, e.TaskFailed, e.TaskDecided, e.TaskCancelRequested, e.TaskReleased)
    if held is None:
        return "needs a person's attention", ()
    past, event = held
    text, seqs = f"needs a person's attention since {when(past.time)}: {held_by(past, event)}", [past.seq]
    if isinstance(event, e.TaskFailed | e.TaskReleased) and state.kind == "cancelled":
        asked = story.newest(code, e.TaskCancelRequested)
        if asked:
            text += f"; {asked[0].actor} had asked it to stop{because(asked[1].reason)}"
            seqs.append(asked[0].seq)
    return text, tuple(seqs)


def held_by(past: Past, event: e.Event) -> str:
    """What holds a task for attention, and whose word that is."""
    match event:
        case e.TaskFailed():
            who = f"{past.actor} reported that it" if past.actor != "dispatcher" else "it"
            return f"{who} failed ({_words(event.kind)}){because(event.message)}{_conflict(event.conflict)}"
        case e.TaskDecided():
            return f"its reviews were weighed, and it is not approved{because(event.reason)}"
        case e.TaskCancelRequested():
            return f"{past.actor} stopped it{because(event.reason)}"
        case e.TaskReleased():
            return f"it was to stop, and {past.actor} handed it back{because(event.reason)}"
    return f"{past.actor} said {past.record.type}"


def _conflict(conflict: e.Conflict | None) -> str:
    if conflict is None:
        return ""
    files = [quoted(file, 120) for file in conflict.files[:11]]
    return f". The work of {listed(conflict.tasks)} can't be merged by itself, in {listed(files)}"


def _cancelling(story: Story, code: str, state: TaskState) -> Said:
    asked = story.newest(code, e.TaskCancelRequested)
    begun = story.newest(code, e.TaskStarted)
    if asked is None:
        return "is to stop", ()
    past, request = asked
    return (
        f"was asked to stop by {past.actor} at {when(past.time)}{because(request.reason)}; runner {state.runner} has "
        "not said yet that it did",
        (past.seq, begun[0].seq if begun else 0),
    )


def _completed(story: Story, code: str, state: TaskState) -> Said:
    past = story.since(code)
    if past is None:
        return "is completed", ()
    match past.event:
        case e.TaskMarkedComplete(note=note):
            return (
                f"was marked complete by {past.actor} at {when(past.time)}{because(note)}; it has no commit of its own",
                (past.seq,),
            )
        case e.TaskDecided(reason=reason):
            return f"was approved at {when(past.time)}{because(reason)}", (past.seq,)
        case e.TaskCompleted() as done:
            work = f", with commit {short(done.commit)}" if done.commit else ", without a commit"
            changed = " (no change)" if done.commit and done.commit == done.base_commit else ""
            return (
                f"was completed at {when(past.time)} under lease {done.lease}{work}{changed}",
                (past.seq,),
            )
    return f"is completed since {when(past.time)}", (past.seq,)


def _inherited(story: Story, code: str, state: TaskState) -> Said:
    found = story.newest(code, e.TaskInherited)
    if found is None:
        return "was completed before this plan began", ()
    past, inherited = found
    kept = inherited.kept
    work = f"; its commit {short(kept.commit)} is kept" if kept.commit else ""
    return (
        f"was completed in plan {kept.plan} as {kept.task} (event {kept.seq} of the log) and inherited from "
        f"there{work}",
        (past.seq,),
    )


def _cancelled(story: Story, code: str, state: TaskState) -> Said:
    past = story.since(code)
    with_plan, asked = story.newest(PLAN, e.PlanCancelRequested), story.newest(code, e.TaskCancelRequested)
    text, seqs = "was cancelled", [past.seq if past else 0]
    if past:
        text += f" at {when(past.time)}, as {past.actor} said"
    if with_plan:
        text += f"; {with_plan[0].actor} had cancelled its plan{because(with_plan[1].reason)}"
    elif asked:
        text += f"; {asked[0].actor} had asked it to stop{because(asked[1].reason)}"
    return text, (*seqs, *(one[0].seq for one in (with_plan or asked,) if one))


def _abandoned(story: Story, code: str, state: TaskState) -> Said:
    found = story.newest(code, e.TaskAbandoned)
    if found is None:
        return "was given up", ()
    past, given_up = found
    return (
        f"was given up by {past.actor} at {when(past.time)}{because(given_up.note)}; what comes after it doesn't wait "
        "for it",
        (past.seq,),
    )


def _reopening(story: Story, code: str, state: TaskState) -> Said:
    given_up = story.newest(code, e.TaskAbandoned)
    again = story.newest(code, e.TaskRedispatchRequested)
    if again is None:
        return "is to run again", ()
    past, request = again
    return (
        f"was given up, and is to run again, as {past.actor} asked at {when(past.time)}{because(request.note)}; that "
        "begins once nothing rests on its having been given up, and what it waits for is done",
        (past.seq, given_up[0].seq if given_up else 0),
    )


def _over(story: Story, time: datetime) -> str:
    return ", which is over" if story.time >= time else ""


def _words(kind: str) -> str:
    return kind.replace("_", " ")


_SAID: dict[Kind, Callable[[Story, str, TaskState], Said]] = {
    "readied": _readied,
    "with_person": _with_person,
    "queued": _queued,
    "running": _running,
    "approval": _approval,
    "retry": _retry,
    "needs_attention": _needs_attention,
    "cancelling": _cancelling,
    "completed": _completed,
    "inherited": _inherited,
    "cancelled": _cancelled,
    "abandoned": _abandoned,
    "reopening": _reopening,
}
