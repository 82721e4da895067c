"""HALF's names of fields, which its existing plans use, and ours.

HALF (the Human-AI Loop Framework) writes plans as JSON. A plan may mix both vocabularies; each field only once.
"""

from services.planner.tree import Table

PLAN_NAMES = {"plan_name": "name"}
TASK_NAMES = {
    "task_code": "code",
    "task_name": "name",
    "title": "name",
    "predecessors": "depends_on",
    "agent_id": "assignee",
}

_ONLY_IN_HALF = {"description": "goal"}
"""Too common a word to be taken for `goal` in a plan that isn't HALF's."""
_PROSE = frozenset({"agent_roles"})
"""What HALF's templates tell people about who should do what; nothing in it can be executed."""


def plan_in_our_names(plan: dict[str, object]) -> tuple[dict[str, object], list[tuple[str, str]]]:
    """The plan with our names, and the pairs of fields that say the same thing twice."""
    if "plan_name" not in plan:
        return plan, []
    return _renamed(plan, PLAN_NAMES | _ONLY_IN_HALF, _PROSE)


def task_in_our_names(task: dict[str, object]) -> tuple[dict[str, object], list[tuple[str, str]]]:
    """The task with our names, and the pairs of fields that say the same thing twice."""
    if TASK_NAMES.keys().isdisjoint(task):
        return task, []
    return _renamed(task, TASK_NAMES, frozenset())


def _renamed(
    source: dict[str, object], names: dict[str, str], dropped: frozenset[str]
) -> tuple[dict[str, object], list[tuple[str, str]]]:
    table = source if isinstance(source, Table) else None
    result = Table(table.line if table else 0)
    if table:
        result.repeated = table.repeated
    twice: list[tuple[str, str]] = []
    for written, value in source.items():
        if written in dropped:
            continue
        name = names.get(written, written) if isinstance(written, str) else written
        if name in result:
            twice.append((result.written.get(name, name), written))
            continue
        result[name] = value
        if name != written:
            result.written[name] = written
        if table and written in table.lines:
            result.lines[name] = table.lines[written]
    return result, twice
