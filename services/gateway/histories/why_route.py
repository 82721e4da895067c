"""Routes: why a plan, or one of its tasks, stands as it does, from the log alone."""

from typing import Annotated, Any

import msgspec
from litestar import Request, Response, Router, get
from litestar.datastructures import State
from litestar.params import FromPath, QueryParameter

from services.gateway.accounts.access import Caller
from services.gateway.histories.reading import of
from services.gateway.histories.routes import UNREADABLE_HISTORY, WORD_MAX_CHARS, WORDS
from services.gateway.problems import ProblemError, bad_request, documented, not_found
from services.gateway.projection.reads import json_answer
from shared.history.event_file import HistoryDamaged
from shared.history.history import History, NoSuchMoment
from shared.history.why import Why, why
from shared.history.why_sentence import NoSuchTask

At = Annotated[str, QueryParameter(max_length=WORD_MAX_CHARS, description=f"The moment: {WORDS}.")]


@get("/plans/{plan:str}/why", responses=documented(400, 401, 404, UNREADABLE_HISTORY))
async def why_plan(
    plan: FromPath[str], state: State, request: Request[Caller, Any, Any], at: At = "end"
) -> Response[Why]:
    """How the plan stands and what holds it up, in order of importance; each sentence names its events' sequences.

    Runners that are not at work are not in the log, and nothing is said of them.
    """
    history = await of(state, request.user, plan)
    return json_answer(await state.looking_back.ask(request.user.id, _answer, history, plan, None, at))


@get("/plans/{plan:str}/why/{code:str}", responses=documented(400, 401, 404, UNREADABLE_HISTORY))
async def why_task(
    plan: FromPath[str], code: FromPath[str], state: State, request: Request[Caller, Any, Any], at: At = "end"
) -> Response[Why]:
    """Why the task does not run, ran more than once or failed, what it cost, and whose work it starts from.

    `roots` are the unfinished tasks that it waits for in the end. A candidate that is being made is a task too
    (`_draft-1`).
    """
    history = await of(state, request.user, plan)
    return json_answer(await state.looking_back.ask(request.user.id, _answer, history, plan, code, at))


def _answer(history: History, plan: str, code: str | None, at: str) -> bytes:
    """JSON. Raises `ProblemError` 400 for what is no moment of the plan, 404 and 503."""
    try:
        found = why(history, code, history.seq_of(at))
    except NoSuchTask as error:
        raise not_found(
            f"task {code and code[:80]} of plan {plan} at that moment", f"GET /api/plans/{plan}/state"
        ) from error
    except NoSuchMoment as error:
        raise bad_request("at", str(error), source="query") from error
    except HistoryDamaged as error:
        unreadable = UNREADABLE_HISTORY
        raise ProblemError(unreadable.status, unreadable.code, unreadable.title, str(error)) from error
    # An imported plan has another id here than in its events.
    return msgspec.json.encode(msgspec.structs.replace(found, plan=plan))


why_router = Router(path="/", tags=["debugging"], route_handlers=[why_plan, why_task])
