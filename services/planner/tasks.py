"""One task of a plan, without what it depends on: that takes all the others to judge."""

import re

from services.planner.agents import Roster
from services.planner.faults import shown
from services.planner.fields import Fields
from services.planner.review_loops import note_meaningless
from shared.spec import (
    ATTEMPTS_MAX,
    BACKOFF_MAX_S,
    BUDGET_MAX_USD,
    BUDGET_MIN_USD,
    COMMAND_MAX_BYTES,
    COMMANDS_MAX,
    DESCRIPTION_MAX_BYTES,
    NAME_MAX_CHARS,
    OUTPUT_PATH_MAX_CHARS,
    REVIEW_ROUNDS_MAX,
    TIMEOUT_MAX_MINUTES,
    TIMEOUT_MIN_MINUTES,
    VERIFY_ROUNDS_MAX,
    Retry,
    TaskSpec,
)

OWN_WORDS = ("resolves", "round")
"""What a conflict's task resolves, and which round of reviews a task is of: for Treadle alone to say."""
_TASK_FIELDS = tuple(name for name in TaskSpec.__struct_fields__ if name not in OWN_WORDS)
_TASK_DEFAULTS = TaskSpec(code="", name="", assignee="")
_RETRY_DEFAULTS = Retry()


def read_task(fields: Fields, code: str, roster: Roster, *, depends_on: tuple[str, ...]) -> TaskSpec:
    """The task as its fields describe it, with defaults filled in; notes what is wrong with them."""
    fields.check_names(_TASK_FIELDS, treadles=OWN_WORDS)
    name = fields.line_text("name", max_chars=NAME_MAX_CHARS)
    rounds = fields.whole_or_none("max_review_rounds", low=1, high=REVIEW_ROUNDS_MAX, unit="rounds")
    assignee = "" if rounds is not None else roster.resolve(fields)
    description = fields.long_text("description", max_bytes=DESCRIPTION_MAX_BYTES)
    if not fields.given("name") and not description.strip() and roster.needs_words(assignee):
        fields.missing("description", ", and so is a name: there is nothing to tell the agent")
    spec = TaskSpec(
        code=code,
        name=name or code,
        assignee=assignee,
        description=description,
        depends_on=depends_on,
        expected_output=_expected_output(fields),
        timeout_minutes=fields.number_or_none(
            "timeout_minutes", low=TIMEOUT_MIN_MINUTES, high=TIMEOUT_MAX_MINUTES, unit="minutes"
        ),
        verify=fields.texts("verify", "commands", max_items=COMMANDS_MAX, max_bytes=COMMAND_MAX_BYTES),
        retry=_retry(fields),
        verify_rounds=fields.whole_or_none("verify_rounds", low=0, high=VERIFY_ROUNDS_MAX, unit="rounds"),
        requires_approval=fields.boolean("requires_approval"),
        allow_no_change=fields.boolean("allow_no_change"),
        reviews=(fields.id_text("reviews") or "") if fields.given("reviews") else "",
        max_review_rounds=rounds,
        fixer=roster.resolve(fields, "fixer") if fields.given("fixer") else "",
        budget_usd=fields.number(
            "budget_usd",
            low=BUDGET_MIN_USD,
            high=BUDGET_MAX_USD,
            unit="US dollars per attempt",
            default=_TASK_DEFAULTS.budget_usd,
        ),
    )
    note_meaningless(fields, spec)
    return spec


def note_twice(fields: Fields, twice: list[tuple[str, str]]) -> None:
    for first, second in twice:
        fields.add(f"{shown(first)} and {shown(second)} mean the same; keep one of them")


def _retry(fields: Fields) -> Retry | None:
    retry = fields.mapping("retry")
    if retry is None:
        return None
    inner = Fields(retry, fields.faults, task=fields.task, place="retry.")
    inner.check_names(Retry.__struct_fields__)
    return Retry(
        max_attempts=inner.whole(
            "max_attempts", low=1, high=ATTEMPTS_MAX, unit="attempts", default=_RETRY_DEFAULTS.max_attempts
        ),
        backoff_s=inner.number(
            "backoff_s", low=0, high=BACKOFF_MAX_S, unit="seconds", default=_RETRY_DEFAULTS.backoff_s
        ),
    )


def _expected_output(fields: Fields) -> str | None:
    path = fields.line_text("expected_output", max_chars=OUTPUT_PATH_MAX_CHARS)
    if path is None:
        return None
    why = None
    if path.startswith(("/", "~")) or re.match(r"[A-Za-z]:", path):
        why = "it is absolute"
    elif "\\" in path:
        why = 'it has a backslash; write "/"'
    elif ".." in path.split("/"):
        why = 'it has ".."'
    elif ".git" in (part.lower() for part in path.split("/")):
        why = "it lies in git's own folder"
    if why:
        fields.add(f"{shown(path)} is not a path inside the repository: {why}", "expected_output")
    return path
