"""Takes what is private out of a history, so that it can be shown to strangers and still be worked with.

Kept is only what `_ROLES` names as kept, and only where it has that shape: task codes, statuses, numbers, times, ids of
plans; and what deciders say themselves, in the fields where they say it. Every other text is replaced, that of a field
which nobody has thought of too. The same original gets the same replacement everywhere in an archive, so what was equal
stays equal: the history replays, and its decisions are made again, as those of the original. Digests of plans are those
of the replaced plans.

Replacements are keyed by a random salt that nobody keeps: guesses at an original can't be checked against them. What
stays may tell something all the same: how many tasks there were, what depends on what, when people worked, what it
cost; and task codes are words that people chose.
"""

import hmac
import re
from collections.abc import Callable
from datetime import datetime
from functools import cache
from typing import Any, Literal, get_args, get_origin

import msgspec

from shared import events as e
from shared.given import COMMANDS
from shared.history.event_file import HistoryDamaged
from shared.spec import DELIVER, TASK_CODE, PlanSpec, digest
from shared.store import Meta, Recorded, recorded
from shared.subjects import PLAN_ID, Address, is_draft

Role = Literal[
    "code", "commit", "plan id", "digest", "hash", "candidate", "id", "model",
    "plan", "task", "agent", "runner", "path", "repository", "host", "text",
]  # fmt: skip
"""What a text is. The first ones keep what has their shape, or make something of that shape; the others are replaced
by a word that begins with the role's name. A commit's id becomes another one: it can be looked up where the repository
is public, and nothing that looks back needs the right one, as diffs and commits are left out."""

_ROLES: dict[Role, str] = {
    "code": """
        TaskSpec.code TaskSpec.depends_on TaskSpec.resolves TaskSpec.reviews WorkRules.resolves WorkRules.reviews
        Head.task Kept.task Conflict.tasks Result.task_code PlanFault.task DraftOrigin.draft PlanExtended.before
        Extend.before TaskDispatched.abandoned TaskReadied.abandoned Dispatch.abandoned Ready.abandoned Start.reopened
        """,
    "commit": """
        Head.commit Review.commit Kept.base_commit Kept.commit PlanRequested.base_commit PlanDrafted.base_commit
        PlanCompleted.head_commit TaskReadied.base_commit TaskDispatched.base_commit TaskCompleted.base_commit
        TaskCompleted.commit TaskApprovalRequested.commit TaskApprovalRequested.base_commit Request.base_commit
        Draft.base_commit CompletePlan.head_commit Ready.base_commit Dispatch.base_commit Complete.base_commit
        Complete.commit RequestApproval.commit RequestApproval.base_commit
        """,
    "plan id": "Head.plan Kept.plan ForkOf.plan PlanForked.plan RecordFork.plan",
    "digest": """
        PlanFinalizing.digest PlanFinalized.digest TaskPlanned.digest TaskInherited.digest Finalize.digest
        ConfirmFinalized.digest PlanTask.digest Inherit.digest Draft.replaces
        """,
    "hash": """
        TaskApprovalRequested.approval TaskApprovalGranted.approval TaskApprovalDenied.approval
        TaskApprovalUsed.approval RequestApproval.approval Approve.approval Deny.approval UseApproval.approval
        ResultPlace.blob DraftOrigin.blob TaskFailed.blob Fail.blob
        """,
    "candidate": """
        PlanRequested.candidates PlanFailed.candidate PlanDrafted.candidate PlanFinalizing.candidate
        FailDraft.candidate Draft.candidate Finalize.candidate
        """,
    "id": """
        PlanRequested.project PlanDrafted.project TaskDispatched.project Request.project Draft.project Dispatch.project
        HandOut.project AgentSpec.agent_id AgentSpec.agent_type_id DraftOrigin.template
        """,
    "model": "AgentSpec.model DraftOrigin.model",
    "plan": "PlanSpec.name TaskDispatched.plan_name Dispatch.plan_name HandOut.plan_name",
    "task": "TaskSpec.name TaskDispatched.task_name",
    "agent": "TaskSpec.assignee TaskSpec.fixer PlanSpec.agents ProjectAgent.slug ProjectAgent.name",
    "runner": "TaskStarted.runner Start.runner",
    "path": """
        TaskSpec.expected_output WorkRules.expected_output Result.artifacts Finding.file Conflict.files
        ResultPlace.path CollabRules.directory
        """,
    "repository": """
        PlanRequested.repo_url PlanDrafted.repo_url TaskDispatched.repo_url CollabRules.repo_url ResultPlace.repo_url
        Request.repo_url Draft.repo_url Dispatch.repo_url HandOut.repo_url
        """,
    "host": "PlanSpec.network_allow PlanSettings.network_allow WorkRules.network_allow",
}

