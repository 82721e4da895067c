"""Prompts that carry their own script, and what the model was sent."""

from __future__ import annotations

import json
from typing import Any

from treadle.scripted_model import ScriptedModel

KEY = "sk-canary-0123456789"


def scripted(*turns: Any) -> str:
    """A prompt for the scripted model."""
    return f"# Task T1: a test\n\nDo it.\n\n```script\n{json.dumps(turns)}\n```\n"


def call(tool: str, **arguments: Any) -> dict[str, Any]:
    return {"tool": tool, "input": arguments}


def asked(model: ScriptedModel) -> list[dict[str, Any]]:
    """The bodies of the model's requests, in order."""
    return [request.body for request in model.requests if request.path == "/v1/messages"]


def last_said(model: ScriptedModel) -> str:
    """All that the model was last sent behind the prompt."""
    return json.dumps(asked(model)[-1]["messages"][1:], ensure_ascii=False)
