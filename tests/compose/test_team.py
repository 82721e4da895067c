"""compose.yaml runs a plan that was submitted through the gateway, and gives nothing away."""

import json
from typing import Any

import pytest

from tests.compose.team import GIT_TOKEN, GIT_URL, RUNNERS, TAG, Team, docker

pytestmark = pytest.mark.timeout(1500)  # the first test waits for the images

TASKS = 6
# A second of work, so that a runner with one slot is still busy when the next task is ready.
SHELL = 'sleep 1; cat > "$TREADLE_TASK.prompt"; hostname > "$TREADLE_TASK.host"'  # a sandbox has a name of its own
PLAN = {
    "name": "Work for three",
    "tasks": [
        {"code": f"T{n}", "name": f"Task {n}", "assignee": "sh", "description": f"Write number {n}."}
        for n in range(1, TASKS + 1)
    ],
}


@pytest.fixture(scope="module")
def plan(suite: Team) -> dict[str, Any]:
    """From an empty database: an agent, a project on a private git server, and a plan that has completed."""
    suite.log_in()
    kind = suite.ask("POST", "agent-types", {"name": "Shell", "sdk_type": "command", "command": ["sh", "-c", SHELL]})
    agent = suite.ask("POST", "agents", {"name": "sh", "agent_type_id": kind["id"]})
    project = suite.ask("POST", "projects", {"name": "Work", "code_repo_url": GIT_URL, "agent_ids": [agent["id"]]})
    suite.ask("PUT", f"projects/{project['id']}/git-credentials", {"kind": "token", "secret": GIT_TOKEN})
    return run_plan(suite, project["id"])


def run_plan(suite: Team, project: str) -> dict[str, Any]:
    base = suite.git("rev-parse", "main")
    made = suite.ask("POST", f"projects/{project}/plans", {"text": json.dumps(PLAN), "base_commit": base})
    suite.ask("POST", f"plans/{made['plan']}/finalize", {"candidate": made["candidate"]})
    view: dict[str, Any] = suite.until(f"plans/{made['plan']}", lambda plan: plan["status"] == "completed")
    return view


def test_several_runners_do_a_plan_that_was_submitted_over_http(suite: Team, plan: dict[str, Any]) -> None:
    branch = f"treadle/{plan['plan']}"
    files = set(suite.git("ls-tree", "--name-only", branch).split())
    assert files == {"README", *(f"T{n}.{kind}" for n in range(1, TASKS + 1) for kind in ("prompt", "host"))}
    hosts = {found["Config"]["Hostname"] for name, found in suite.containers().items() if "-runner-" in name}
    assert len(hosts) == RUNNERS
    assert not hosts & {suite.git("show", f"{branch}:T{n}.host") for n in range(1, TASKS + 1)}, "it ran in no sandbox"
    events = suite.ask("GET", f"plans/{plan['plan']}/events?limit=1000")["events"]
    used = {event["runner"] for event in events if event["type"] == "started"}
    assert used <= {f"runner-{host}" for host in hosts}
    assert len(used) > 1


def test_the_runners_are_named_after_their_containers(suite: Team, plan: dict[str, Any]) -> None:
    hosts = {found["Config"]["Hostname"] for name, found in suite.containers().items() if "-runner-" in name}
    shown = suite.until("runners", lambda answer: len(answer["items"]) == RUNNERS)["items"]
    assert {one["runner"] for one in shown} == {f"runner-{host}" for host in hosts}


def test_no_process_has_root_or_any_capability_and_no_root_file_system_can_be_written(suite: Team) -> None:
    for name, found in suite.containers().items():
        assert found["HostConfig"]["ReadonlyRootfs"], name
        assert not found["HostConfig"]["CapAdd"], name
        if not found["State"]["Running"]:
            continue
        lines = docker("exec", name, "sh", "-c", "cat /proc/[0-9]*/status 2>&1; true").splitlines()
        told = {key: {line.split()[1] for line in lines if line.startswith(f"{key}:")} for key in ("Uid", "CapEff")}
        assert told["Uid"], name
        assert "0" not in told["Uid"], name
        assert told["CapEff"] == {"0" * 16}, name
        assert {line.split()[1] for line in lines if line.startswith("NoNewPrivs:")} == {"1"}, name


def test_no_secret_is_in_what_docker_shows_in_an_image_in_a_log_or_in_a_process(
    suite: Team, plan: dict[str, Any]
) -> None:
    secrets = secrets_of(suite)
    for name, found in suite.containers().items():
        shown = json.dumps(found) + docker("history", "--no-trunc", "--format", "{{json .}}", found["Image"])
        if found["State"]["Running"]:
            processes = processes_of(name)
            assert "ermission denied" not in processes
            assert all(variable in processes for variable in found["Config"]["Env"]), name
            shown += processes
        assert not [secret for secret in secrets if secret in shown], name
    logs = suite.logs()
    assert "runner" in logs
    assert not [secret for secret in secrets if secret in logs]


def processes_of(container: str) -> str:
    """Environment and arguments of every process, read from beside it as root: services hide them from their user."""
    beside = ("--rm", "--cap-add=SYS_PTRACE", "--user=0", "--network=none", f"--pid=container:{container}")
    read = "cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline 2>&1; true"
    return docker("run", *beside, f"treadle-nats:{TAG}", "sh", "-c", read)


def secrets_of(suite: Team) -> set[str]:
    """Everything that `make secrets` made, the git token, and the session that is open."""
    single = [path for path in suite.secrets.iterdir() if path.is_file() and path.name != "nats.conf"]
    keys = json.loads((suite.secrets / "keyring/keyring.json").read_text())["keys"].values()
    return {*(path.read_text() for path in single), *keys, GIT_TOKEN, suite.log_in()["token"]}


def test_nats_denies_no_service_anything_that_it_needs(suite: Team, plan: dict[str, Any]) -> None:
    assert not [line for line in suite.logs().splitlines() if "NATS denies" in line or "Violation" in line]


def test_a_new_key_is_used_without_a_restart(suite: Team, plan: dict[str, Any]) -> None:
    suite.new_key()
    done = suite.ask("POST", "keys/reencrypt")
    assert (done["reencrypted"], done["current_key"]) == (1, "k2")


def test_the_gateway_answers_on_this_machine_alone(suite: Team) -> None:
    published = {
        binding["HostIp"]
        for found in suite.containers().values()
        for bindings in (found["NetworkSettings"]["Ports"] or {}).values()
        for binding in bindings or ()
    }
    assert published == {"127.0.0.1"}


@pytest.mark.parametrize(
    ("service", "missing"),
    [("gateway", "claude_agent_sdk"), ("runner", "litestar"), ("planner", "litestar"), ("dispatcher", "pip")],
)
def test_an_image_holds_its_own_service_alone(suite: Team, service: str, missing: str) -> None:
    look = "import importlib.util as u, sys; print([u.find_spec(n) is not None for n in sys.argv[1:]])"
    shown = suite.run_in(service, "python", "-c", look, f"services.{service}", missing)
    assert shown.strip() == "[True, False]"


def test_a_service_is_unhealthy_while_nats_is_away_and_work_goes_on_when_it_is_back(
    suite: Team, plan: dict[str, Any]
) -> None:
    nats, planner = (name for kind in ("nats", "planner") for name in suite.containers() if f"-{kind}-" in name)
    docker("stop", nats)
    suite.wait_for_health(planner, "unhealthy")
    docker("start", nats)
    suite.wait_for_health(planner, "healthy")
    assert run_plan(suite, plan["project"])["plan"] != plan["plan"]
