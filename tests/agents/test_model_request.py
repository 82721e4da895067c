"""What the real CLI asks of the API, and what of that is passed on."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from services.runner import proxy as proxy_module
from services.runner.agents.claude import ClaudeRunner
from services.runner.model_request import allowed_betas
from services.runner.proxy import KeyProxy
from shared.spec import Permission, WorkRules
from tests.agents.claude_probes import KEY, asked, call, last_said, scripted
from tests.agents.probes import MakeJob, Reported, run_agent
from treadle.scripted_model import ScriptedModel


async def test_nothing_that_the_cli_needs_is_kept_back(
    make_job: MakeJob, reported: Reported, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When it fails with a new SDK: look at what the new name lets the provider do before it joins the list."""
    named: list[str] = []

    def recorded(headers: Iterable[str]) -> str:
        headers = list(headers)
        named.extend(headers)
        return allowed_betas(headers)

    monkeypatch.setattr(proxy_module, "allowed_betas", recorded)
    async with ScriptedModel(api_key=KEY) as model, KeyProxy(KEY, model.base_url) as proxy:
        job = make_job(prompt=scripted([call("Bash", command="echo hi")], [{"text": "Done."}]))
        finished = await run_agent(ClaudeRunner(proxy), job, reported.append)
        passed = [request.headers["anthropic-beta"] for request in model.requests if request.method == "POST"]
    assert finished.kind == "completed"
    assert named == passed
    assert all(passed)


async def test_web_search_of_the_provider_is_refused_and_the_agent_told(make_job: MakeJob, reported: Reported) -> None:
    async with ScriptedModel(api_key=KEY) as model, KeyProxy(KEY, model.base_url) as proxy:
        rules = WorkRules(permissions=(Permission(tool="WebSearch", answer="always"),))
        prompt = scripted([call("WebSearch", query="weather")], [{"text": "Done."}])
        finished = await run_agent(ClaudeRunner(proxy), make_job(prompt=prompt, rules=rules), reported.append)
        assert finished.kind == "completed"
        assert "would be run by the provider" in last_said(model)
        assert not any("type" in tool for body in asked(model) for tool in body.get("tools", []))
