"""`treadle clean` offers what nobody uses, and removes no work that exists nowhere else."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import git
import httpx
import msgspec
import pytest

from services.runner.caches import cache_of
from services.runner.deliver import push_lease
from services.runner.in_use import in_use, lease_in_use
from services.runner.leftovers import commit_leftovers
from services.runner.mirror import mirror_of
from services.runner.workspace import Workspace, create_workspace
from treadle.api import Address, Gateway
from treadle.clean import REFS_KEPT_DAYS, find_items, size_words

PLAN = "paaaaaaaaaaaa"
NOW = datetime(2026, 6, 1, tzinfo=UTC)


@pytest.fixture
def repo(tmp_path: Path) -> git.Repo:
    repo = git.Repo.init(tmp_path / "repo", initial_branch="main")
    (tmp_path / "repo" / "a.txt").write_text("a\n")
    repo.index.add(["a.txt"])
    repo.index.commit("begin")
    return repo


def gateway(repo: git.Repo, status: str, *, ended_days: float = 0, running: tuple[str, int] | None = None) -> Gateway:
    """The answers of a gateway that knows one plan; HTTP itself is `tests/end_to_end`'s subject."""
    updated = (NOW - timedelta(days=ended_days)).isoformat()
    view = {"plan": PLAN, "project": "", "status": status, "repo_url": str(repo.working_dir), "updated_at": updated}
    tasks = [{"code": running[0], "lease": running[1], "status": "running"}] if running else []

    def answer(request: httpx.Request) -> httpx.Response:
        body: list[Any] = tasks if request.url.path.endswith("/tasks") else [view]
        return httpx.Response(200, content=msgspec.json.encode({"items": body, "next": None}))

    made = Gateway(Address("http://127.0.0.1:1", "token"))
    made.http = httpx.Client(transport=httpx.MockTransport(answer), base_url="http://127.0.0.1:1/api")
    return made


def workspace(data: Path, repo: git.Repo, task: str, lease: int) -> Workspace:
    base = repo.head.commit.hexsha
    mirror = mirror_of(data, str(repo.working_dir), "")
    mirror.ensure(PLAN, [base])
    made = create_workspace(data, mirror, PLAN, task, lease, base)
    (made.code / f"{task}.txt").write_text("work\n")
    return made


def test_unsaved_work_is_told_from_what_was_pushed_and_a_running_task_is_left_alone(
    tmp_path: Path, repo: git.Repo
) -> None:
    data = tmp_path / "data"
    saved = workspace(data, repo, "T1", 1)
    push_lease(saved, commit_leftovers(saved, "T1").commit)
    workspace(data, repo, "T2", 1)
    workspace(data, repo, "T3", 2)
    items = [i for i in find_items(data, gateway(repo, "active", running=("T3", 2)), NOW) if i.kind == "workspace"]
    assert [(i.name.split()[1], i.unsaved) for i in items] == [("T1", False), ("T2", True)]
    items[0].remove()
    assert not saved.path.exists()


def test_what_makes_a_candidate_is_left_alone_while_a_runner_holds_it(tmp_path: Path, repo: git.Repo) -> None:
    data = tmp_path / "data"
    workspace(data, repo, "_draft-1", 1)
    (data / "scratch" / f"{PLAN}-_draft-1-1").mkdir(parents=True)
    # No task of the plan's that the gateway lists.
    with lease_in_use(data, PLAN, "_draft-1", 1):
        assert find_items(data, gateway(repo, "requested"), NOW) == []
    assert [item.kind for item in find_items(data, gateway(repo, "requested"), NOW)] == ["workspace", "scratch"]


def test_a_mirror_may_go_once_no_open_plan_uses_it(tmp_path: Path, repo: git.Repo) -> None:
    data = tmp_path / "data"
    mirror_of(data, str(repo.working_dir), "").ensure(PLAN, [repo.head.commit.hexsha])
    assert [i.kind for i in find_items(data, gateway(repo, "active"), NOW)] == []
    [item] = find_items(data, gateway(repo, "completed"), NOW)
    assert (item.kind, item.name) == ("mirror", str(repo.working_dir))
    item.remove()
    assert find_items(data, gateway(repo, "completed"), NOW) == []


