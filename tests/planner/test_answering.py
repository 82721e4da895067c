"""What the planner answers, as a service on a real nats-server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import TypeVar

import msgspec
import pytest
from nats.errors import NoRespondersError

from services.planner.app import make_app
from shared import commands as c
from shared import requests as r
from shared import subjects
from shared.bus import PLANNER as PLANNER_USER
from shared.bus import BusSettings
from shared.clock import new_plan_id
from shared.spec import CollabRules
from shared.subjects import PLAN
from shared.transact import load_plan, to_plan
from tests.nats_process import NatsServer
from tests.planner.drafts import ANN, CODER, PLAN_TEXT, WANTED, Studio, studio

R = TypeVar("R")
BY_HAND = msgspec.structs.replace(
    WANTED, by_hand=True, planner=None, collab=CollabRules(repo_url="https://example.org/c.git", directory="treadle")
)
LOG_KEY = b"k" * 32
FAULTY = PLAN_TEXT.replace("coder", "nobody")


@pytest.fixture
async def service(own_nats: NatsServer) -> AsyncIterator[Studio]:
    """A planner as it is deployed, as the user that it is, and what its tests have at hand."""
    access = own_nats.access_of(PLANNER_USER)
    async with studio(own_nats, LOG_KEY) as made:
        app = make_app(BusSettings(access.url, access.user, access.password, LOG_KEY))
        running = asyncio.create_task(app.run())
        try:
            yield made
        finally:
            app.exit()
            await running


async def ask(service: Studio, subject: str, request: msgspec.Struct | bytes, reply: type[R]) -> R:
    body = request if isinstance(request, bytes) else msgspec.json.encode(request)
    async with asyncio.timeout(90):
        while True:
            try:
                return msgspec.json.decode((await service.nc.request(subject, body, timeout=20)).data, type=reply)
            except NoRespondersError:
                continue  # it is just starting


async def check(service: Studio, plan: str, text: str, candidate: str = "1") -> r.CheckReply:
    return await ask(
        service, subjects.PLANNER_CHECK, r.CheckRequest(plan=plan, candidate=candidate, text=text), r.CheckReply
    )


async def offer(service: Studio, plan: str, text: str, blob: str) -> r.ImportReply:
    return await ask(service, subjects.PLANNER_OFFER, r.OfferRequest(plan=plan, text=text, blob=blob), r.ImportReply)


async def import_(service: Studio, plan: str, candidate: str, text: str, template: str = "") -> r.ImportReply:
    request = r.ImportRequest(
        plan=plan, candidate=candidate, text=text, repo_url=WANTED.repo_url, base_commit=WANTED.base_commit,
        actor="user:ann", correlation="x", project=WANTED.project, agents=(CODER,), template=template,
    )  # fmt: skip
    return await ask(service, subjects.PLANNER_IMPORT, request, r.ImportReply)


async def test_the_service_makes_a_goal_into_a_candidate(service: Studio) -> None:
    service.start_runner(lambda entity, dispatch: PLAN_TEXT)
    plan = await service.ask()
    await service.until(plan, lambda state: state.status == "drafted")


async def test_the_service_ends_what_a_cancelled_plan_has_in_the_making(service: Studio) -> None:
    plan = await service.ask()
    await service.until_seen(plan, "_draft-1", "dispatched")
    await to_plan(service.store, plan, c.CancelPlan(), ANN)
    await service.until_seen(plan, "_draft-1", "cancelled")


async def test_a_runner_hears_every_fault_of_what_its_agent_made(service: Studio) -> None:
    plan = await service.ask()
    await service.until_seen(plan, "_draft-1", "dispatched")
    assert await check(service, plan, PLAN_TEXT) == r.CheckReply()
    assert await check(service, plan, f"```json\n{PLAN_TEXT}\n```") == r.CheckReply()
    two = json.dumps({"name": "x", "tasks": [{"code": "a b", "name": "x", "assignee": "nobody"}]})
    found = await check(service, plan, two)
    assert [(fault.task, fault.field) for fault in found.faults] == [("a b", "code"), ("a b", "assignee")]
    assert (await service.types(plan, PLAN)) == ["requested"]


async def test_nobody_is_told_about_a_candidate_that_is_not_asked_for(service: Studio) -> None:
    plan = await service.ask()
    for other, name in ((plan, "2"), (new_plan_id(), "1")):
        reply = await check(service, other, PLAN_TEXT, name)
        assert reply.refused == f"plan {other} does not ask for candidate {name} (any more)"


async def test_a_file_that_was_asked_for_becomes_the_candidate(service: Studio) -> None:
    plan = await service.ask(BY_HAND)
    reply = await offer(service, plan, PLAN_TEXT, "blob-1")
    assert reply.seq
    state = (await load_plan(service.store, plan)).state
    assert state.candidates["1"].origin.blob == "blob-1"
    again = await offer(service, plan, PLAN_TEXT, "blob-1")
    assert "does not wait for a plan that a person makes" in again.refused


async def test_a_faulty_file_is_noted_once_and_another_one_still_welcome(service: Studio) -> None:
    plan = await service.ask(BY_HAND)
    first = await offer(service, plan, FAULTY, "blob-1")
    assert [fault.field for fault in first.faults] == ["assignee"]
    again = await offer(service, plan, PLAN_TEXT, "blob-1")  # the same blob is not looked at twice
    assert again.faults == first.faults
    assert await service.types(plan, PLAN) == ["requested", "failed"]
    told = (await load_plan(service.store, plan)).state.requests["1"].failed
    assert told is not None
    assert (told.faults, told.origin.blob) == (first.faults, "blob-1")
    await offer(service, plan, PLAN_TEXT, "blob-2")
    assert await service.types(plan, PLAN) == ["requested", "failed", "drafted"]


async def test_a_file_that_nobody_could_read_is_noted_with_the_reason(service: Studio) -> None:
    plan = await service.ask(BY_HAND)
    offered = r.OfferRequest(plan=plan, text="", blob="b", fault="it is larger than 32 MiB")
    reply = await ask(service, subjects.PLANNER_OFFER, offered, r.ImportReply)
    assert reply.refused == "it is larger than 32 MiB"
    told = (await load_plan(service.store, plan)).state.requests["1"].failed
    assert told is not None
    assert (told.message, told.origin.blob) == ("it is larger than 32 MiB", "b")


async def test_a_person_may_declare_agents_and_hosts_where_neither_an_agent_nor_a_file_may(service: Studio) -> None:
    text = json.dumps({
        "name": "x", "network_allow": ["a.example"], "agents": {"sh": {"sdk_type": "command", "command": ["make"]}},
        "tasks": [{"code": "T1", "name": "x", "assignee": "sh"}],
    })  # fmt: skip
    by_agent, by_hand = await service.ask(), await service.ask(BY_HAND)
    assert [fault.field for fault in (await check(service, by_agent, text)).faults] == ["agents", "network_allow"]
    offered = await offer(service, by_hand, text, "b")
    assert [fault.field for fault in offered.faults] == ["agents", "network_allow"]
    assert "`treadle add`" in offered.faults[0].message
    assert await service.types(by_hand, PLAN) == ["requested", "failed"]
    assert (await import_(service, by_hand, "1", text)).seq


async def test_a_file_for_a_plan_without_a_start_is_refused_until_there_is_one(service: Studio) -> None:
    plan = await service.ask(msgspec.structs.replace(BY_HAND, base_commit=""))
    assert (
        "the commit that the plan would start from is not known" in (await offer(service, plan, PLAN_TEXT, "b")).refused
    )
    again = await offer(service, plan, PLAN_TEXT, "b")
    assert "the commit that the plan would start from is not known" in again.refused
    await service.ask(BY_HAND, plan)
    assert (await offer(service, plan, PLAN_TEXT, "b")).seq


async def test_the_prompt_is_for_whoever_makes_a_plan_by_hand(service: Studio) -> None:
    by_hand, by_agent = await service.ask(BY_HAND), await service.ask()
    reply = await ask(service, subjects.PLANNER_PROMPT, r.PromptRequest(plan=by_hand), r.PromptReply)
    assert WANTED.goal in reply.prompt
    assert f"treadle/plan-{by_hand}.json" in reply.prompt
    other = await ask(service, subjects.PLANNER_PROMPT, r.PromptRequest(plan=by_agent), r.PromptReply)
    assert "does not wait for a plan that a person makes" in other.refused


async def test_two_candidates_are_compared_until_one_is_chosen(service: Studio) -> None:
    plan = new_plan_id()
    await import_(service, plan, "a", PLAN_TEXT)
    await import_(service, plan, "b", PLAN_TEXT.replace('"T1"', '"T2"'), template="template-7")
    assert (await load_plan(service.store, plan)).state.candidates["b"].origin.template == "template-7"
    wanted = r.CompareRequest(plan=plan, candidates=("a", "b"))
    found = await ask(service, subjects.PLANNER_COMPARE, wanted, r.CompareReply)
    assert (found.added, found.removed, found.refused) == (("T2",), ("T1",), "")
    assert [one.critical_path for one in found.estimates] == [("T1",), ("T2",)]
    missing = r.CompareRequest(plan=plan, candidates=("a", "c"))
    reply = await ask(service, subjects.PLANNER_COMPARE, missing, r.CompareReply)
    assert reply.refused == f"plan {plan} has no candidate c to compare: it has a, b"
    await to_plan(service.store, plan, c.Finalize(candidate="a"), ANN)
    reply = await ask(service, subjects.PLANNER_COMPARE, wanted, r.CompareReply)
    assert reply.refused == f"plan {plan} has no candidate a to compare: it has none, or one was chosen"


@pytest.mark.parametrize(
    ("subject", "reply"),
    [
        (subjects.PLANNER_IMPORT, r.ImportReply),
        (subjects.PLANNER_EDIT, r.EditReply),
        (subjects.PLANNER_CHECK, r.CheckReply),
        (subjects.PLANNER_OFFER, r.ImportReply),
        (subjects.PLANNER_PROMPT, r.PromptReply),
        (subjects.PLANNER_COMPARE, r.CompareReply),
        (subjects.PLANNER_RENDER, r.RenderReply),
    ],
)
async def test_a_request_that_is_none_is_answered_with_why(
    service: Studio, subject: str, reply: type[msgspec.Struct]
) -> None:
    answered = msgspec.to_builtins(await ask(service, subject, b'{"plan": 5}', reply))
    words = answered.get("refused") or answered["faults"][0]["message"]
    assert "the planner can't read the request" in words


async def test_a_plan_id_that_is_none_is_refused(service: Studio) -> None:
    for hostile in ("a.b", "", ">", "x" * 1000):
        assert (await check(service, hostile, PLAN_TEXT)).refused
        assert (await offer(service, hostile, PLAN_TEXT, "b")).refused
