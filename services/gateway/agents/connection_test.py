"""Has a runner try credentials out from where it is, since that is where they will be used."""

from typing import TypeVar

import msgspec
from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.errors import NoRespondersError

from services.gateway.problems import RETRY_AFTER_S, Problem, ProblemError
from shared.requests import CredentialKind, Introduction, TestReply, TestRequest, test_context
from shared.sealed import seal
from shared.spec import SdkType
from shared.subjects import RUNNER_INTRODUCE, runner_test

R = TypeVar("R")

INTRODUCTION_TIMEOUT_S = 3.0
TEST_TIMEOUT_S = 60.0
"""A model that is asked for one word may still be slow, and so may a repository be."""

NO_RUNNER = Problem(
    status=503,
    code="no_runner",
    title="No runner answers",
    detail="no runner answers, and only a runner can do that: start one (`treadle doctor` tells what runs)",
)


async def try_out(
    nc: Client,
    kind: CredentialKind,
    plaintext: bytes | None,
    *,
    sdk_type: SdkType | None = None,
    model: str = "",
    repo_urls: tuple[str, ...] = (),
) -> TestReply:
    """What came of one minimal request with the credentials (JSON; None: there are none), which travel sealed.

    Raises `ProblemError` 503 `no_runner` where no runner answers.
    """
    runner, sealed = await choose_runner(nc, kind, plaintext)
    request = TestRequest(kind=kind, sealed=sealed, sdk_type=sdk_type, model=model, repo_urls=repo_urls)
    return await ask(nc, runner_test(runner), msgspec.json.encode(request), TestReply, TEST_TIMEOUT_S)


async def choose_runner(nc: Client, kind: CredentialKind, plaintext: bytes | None) -> tuple[str, bytes]:
    """Some runner's name, and the credentials sealed to it; empty where there are none. Raises `ProblemError` 503."""
    introduction = await ask(nc, RUNNER_INTRODUCE, b"", Introduction, INTRODUCTION_TIMEOUT_S)
    runner = introduction.runner
    try:
        runner_test(runner)  # a name that makes no subject is none
        return runner, seal(introduction.seal_to, plaintext, test_context(runner, kind)) if plaintext else b""
    except ValueError as error:
        raise _no_runner("a runner introduced itself without a usable name or key: look at the runners' log") from error


async def ask(nc: Client, subject: str, body: bytes, reply: type[R], timeout_s: float) -> R:
    """What a runner answers. Raises `ProblemError` 503 `no_runner` where none does."""
    try:
        message = await nc.request(subject, body, timeout=timeout_s)
        return msgspec.json.decode(message.data, type=reply)
    except NoRespondersError as error:
        raise _no_runner(NO_RUNNER.detail) from error
    except msgspec.MsgspecError as error:
        raise _no_runner("a runner gave an answer that this version can't read: update both") from error
    except (NatsError, TimeoutError) as error:
        raise _no_runner(f"the runner gave no answer within {timeout_s:.0f} s: look at its log") from error


def _no_runner(detail: str) -> ProblemError:
    headers = {"Retry-After": str(RETRY_AFTER_S)}
    return ProblemError(NO_RUNNER.status, NO_RUNNER.code, NO_RUNNER.title, detail, headers=headers)
