"""Who may say what on NATS: one user per service, in the form that a nats-server's configuration takes.

What it rests on:
- Each user (`shared.bus` names them) hears only its own inbox, so nobody reads the answers to another's requests.
- Credentials are asked for by runners and answered by gateways; nobody else may do either.
- A runner, which works beside hostile code, may tell how a lease went. It may neither dispatch nor speak for a plan:
  whose credentials a lease gets is read from the dispatch.
- A server does not look at these permissions when it sends an answer, so a reply can reach any subject. What must not
  be believed from just anybody says by itself who wrote it (`shared.authentic`).
- A reader of the log may only ask for messages and for the stream's state: it stores nothing, makes no consumer, and
  so what folds and decides again can't have an effect by mistake. (On purpose it can: see the third point and ADR 5.)
- The pools' consumers are the queues: only the operator and dispatchers make or change them, and only runners take
  from them, since what one takes the others don't get until it has been silent for `streams.ACK_WAIT_S`.

A wildcard stands for a whole token in NATS, so a consumer's name can be listed but not matched by its beginning. Hence
a service could end another one's `follow_…`, or pull from it: that one notices and makes itself a new one.
"""

from collections.abc import Mapping
from typing import Any, get_args

from shared import streams, subjects
from shared.bus import DISPATCHER, GATEWAY, OPERATOR, PLANNER, READER, RUNNER, inbox_prefix
from shared.spec import SdkType

ANSWERS_EXPIRE = "5m"
"""How long a service may take to answer a request: an import of a large plan takes seconds."""
LEASE_EVENTS = (
    "started",
    "released",
    "completed",
    "approval_requested",
    "approval_used",
    "failed",
    "cancelled",
    "watch_failed",
    "watch_restored",
)
"""What a runner's decisions append."""
POOLS = (*get_args(SdkType), subjects.DELIVER_POOL, subjects.MANUAL_POOL)

_STREAMS = (
    streams.EVENTS,
    streams.TRANSCRIPTS,
    streams.SESSIONS,
    streams.TIMERS,
    streams.PROJECTS,
    streams.RUNNERS_STREAM,
    streams.WATCHES_STREAM,
)


def server_config(passwords: Mapping[str, str]) -> dict[str, Any]:
    """The `authorization` block of a nats-server's configuration, for the users whose passwords are given."""
    return {
        "users": [
            {"user": user, "password": password, "permissions": permissions(user)}
            for user, password in passwords.items()
        ]
    }


def permissions(user: str) -> dict[str, Any]:
    """One user's permissions. Raises KeyError for a user that is none of ours."""
    if user == OPERATOR:
        return {"publish": ">", "subscribe": ">"}
    if user == READER:
        return {
            "publish": {"allow": list(_READS)},
            "subscribe": {"allow": [f"{inbox_prefix(READER)}.>"]},
        }
    publish, deny, subscribe = _SPOKEN[user]
    allowed: dict[str, Any] = {
        "publish": {"allow": [*_EVERYBODY, *publish], "deny": list(deny)},
        "subscribe": {"allow": [f"{inbox_prefix(user)}.>", *subscribe]},
    }
    if subscribe:
        allowed["allow_responses"] = {"max": 1, "expires": ANSWERS_EXPIRE}
    return allowed


def _follow(stream: str) -> tuple[str, ...]:
    """To read a stream by consumers of one's own (`shared.tail`), and by what is stored last."""
    consumer = "$JS.API.CONSUMER"
    return (
        f"{consumer}.CREATE.{stream}.>",
        f"{consumer}.INFO.{stream}.*",
        f"{consumer}.DELETE.{stream}.*",
        f"{consumer}.MSG.NEXT.{stream}.*",
        f"$JS.API.DIRECT.GET.{stream}",
        f"$JS.API.DIRECT.GET.{stream}.>",
    )


def _made(stream: str, *names: str) -> tuple[str, ...]:
    """To make these durable consumers, and to change them."""
    return tuple(
        subject
        for name in names
        for subject in (
            f"$JS.API.CONSUMER.DURABLE.CREATE.{stream}.{name}",
            f"$JS.API.CONSUMER.CREATE.{stream}.{name}",
            f"$JS.API.CONSUMER.CREATE.{stream}.{name}.>",
        )
    )


def _pulled(stream: str, *names: str) -> tuple[str, ...]:
    """To pull from these durable consumers, and to acknowledge."""
    return tuple(
        subject
        for name in names
        for subject in (
            f"$JS.API.CONSUMER.INFO.{stream}.{name}",
            f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{name}",
            f"$JS.ACK.{stream}.{name}.>",
        )
    )


