"""When tasks were dispatched, beside when they would have been with other settings: what `--policy` shows."""

from datetime import datetime

import msgspec

from shared import events as e
from shared.board import Board
from shared.history.policy import BadPolicy, Policy
from shared.history.recorded_work import RecordedWork, Recorder
from shared.history.rehearsal import Rehearsal, with_policy
from shared.history.verify import Events
from shared.spec import MAX_PARALLEL
from shared.task import TaskStatus

ASSUMED = (
    "each attempt takes as long, costs as much and ends as it was recorded; a further one repeats the last",
    "what a shorter timeout or a smaller budget cuts off had spent its money evenly over its time; what ran into a "
    "limit runs into a larger one too",
    "people answer as long after the question as they did; what they did to the plan itself comes as long after it "
    "was finalized",
    "dispatcher and runners are as quick as they were",
)
SAME_S = 0.5
"""Less than this, or than a thousandth of the plan's time, is no difference."""


class TaskSchedule(msgspec.Struct, frozen=True, kw_only=True):
    """One task. Times are seconds since the plan was finalized; None: it did not happen."""

    code: str
    recorded_s: float | None
    """The first dispatch."""
    policy_s: float | None
    difference_s: float | None
    reason: str
    """Why they differ, or why the task ends otherwise; empty where nothing does."""
    recorded_end_s: float | None
    policy_end_s: float | None
    recorded_status: TaskStatus
    policy_status: TaskStatus
    recorded_attempts: int
    policy_attempts: int
    recorded_cost_usd: float
    policy_cost_usd: float


class PlanSchedule(msgspec.Struct, frozen=True, kw_only=True):
    """The plan as a whole, once as recorded and once with the policy."""

    standing: str
    length_s: float
    """From `finalized` to the last thing that happened."""
    cost_usd: float
    dispatched_most: int
    """Tasks that were dispatched at once, those in people's hands left out."""


class Rehearsed(msgspec.Struct, frozen=True, kw_only=True):
    """What would have been dispatched when."""

    plan: str
    recorded: PlanSchedule
    policy: PlanSchedule
    tasks: tuple[TaskSchedule, ...]
    """In topological order."""
    assumed: tuple[str, ...]
    reason: str
    """Where the plan ends otherwise than recorded and none of its tasks does: that; empty else."""
    differs: bool


def rehearse(events: Events, policy: Policy) -> Rehearsed:
    """Runs the recorded work again with other settings.

    Raises `BadPolicy` where the policy names what the plan has not, and where the history can't be run again.
    """
    work, name = _recorded(events)
    policy.check_names(set(work.board.tasks))
    rehearsal = Rehearsal(work, policy, _beginning(events, work, policy))
    rehearsal.run()
    length_s = (work.ended - work.began).total_seconds()
    tasks = tuple(_task(code, work, rehearsal, max(SAME_S, length_s / 1000)) for code in rehearsal.board.codes)
    recorded = _plan(work.board, length_s, work.in_flight_most)
    policed = _plan(rehearsal.board, (rehearsal.now - work.began).total_seconds(), rehearsal.in_flight_most)
    is_told = any(task.reason for task in tasks)
    reason = "" if is_told else _ends_otherwise(recorded, policed, max(SAME_S, length_s / 1000))
    return Rehearsed(
        plan=name,
        recorded=recorded,
        policy=policed,
        tasks=tasks,
        assumed=(*ASSUMED, *_runners(work)),
        reason=reason,
        differs=is_told or bool(reason),
    )


def _ends_otherwise(recorded: PlanSchedule, policy: PlanSchedule, same_s: float) -> str:
    if recorded.standing == policy.standing and abs(recorded.length_s - policy.length_s) <= same_s:
        return ""
    return (
        "no task goes otherwise, but the plan's end does: what happened to the plan itself behind the last of its "
        "tasks is not run again"
    )


