"""What the planner answers to requests that rest on the log: always something, whatever is wrong with a request."""

import asyncio

from services.planner.agents import Team
from services.planner.compare import compare
from services.planner.edit import plan_faults
from services.planner.faults import PlanFaults
from services.planner.parse import read_plan
from services.planner.past_runs import PastRuns
from services.planner.planning_prompt import planning_prompt
from services.planner.wanted import read_wanted
from shared.commands import Changed, Draft, FailDraft, PlanCommand, Refused
from shared.events import DraftOrigin, PlanFault
from shared.plan import DraftRequest, PlanState
from shared.requests import (
    CheckReply,
    CheckRequest,
    CompareReply,
    CompareRequest,
    ImportReply,
    ImportRequest,
    OfferRequest,
    PromptReply,
    PromptRequest,
)
from shared.store import EventStore, EventTooLarge, Meta, StoreUnavailable
from shared.transact import Contended, load_plan, to_plan

PATIENCE_S = 20.0
UNSTORED = (Refused, EventTooLarge, StoreUnavailable, Contended)
NO_BASE = (
    "the commit that the plan would start from is not known: look whether the code repository can be reached, then ask "
    "for the prompt again"
)


async def import_plan(store: EventStore, request: ImportRequest) -> ImportReply:
    """Reads the text and stores it as a candidate; a repeated request finds its own event."""
    try:
        spec = await asyncio.to_thread(read_plan, request.text, Team(mode=request.mode, agents=request.agents))
    except PlanFaults as found:
        return ImportReply(faults=plan_faults(found.faults))
    command = Draft(
        candidate=request.candidate,
        spec=spec,
        repo_url=request.repo_url,
        base_commit=request.base_commit,
        project=request.project,
        replaces=request.replaces,
        origin=DraftOrigin(template=request.template),
    )
    return await _stored(store, request.plan, command, Meta(actor=request.actor, correlation=request.correlation))


async def check_plan(store: EventStore, request: CheckRequest) -> CheckReply:
    """Is it what the plan's log asks for as that candidate? Nothing is stored."""
    try:
        asked = (await load_plan(store, request.plan)).state.requests.get(request.candidate)
    except UNSTORED as error:
        return CheckReply(refused=str(error))
    if asked is None or not asked.open:
        return CheckReply(refused=f"plan {request.plan} does not ask for candidate {request.candidate} (any more)")
    try:
        await asyncio.to_thread(read_wanted, asked.request, request.text)
    except PlanFaults as found:
        return CheckReply(faults=plan_faults(found.faults))
    return CheckReply()


async def take_offer(store: EventStore, request: OfferRequest) -> ImportReply:
    """Makes a file the candidate that was asked for by hand, or notes in the log what is wrong with it.

    A file that was found wrong before is not looked at again: its faults are answered.
    """
    try:
        state = (await load_plan(store, request.plan)).state
    except UNSTORED as error:
        return ImportReply(refused=str(error))
    name, asked = _by_hand(state)
    if asked is None:
        return ImportReply(refused=f"plan {request.plan} does not wait for a plan that a person makes (any more)")
    if asked.failed is not None and request.blob and asked.failed.origin.blob == request.blob:
        faults = asked.failed.faults
        return ImportReply(faults=faults, refused="" if faults else asked.failed.message)
    wanted, origin = asked.request, DraftOrigin(blob=request.blob)
    meta = Meta(actor="planner")
    refused = request.fault or (NO_BASE if not wanted.base_commit and wanted.mode == "auto" else "")
    if refused:
        noted = await _stored(store, request.plan, FailDraft(candidate=name, message=refused, origin=origin), meta)
        return ImportReply(seq=noted.seq, refused=noted.refused or refused)
    try:
        spec = await asyncio.to_thread(read_wanted, wanted, request.text)
    except PlanFaults as found:
        faults = plan_faults(found.faults)
        message = (
            f"the file in the collaboration repository is not a valid plan: {_count(faults)}; put another one there"
        )
        failed = FailDraft(candidate=name, message=message, faults=faults, origin=origin)
        noted = await _stored(store, request.plan, failed, meta)
        return ImportReply(seq=noted.seq, faults=faults, refused=noted.refused)
    command = Draft(
        candidate=name,
        spec=spec,
        repo_url=wanted.repo_url,
        base_commit=wanted.base_commit,
        project=wanted.project,
        origin=origin,
    )
    return await _stored(store, request.plan, command, meta)


async def write_prompt(store: EventStore, request: PromptRequest) -> PromptReply:
    """The words for a plan that was asked for by hand."""
    try:
        _, asked = _by_hand((await load_plan(store, request.plan)).state)
    except UNSTORED as error:
        return PromptReply(refused=str(error))
    if asked is None:
        return PromptReply(refused=f"plan {request.plan} does not wait for a plan that a person makes (any more)")
    return PromptReply(prompt=planning_prompt(asked.request, request.plan))


async def compare_candidates(store: EventStore, past_runs: PastRuns, request: CompareRequest) -> CompareReply:
    """What tells two candidates of a plan from one another that nobody has chosen from yet."""
    try:
        candidates = (await load_plan(store, request.plan)).state.candidates
    except UNSTORED as error:
        return CompareReply(refused=str(error))
    for name in request.candidates:
        if name not in candidates:
            has = f"it has {', '.join(candidates)}" if candidates else "it has none, or one was chosen"
            return CompareReply(refused=f"plan {request.plan} has no candidate {name} to compare: {has}")
    first, second = request.candidates
    return await asyncio.to_thread(compare, request.candidates, (candidates[first], candidates[second]), past_runs)


async def _stored(store: EventStore, plan: str, command: PlanCommand, meta: Meta) -> ImportReply:
    try:
        decided = await to_plan(store, plan, command, meta, patience_s=PATIENCE_S)
    except UNSTORED as error:
        return ImportReply(refused=str(error), changed=isinstance(error, Changed))
    return ImportReply(seq=decided.seq)


def _by_hand(state: PlanState) -> tuple[str, DraftRequest | None]:
    """The request that a person is to answer, with its candidate's name."""
    return next(((name, asked) for name, asked in state.requests.items() if asked.request.by_hand), ("", None))


def _count(faults: tuple[PlanFault, ...]) -> str:
    return "one fault" if len(faults) == 1 else f"{len(faults)} faults"