_EVERYBODY = (
    "$JS.API.INFO",
    *(f"$JS.API.STREAM.INFO.{stream}" for stream in _STREAMS),
    *(f"$JS.API.STREAM.CREATE.{stream}" for stream in _STREAMS),
    f"$JS.API.DIRECT.GET.{streams.EVENTS}",
    f"$JS.API.DIRECT.GET.{streams.EVENTS}.>",
)
_POOL_CONSUMERS = tuple(streams.pool_consumer_name(pool) for pool in POOLS)
_NO_END_OF_POOLS = tuple(f"$JS.API.CONSUMER.DELETE.{streams.EVENTS}.{name}" for name in _POOL_CONSUMERS)
_NO_CHANGE_OF_POOLS = (*_NO_END_OF_POOLS, *_made(streams.EVENTS, *_POOL_CONSUMERS))

_NOT_FROM_POOLS = tuple(f"$JS.API.CONSUMER.MSG.NEXT.{streams.EVENTS}.{name}" for name in _POOL_CONSUMERS)

_READS = (
    "$JS.API.INFO",
    f"$JS.API.STREAM.INFO.{streams.EVENTS}",
    f"$JS.API.DIRECT.GET.{streams.EVENTS}",
    f"$JS.API.DIRECT.GET.{streams.EVENTS}.>",
)

_Spoken = tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]
_SPOKEN: Mapping[str, _Spoken] = {
    # user: (may publish, but not, may subscribe to)
    GATEWAY: (
        (
            subjects.MANY_EVENTS,
            subjects.MANY_PROJECT_EVENTS,
            subjects.ACCOUNT_CHANGES,
            subjects.PLANNER_IMPORT,
            subjects.PLANNER_EDIT,
            subjects.PLANNER_PROMPT,
            subjects.PLANNER_COMPARE,
            subjects.PLANNER_RENDER,
            subjects.PLANNER_FORK,
            subjects.DISPATCHER_RESET,
            f"$JS.API.CONSUMER.LIST.{streams.EVENTS}",
            subjects.WATCH_LOOK,
            subjects.RUNNER_INTRODUCE,
            subjects.EVERY_RUNNER_TEST,
            subjects.EVERY_RUNNER_DIFF,
            subjects.EVERY_RUNNER_HEAD,
            subjects.EVERY_RUNNER_BUNDLE,
            subjects.EVERY_RUNNER_BUNDLE_PART,
            *_follow(streams.EVENTS),
            *_follow(streams.TRANSCRIPTS),
            *_follow(streams.PROJECTS),
            *_follow(streams.RUNNERS_STREAM),
        ),
        (*_NO_CHANGE_OF_POOLS, *_NOT_FROM_POOLS),
        (
            subjects.CREDENTIALS,
            subjects.WATCH_CREDENTIALS,
            subjects.ACCOUNT_CHANGES,
            subjects.MANY_PROJECT_EVENTS,
            subjects.MANY_TRANSCRIPTS,
        ),
    ),
    PLANNER: (
        (subjects.MANY_PLAN_EVENTS, *subjects.every_draft_filter(), *_follow(streams.EVENTS)),
        (*_NO_CHANGE_OF_POOLS, *_NOT_FROM_POOLS),
        (
            subjects.PLANNER_IMPORT,
            subjects.PLANNER_EDIT,
            subjects.PLANNER_CHECK,
            subjects.PLANNER_OFFER,
            subjects.PLANNER_PROMPT,
            subjects.PLANNER_COMPARE,
            subjects.PLANNER_RENDER,
            subjects.PLANNER_FORK,
        ),
    ),
    DISPATCHER: (
        (
            subjects.MANY_EVENTS,
            subjects.MANY_TIMERS,
            *_follow(streams.EVENTS),
            *_follow(streams.TIMERS),
            *_made(streams.EVENTS, *_POOL_CONSUMERS),
            *(f"$JS.API.CONSUMER.RESET.{streams.EVENTS}.{name}" for name in _POOL_CONSUMERS),
        ),
        (*_NO_END_OF_POOLS, *_NOT_FROM_POOLS),
        (subjects.DISPATCHER_RESET,),
    ),
    RUNNER: (
        (
            *(subjects.type_filter(type_) for type_ in LEASE_EVENTS),
            subjects.MANY_TRANSCRIPTS,
            subjects.MANY_SESSIONS,
            *_follow(streams.SESSIONS),
            subjects.CREDENTIALS,
            subjects.WATCH_CREDENTIALS,
            subjects.PLANNER_CHECK,
            subjects.PLANNER_OFFER,
            subjects.EVERY_RUNNER_HOLDS,
            f"$KV.{streams.RUNNERS}.*",
            f"$KV.{streams.WATCHES}.*",
            *_follow(streams.WATCHES_STREAM),
            *_follow(streams.EVENTS),
            *_pulled(streams.EVENTS, *_POOL_CONSUMERS),
            *_follow(streams.PROJECTS),
        ),
        (subjects.MANY_PLAN_EVENTS, *_NO_CHANGE_OF_POOLS),
        (subjects.MANY_RUNNER_REQUESTS, subjects.WATCH_LOOK),
    ),
}
