"""A person's changes of one task: valid by the same rules as a whole plan, or every fault of them."""

import msgspec

from services.planner.agents import Roster, Team, own_agents
from services.planner.faults import Fault, FaultList, PlanFaults, listed
from services.planner.fields import Fields
from services.planner.tasks import OWN_WORDS, read_task
from shared.events import PlanFault
from shared.requests import EditReply, EditRequest
from shared.spec import TaskSpec

_KEPT = ("code", "depends_on", "reviews")


def edit_task(request: EditRequest) -> EditReply:
    """The whole task as it would be; what is cleared gets its default."""
    faults = FaultList()
    before = request.task
    now = {"depends_on": [], **msgspec.json.decode(msgspec.json.encode(before))}
    for name in OWN_WORDS:
        now.pop(name, None)  # Treadle's own words: they stay, and are no fields that could be written
    edited = {**now, **request.changes}
    fields = Fields(edited, faults, task=before.code)
    for name in _KEPT:
        if name in request.changes and request.changes[name] != now.get(name):
            fields.add("can't be changed: plan it otherwise in a new plan", name)
    if before.is_decision != fields.given("max_review_rounds"):
        fields.add("makes a task a decision, and none can become one or cease to be one", "max_review_rounds")
    roster = _roster(request)
    try:
        task = read_task(fields, before.code, roster, depends_on=before.depends_on)
        _note_new_fixer(fields, task, request)
        faults.raise_if_any()
    except PlanFaults as found:
        return EditReply(faults=plan_faults(found.faults))
    task = msgspec.structs.replace(task, **{name: getattr(before, name) for name in OWN_WORDS})
    return EditReply(task=task, agent=None if task.is_decision else roster.agent(task.assignee))


def _roster(request: EditRequest) -> Roster:
    if request.task.is_decision:
        # A plan that runs takes in no agents but by the tasks that are given to them.
        roster = Roster()
        roster.add_own(request.declared)
    elif "assignee" in request.changes:
        roster = Roster(Team(mode=request.mode, agents=request.agents))
        roster.add_own(own_agents(request.declared, [agent.slug for agent in request.agents]))
    else:
        # Whoever has the task keeps it, as they were when they got it: this edit is not about them.
        roster = Roster()
        roster.add_own({request.task.assignee: request.agent} if request.agent else {})
    return roster


def _note_new_fixer(fields: Fields, task: TaskSpec, request: EditRequest) -> None:
    if task.fixer and task.fixer not in request.declared:
        fields.add(f"the plan has no agent {task.fixer} that could mend: it has {listed(request.declared)}", "fixer")


def plan_faults(faults: tuple[Fault, ...]) -> tuple[PlanFault, ...]:
    """Faults as they are answered."""
    return tuple(PlanFault(message=str(f), task=f.task, field=f.field, line=f.line) for f in faults)
