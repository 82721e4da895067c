"""What set-up and the agent can put where the runner writes for the Claude CLI."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from claude_agent_sdk import project_key_for_directory

from services.runner.agents import environment
from services.runner.agents.claude_cli import config_directory, forget_transcript, write_transcript
from services.runner.agents.claude_conversation import TakenUp
from services.runner.agents.claude_session import _with_instructions
from tests.agents.probes import MakeJob

SESSION = "11111111-1111-4111-8111-111111111111"


@pytest.mark.parametrize("linked", ["claude", "claude/projects", "claude/projects/{key}", "claude/projects/{key}/{id}"])
def test_a_transcript_is_written_and_removed_through_no_link(tmp_path: Path, make_job: MakeJob, linked: str) -> None:
    job = make_job(prompt="p")
    environment(job)
    key, name = project_key_for_directory(job.cwd), f"{SESSION}.jsonl"
    place = config_directory(job) / "projects" / key / name
    link = job.scratch / "home" / linked.format(key=key, id=name)
    outside = tmp_path / "outside"
    victim = outside if link == place else outside / place.relative_to(link)
    victim.parent.mkdir(parents=True, exist_ok=True)
    victim.write_text("theirs\n")
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(outside)
    forget_transcript(job, SESSION)
    assert victim.read_text() == "theirs\n"
    if not link.is_symlink():
        link.symlink_to(outside)
    write_transcript(job, SESSION, TakenUp(entries=[{"type": "user"}]))
    assert victim.read_text() == "theirs\n"
    assert place.read_text() == '{"type":"user"}\n'
    forget_transcript(job, SESSION)
    assert not place.exists()


def test_instructions_in_a_circle_or_a_pipe_are_passed_over(make_job: MakeJob) -> None:
    job = make_job(prompt="p")
    (job.cwd / "CLAUDE.md").symlink_to("CLAUDE.md")
    (job.cwd / "AGENTS.md").write_text("Be kind.")
    assert "Be kind." in _with_instructions("p", job.cwd)
    (job.cwd / "AGENTS.md").unlink()
    os.mkfifo(job.cwd / "AGENTS.md")
    assert _with_instructions("p", job.cwd) == "p"
