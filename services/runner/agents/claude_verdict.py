"""What the end of a Claude run means, and the words for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec
from claude_agent_sdk import ResultMessage

from services.runner.agents import SUMMARY_MAX_BYTES, Finished, Job, cut
from services.runner.agents.leaves import storable
from services.runner.agents.permissions import telling
from services.runner.proxy import LONG_WAIT_S, Access
from shared.events import FailureKind

_WORDS_MAX_BYTES = 500
_CALL_MAX_BYTES = 200
_DENIALS_SHOWN = 5

_Verdict = tuple[Literal["completed"] | FailureKind, str, float | None]
"""Kind, words, and the wait that was asked for, in seconds."""


def judge(end: ResultMessage, error: str | None, model: str, access: Access, job: Job) -> Finished:
    """The verdict on a run that the CLI ended itself. `error` is the CLI's name for the last failed call, if any."""
    notes = _denials(end.permission_denials or (), job)
    kind, message, retry_after_s = _classify(end, error, model, access, job)
    return Finished(
        kind=kind,
        message=" ".join(filter(None, (message, notes))),
        summary=cut(end.result or "", SUMMARY_MAX_BYTES),
        answer=_answer(end) if job.rules.answer else "",
        usage=access.usage,
        retry_after_s=retry_after_s,
    )


def _classify(end: ResultMessage, error: str | None, model: str, access: Access, job: Job) -> _Verdict:
    if end.subtype == "success" and not end.is_error:
        return "completed", "", None
    if end.subtype == "error_max_budget_usd" or access.is_budget_spent:
        spent = f"It used {access.usage.cost_usd:.2f} of the {job.budget_usd:g} USD that this attempt may cost."
        return "budget_spent", f"{spent} Raise budget_usd, or make the task smaller.", None
    if end.subtype == "error_max_structured_output_retries" and job.rules.answer:
        # It ended, and its answer is none: what is wrong goes back to it, like with any other answer.
        return "completed", cut("; ".join(end.errors or ()), _WORDS_MAX_BYTES), None
    if end.subtype == "error_max_turns":
        return "agent_error", f"It stopped after {end.num_turns} turns without an end. Make the task smaller.", None
    if end.terminal_reason == "api_error":
        return _api_error(end, error, model, access, job)
    words = "; ".join(end.errors or ()) or end.result or end.subtype
    return "agent_error", f"Claude ended with an error: {cut(words, _WORDS_MAX_BYTES)}", None


def _answer(end: ResultMessage) -> str:
    """What it gave by `StructuredOutput`; empty where it only wrote a text."""
    given = end.structured_output
    return "" if given is None else msgspec.json.encode(storable(given)).decode()


def _api_error(end: ResultMessage, error: str | None, model: str, access: Access, job: Job) -> _Verdict:
    refusal = access.refusal
    said = refusal.message if refusal else end.result or ""
    words = cut(said, _WORDS_MAX_BYTES).rstrip(".")
    status = end.api_error_status
    if status in (401, 403) or error == "authentication_failed":
        remedy = "a valid key into the agent type" if job.credentials else "a valid ANTHROPIC_API_KEY"
        return "authentication_refused", f"The API refused the key ({words}). Put {remedy}.", None
    if error == "billing_error":
        return "usage_limit", f"The API account has no credit left ({words}). Top it up, then redispatch.", None
    if error == "model_not_found":
        return (
            "agent_error",
            f"The API knows no model {model}, or the key may not use it. Correct the agent's model.",
            None,
        )
    wait_s = refusal.retry_after_s if refusal else None
    if status == 429 and wait_s is not None and wait_s > LONG_WAIT_S:
        return "usage_limit", f"The account's limit is reached for {wait_s / 60:.0f} minutes ({words}).", wait_s
    if status is None or status == 429 or status >= 500:
        return "unavailable", f"The API could not be reached or is overloaded ({words}). Try again later.", wait_s
    return "agent_error", f"The API refused the request with status {status}: {words}.", None


def _denials(denials: Sequence[Any], job: Job) -> str:
    """Tool calls that the permissions did not let through; the work may lack what they were for."""
    calls = [call for call in denials if isinstance(call, dict)]
    if not calls:
        return ""
    shown = [describe_call(str(call.get("tool_name")), call.get("tool_input"), job) for call in calls[:_DENIALS_SHOWN]]
    more = f" and {len(calls) - len(shown)} more" if len(calls) > len(shown) else ""
    return f"Tool calls that were not allowed: {', '.join(shown)}{more}."


def describe_call(tool: str, arguments: object, job: Job) -> str:
    """A tool call in one line, such as `Edit src/a.py`."""
    told = telling(tool, arguments if isinstance(arguments, dict) else {}, job.worktree)
    line, *more = told.strip().splitlines() or [""]
    return f"{tool} {cut(line, _CALL_MAX_BYTES)}{' …' if more else ''}".rstrip()
