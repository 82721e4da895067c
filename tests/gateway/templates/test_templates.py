"""Templates over HTTP: made by anybody, seen by everybody, changed by their owners and admins."""

from __future__ import annotations

import secrets
from typing import Any

import httpx
import pytest

from tests.gateway.answers import assert_problem
from tests.gateway.gateway_process import GatewayProcess
from tests.gateway.plans.made import COMMIT, agent, name, ok, project
from tests.gateway.templates import filling

pytestmark = pytest.mark.usefixtures("planner")


async def made(client: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    answer: dict[str, Any] = await ok(client.post("/api/templates", json=filling.template(**fields)), 201)
    return answer


async def test_a_template_is_made_read_changed_and_deleted(gateway: GatewayProcess) -> None:
    async with gateway.as_user("ann") as ann:
        body = filling.template()
        created = await ann.post("/api/templates", json=body)
        one = created.json()
        assert (created.status_code, created.headers["etag"], one["version"]) == (201, '"1"', 1)
        assert one["owner_id"] == gateway.id_of("ann")
        assert [one[field] for field in ("name", "text", "description")] == [body["name"], body["text"], "d"]
        assert one["roles"] == [{"slot": "agent-1", "description": "does it"}, {"slot": "agent-2", "description": ""}]
        assert one["inputs"][1] == {
            "name": "width", "type": "number", "description": "", "required": True, "choices": [], "default": 2
        }  # fmt: skip
        path = f"/api/templates/{one['id']}"
        read = await ann.get(path)
        assert (read.json(), read.headers["etag"]) == (one, '"1"')
        changes = {"name": name("Other"), "inputs": [*body["inputs"][:1], {"name": "width", "type": "number"}]}
        changed = await ann.patch(path, json=changes, headers={"If-Match": '"1"'})
        assert (changed.status_code, changed.headers["etag"]) == (200, '"2"')
        assert changed.json()["inputs"][1]["default"] is None
        assert (await ok(ann.patch(path, json={"name": changes["name"]})))["version"] == 2
        for stale in (
            await ann.patch(path, json={"name": "x"}, headers={"If-Match": '"1"'}),
            await ann.delete(path, headers={"If-Match": '"1"'}),
        ):
            assert_problem(stale, 412, "changed")
        assert (await ann.delete(path, headers={"If-Match": '"2"'})).status_code == 204
        assert_problem(await ann.get(path), 404, "not_found")


async def test_everybody_sees_a_template_and_its_owner_and_admins_change_it(gateway: GatewayProcess) -> None:
    async with gateway.as_user("ann") as ann, gateway.as_user("bob") as bob, gateway.as_admin() as admin:
        one = await made(ann)
        path = f"/api/templates/{one['id']}"
        assert await ok(bob.get(path)) == one
        listed = await ok(bob.get("/api/templates", params={"name": one["name"]}))
        assert listed["items"] == [{field: value for field, value in one.items() if field != "text"}]
        for refused in (await bob.patch(path, json={"name": "x"}), await bob.delete(path)):
            assert "copy it" in assert_problem(refused, 403, "forbidden")["detail"]
        assert (await ok(admin.patch(path, json={"description": "better"})))["owner_id"] == one["owner_id"]
        await ok(bob.post("/api/templates", json=filling.template(name=one["name"])), 201)
        taken = await ann.post("/api/templates", json=filling.template(name=one["name"]))
        assert_problem(taken, 409, "name_taken")
        await ok(admin.delete(path))


async def test_what_is_no_template_is_refused_with_every_fault_and_leaves_nothing(gateway: GatewayProcess) -> None:
    async with gateway.as_user("ann") as ann:
        bad = filling.template(text=filling.TEXT.replace("{{goal}}", "{{gaol}}").replace("agent-2", "agent-3"))
        problem = assert_problem(await ann.post("/api/templates", json=bad), 422, "invalid_plan")
        assert problem["title"] == "Not a valid template"
        told = {fault.get("field") for fault in problem["faults"]}
        assert {"name", "description", "assignee", "roles.agent-2", "inputs.goal"} <= told
        assert (await ok(ann.get("/api/templates", params={"name": bad["name"]})))["items"] == []
        one = await made(ann)
        path = f"/api/templates/{one['id']}"
        assert_problem(await ann.patch(path, json={"text": "name: x"}), 422, "invalid_plan")
        assert_problem(await ann.patch(path, json={"roles": []}), 422, "invalid_plan")
        assert await ok(ann.get(path)) == one


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", ""), ("name", " x"), ("name", "a\nb"), ("name", "\u202ex"), ("name", None), ("text", ""),
        ("text", "é" * 600_000), ("description", "\x00"), ("description", "x" * 4001), ("roles", [{"slot": 1}]),
        ("roles", [{"slot": "a", "description": "\x1b"}]), ("inputs", [{"name": "a", "type": "date"}]),
        ("inputs", [{"name": "a", "default": []}]), ("owner_id", "x"),
    ],
)  # fmt: skip
async def test_what_can_not_be_is_refused_in_words(gateway: GatewayProcess, field: str, value: object) -> None:
    async with gateway.as_user("ann") as ann:
        refused = await ann.post("/api/templates", json=filling.template() | {field: value})
        assert field in assert_problem(refused, 400, "bad_request")["detail"]


