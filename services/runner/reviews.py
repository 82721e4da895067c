"""Reads a review out of an agent's answer. Decides, from its text: the review, or what is wrong with it."""

from __future__ import annotations

import posixpath
from collections import Counter
from typing import Any, get_args

import msgspec

from services.runner.agents import SUMMARY_MAX_BYTES, cut
from services.runner.git import printable
from services.runner.worktree import Worktree
from shared.events import FINDINGS_MAX, Finding, Review, Severity

MESSAGE_MAX_BYTES = 4 * 1024
"""Of a finding; 200 of these are a good event still."""
PATH_MAX_CHARS = 1024


class BadReview(ValueError):
    """The answer is no review; the text says all that is wrong, a line for each."""


class _Said(msgspec.Struct):
    approve: bool
    findings: list[Finding]


def read_review(answer: dict[str, Any], worktree: Worktree | None, *, round_: int, commit: str) -> Review:
    """The review that the answer is. Absolute paths are taken from the worktree, if any. Raises `BadReview`."""
    try:
        said = msgspec.convert(answer, _Said)
    except msgspec.ValidationError as fault:
        raise BadReview(f"- {fault}") from None
    faults, findings = [], []
    if len(said.findings) > FINDINGS_MAX:
        faults.append(f"- It has {len(said.findings)} findings; at most {FINDINGS_MAX} are taken: keep the worst.")
    if not said.approve and not said.findings:
        faults.append("- It does not approve and has no finding: nobody could tell what to mend.")
    for number, finding in enumerate(said.findings[:FINDINGS_MAX], 1):
        try:
            findings.append(_checked(finding, worktree))
        except BadReview as fault:
            faults.append(f"- Finding {number}: {fault}")
    if faults:
        raise BadReview("\n".join(faults))
    return Review(approve=said.approve, findings=tuple(findings), round=round_, commit=commit)


def review_summary(review: Review) -> str:
    """The verdict and the findings, the worst first, a line each; for terminals and prompts."""
    counted = Counter(finding.severity for finding in review.findings)
    severities = get_args(Severity)
    counts = ", ".join(f"{counted[severity]} {severity}" for severity in severities if counted[severity])
    first = ("approved" if review.approve else "not approved") + f" in round {review.round}: {counts or 'no findings'}"
    ordered = sorted(review.findings, key=lambda finding: severities.index(finding.severity))
    return cut("\n".join([first, *(f"- {_line(finding)}" for finding in ordered)]), SUMMARY_MAX_BYTES)


def _line(finding: Finding) -> str:
    where = f"{printable(finding.file)}{f':{finding.line}' if finding.line else ''}: " if finding.file else ""
    return f"{finding.severity}: {where}{printable(finding.message)}"


def _checked(finding: Finding, worktree: Worktree | None) -> Finding:
    if not finding.message.strip():
        raise BadReview("it has no message.")
    if finding.line is not None and finding.line < 1:
        raise BadReview(f"line {finding.line} is none: lines are counted from 1.")
    path = _relative(finding.file.strip(), worktree)
    return msgspec.structs.replace(
        finding, file=path, line=finding.line if path else None, message=cut(finding.message.strip(), MESSAGE_MAX_BYTES)
    )


def _relative(path: str, worktree: Worktree | None) -> str:
    """The path from the repository's root; "" for none."""
    if not path:
        return ""
    inner = worktree.shortened(path) if worktree and path.startswith("/") else path
    bad = inner.startswith("/") or "\\" in inner or ".." in path.split("/") or not inner.isprintable()
    if bad or len(inner) > PATH_MAX_CHARS:
        raise BadReview(f"{printable(path)} is no path from the repository's root, such as src/a.py.")
    normal = posixpath.normpath(inner)
    return "" if normal == "." else normal
