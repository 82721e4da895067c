"""What became of a task's leases: why there is more than one of them, why attempts failed, what each of them cost."""

from collections import deque
from collections.abc import Iterable, Sequence
from itertools import pairwise

import msgspec

from shared import events as e
from shared.history.why_sentence import (
    Kind,
    Sentence,
    because,
    consumed,
    count_words,
    listed,
    quoted,
    sentence,
    span,
    usd,
    when,
)
from shared.history.why_stands import held_by
from shared.history.why_story import Past, Step, Story
from shared.subjects import pool

TOLD_MAX = 20
"""Of each kind, the newest ones."""
FAULTS_TOLD_MAX = 5


class Lease(msgspec.Struct):
    """One taking of a task by a runner, or by its person."""

    number: int
    attempt: int
    runner: str
    pool: str
    started: Past
    heard: Past
    """The last event that shows its holder alive."""
    usage: e.Usage = e.Usage()
    ended: Past | None = None
    is_lost: bool = False
    seqs: list[int] = []
    """The events that say what it consumed."""

    def end(self, past: Past, usage: e.Usage = e.Usage(), *, is_lost: bool = False) -> None:  # noqa: B008 - frozen
        """Notes its end, or what a person still brought after it."""
        self.ended = past
        self.is_lost = is_lost
        self.usage += usage
        self.seqs.append(past.seq)


def leases(steps: Iterable[Step]) -> list[Lease]:
    """All leases of a task, in order. Their usages are all that the task consumed."""
    found: dict[int, Lease] = {}
    in_pool = ""
    for step in steps:
        past, event = step.past, step.past.event
        match event:
            case e.TaskDispatched():
                in_pool = pool(event)
            case e.TaskStarted():
                if event.supersedes is not None and event.supersedes in found:
                    found[event.supersedes].end(past, event.charged, is_lost=True)
                found[event.lease] = Lease(event.lease, step.after.attempt, event.runner, in_pool, past, past)
            case e.TaskReleased() if event.lease in found:
                lease = found[event.lease]
                lease.end(past, event.usage, is_lost=event.lost or _is_anothers(past, lease))
            case e.TaskCompleted() | e.TaskFailed() | e.TaskApprovalRequested() if event.lease in found:
                lost = isinstance(event, e.TaskFailed) and event.kind == "runner_lost"
                found[event.lease].end(past, event.usage, is_lost=lost)
            case e.TaskCancelled() if event.lease in found:
                found[event.lease].end(past, event.usage, is_lost=_is_anothers(past, found[event.lease]))
            case e.TaskApprovalUsed() | e.TaskWatchFailed() | e.TaskWatchRestored() if event.lease in found:
                found[event.lease].heard = past
            case e.TaskMarkedComplete() | e.TaskAbandoned() | e.TaskCancelRequested():
                newest = found.get(step.before.lease)
                if newest is not None and newest.ended is None and step.after.status != "cancelling":
                    newest.end(past)  # a person's: nobody else has to be asked
    return list(found.values())


def _is_anothers(past: Past, lease: Lease) -> bool:
    """Whether another runner spoke for the holder, who did not answer."""
    return past.actor.startswith("runner:") and past.actor != f"runner:{lease.runner}"


# Why more than once ---------------------------------------------------------------------------------------------------


def repeats(story: Story, code: str) -> list[Sentence]:
    """Why a task began more than once, was handed out in vain, or was changed."""
    all_ = leases(story.steps(code))
    told: list[Sentence] = []
    if len(all_) > 1:
        attempts = len({lease.attempt for lease in all_})
        text = f"{code} began {count_words(len(all_), 'time')}, in {count_words(attempts, 'attempt')}"
        told.append(sentence("repeats", "began", text, (lease.started.seq for lease in all_), code))
    between = list(pairwise(all_))[-TOLD_MAX:]
    told += [_again(code, old, new, story.of(code)) for old, new in between]
    told += _asides(code, story.steps(code))
    return told