def test_a_cache_is_offered_while_nothing_runs(tmp_path: Path, repo: git.Repo) -> None:
    data = tmp_path / "data"
    cache = cache_of(data, mirror_of(data, str(repo.working_dir), ""))
    (cache / "pip").mkdir(parents=True)
    (cache / "pip/wheel").write_bytes(b"x" * 10_000)
    assert [i.kind for i in find_items(data, gateway(repo, "active", running=("T1", 1)), NOW)] == []
    [item] = find_items(data, gateway(repo, "active"), NOW)
    assert (item.kind, item.name, item.unsaved) == ("cache", str(repo.working_dir), False)
    with in_use(cache):
        item.remove()
        assert cache.exists()
    item.remove()
    assert not cache.exists()


def test_refs_of_an_ended_plan_go_after_some_days_and_its_branch_stays(tmp_path: Path, repo: git.Repo) -> None:
    data = tmp_path / "data"
    done = workspace(data, repo, "T1", 1)
    commit = commit_leftovers(done, "T1").commit
    push_lease(done, commit)
    repo.create_head(f"treadle/{PLAN}", commit)
    assert any(ref.path.startswith(f"refs/treadle/{PLAN}/") for ref in repo.references)
    fresh = find_items(data, gateway(repo, "completed", ended_days=REFS_KEPT_DAYS - 1), NOW)
    assert "refs" not in [i.kind for i in fresh]
    old = find_items(data, gateway(repo, "completed", ended_days=REFS_KEPT_DAYS + 1), NOW)
    [refs] = [i for i in old if i.kind == "refs"]
    assert "its branch stays, and a fork of the plan can then keep only what is in that" in refs.reason
    refs.remove()
    names = [ref.path for ref in repo.references]
    assert names and not any(name.startswith("refs/treadle/") for name in names)
    assert repo.heads[f"treadle/{PLAN}"].commit.hexsha == commit


def test_refs_stay_as_long_as_a_fork_that_has_not_ended_may_rest_on_them(tmp_path: Path, repo: git.Repo) -> None:
    data = tmp_path / "data"
    done = workspace(data, repo, "T1", 1)
    push_lease(done, commit_leftovers(done, "T1").commit)
    fork, again = "pbbbbbbbbbbbb", "pcccccccccccc"

    def kinds(status: str) -> list[str]:
        old = (NOW - timedelta(days=REFS_KEPT_DAYS + 1)).isoformat()
        common = {"project": "", "repo_url": str(repo.working_dir), "updated_at": old}
        views = [
            {"plan": PLAN, "status": "completed", **common},
            {"plan": fork, "status": "cancelled", "forked_from": {"plan": PLAN, "seq": 9}, **common},
            {"plan": again, "status": status, "forked_from": {"plan": fork, "seq": 12}, **common},
        ]

        def answer(request: httpx.Request) -> httpx.Response:
            body: list[Any] = [] if request.url.path.endswith("/tasks") else views
            return httpx.Response(200, content=msgspec.json.encode({"items": body, "next": None}))

        made = Gateway(Address("http://127.0.0.1:1", "token"))
        made.http = httpx.Client(transport=httpx.MockTransport(answer), base_url="http://127.0.0.1:1/api")
        return [item.kind for item in find_items(data, made, NOW)]

    # The fork in between has not done the work itself: what the last one rests on is the first one's.
    assert "refs" not in kinds("active") and "refs" not in kinds("drafted")
    assert "refs" in kinds("completed")


def test_sizes_are_readable() -> None:
    assert [size_words(n) for n in (0, 2048, 5 * 1024**2, 3 * 1024**3)] == ["0 B", "2.0 KiB", "5.0 MiB", "3.0 GiB"]
