#!/usr/bin/env python3
"""Lets Treadle's agent `command` drive the Codex CLI: the prompt on standard input, progress on standard error.

The agent's last message is all of standard output, so it is the task's summary. Exit status 0 only when Codex said that
its turn was completed. Arguments are handed to `codex exec`. Needs Python 3.11 and nothing else.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

THREAD_FILE = Path.home() / "codex-thread"
"""Treadle gives each lease a home of its own: what lies here is this task's conversation."""


class Turn:
    """What the CLI has said so far."""

    def __init__(self) -> None:
        self.is_completed = False
        self.message = ""
        """The agent's newest message."""
        self.fault = ""

    def take(self, line: str) -> str:
        """Takes one line of `codex exec --json`; returns what a person is told, which may be nothing."""
        try:
            event: Any = json.loads(line)
        except json.JSONDecodeError:
            return line.rstrip()
        kind, item = event.get("type"), event.get("item") or {}
        if kind == "thread.started":
            THREAD_FILE.write_text(str(event["thread_id"]))
        elif kind == "turn.completed":
            self.is_completed = True
            return f"used {json.dumps(event.get('usage'))}"
        elif kind == "turn.failed":
            self.fault = str((event.get("error") or {}).get("message", "the turn failed"))
        elif kind == "error":
            # It may be trying again: only the turn's end tells whether that helped.
            self.fault = str(event.get("message", "an error"))
            return f"error: {self.fault}"
        elif kind == "item.started" and item.get("type") == "command_execution":
            return f"$ {item.get('command')}"
        elif kind == "item.completed":
            return self._item(item)
        return ""

    def _item(self, item: dict[str, Any]) -> str:
        kind = item.get("type")
        if kind == "agent_message":
            self.message = str(item.get("text", ""))
            return self.message
        if kind == "command_execution":
            return f"{str(item.get('aggregated_output', '')).rstrip()}\n[exit status {item.get('exit_code')}]"
        if kind == "file_change":
            return "\n".join(f"{change.get('kind')} {change.get('path')}" for change in item.get("changes", ()))
        return f"{kind}: {item['text']}" if item.get("text") else ""


def main() -> int:
    """Runs one turn; a later turn of the same lease (such as a round of verification) goes on with its conversation."""
    goes_on = ["resume", THREAD_FILE.read_text()] if THREAD_FILE.exists() else []
    argv = ["codex", "exec", "--json", *sys.argv[1:], *goes_on, "-"]
    turn = Turn()
    try:
        # It reads the prompt from the standard input that it inherits, and its own complaints go where ours go.
        with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, errors="replace") as codex:
            for line in codex.stdout or ():
                if told := turn.take(line):
                    _tell(told)
    except OSError as error:
        _tell(f"codex can't be started: {error}. Install it where the runners are.")
        return 127
    if codex.returncode == 0 and turn.is_completed:
        sys.stdout.write(f"{turn.message}\n")
        return 0
    _tell(f"Codex failed: {turn.fault or f'it ended with status {codex.returncode} in the middle of its turn'}")
    return codex.returncode if codex.returncode > 0 else 1


def _tell(words: str) -> None:
    sys.stderr.write(f"{words}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
