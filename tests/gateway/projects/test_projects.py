"""Projects: what they are made of, what is refused, what a change leaves alone."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.answers import assert_problem
from tests.gateway.gateway_process import GatewayProcess
from tests.gateway.plans import made
from tests.gateway.plans.made import ok

GOOD = {"name": "P", "code_repo_url": "https://git.example.com/a/b.git"}


async def test_every_fault_of_a_project_is_named_at_once(gateway: GatewayProcess) -> None:
    async with gateway.as_user("ann") as ann:
        body = {
            "name": " ",
            "goal": "\x00",
            "code_repo_url": "https://github.com/a/b/tree/main",
            "collab_repo_url": "https://token@github.com/a/b",
            "collab_dir": "../x",
            "task_timeout_minutes": 0,
            "max_parallel": 1001,
            "budget_usd": 0,
            "setup": ["", "a\x00"],
            "env_allow": ["A-B", "ANTHROPIC_API_KEY"],
            "network_allow": ["https://a.example", "*"],
            "permissions": [{"tool": "rm -rf", "answer": "ask"}, {"tool": "Bash", "pattern": "\x00", "answer": "ask"}],
            "approval_timeout_minutes": 0,
            "verify_rounds": 11,
            "delivery_branch": "-x",
            "delivery_command": "\x1b",
        }
        fields = assert_problem(await ann.post("/api/projects", json=body), 400, "bad_request")["fields"]
        assert {fault["field"] for fault in fields} == set(body)
        assert {fault["source"] for fault in fields} == {"body"}
        assert "token@" not in str(fields)
        whole = await ok(ann.post("/api/projects", json=GOOD), 201)
        changed = await ann.patch(f"/api/projects/{whole['id']}", json=body)
        again = assert_problem(changed, 400, "bad_request")["fields"]
        assert again == fields
        assert await ok(ann.get(f"/api/projects/{whole['id']}")) == whole


BAD_DIRS = ["/x", "a\\b", "a/../b", "a//b", "./a", ".git", "a/.GIT/b", "~", "-x", "C:/x", "a\x1b", ""]
BAD_URLS = [
    "/srv/repo", "ext::sh -c x", "http://a.example/b", "https://127.0.0.1/a/b", "https://10.1/a/b", "../x", "",
]  # fmt: skip
BAD_BRANCHES = [
    "-x", "a..b", "a b", "a\x00", "a\x1bb", "a~1", "a^", "a:b", "a?", "a*", "[a", "a\\b", "@{u}", "@", "HEAD", "a//b",
    "/a", "a/", ".a", "a/.b", "a.lock", "a.lock/b", "a.", "refs/heads/main", "treadle/x", "Treadle/x", "\u202ex",
    "x" * 201,
]  # fmt: skip
BAD_WORDS: list[dict[str, Any]] = [
    {"mode": "both"},
    {"max_parallel": 10**400},
    {"max_parallel": -(2**70)},
    {"budget_usd": 10**400},
    {"task_timeout_minutes": 1e308},
    {"delivery": "push"},
    {"delivery": "command"},
    {"delivery_command": "make release"},
    {"delivery_branch": "main"},
    {"delivery": "merge", "delivery_command": "x"},
    {"delivery": "command", "delivery_command": "x", "delivery_branch": "main"},
    {"delivery": "command", "delivery_command": " "},
    {"on_conflict": "force"},
    {"verify_rounds": -1},
    {"verify_rounds": 1.5},
    {"approval_timeout_minutes": 10**400},
    {"network_allow": ["a.example"] * 201},
    {"permissions": [{"tool": "*", "answer": "ask"}] * 201},
    {"permissions": [{"tool": "*", "answer": "maybe"}]},
    {"permissions": [{"tool": "*", "answer": "ask", "who": "me"}]},
    {"permissions": [{"tool": "*", "pattern": " ", "answer": "ask"}]},
    {"permissions": [{"answer": "ask"}]},
    {"planning_mode": "x"},
    {"agent_ids": ["x"]},
    {"nonsense": 1},
    {"name": None},
]


@pytest.mark.parametrize(
    "fields",
    [{"collab_dir": d} for d in BAD_DIRS]
    + [{"code_repo_url": url} for url in BAD_URLS]
    + [{"delivery": "merge", "delivery_branch": name} for name in BAD_BRANCHES]
    + BAD_WORDS,
)
async def test_what_can_not_be_is_refused(gateway: GatewayProcess, fields: dict[str, Any]) -> None:
    async with gateway.as_user("ann") as ann:
        assert_problem(await ann.post("/api/projects", json={**GOOD, **fields}), 400, "bad_request")


async def test_a_change_is_three_valued(gateway: GatewayProcess) -> None:
    async with gateway.as_user("ann") as ann:
        coder = await made.agent(ann)
        more = {"goal": "g", "budget_usd": 5, "collab_repo_url": "git@git.example.com:a/c.git", "setup": ["x"]}
        answer = await ann.post("/api/projects", json={**GOOD, **more, "agent_ids": [coder["id"]]})
        project, path = answer.json(), f"/api/projects/{answer.json()['id']}"
        assert answer.headers["etag"] == '"1"'
        absent = await ok(ann.patch(path, json={"max_parallel": 2}))
        assert absent == {**project, "max_parallel": 2, "version": 2}
        nothing = await ann.patch(path, json={"max_parallel": 2})
        assert (nothing.json()["version"], nothing.headers["etag"]) == (2, '"2"')
        cleared = await ok(ann.patch(path, json={**dict.fromkeys(more), "agent_ids": None}))
        assert cleared == {
            **absent,
            "goal": "",
            "budget_usd": None,
            "collab_repo_url": None,
            "setup": [],
            "agent_ids": [],
            "version": 3,
        }
        for field in (
            "name",
            "mode",
            "code_repo_url",
            "collab_dir",
            "max_parallel",
            "delivery",
            "allow_concurrent_plans",
        ):
            assert (await ann.patch(path, json={field: None})).status_code == 400


PEOPLE: dict[str, Any] = {
    "network_allow": ["packages.example.org", "*.example.com:8443"],
    "permissions": [
        {"tool": "Bash", "pattern": "git push*", "answer": "never"},
        {"tool": "*", "pattern": "https://*", "answer": "ask"},
    ],
    "approval_timeout_minutes": 90.0,
    "verify_rounds": 0,
    "delivery_command": "make release",
}


async def test_what_people_and_agents_may_do_is_kept_and_cleared(gateway: GatewayProcess) -> None:
    async with gateway.as_user("ann") as ann:
        bare = await ok(ann.post("/api/projects", json=GOOD), 201)
        assert {name: bare[name] for name in (*PEOPLE, "delivery", "delivery_branch", "on_conflict")} == {
            "network_allow": [],
            "permissions": [],
            "approval_timeout_minutes": 1440.0,
            "verify_rounds": 2,
            "delivery": "branch",
            "delivery_branch": "",
            "delivery_command": "",
            "on_conflict": "report",
        }
        path = f"/api/projects/{bare['id']}"
        more = {**PEOPLE, "delivery": "command", "on_conflict": "agent"}
        whole = await ok(ann.patch(path, json=more))
        assert whole == {**bare, **more, "version": 2}
        assert (await ok(ann.patch(path, json=more)))["version"] == 2
        assert await ok(ann.get(path)) == whole
        respelled = await ok(
            ann.patch(
                path, json={"network_allow": ["Packages.Example.org.", "*.example.com:8443", "packages.example.org"]}
            )
        )
        assert respelled == whole
        cleared = await ok(ann.patch(path, json={**dict.fromkeys(PEOPLE), "delivery": "branch"}))
        assert cleared == {**bare, "on_conflict": "agent", "version": 3}
        for field in ("delivery", "on_conflict"):
            assert_problem(await ann.patch(path, json={field: None}), 400, "bad_request")


async def test_a_change_of_delivery_has_to_fit_what_is_there(gateway: GatewayProcess) -> None:
    async with gateway.as_user("ann") as ann:
        made_so = {**GOOD, "delivery": "merge", "delivery_branch": "release/1.x"}
        project = await ok(ann.post("/api/projects", json=made_so), 201)
        path = f"/api/projects/{project['id']}"
        refused = assert_problem(await ann.patch(path, json={"delivery": "command"}), 400, "bad_request")
        assert [fault["field"] for fault in refused["fields"]] == ["delivery_command", "delivery_branch"]
        assert await ok(ann.get(path)) == project
        change = {"delivery": "command", "delivery_branch": None, "delivery_command": "gh pr create"}
        assert (await ok(ann.patch(path, json=change)))["delivery_command"] == "gh pr create"


async def test_a_precondition_is_honoured(gateway: GatewayProcess) -> None:
    async with gateway.as_user("ann") as ann:
        path = f"/api/projects/{await made.project(ann)}"
        races = await asyncio.gather(
            *(ann.patch(path, json={"name": f"N{n}"}, headers={"If-Match": '"1"'}) for n in range(5))
        )
        assert sorted(answer.status_code for answer in races) == [200, 412, 412, 412, 412]
        assert (await ann.patch(path, json={"name": "M"}, headers={"If-Match": '"7", "2"'})).status_code == 200
        assert (await ann.patch(path, json={"name": "O"}, headers={"If-Match": "*"})).status_code == 200
        assert_problem(await ann.patch(path, json={"name": "Q"}, headers={"If-Match": 'W/"4"'}), 412, "changed")
        assert_problem(await ann.delete(path, headers={"If-Match": '"1"'}), 412, "changed")


async def test_a_project_takes_only_agents_of_its_mode(gateway: GatewayProcess) -> None:
    async with gateway.as_user("ann") as ann:
        coder, person = await made.agent(ann), await made.agent(ann, None)
        for mode, wrong in (("auto", person), ("manual", coder)):
            refused = await ann.post("/api/projects", json={**GOOD, "mode": mode, "agent_ids": [wrong["id"]]})
            assert wrong["slug"] in assert_problem(refused, 409, "wrong_mode")["detail"]
        project = await made.project(ann, coder)
        path = f"/api/projects/{project}"
        assert_problem(await ann.patch(path, json={"mode": "manual"}), 409, "wrong_mode")
        assert_problem(await ann.patch(path, json={"agent_ids": [coder["id"], person["id"]]}), 409, "wrong_mode")
        moved = await ok(ann.patch(path, json={"mode": "manual", "agent_ids": [person["id"]]}))
        assert (moved["mode"], moved["agent_ids"]) == ("manual", [person["id"]])


async def test_a_project_takes_only_agents_that_its_owner_may_use(gateway: GatewayProcess) -> None:
    async with gateway.as_user("ann") as ann, gateway.as_user("bob") as bob, gateway.as_admin() as admin:
        foreign, public = await made.agent(bob), await made.agent(admin)
        refused = await ann.post("/api/projects", json={**GOOD, "agent_ids": [foreign["id"]]})
        missing = await ann.post("/api/projects", json={**GOOD, "agent_ids": ["0" * 24]})
        assert_problem(refused, 400, "bad_request")
        assert refused.text.replace(foreign["id"], "0" * 24) == missing.text
        project = await made.project(ann, public)
        for client, status in ((ann, 200), (admin, 200), (bob, 404)):
            assert (await client.get(f"/api/projects/{project}")).status_code == status
        # An admin changes it for its owner: it is the owner who must be allowed the agent.
        bad = await admin.patch(f"/api/projects/{project}", json={"agent_ids": [foreign["id"]]})
        assert_problem(bad, 400, "bad_request")
        path = f"/api/projects/{project}"
        for answer in (
            await bob.patch(path, json={"name": "x"}),
            await bob.delete(path),
            await bob.put(f"{path}/git-credentials", json={"kind": "token", "secret": "x"}),
            await bob.delete(f"{path}/git-credentials"),
            await bob.post(f"{path}/test"),
        ):
            assert_problem(answer, 404, "not_found")


def new_key(file: Path, passphrase: str) -> str:
    argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", passphrase, "-f", str(file)]
    subprocess.run(argv, check=True)
    return file.read_text()


async def test_git_credentials_are_write_only(gateway: GatewayProcess, tmp_path: Path) -> None:
    key, locked = new_key(tmp_path / "key", ""), new_key(tmp_path / "locked", "word")
    known = "git.example.com ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEabcdefghij"
    async with gateway.as_user("ann") as ann:
        path = f"/api/projects/{await made.project(ann)}"
        put = f"{path}/git-credentials"
        token = "ghp_0123456789abcdefghijklmnopWXYZ"
        assert (await ann.put(put, json={"kind": "token", "secret": token})).status_code == 204
        shown = await ann.get(path)
        assert token not in shown.text
        body = shown.json()
        assert (body["has_git_credentials"], body["git_credentials_kind"], body["git_credentials_hint"]) == (
            True,
            "token",
            "WXYZ",
        )
        assert (await ann.put(put, json={"kind": "deploy_key", "secret": key, "known_hosts": known})).status_code == 204
        body = (await ann.get(path)).json()
        assert (body["git_credentials_kind"], body["git_credentials_hint"]) == ("deploy_key", None)
        bad = [
            {"kind": "token", "secret": "a b"},
            {"kind": "token", "secret": "a\nb"},
            {"kind": "token", "secret": "x", "username": "a:b"},
            {"kind": "deploy_key", "secret": key},
            {"kind": "deploy_key", "secret": key, "known_hosts": "nonsense"},
            {"kind": "deploy_key", "secret": locked, "known_hosts": known},
            {"kind": "deploy_key", "secret": "-----BEGIN OPENSSH PRIVATE KEY-----\nHidden", "known_hosts": known},
            {"kind": "password", "secret": "x"},
        ]
        for one in bad:
            answer = await ann.put(put, json=one)
            assert_problem(answer, 400, "bad_request")
            assert "Hidden" not in answer.text
        assert (await ann.delete(put)).status_code == 204
        assert (await ann.delete(put)).status_code == 204
        assert (await ann.get(path)).json()["has_git_credentials"] is False
        assert_problem(await ann.post(f"{path}/test"), 503, "no_runner")
    async with gateway.as_admin() as admin:
        audit = await admin.get("/api/audit-log", params={"subject": path.rpartition("/")[2]})
        actions = [entry["action"] for entry in audit.json()["items"]]
        assert actions.count("project.git_credentials_set") == 2
        assert actions.count("project.git_credentials_cleared") == 1
        assert token not in audit.text


async def test_what_planning_and_people_need_is_kept_checked_and_given_to_plans(
    gateway: GatewayProcess, planner: None
) -> None:
    async with gateway.as_user("ann") as ann:
        bare = await ok(ann.post("/api/projects", json=GOOD), 201)
        assert (bare["auto_finalize"], bare["poll_interval_s"]) == (False, 30.0)
        path = f"/api/projects/{bare['id']}"
        collab = {"collab_repo_url": "https://git.example.com/a/collab.git", "collab_dir": "x/y", "poll_interval_s": 9}
        kept = await ok(ann.patch(path, json={"auto_finalize": True, **collab}))
        assert (kept["auto_finalize"], kept["poll_interval_s"]) == (True, 9.0)
        for field, value, why in (
            ("poll_interval_s", 4, "out of range: 5 to 3,600 seconds"),
            ("poll_interval_s", 3601, "out of range"),
        ):
            refused = await ann.patch(path, json={field: value})
            assert why in assert_problem(refused, 400, "bad_request")["detail"]
        for field in ("auto_finalize", "planning_mode"):
            assert_problem(await ann.patch(path, json={field: None}), 400, "bad_request")
        plan = await made.plan(ann, bare["id"])
        await made.finalized(ann, plan)
        events = (await ok(ann.get(f"/api/plans/{plan}/events")))["events"]
        [settings] = [event["settings"] for event in events if event["type"] == "finalizing"]
        assert settings["collab"] == {
            "repo_url": collab["collab_repo_url"],
            "directory": "x/y",
            "poll_interval_s": 9.0,
        }
        assert (await ok(ann.patch(path, json={"poll_interval_s": None})))["poll_interval_s"] == 30.0