_CANDIDATE = re.compile("[1-9][0-9]?")
_MODEL = re.compile(
    r"claude-(?:[0-9]{1,8}|fable|haiku|instant|mythos|opus|sonnet)(?:-(?:[0-9]{1,8}|haiku|opus|sonnet))*"
)
"""Models that everybody can have."""
_OWN_WORDS = {
    "TaskSpec.name": re.compile("Make the plan's branch"),
    "TaskDispatched.task_name": re.compile("Make the plan's branch"),
    "TaskReleased.reason": re.compile("the plan is paused"),
    "TaskFailed.message": re.compile("cancelled; its runner was gone|cancelled while it asked for an approval"),
    "TaskApprovalDenied.note": re.compile("nobody answered in time"),
}
"""What deciders say themselves, by field: decided again, it has to be the same."""
_CODES = rf"(?P<codes>{TASK_CODE.pattern}(?:, {TASK_CODE.pattern})*)"
_OWN_WORDS_OF_TASKS = {
    "TaskReleased.reason": re.compile(rf"{_CODES} is to run again first"),
    "PlanPaused.reason": re.compile(
        r"the plan's budget is [0-9.e+-]{1,24} USD, [0-9.]{1,24} are spent and "
        rf"{_CODES} may cost [0-9.e+-]{{1,24}}: resume it with a larger budget, or lower the task's"
    ),
}
"""The same with codes in it, which have to be those of the plan's tasks."""
_LOST = re.compile(
    r"([0-9]{1,9} runners were lost while they ran it, the last one was )(.*)"
    r"(: look at their logs \(out of memory\?\), then redispatch it)",
    re.DOTALL,
)
_DISPATCHER = "dispatcher"
_ACTORS = frozenset({"dispatcher", "planner", "gateway", "operator"})
_KINDS = frozenset({"text", "thinking", "tool", "result", "diff", "usage", "output", "verify", "treadle"})
"""Of a transcript's entries."""
_ENTRY_KEYS = frozenset({"seq", "time", "task", "lease", "activity"})
"""Of a line of a transcript."""
_ACTIVITY_KEYS = frozenset({"kind", "text", "usage"})
_TIME_MAX_CHARS = 40
_USAGE_KEYS = frozenset(e.Usage.__struct_fields__)
_DEPTH_MAX = 50


