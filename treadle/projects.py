"""The project that `treadle run` puts its plan into."""

from __future__ import annotations

from pathlib import PurePosixPath

from shared.spec import MAX_PARALLEL_MAX
from treadle.api import Gateway, Resource
from treadle.bad_input import BadInput
from treadle.plain_text import one_line

NAME_MAX_CHARS = 200
MAKES_AGENTS = "README.md tells under “Agents of your own” how one is made (POST /api/agents)"


def project_for(gateway: Gateway, repo_url: str, wanted: str | None) -> str:
    """The id of the wanted project, or of the oldest automatic one with that repository; one is made for none.

    `wanted` is an id or a name. Raises `BadInput` and `ApiError`.
    """
    found = list(gateway.pages("/projects", code_repo_url=repo_url, sort="created_at"))
    of_repo = [p for p in found if p["code_repo_url"] == repo_url and p["deleting_since"] is None]
    if wanted is not None:
        return _only(of_repo, repo_url, wanted)
    automatic = [project for project in of_repo if project["mode"] == "auto"]
    if automatic:
        return str(automatic[0]["id"])
    # Two that begin at the same instant may make two; from then on both take the older one.
    made = {
        "name": _name(repo_url),
        "mode": "auto",
        "code_repo_url": repo_url,
        "allow_concurrent_plans": True,
        "max_parallel": MAX_PARALLEL_MAX,  # it is the plan that says how many
    }
    return str(gateway.post("/projects", made)["id"])


def agent_named(gateway: Gateway, wanted: str) -> str:
    """The id of the agent with this slug, else name, else id. Raises `BadInput` for none and for several."""
    agents = list(gateway.pages("/agents"))
    for field in ("slug", "name", "id"):
        named = [agent for agent in agents if agent[field] == wanted]
        if len(named) == 1:
            return str(named[0]["id"])
        if named:
            ids = ", ".join(agent["id"] for agent in named[:5])
            raise BadInput(f"{len(named)} agents have the {field} {one_line(wanted, 60)}: name one by its id ({ids})")
    known = ", ".join(one_line(agent["slug"], 60) for agent in agents[:20])
    hint = f"there are {known}" if known else f"there is none yet: {MAKES_AGENTS}"
    raise BadInput(f"there is no agent “{one_line(wanted, 60)}”: {hint}")


def _only(projects: list[Resource], repo_url: str, wanted: str) -> str:
    named = [p for p in projects if wanted == p["id"]] or [p for p in projects if wanted == p["name"]]
    if len(named) == 1:
        return str(named[0]["id"])
    if not named:
        raise BadInput(
            f"there is no project {one_line(wanted, 60)} with the repository {repo_url}: `treadle projects` lists them"
        )
    ids = ", ".join(p["id"] for p in named[:5])
    raise BadInput(f"{len(named)} projects are called {one_line(wanted, 60)}: name one by its id ({ids})")


def _name(repo_url: str) -> str:
    """The repository's name: the last part of its path."""
    last = PurePosixPath(repo_url.rstrip("/").replace(":", "/")).name.removesuffix(".git")
    return one_line(last, NAME_MAX_CHARS) or "repository"
