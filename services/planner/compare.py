"""What tells two candidates from one another, and what is to be expected of each. Pure."""

from services.planner.estimate import critical_path, most_minutes, most_usd
from services.planner.past_runs import PastRuns
from shared.plan import Candidate
from shared.requests import CandidateEstimate, ChangedTask, CompareReply
from shared.spec import PlanSpec, TaskSpec

_FIELDS = tuple(name for name in TaskSpec.__struct_fields__ if name != "code")


def compare(names: tuple[str, str], candidates: tuple[Candidate, Candidate], past: PastRuns) -> CompareReply:
    """From the first candidate to the second. A task is the same where its code is, however it is written."""
    before, after = (candidate.spec for candidate in candidates)
    old, new = ({task.code.casefold(): task for task in spec.tasks} for spec in (before, after))
    both = ((task, old[code]) for code, task in new.items() if code in old)
    changed = ((task.code, _changed(before, was, after, task)) for task, was in both)
    return CompareReply(
        estimates=tuple(expect(name, one, past) for name, one in zip(names, candidates, strict=True)),
        added=tuple(task.code for code, task in new.items() if code not in old),
        removed=tuple(task.code for code, task in old.items() if code not in new),
        changed=tuple(ChangedTask(code=code, fields=fields) for code, fields in changed if fields),
    )


def expect(name: str, candidate: Candidate, past: PastRuns) -> CandidateEstimate:
    """What a candidate will probably take: each task what its agent's took in this project so far, else its limits.

    What a fork has from its origin takes nothing. A decision counts with all the rounds that it may add: how many it
    will be is not known before.
    """
    spec = candidate.spec
    minutes: dict[str, float] = {}
    cost_usd, known = 0.0, 0
    done = {kept.task for kept in candidate.fork.kept} if candidate.fork is not None else set()
    for task in spec.tasks:
        if task.code in done:
            minutes[task.code] = 0.0
            continue
        agent = spec.agents.get(task.assignee)
        lately = past.of(candidate.project, agent) if agent is not None else None
        known += lately is not None
        minutes[task.code] = most_minutes(spec, task) if lately is None else lately.minutes
        cost_usd += most_usd(spec, task) if lately is None else lately.cost_usd
    path, length = critical_path(spec, minutes)
    return CandidateEstimate(
        candidate=name,
        tasks=len(spec.tasks),
        critical_path=path,
        minutes=length,
        cost_usd=cost_usd if spec.budget_usd is None else min(cost_usd, spec.budget_usd),
        from_past_runs=known,
    )


def _changed(before: PlanSpec, was: TaskSpec, after: PlanSpec, task: TaskSpec) -> tuple[str, ...]:
    """The fields that differ; `assignee` and `fixer` also where the same name stands for somebody else."""
    return tuple(name for name in _FIELDS if _value(before, was, name) != _value(after, task, name))


def _value(spec: PlanSpec, task: TaskSpec, name: str) -> object:
    value = getattr(task, name)
    if name == "depends_on":
        return {code.casefold() for code in value}
    return (value, spec.agents.get(value)) if name in ("assignee", "fixer") else value