class Redactor:
    """For one archive. It has to see the events in their order."""

    def __init__(self, salt: bytes) -> None:
        """`salt` is random, of 32 bytes, and is not kept."""
        self._salt = salt
        self._digests: dict[str, str] = {}
        self._codes = {DELIVER}
        """Of the plan's tasks."""

    def record(self, record: Recorded) -> Recorded:
        """The event as strangers may see it. One that can't be read loses its body."""
        meta = self._meta(record.meta, record.event is not None)
        address = Address(record.plan, record.entity, record.type)
        if record.event is None:
            return recorded(record.seq, record.time, address, record.version, b"", meta)
        if isinstance(record.event, e.PlanPaused) and record.meta.actor != _DISPATCHER:
            # Whatever it says, a person says it.
            event: e.Event = msgspec.structs.replace(record.event, reason=self.word(record.event.reason))
        else:
            event = self._struct(record.event)
        return recorded(record.seq, record.time, address, event.version, e.encode(event), meta)

    def result(self, result: e.Result) -> e.Result:
        """What a task said of itself."""
        redacted: e.Result = self._struct(result)
        return redacted

    def transcript_line(self, line: bytes) -> bytes:
        """An entry of a transcript: when, of what kind and how much stays, what was said does not.

        Raises `HistoryDamaged` for a line that is no JSON.
        """
        try:
            entry = msgspec.json.decode(line)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise HistoryDamaged(f"a line of a transcript is no JSON: {error}") from error
        return msgspec.json.encode(self._entry(entry))

    def word(self, original: str, role: Role = "text") -> str:
        """The replacement of a text; of an empty one, nothing."""
        return self._text(original, role) if original else ""

    def _struct(self, value: Any) -> Any:
        if isinstance(value, PlanSpec):
            self._codes.update(task.code for task in value.tasks)
            spec = self._fields(value)
            self._digests[digest(value)] = digest(spec)
            return spec
        if isinstance(value, e.PlanExtended):
            self._codes.update(task.code for task in value.tasks)
        return self._fields(value)

    def _fields(self, value: Any) -> Any:
        kind = type(value)
        return kind(**{f.name: self._field(kind, f, getattr(value, f.name)) for f in msgspec.structs.fields(kind)})

    def _field(self, kind: type, field: msgspec.structs.FieldInfo, value: Any) -> Any:
        name = f"{kind.__name__}.{field.name}"
        role = _roles().get(name, "text")
        words = _literals(field.type)
        return self._value(
            value, lambda text: text if text in words else self._own(text, name) or self.word(text, role)
        )

    def _own(self, text: str, field: str) -> str:
        """What a decider has said in that field, with a runner's name replaced; empty where it has not."""
        if (own := _OWN_WORDS.get(field)) and own.fullmatch(text):
            return text
        if (own := _OWN_WORDS_OF_TASKS.get(field)) and (said := own.fullmatch(text)):
            return text if self._codes.issuperset(said["codes"].split(", ")) else ""
        if field == "TaskFailed.message" and (lost := _LOST.fullmatch(text)):
            return f"{lost[1]}{self.word(lost[2], 'runner')}{lost[3]}"
        return ""

    def _value(self, value: Any, replace: Callable[[str], str]) -> Any:
        match value:
            case str():
                return replace(value)
            case None | bool() | int() | float() | datetime():
                return value
            case msgspec.Struct():
                return self._struct(value)
            case tuple():
                return tuple(self._value(each, replace) for each in value)
            case dict():
                return {replace(key): self._value(each, replace) for key, each in value.items()}
        raise TypeError(f"nobody has said how to redact a {type(value).__name__}")

    def _meta(self, meta: Meta, readable: bool) -> Meta:
        return Meta(
            actor=self._actor(meta.actor),
            command=meta.command if meta.command in COMMANDS else self.word(meta.command),
            command_id=self.word(meta.command_id),
            causation=meta.causation,
            correlation=self.word(meta.correlation),
            seen=meta.seen,
            given=self._given(meta) if readable else "",
        )

    def _actor(self, actor: str) -> str:
        kind, separator, name = actor.partition(":")
        if not separator:
            return actor if actor in _ACTORS else self.word(actor)
        if kind == "runner":
            return f"runner:{self.word(name, 'runner')}"
        return f"{kind if kind in ('user', 'token') else self.word(kind)}:{self.word(name)}"

    def _given(self, meta: Meta) -> str:
        kind = COMMANDS.get(meta.command)
        if kind is None or not meta.given:
            return ""
        fields = {field.name: field for field in msgspec.structs.fields(kind)}
        try:
            said = msgspec.json.decode(meta.given, type=dict[str, Any])
            values = {n: msgspec.convert(said[n], fields[n].type) for n in said if n in fields}
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return ""
        redacted = {name: self._field(kind, fields[name], value) for name, value in values.items()}
        return msgspec.json.encode(redacted).decode()  # ASCII, as is every replacement

    def _text(self, original: str, role: Role) -> str:
        if (kept := _kept(original, role)) is not None:
            return kept
        return self._new(original, role)

    def _new(self, original: str, role: Role) -> str:
        key = hmac.digest(self._salt, original.encode(errors="surrogatepass"), "sha256").hex()
        match role:
            case "digest":
                return self._digests.get(original, key)
            case "hash" | "commit":
                return key if len(original) == 64 else key[:40]
            case "id":
                return key[:24]
            case "plan id":
                return "p" + key[:12].translate(_BASE_32)
            case "repository":
                return f"https://redacted.invalid/{key[:12]}.git"
            case "host":
                return f"host-{key[:12]}.invalid"
        return f"{role}-{key[:12]}"

    def _entry(self, entry: Any) -> Any:
        """Kept is what Treadle itself writes around what was said, at its place only."""
        if not isinstance(entry, dict):
            return self._hidden(entry, 0)
        shown: dict[str, Any] = {}
        for name, value in entry.items():
            match name, value:
                case "seq" | "lease", int():
                    shown[name] = value
                case "time", str() if len(value) < _TIME_MAX_CHARS and _is_time(value):
                    shown[name] = value
                case "task", str() if _kept(value, "code") is not None:
                    shown[name] = value
                case "activity", dict():
                    shown[name] = self._activity(value)
                case _:
                    shown[name if name in _ENTRY_KEYS else self.word(name)] = self._hidden(value, 0)
        return shown

    def _activity(self, activity: dict[str, Any]) -> dict[str, Any]:
        shown: dict[str, Any] = {}
        for name, value in activity.items():
            match name, value:
                case "kind", str() if value in _KINDS:
                    shown[name] = value
                case "usage", dict():
                    shown[name] = {
                        key: each if isinstance(each, int | float) else self._hidden(each, 0)
                        for key, each in value.items()
                        if key in _USAGE_KEYS
                    }
                case _:
                    shown[name if name in _ACTIVITY_KEYS else self.word(name)] = self._hidden(value, 0)
        return shown

    def _hidden(self, value: Any, depth: int) -> Any:
        """Of the same shape, without anything that it says: a number may be somebody's telephone."""
        if depth > _DEPTH_MAX:
            return None
        match value:
            case dict():
                return {self.word(name): self._hidden(each, depth + 1) for name, each in value.items()}
            case list():
                return [self._hidden(each, depth + 1) for each in value]
            case str():
                return self.word(value)
            case None | bool():
                return value
        return 0


_BASE_32 = str.maketrans("0123456789", "ghijklmnop")


def _kept(original: str, role: Role) -> str | None:
    match role:
        case "code" if original == DELIVER or TASK_CODE.fullmatch(original) or is_draft(original):
            return original
        case "plan id" if PLAN_ID.fullmatch(original):
            return original
        case "candidate" if _CANDIDATE.fullmatch(original):
            return original
        case "model" if _MODEL.fullmatch(original):
            return original
    return None


def _is_time(value: str) -> bool:
    try:
        datetime.fromisoformat(value)
    except ValueError:
        return False
    return True


@cache
def _roles() -> dict[str, Role]:
    return {field: role for role, fields in _ROLES.items() for field in fields.split()}


@cache
def _literals(annotation: Any) -> frozenset[str]:
    """The words that a type allows, where it allows only some."""
    if get_origin(annotation) is Literal:
        return frozenset(word for word in get_args(annotation) if isinstance(word, str))
    return frozenset().union(*(_literals(part) for part in get_args(annotation)))