def _recorded(events: Events) -> tuple[RecordedWork, str]:
    left_out = {(r.entity, r.event.seq) for r in events.read() if isinstance(r.event, e.PlanSkipped | e.TaskSkipped)}
    recorder, name = Recorder(), ""
    for record in events.read():
        name = record.plan
        if (record.entity, record.seq) in left_out:
            continue
        try:
            recorder.add(record)
        except Exception as error:  # today's code may not bear what was recorded
            raise BadPolicy(f"the history can't be run again, from event {record.seq} on: {error}") from error
    work = recorder.work()
    if work is None:
        raise BadPolicy("the plan was never finalized: nothing of it was dispatched")
    return work, name


def _beginning(events: Events, work: RecordedWork, policy: Policy) -> Board:
    """The plan right after it was finalized, with other settings."""
    board = Board()
    for record in events.read():
        if record.seq > work.seq:
            break
        if record.event is None:
            continue  # left out, or reading the record had failed
        board.apply(record.entity, with_policy(record.event, policy), record.seq)
        if isinstance(record.event, e.PlanFinalizing):
            board.plan = policy.of_plan(board.plan)
    return board


def _plan(board: Board, length_s: float, most: int) -> PlanSchedule:
    cost_usd = sum(state.usage.cost_usd for state in board.tasks.values())
    return PlanSchedule(standing=board.standing(), length_s=length_s, cost_usd=cost_usd, dispatched_most=most)


def _runners(work: RecordedWork) -> tuple[str, ...]:
    if not work.slots:
        return ("there are runners enough: no task had to wait for one",)
    pools = ", ".join(f"{slots} {pool}" for pool, slots in sorted(work.slots.items()))
    return (f"runners take as many tasks at once as they did where tasks had to wait for them: {pools}",)


# One task ---------------------------------------------------------------------------------------------------------


def _task(code: str, work: RecordedWork, rehearsal: Rehearsal, same_s: float) -> TaskSchedule:
    recorded = work.tasks.get(code)
    was, now = work.board.tasks.get(code), rehearsal.board.tasks[code]
    recorded_s = _since(work.began, recorded.first_dispatched if recorded else None)
    policy_s = _since(work.began, rehearsal.dispatched.get(code))
    return TaskSchedule(
        code=code,
        recorded_s=recorded_s,
        policy_s=policy_s,
        difference_s=None if recorded_s is None or policy_s is None else policy_s - recorded_s,
        reason=_reason(code, work, rehearsal, same_s),
        recorded_end_s=_since(work.began, recorded.ended if recorded else None),
        policy_end_s=_since(work.began, rehearsal.ended.get(code)),
        recorded_status=was.status if was else "absent",
        policy_status=now.status,
        recorded_attempts=was.attempt if was else 0,
        policy_attempts=now.attempt,
        recorded_cost_usd=was.usage.cost_usd if was else 0.0,
        policy_cost_usd=now.usage.cost_usd,
    )


def _since(began: datetime, at: datetime | None) -> float | None:
    return None if at is None else (at - began).total_seconds()


def _reason(code: str, work: RecordedWork, rehearsal: Rehearsal, same_s: float) -> str:
    recorded = work.tasks.get(code)
    was_at = recorded.first_dispatched if recorded else None
    is_at = rehearsal.dispatched.get(code)
    words: list[str] = []
    if is_at is None and was_at is not None:
        words.append(f"it is not dispatched: {_stands(code, rehearsal)}")
    elif is_at is not None and was_at is None:
        words.append("it was not dispatched by the end of the record")
    elif is_at is not None and was_at is not None and abs((is_at - was_at).total_seconds()) > same_s:
        words.append(_moved(code, work, rehearsal, was_at, is_at, same_s))
    before, after = work.board.tasks.get(code), rehearsal.board.tasks[code]
    if before is not None and (is_at is not None or was_at is None):
        if before.status != after.status:
            words.append(f"it ends as {_words(after.status)}, not {_words(before.status)}: {_stands(code, rehearsal)}")
        elif before.attempt != after.attempt:
            words.append(f"attempts: {after.attempt}, not {before.attempt}")
        elif is_at is not None and recorded is not None and recorded.ended and (ended := rehearsal.ended.get(code)):
            longer_s = ((ended - is_at) - (recorded.ended - (was_at or is_at))).total_seconds()
            if abs(longer_s) > same_s:
                words.append(f"it takes {abs(longer_s):,.1f} s {'longer' if longer_s > 0 else 'less'}")
    return "; ".join(words)


