"""The templates that come with Treadle: valid, there from the start, kept in step, and nobody's to change."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec.yaml
import pytest

from services.gateway.database.engine import Database
from services.gateway.database.engine import database_url as checked_url
from services.gateway.database.tables import Template
from services.gateway.templates.bodies import NewTemplate
from services.gateway.templates.shipped import keep_shipped, shipped_id, shipped_templates
from services.planner.agents import Team
from services.planner.parse import read_plan
from services.planner.template import check, render
from shared.requests import TemplateText
from shared.spec import AgentSpec, Mode, ProjectAgent
from tests.gateway.answers import assert_problem
from tests.gateway.gateway_process import GatewayProcess
from tests.gateway.plans.made import COMMIT, agent, ok, project

SHIPPED = {template.name: template for template in shipped_templates().values()}
REVIEW_LOOP = "bb70e689872b9ef336bb307d"
"""It is stored with plans, and scripts name it: it must never change."""
FILES = ["review-loop", "bug-fix", "feature", "refactor-safely", "release-checklist"]


def text_of(template: NewTemplate) -> TemplateText:
    return TemplateText(text=template.text, roles=template.roles, inputs=template.inputs)


@pytest.fixture
async def db(migrated_url: str) -> AsyncIterator[Database]:
    made = Database(checked_url(migrated_url))
    yield made
    await made.close()


def test_every_file_is_shipped_under_an_id_of_its_own() -> None:
    assert {shipped_id(stem) for stem in FILES} == set(shipped_templates())
    assert shipped_id("review-loop") == REVIEW_LOOP


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_template_is_valid_and_says_what_it_wants(name: str) -> None:
    template = SHIPPED[name]
    assert [str(fault) for fault in check(text_of(template))] == []
    assert len(template.description) > 50
    assert all(role.description for role in template.roles) and template.roles
    assert all(wanted.description for wanted in template.inputs) and template.inputs


@pytest.mark.parametrize("mode", ["auto", "manual"])
@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_template_makes_a_plan_for_runners_and_for_people(name: str, mode: Mode) -> None:
    template = SHIPPED[name]
    spec = AgentSpec(sdk_type="claude", model="m") if mode == "auto" else AgentSpec(sdk_type=None)
    agents = tuple(ProjectAgent(slug=r.slot, name=r.slot, type_name="x", spec=spec) for r in template.roles)
    inputs: dict[str, str | float | bool] = {one.name: "It is so." for one in template.inputs if one.type == "text"}
    text = render(text_of(template), {role.slot: role.slot for role in template.roles}, inputs)
    plan = read_plan(text, Team(mode=mode, agents=agents))
    assert "{{" not in text
    assert all(
        "It is so." in task.description or task.is_decision or name == "Release checklist" for task in plan.tasks
    )


def test_the_example_of_the_manual_is_a_template_and_all_that_are_shipped_are_listed_there() -> None:
    page = (Path(__file__).parents[3] / "docs" / "templates.md").read_text()
    example = msgspec.yaml.decode(page.split("```yaml\n")[1].split("```")[0], type=NewTemplate)
    assert [str(fault) for fault in check(text_of(example))] == []
    for id_, template in shipped_templates().items():
        slots = ", ".join(f"`{role.slot}`" for role in template.roles)
        assert f"| {template.name} | `{id_}` | {slots} |" in page


async def test_several_gateways_bring_the_rows_in_step_at_once(db: Database) -> None:
    await asyncio.gather(*(keep_shipped(db) for _ in range(4)))
    async with db.write() as session:
        row = await session.get_one(Template, REVIEW_LOOP)
        assert (row.owner_id, row.version, row.name) == (None, 1, "Review loop")
        row.text = "of an older version"
        await session.delete(await session.get_one(Template, shipped_id("bug-fix")))
        session.add(
            Template(
                id=shipped_id("not-any-more"), owner_id=None, name="Gone", description="", text="", roles=[],
                inputs=[], created_at=row.created_at, version=1,
            )
        )  # fmt: skip
    await asyncio.gather(*(keep_shipped(db) for _ in range(4)))
    async with db.read() as session:
        row = await session.get_one(Template, REVIEW_LOOP)
        assert (row.text, row.version) == (SHIPPED["Review loop"].text, 2)
        assert await session.get(Template, shipped_id("bug-fix")) is not None
        assert await session.get(Template, shipped_id("not-any-more")) is None


async def test_nobody_changes_a_shipped_template_and_everybody_may_copy_it(
    gateway: GatewayProcess, planner: None
) -> None:
    async with gateway.as_user("ann") as ann, gateway.as_admin() as admin:
        listed = (await ok(ann.get("/api/templates", params={"is_shipped": "true"})))["items"]
        assert {one["name"] for one in listed} == set(SHIPPED)
        assert {one["owner_id"] for one in listed} == {None}
        others = (await ok(ann.get("/api/templates", params={"is_shipped": "false", "limit": "200"})))["items"]
        assert None not in {one["owner_id"] for one in others}
        path = f"/api/templates/{REVIEW_LOOP}"
        for client in (ann, admin):
            for refused in (await client.patch(path, json={"name": "Mine"}), await client.delete(path)):
                assert "comes with Treadle" in assert_problem(refused, 403, "forbidden")["detail"]
        shown = await ok(ann.get(path))
        copy = {field: shown[field] for field in ("name", "description", "text", "roles", "inputs")}
        made = await ok(ann.post("/api/templates", json=copy), 201)
        assert made["owner_id"] == gateway.id_of("ann")
        await ok(ann.delete(f"/api/templates/{made['id']}"))


async def test_a_project_gets_a_review_loop(gateway: GatewayProcess, planner: None) -> None:
    async with gateway.as_user("ann") as ann:
        agents = [await agent(ann) for _ in range(3)]
        slots = ("implementer", "reviewer-a", "reviewer-b")
        body = {
            "template_id": REVIEW_LOOP,
            "roles": {slot: one["slug"] for slot, one in zip(slots, agents, strict=True)},
            "inputs": {"title": "Sort it", "issue": "It is not sorted.\n\n- not at all", "max_review_rounds": 2},
            "base_commit": COMMIT,
        }
        path = f"/api/projects/{await project(ann, *agents)}/plans/from-template"
        plan = (await ok(ann.post(path, json=body), 201))["plan"]
        spec = await ok(ann.get(f"/api/plans/{plan}/spec"))
        tasks = {task["code"]: task for task in spec["tasks"]}
        assert [tasks[code]["reviews"] for code in ("review-a", "review-b")] == ["implement", "implement"]
        assert (tasks["decide"]["max_review_rounds"], tasks["decide"]["fixer"]) == (2, agents[0]["slug"])
        assert "- not at all" in tasks["implement"]["description"]
