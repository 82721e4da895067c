"""A person's changes of one task: valid by the same rules as a whole plan, or every fault of them."""

import msgspec

from services.planner.agents import Roster, Team, own_agents
from services.planner.faults import Fault, FaultList, PlanFaults
from services.planner.fields import Fields
from services.planner.tasks import read_task
from shared.requests import EditReply, EditRequest, PlanFault

_KEPT = ("code", "depends_on")


def edit_task(request: EditRequest) -> EditReply:
    """The whole task as it would be; what is cleared gets its default."""
    faults = FaultList()
    now = {"depends_on": [], **msgspec.json.decode(msgspec.json.encode(request.task))}
    now.pop("resolves", None)  # Treadle's own word: it stays, and is no field that could be written
    edited = {**now, **request.changes}
    fields = Fields(edited, faults, task=request.task.code)
    for name in _KEPT:
        if name in request.changes and request.changes[name] != now[name]:
            fields.add("can't be changed: plan it otherwise in a new plan", name)
    slugs = [agent.slug for agent in request.agents]
    roster = Roster(Team(mode=request.mode, agents=request.agents))
    roster.add_own(own_agents(request.declared, slugs))
    if "assignee" not in request.changes:
        # Whoever has the task keeps it, as they were when they got it: this edit is not about them.
        roster = Roster()
        roster.add_own({request.task.assignee: request.agent})
    try:
        task = read_task(fields, request.task.code, roster, depends_on=request.task.depends_on)
        faults.raise_if_any()
    except PlanFaults as found:
        return EditReply(faults=plan_faults(found.faults))
    task = msgspec.structs.replace(task, resolves=request.task.resolves)
    return EditReply(task=task, agent=roster.agent(task.assignee))


def plan_faults(faults: tuple[Fault, ...]) -> tuple[PlanFault, ...]:
    """Faults as they are answered."""
    return tuple(PlanFault(message=str(f), task=f.task, field=f.field, line=f.line) for f in faults)