def _again(code: str, old: Lease, new: Lease, events: Sequence[Past]) -> Sentence:
    """Why there is a lease after the one before it."""
    end = old.ended or new.started
    then = [p for p in events if end.seq <= p.seq <= new.started.seq]
    kind, why = _reason(old, new, end, then)
    seqs = [p.seq for p in then if not isinstance(p.event, e.TaskEdited | e.TaskSkipped)]
    if kind == "lost":
        seqs.append(old.heard.seq)
    begun = new.started.event
    goes_on = ""
    if isinstance(begun, e.TaskStarted) and begun.resumes:
        goes_on = f". It went on with the conversation and files of lease {begun.resumes}"
    text = f"Lease {new.number} on runner {new.runner} began at {when(new.started.time)}: {why}{goes_on}"
    return sentence("repeats", kind, text, seqs, code)


def _reason(old: Lease, new: Lease, end: Past, then: Sequence[Past]) -> tuple[Kind, str]:
    asked = next((p for p in reversed(then) if isinstance(p.event, e.TaskRedispatchRequested)), None)
    wish = ""
    if asked is not None and isinstance(asked.event, e.TaskRedispatchRequested):
        wish = f"; {asked.actor} asked for another attempt{because(asked.event.note)}"
    was = f"lease {old.number} on runner {old.runner}"
    if old.is_lost:
        silent = span((end.time - old.heard.time).total_seconds())
        if isinstance(end.event, e.TaskStarted):
            how = f"before runner {new.runner} took over"
        elif isinstance(end.event, e.TaskReleased):
            how = f"until {end.actor} handed it back{because(end.event.reason)}"
        else:
            how = f"until {end.actor} said so"
        return "lost", f"{was} was lost, the log has nothing from it for the {silent} {how}{wish}"
    match end.event:
        case e.TaskApprovalRequested():
            return "resumed", f"{was} had asked for a person's word and ended{_answer(then)}{wish}"
        case e.TaskReleased():
            return "handed_back", f"{was} was handed back by {end.actor}{because(end.event.reason)}{wish}"
        case e.TaskFailed(retry_at=retry_at) as failed if retry_at is not None and asked is None:
            spent = "" if failed.spent else ", which did not count against its attempts"
            return (
                "retried",
                f"attempt {old.attempt} had failed ({_words(failed.kind)}){because(failed.message)}, to be tried again "
                f"from {when(retry_at)}{spent}",
            )
        case e.TaskCompleted():
            return "redispatched", f"{was} had been completed{wish}"
        case e.TaskFailed() | e.TaskDecided() | e.TaskCancelRequested():
            return "redispatched", f"of {was}, {held_by(end, end.event)}{wish}"
    return "redispatched", f"{was} had ended with “{end.record.type}”{wish}"


def _answer(then: Sequence[Past]) -> str:
    for past in then:
        match past.event:
            case e.TaskApprovalGranted(note=note):
                return f"; {past.actor} allowed it at {when(past.time)}{because(note)}"
            case e.TaskApprovalDenied(note=note, expired=expired):
                if expired:
                    return f"; nobody answered until {when(past.time)}, which is a no"
                return f"; {past.actor} refused it at {when(past.time)}{because(note)}"
    return ""


def _asides(code: str, steps: Iterable[Step]) -> Iterable[Sentence]:
    """Dispatches that nobody began, changes, and events that were left out: the newest ones."""
    told: deque[Sentence] = deque(maxlen=TOLD_MAX)
    opened: Past | None = None
    for step in steps:
        past = step.past
        match past.event:
            case e.TaskDispatched() | e.TaskReadied():
                opened = past
            case e.TaskReleased(lease=None, reason=reason):
                text = f"Dispatch {step.before.dispatch} of {code} was taken back by {past.actor} before anybody began"
                seqs = (opened.seq if opened else 0, past.seq)
                told.append(sentence("repeats", "recalled", text + because(reason), seqs, code))
            case e.TaskEdited(note=note):
                text = f"{code} was changed by {past.actor} at {when(past.time)}{because(note)}"
                told.append(sentence("repeats", "edited", text, (past.seq,), code))
            case e.TaskSkipped(seq=seq, reason=reason):
                text = f"Event {seq}, which could not be read, was left out by {past.actor}{because(reason)}"
                told.append(sentence("repeats", "skipped", text, (past.seq,), code))
    return told


