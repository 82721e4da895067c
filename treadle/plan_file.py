"""A plan as a person wrote it: the file, and what it says by itself, without a project's agents."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from services.planner.estimate import Estimate
from services.planner.faults import PlanFaults
from services.planner.parse import TEXT_MAX_BYTES, parse_text
from services.planner.validate import validate
from shared.spec import MAX_PARALLEL, PLAN_MAX_BYTES, PlanSpec
from treadle.bad_input import BadInput
from treadle.lines import money, tasks_words
from treadle.plain_text import one_line


@dataclass(frozen=True)
class PlanFile:
    """A file that can be read and is YAML or JSON."""

    shown: str
    """What people call it."""
    text: str
    declared: frozenset[str]
    """The agents that it declares itself."""
    spec: PlanSpec | None
    """What it says by itself; None where it is not valid so: a project's agents may make it so."""
    faults: PlanFaults | None
    """Why there is no spec."""

    def alone(self) -> PlanSpec:
        """The plan as it is without a project. Raises `BadInput` with every fault."""
        if self.spec is not None:
            return self.spec
        found = self.faults.faults if self.faults else ()
        hint = "\n(agents of a project are known with `treadle run --project` only)"
        of_agents = any(fault.field == "assignee" for fault in found)
        raise BadInput(f"{self.shown} is not a valid plan:\n{self.faults}{hint if of_agents else ''}")

    def uses_claude(self, *, of_declared: bool = False) -> bool:
        """Whether any task needs the suite's own key, as far as is known here.

        `of_declared`: looks only at agents that the file declares, since a project may have one called `claude`.
        """
        if self.spec is None:
            return False
        used = {task.assignee for task in self.spec.tasks}
        return any(
            self.spec.agents[name].sdk_type == "claude" for name in (used & self.declared if of_declared else used)
        )


def read_plan_file(path: Path) -> PlanFile:
    """Reads a plan file; `-` is standard input. Raises `BadInput` where it is too large, or not YAML or JSON."""
    shown = "standard input" if str(path) == "-" else str(path)
    try:
        content = _content(path)
    except OSError as error:
        raise BadInput(f"{shown} can't be read: {error.strerror}") from error
    try:
        tree = parse_text(content)
    except PlanFaults as faults:
        raise BadInput(f"{shown} is not a valid plan:\n{faults}") from faults
    agents = tree.get("agents") if isinstance(tree, dict) else None
    declared = frozenset(str(name) for name in agents) if isinstance(agents, dict) else frozenset()
    spec = found = None
    try:
        spec = validate(tree)
    except PlanFaults as faults:
        found = faults  # whoever needs the plan to be valid alone asks for it so
    return PlanFile(shown, content.decode(), declared, spec, found)


def check_size(file: PlanFile) -> None:
    """Raises `BadInput` where no gateway would take the text."""
    if len(file.text.encode()) > PLAN_MAX_BYTES:
        raise BadInput(f"{file.shown} is larger than {PLAN_MAX_BYTES // 1024**2} MiB: shorten or split the plan")


def _content(path: Path) -> bytes:
    if str(path) == "-":
        return sys.stdin.buffer.read(TEXT_MAX_BYTES + 1)
    with path.open("rb") as file:
        return file.read(TEXT_MAX_BYTES + 1)


def describe(spec: PlanSpec, told: Estimate) -> str:
    """The order of work and the most it can cost, for people."""
    parallel = spec.max_parallel or MAX_PARALLEL
    lines = [f"“{one_line(spec.name)}”: {tasks_words(len(spec.tasks))}, at most {parallel} at once", ""]
    names = {task.code: task for task in spec.tasks}
    for number, layer in enumerate(told.layers, 1):
        lines.append(f"step {number}:")
        for code in layer[:50]:
            task = names[code]
            after = f"  after {', '.join(task.depends_on[:8])}" if task.depends_on else ""
            who = f"decides, up to round {task.max_review_rounds}" if task.is_decision else one_line(task.assignee, 20)
            lines.append(f"  {code:<12} {one_line(task.name, 50):<50} {who}{after}")
        if len(layer) > 50:
            lines.append(f"  … and {len(layer) - 50} more")
    path = " → ".join(told.critical_path[:12]) + (" → …" if len(told.critical_path) > 12 else "")
    lines += ["", f"longest chain: {path}"]
    lines.append(f"at most {money(told.most_usd)} (each attempt's budget times its attempts; one answer may overshoot)")
    lines.append(f"at most {told.most_minutes:g} minutes along the longest chain, if every task finds a free slot")
    return "\n".join(lines)