async def test_a_preview_is_the_plan_file_and_names_all_that_is_missing(gateway: GatewayProcess) -> None:
    async with gateway.as_user("ann") as ann, gateway.as_user("bob") as bob:
        path = f"/api/templates/{(await made(ann))['id']}/preview"
        text = (await ok(bob.post(path, json=filling.filled("x", "y")), 200))["text"]
        assert 'description: "First: {{width}} # \\" - x"' in text
        assert "assignee: x" in text and "max_parallel: 3" in text
        wrong = {"roles": {"agent-1": "x", "agent-2": "x"}, "inputs": {"width": "3", "other": 1}}
        problem = assert_problem(await bob.post(path, json=wrong), 422, "invalid_plan")
        fields = [fault["field"] for fault in problem["faults"]]
        assert fields == ["roles.agent-2", "inputs.other", "inputs.goal", "inputs.width"]


async def test_a_plan_is_made_of_a_template_for_agents_by_slug_and_by_id(gateway: GatewayProcess) -> None:
    async with gateway.as_user("ann") as ann, gateway.as_user("bob") as bob:
        one = await made(bob)
        first, second = await agent(ann), await agent(ann)
        target = await project(ann, first, second)
        body = {**filling.filled(first["slug"], second["id"]), "template_id": one["id"], "base_commit": COMMIT}
        key = {"Idempotency-Key": secrets.token_hex(8)}
        path = f"/api/projects/{target}/plans/from-template"
        answer = await ann.post(path, json=body, headers=key)
        assert answer.status_code == 201, answer.text
        imported = answer.json()
        assert (imported["candidate"], (await ann.post(path, json=body, headers=key)).json()) == ("1", imported)
        spec = (await ann.get(f"/api/plans/{imported['plan']}/spec")).json()
        assert (spec["name"], spec["max_parallel"]) == ('First: {{width}} # " - x', 3)
        assert [task["assignee"] for task in spec["tasks"]] == [first["slug"], second["slug"]]
        events = await ok(ann.get(f"/api/plans/{imported['plan']}/events"))
        assert one["id"] in str(events), "nobody could tell what the plan was made from"
        # What it was made from may go.
        await ok(bob.delete(f"/api/templates/{one['id']}"))
        assert (await ann.get(f"/api/plans/{imported['plan']}")).status_code == 200
        assert_problem(await ann.post(path, json=body), 404, "not_found")


async def test_agents_that_the_project_does_not_have_are_named_with_all_other_faults(gateway: GatewayProcess) -> None:
    async with gateway.as_user("ann") as ann:
        one, mine, other = await made(ann), await agent(ann), await agent(ann)
        target = await project(ann, mine)
        roles = {"agent-1": mine["slug"], "agent-2": other["slug"], "agent-3": "x"}
        body = {"template_id": one["id"], "base_commit": COMMIT, "roles": roles, "inputs": {}}
        path = f"/api/projects/{target}/plans/from-template"
        problem = assert_problem(await ann.post(path, json=body), 422, "invalid_plan")
        assert [fault["field"] for fault in problem["faults"]] == ["roles.agent-2", "roles.agent-3", "inputs.goal"]
        assert mine["slug"] in problem["faults"][0]["message"]
        twice = {"agent-1": mine["slug"], "agent-2": mine["id"]}
        again = await ann.post(path, json=body | {"roles": twice, "inputs": {"goal": "x"}})
        assert [fault["field"] for fault in assert_problem(again, 422, "invalid_plan")["faults"]] == ["roles.agent-2"]
        assert_problem(await ann.post(path, json=body | {"base_commit": "main"}), 422, "bad_commit")
        for missing in ("0" * 24, "x", "\u0000"):
            assert_problem(await ann.post(path, json=body | {"template_id": missing}), 404, "not_found")
        assert (await ok(ann.get(f"/api/projects/{target}/plans")))["items"] == []


async def test_what_the_inputs_make_must_be_a_valid_plan_too(gateway: GatewayProcess) -> None:
    async with gateway.as_user("ann") as ann:
        one, first, second = await made(ann), await agent(ann), await agent(ann)
        target = await project(ann, first, second)
        body = {**filling.filled(first["slug"], second["slug"]), "template_id": one["id"], "base_commit": COMMIT}
        body["inputs"] = {"goal": "two\nlines", "width": 0}
        answer = await ann.post(f"/api/projects/{target}/plans/from-template", json=body)
        fields = {fault["field"] for fault in assert_problem(answer, 422, "invalid_plan")["faults"]}
        assert fields == {"name", "max_parallel"}


async def test_every_change_of_a_template_is_in_the_audit_log(gateway: GatewayProcess) -> None:
    async with gateway.as_user("ann") as ann, gateway.as_admin() as admin:
        one = await made(ann)
        path = f"/api/templates/{one['id']}"
        await ok(ann.patch(path, json={"description": "x", "name": one["name"]}))
        await ok(admin.delete(path))
        entries = (await ok(admin.get(f"/api/audit-log?subject={one['id']}&sort=id")))["items"]
        assert [(entry["action"], entry["actor"], entry["details"]) for entry in entries] == [
            ("template.created", "user:ann", {"name": one["name"]}),
            ("template.changed", "user:ann", {"fields": ["description"]}),
            ("template.deleted", "user:admin", {"name": one["name"]}),
        ]


async def test_a_repeated_post_makes_one_template(gateway: GatewayProcess) -> None:
    async with gateway.as_user("ann") as ann:
        body, key = filling.template(), {"Idempotency-Key": secrets.token_hex(8)}
        answers = [await ann.post("/api/templates", json=body, headers=key) for _ in range(2)]
        assert [answer.status_code for answer in answers] == [201, 201]
        assert answers[0].json() == answers[1].json()
