"""Route: a plan as it stood at any of its moments, and what is otherwise between two of them."""

from typing import Annotated, Any

import msgspec
from litestar import Request, Response, Router, get
from litestar.datastructures import State
from litestar.params import FromPath, QueryParameter

from services.gateway.accounts.access import Caller
from services.gateway.histories.reading import of
from services.gateway.problems import Problem, ProblemError, bad_request, documented
from services.gateway.projection.reads import json_answer
from shared.history.compare import MomentsCompared, compare
from shared.history.event_file import HistoryDamaged
from shared.history.history import History, NoSuchMoment
from shared.history.moment import Moment

WORD_MAX_CHARS = 64
WORDS = "a sequence (`123`), a time (RFC 3339; without a zone it is UTC, without a fraction its whole second), or `end`"

UNREADABLE_HISTORY = Problem(
    status=503,
    code="unreadable_history",
    title="The history can't be read",
    detail="the gateway's copy of the plan's events was cut off while it was read: ask again",
)


@get("/plans/{plan:str}/state", responses=documented(400, 401, 404, UNREADABLE_HISTORY))
async def read_state(
    plan: FromPath[str],
    state: State,
    request: Request[Caller, Any, Any],
    at: Annotated[str, QueryParameter(max_length=WORD_MAX_CHARS, description=f"The moment: {WORDS}.")] = "end",
    against: Annotated[
        str | None,
        QueryParameter(
            max_length=WORD_MAX_CHARS, description=f"Another moment, {WORDS}: what `at` has otherwise than that."
        ),
    ] = None,
) -> Response[Moment | MomentsCompared]:
    """The plan as it stood right after the newest event up to a moment: tasks, leases, queue, commits, money so far.

    With `against` what is otherwise between the two, from that one to `at`. An event that can't be read or folded is
    told as `fault`; what is shown leaves it out.
    """
    history = await of(state, request.user, plan)
    return json_answer(await state.looking_back.ask(request.user.id, _answer, history, plan, at, against))


def _answer(history: History, plan: str, at: str, against: str | None) -> bytes:
    """JSON. Raises `ProblemError` 400 for what is no moment of the plan, and 503."""
    try:
        found = _moment(history, plan, "at", at)
        if against is None:
            return msgspec.json.encode(found)
        return msgspec.json.encode(compare(_moment(history, plan, "against", against), found))
    except HistoryDamaged as error:
        unreadable = UNREADABLE_HISTORY
        raise ProblemError(unreadable.status, unreadable.code, unreadable.title, str(error)) from error


def _moment(history: History, plan: str, parameter: str, word: str) -> Moment:
    try:
        found = history.moment(history.seq_of(word))
    except NoSuchMoment as error:
        raise bad_request(parameter, str(error), source="query") from error
    return msgspec.structs.replace(found, plan=plan)  # an imported plan has another id here than in its events


histories_router = Router(path="/", tags=["debugging"], route_handlers=[read_state])
