"""What the gateway asks the planner over NATS."""

import asyncio
from time import monotonic
from typing import TypeVar

import msgspec
from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.errors import MaxPayloadError, NoRespondersError

from services.gateway.conditions import changed
from services.gateway.problems import Problem, ProblemError
from shared.commands import Refused
from shared.events import PlanFault
from shared.requests import (
    CompareReply,
    CompareRequest,
    EditReply,
    EditRequest,
    ForkReply,
    ForkRequest,
    ImportReply,
    ImportRequest,
    PromptReply,
    PromptRequest,
    RenderReply,
    RenderRequest,
)
from shared.spec import PLAN_MAX_BYTES
from shared.store import StoreUnavailable
from shared.subjects import PLANNER_COMPARE, PLANNER_EDIT, PLANNER_FORK, PLANNER_IMPORT, PLANNER_PROMPT, PLANNER_RENDER

R = TypeVar("R")

IMPORT_TIMEOUT_S = 40.0
"""A plan of some megabytes takes its time. With the patience below it stays under `idempotency.LOST_AFTER`."""
FORK_TIMEOUT_S = 30.0
"""With the patience below and `kept_commits.LOOK_WITHIN_S` it stays under `idempotency.LOST_AFTER`."""
EDIT_TIMEOUT_S = 10.0
PROMPT_TIMEOUT_S = 10.0
RENDER_TIMEOUT_S = 20.0
COMPARE_TIMEOUT_S = 30.0
"""Its estimates may have to look through past runs."""
PLANNER_PATIENCE_S = 15.0
"""How long nobody may hear a request: the suite counts as ready without a planner, and a killed one comes back."""
AWAY_PATIENCE_S = 5.0
"""The same where NATS itself is away."""
PLANNER_AGAIN_S = 0.1
FAULTS_TOLD_MAX = 20

PLAN_TOO_LARGE = Problem(
    status=413,
    code="plan_too_large",
    title="Plan too large",
    detail=f"a plan may be {PLAN_MAX_BYTES // 1024**2} MiB at most: split it",
)


async def import_text(nc: Client, request: ImportRequest) -> int:
    """Has a text made a candidate; the sequence of its `drafted`. It names the candidate, so it may be repeated.

    Raises `ProblemError` 422 `invalid_plan` with every fault, 412 `changed`, 413; `Refused`; `StoreUnavailable`.
    """
    if len(request.text.encode(errors="replace")) > PLAN_MAX_BYTES:
        raise too_large()
    reply = await _ask(nc, PLANNER_IMPORT, request, ImportReply, IMPORT_TIMEOUT_S)
    if reply.faults:
        raise invalid(reply.faults, "Not a valid plan")
    if reply.changed:
        raise changed(f"{reply.refused}: read it again, then decide again")
    if reply.refused:
        raise Refused(reply.refused)
    return reply.seq


async def check_edit(nc: Client, request: EditRequest) -> EditReply:
    """The task as it would be. Raises `ProblemError` 422 `invalid_plan`, `StoreUnavailable`."""
    reply = await _ask(nc, PLANNER_EDIT, request, EditReply, EDIT_TIMEOUT_S)
    if reply.faults:
        raise invalid(reply.faults, "Not a valid task")
    return reply


async def planning_prompt(nc: Client, plan: str) -> str:
    """The words with which a person has the plan made. Raises `Refused`, `StoreUnavailable`."""
    reply = await _ask(nc, PLANNER_PROMPT, PromptRequest(plan=plan), PromptReply, PROMPT_TIMEOUT_S)
    if reply.refused:
        raise Refused(reply.refused)
    return reply.prompt


async def compare(nc: Client, plan: str, first: str, second: str) -> CompareReply:
    """What tells two candidates from one another. Raises `Refused`, `StoreUnavailable`."""
    asked = CompareRequest(plan=plan, candidates=(first, second))
    reply = await _ask(nc, PLANNER_COMPARE, asked, CompareReply, COMPARE_TIMEOUT_S)
    if reply.refused:
        raise Refused(reply.refused)
    return reply


async def render(nc: Client, request: RenderRequest) -> RenderReply:
    """A template filled in, or looked at. Raises `ProblemError` 413, `StoreUnavailable`."""
    return await _ask(nc, PLANNER_RENDER, request, RenderReply, RENDER_TIMEOUT_S)


async def fork_plan(nc: Client, request: ForkRequest) -> ForkReply:
    """Has a fork stored, or only looked at. It names the new plan, so it may be repeated.

    Raises `ProblemError` 422 `invalid_plan` with every fault, 413; `Refused`; `StoreUnavailable`.
    """
    if len(request.edit.encode(errors="replace")) > PLAN_MAX_BYTES:
        raise too_large()
    reply = await _ask(nc, PLANNER_FORK, request, ForkReply, FORK_TIMEOUT_S)
    if reply.faults:
        raise invalid(reply.faults, "Not a valid plan")
    if reply.refused:
        raise Refused(reply.refused)
    return reply


def invalid(faults: tuple[PlanFault, ...], title: str) -> ProblemError:
    """422 `invalid_plan`."""
    lines = [fault.message for fault in faults[:FAULTS_TOLD_MAX]]
    if len(faults) > FAULTS_TOLD_MAX:
        lines.append(f"… and {len(faults) - FAULTS_TOLD_MAX} more")
    return ProblemError(422, "invalid_plan", title, "\n".join(lines), faults)


def too_large() -> ProblemError:
    """413 `plan_too_large`."""
    return ProblemError(
        PLAN_TOO_LARGE.status, PLAN_TOO_LARGE.code, PLAN_TOO_LARGE.title, PLAN_TOO_LARGE.detail
    )  # fmt: skip


async def _ask(nc: Client, subject: str, request: msgspec.Struct, reply: type[R], timeout_s: float) -> R:
    """Waits for a planner that is just being started."""
    body = msgspec.json.encode(request)
    since = monotonic()
    while True:
        if not nc.is_connected and monotonic() > since + AWAY_PATIENCE_S:
            raise StoreUnavailable("NATS is away")
        try:
            if not nc.is_connected:
                await asyncio.sleep(PLANNER_AGAIN_S)
                continue
            answer = await nc.request(subject, body, timeout=timeout_s)
            return msgspec.json.decode(answer.data, type=reply)
        except MaxPayloadError as error:
            raise too_large() from error
        except NoRespondersError as error:
            if monotonic() > since + PLANNER_PATIENCE_S:
                raise StoreUnavailable("no planner answers: look whether one runs") from error
            await asyncio.sleep(PLANNER_AGAIN_S)
        except (NatsError, TimeoutError) as error:
            raise StoreUnavailable(f"the planner does not answer: {error!r}") from error
