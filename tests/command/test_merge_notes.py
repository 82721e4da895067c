"""What `treadle run` says of a merge that will fail, before any work is done for it."""

from __future__ import annotations

from pathlib import Path

from tests.runner.repositories import git, make_project
from treadle.repository import merge_notes


def test_a_branch_that_the_plan_can_not_be_merged_into_is_told_before_it_starts(tmp_path: Path) -> None:
    repo = make_project(tmp_path).repo
    (checked_out,) = merge_notes(str(repo), "")
    assert "is checked out in" in checked_out and "switch to another branch there" in checked_out
    (missing,) = merge_notes(str(repo), "release")
    assert "into the branch release, which" in missing and "make it" in missing
    git(repo, "branch", "release")
    assert merge_notes(str(repo), "release") == []
    git(repo, "switch", "-q", "--detach")
    (nowhere,) = merge_notes(str(repo), "")
    assert "is on none" in nowhere
    assert merge_notes("https://git.example.com/a/b.git", "main") == []