def _moved(
    code: str, work: RecordedWork, rehearsal: Rehearsal, was_at: datetime, is_at: datetime, same_s: float
) -> str:
    """Why a task is dispatched earlier or later: by its predecessors, or by what it had to wait for besides."""
    was_last, was_clear = _last_before(code, work.board, {c: t.ended for c, t in work.tasks.items()})
    last, clear = _last_before(code, rehearsal.board, dict(rehearsal.ended))
    was_waited_s = (was_at - (was_clear or work.began)).total_seconds()
    waited_s = (is_at - (clear or work.began)).total_seconds()
    if min(waited_s, was_waited_s) < -same_s:
        return "what it waited for went otherwise"  # and was done once more after the dispatch
    if abs(waited_s - was_waited_s) <= same_s:
        moved_s = (is_at - was_at).total_seconds()
        return f"{last or was_last} ended {abs(moved_s):,.1f} s {'later' if moved_s > 0 else 'earlier'}"
    if waited_s < was_waited_s:
        return f"it waited {waited_s:,.1f} s to be dispatched once it was free to go, not {was_waited_s:,.1f} s"
    why = [w for w, at in sorted(rehearsal.limited.items(), key=lambda found: found[1]) if at >= (clear or work.began)]
    return f"it waited {waited_s:,.1f} s for {_waited_for(why[-1:], rehearsal.board)}, not {was_waited_s:,.1f} s"


def _waited_for(why: list[str], board: Board) -> str:
    chosen = board.plan.chosen
    match why:
        case ["slots"]:
            return f"one of {chosen.spec.max_parallel if chosen else MAX_PARALLEL} tasks at once to end"
        case ["budget"]:
            return "the plan's budget to allow it"
        case ["paused"]:
            return "the plan to be resumed"
    return "its turn"


def _last_before(code: str, board: Board, ended: dict[str, datetime | None]) -> tuple[str, datetime | None]:
    """The predecessor that ended last, and when."""
    if code not in board.tasks:
        return "", None
    codes = [state.spec.code for state in board.predecessors(code) if state.spec]
    ends = [(at, c) for c in codes if (at := ended.get(c)) is not None]
    return (max(ends)[1], max(ends)[0]) if ends else ("", None)


def _stands(code: str, rehearsal: Rehearsal) -> str:
    """Why a task is not further than it is, in the end."""
    board = rehearsal.board
    state = board.tasks[code]
    if code in rehearsal.unknown:
        return rehearsal.unknown[code]
    if state.status == "needs_attention":
        return f"it needs attention ({_words(state.kind or 'refused')}), and nobody is recorded to have helped"
    if board.plan.status in ("paused", "cancelling", "cancelled"):
        return f"the plan is {board.plan.status}" + (f" ({board.plan.reason})" if board.plan.reason else "")
    if missing := board.missing(code, 3):
        first = missing[0]
        return f"it waits for {first}, which {_stands_shortly(first, rehearsal)}"
    return f"it is {_words(state.status)}"


def _stands_shortly(code: str, rehearsal: Rehearsal) -> str:
    state = rehearsal.board.tasks[code]
    if state.status == "needs_attention":
        return f"needs attention ({_words(state.kind or 'refused')})"
    return f"is {_words(state.status)}"


def _words(name: str) -> str:
    return name.replace("_", " ")
