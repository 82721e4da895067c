"""What a project may say about hosts, tools and delivery: which values can't be."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from shared.host_pattern import BadHostPattern, parse_host_pattern
from shared.spec import COMMAND_MAX_BYTES, HOSTS_MAX, PERMISSIONS_MAX, UNPRINTABLE_LINE, UNPRINTABLE_TEXT, Permission

PATTERN_MAX_CHARS = 1024
BRANCH_MAX_CHARS = 200
TREADLES_OWN = "treadle/"
"""What plans' branches are called."""

_TOOL = re.compile(r"\*|[A-Za-z][A-Za-z0-9_.-]{0,127}")
_NOT_IN_REFS = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//")
"""After git-check-ref-format(1)."""


def hosts(patterns: Sequence[str]) -> tuple[list[str], list[str]]:
    """The hosts in their one spelling, each once, and what is wrong."""
    faults = [f"{len(patterns):,} are too many: at most {HOSTS_MAX} hosts"] if len(patterns) > HOSTS_MAX else []
    stored: dict[str, None] = {}
    for text in patterns[:HOSTS_MAX]:
        try:
            stored[str(parse_host_pattern(text))] = None
        except BadHostPattern as error:
            faults.append(f"{text[:60]!r} is no host to reach: {error}")
    return list(stored), faults


def permissions(rules: Sequence[Permission]) -> list[str]:
    """What is wrong with the rules about tools."""
    faults = [f"{len(rules):,} are too many: at most {PERMISSIONS_MAX} rules"] if len(rules) > PERMISSIONS_MAX else []
    for place, rule in enumerate(rules[:PERMISSIONS_MAX], start=1):
        if not _TOOL.fullmatch(rule.tool):
            faults.append(f'rule {place}: {rule.tool[:60]!r} is no tool; name one, such as Bash, or "*" for all')
        if not rule.pattern.strip() or len(rule.pattern) > PATTERN_MAX_CHARS:
            size = len(rule.pattern)
            faults.append(f"rule {place}: the pattern has {size:,} characters; 1 to {PATTERN_MAX_CHARS}, not all blank")
        elif odd := UNPRINTABLE_TEXT.search(rule.pattern):
            faults.append(f"rule {place}: the pattern holds the control character U+{ord(odd.group()):04X}")
    return faults


def branch(name: str) -> list[str]:
    """What is wrong with a branch to merge into; empty is the repository's default branch."""
    if not name:
        return []
    parts = name.split("/")
    why = None
    if len(name) > BRANCH_MAX_CHARS:
        why = f"it has {len(name):,} characters; at most {BRANCH_MAX_CHARS}"
    elif name.startswith("-"):
        why = "it begins with a dash"
    elif (odd := _NOT_IN_REFS.search(name)) or (odd := UNPRINTABLE_LINE.search(name)):
        why = f"git allows no {odd.group()!a} in it"
    elif any(not part or part.startswith(".") or part.lower().endswith(".lock") for part in parts):
        why = 'a part of it is empty, begins with "." or ends in ".lock"'
    elif name.endswith(".") or name in ("@", "HEAD"):
        why = "git means something else by it"
    elif name.startswith("refs/"):
        why = "name the branch alone, without refs/heads/"
    elif name.casefold().startswith(TREADLES_OWN):
        why = f"branches under {TREADLES_OWN} are the plans' own"
    return [f"{name[:60]!r} is no branch to merge into: {why}"] if why else []


def command(text: str) -> list[str]:
    """What is wrong with a delivery's command; empty is none."""
    size = len(text.encode(errors="replace"))
    if size > COMMAND_MAX_BYTES:
        return [f"has {size:,} bytes; at most {COMMAND_MAX_BYTES:,}"]
    if text and not text.strip():
        return ["is blank"]
    odd = UNPRINTABLE_TEXT.search(text)
    return [f"holds the control character U+{ord(odd.group()):04X}"] if odd else []


def delivery(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Whether a project's three fields about delivery fit together: each fault with its field."""
    kind, faults = values["delivery"], []
    if kind == "command" and not values["delivery_command"]:
        faults.append(("delivery_command", 'is missing: the delivery "command" runs it'))
    if kind != "command" and values["delivery_command"]:
        faults.append(("delivery_command", f'only the delivery "command" has one, and this is "{kind}": clear it'))
    if kind != "merge" and values["delivery_branch"]:
        faults.append(("delivery_branch", f'only the delivery "merge" has one, and this is "{kind}": clear it'))
    return faults