# Why it failed --------------------------------------------------------------------------------------------------------


def failures(story: Story, code: str) -> list[Sentence]:
    """Every attempt that did not succeed, the newest ones."""
    told: deque[Sentence] = deque(maxlen=TOLD_MAX)
    for step in story.steps(code):
        past, event = step.past, step.past.event
        match event:
            case e.TaskFailed():
                told.append(sentence("failures", "failure", _failed(step, event), (past.seq,), code))
            case e.TaskApprovalDenied():
                who = "nobody answered in time" if event.expired else f"{past.actor} said no"
                asked = step.before.approval
                what = f" to {quoted(asked.why)}" if asked and asked.why.strip() else ""
                note = "" if event.expired else because(event.note)
                text = f"What {code} asked was refused at {when(past.time)}: {who}{what}{note}"
                told.append(sentence("failures", "denied", text, (past.seq,), code))
            case e.TaskDecided(approved=False, reason=reason, round=number):
                text = f"{code} was not approved in round {number}{because(reason)}"
                told.append(sentence("failures", "failure", text, (past.seq,), code))
    return list(told)


def _failed(step: Step, event: e.TaskFailed) -> str:
    past, before = step.past, step.before
    where = f"under lease {event.lease}" + (f" on runner {before.runner}" if before.runner else "")
    text = (
        f"Attempt {before.attempt} failed at {when(past.time)} {where} ({_words(event.kind)}){because(event.message)}"
    )
    if event.conflict is not None:
        files = listed([quoted(file, 120) for file in event.conflict.files])
        text += f"; the work of {listed(event.conflict.tasks)} can't be merged by itself, in {files}"
    if event.faults:
        faults = [quoted(fault.message, 200) for fault in event.faults]
        text += f"; {count_words(len(faults), 'fault')}: {listed(faults, FAULTS_TOLD_MAX)}"
    if event.retry_at is not None:
        return f"{text}; it was to be tried again from {when(event.retry_at)}"
    return f"{text}; it was held for a person"


# What it cost ---------------------------------------------------------------------------------------------------------


def costs(story: Story, code: str) -> list[Sentence]:
    """What a task cost, in all and by lease."""
    told: list[Sentence] = []
    inherited = story.newest(code, e.TaskInherited)
    if inherited is not None:
        kept = inherited[1].kept
        text = f"In plan {kept.plan} {kept.task} took {consumed(kept.usage)}; it counts in no budget of this plan"
        told.append(sentence("cost", "cost", text, (inherited[0].seq,), code))
    all_ = leases(story.steps(code))
    if len(all_) > 1:
        usage = sum((lease.usage for lease in all_), e.Usage())
        text = f"{code} took {consumed(usage)}, in {count_words(len(all_), 'lease')}"
        told.append(sentence("cost", "cost", text, (seq for lease in all_ for seq in lease.seqs), code))
    if len(all_) > TOLD_MAX:
        early = all_[:-TOLD_MAX]
        spent_usd = sum(lease.usage.cost_usd for lease in early)
        text = f"Its first {len(early)} leases took {usd(spent_usd)}"
        told.append(sentence("cost", "lease_cost", text, (seq for lease in early for seq in lease.seqs), code))
    told += [_lease_cost(story, code, lease) for lease in all_[-TOLD_MAX:]]
    return told


def _lease_cost(story: Story, code: str, lease: Lease) -> Sentence:
    end = lease.ended
    took = span(((end.time if end else story.time) - lease.started.time).total_seconds())
    name = f"Attempt {lease.attempt}, lease {lease.number}, runner {lease.runner} of pool {lease.pool or 'unknown'}"
    if end is None:
        text = f"{name}: {took} until this moment; what it consumes is known at its end"
    else:
        charged = " (as it last reported, or else all that it had reserved)" if lease.is_lost else ""
        text = f"{name}: {took}, {consumed(lease.usage)}{charged}"
    return sentence("cost", "lease_cost", text, (lease.started.seq, *lease.seqs), code)


def _words(kind: str) -> str:
    return kind.replace("_", " ")
