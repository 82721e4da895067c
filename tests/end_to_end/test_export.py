"""A plan as a file that the command wrote: with its commits, and without anything private."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from shared.history.archive import Archive
from tests.end_to_end.plans import git, plan, task
from tests.end_to_end.suite import Suite


def test_an_export_has_the_commits_and_a_redacted_one_has_no_word_of_anybody_and_both_can_be_looked_at(
    suite: Suite, repo: Path, tmp_path: Path
) -> None:
    origin = suite.submit(
        plan(
            task("ONE", "echo canary-one > one.txt"),
            task("TWO", "cat one.txt > two.txt", "ONE"),
            task("BAD", "echo hopeless > half.txt; exit 3", "ONE"),
            name="Canary plan",
        ),
        repo,
    )
    suite.standing(origin, "needs_attention")
    file, hidden = tmp_path / "plan.treadle", tmp_path / "hidden.treadle"
    done = suite.command("export", origin, "-o", str(file), "--json")
    assert done.status == 0, done.err
    told = json.loads(done.out)
    kept = f"refs/treadle/{origin}/BAD/1-wip"
    assert told["plan"] == origin and [said for said in told["left_out"] if kept not in said] == []
    assert suite.command("export", origin, "-o", str(hidden), "--redact").status == 0
    bare = suite.command("export", origin, "-o", str(tmp_path / "bare.treadle"), "--no-commits", "--json")
    assert json.loads(bare.out)["commits"] is None
    tasks = suite.tasks(origin)
    shutil.rmtree(repo)

    with Archive.open(file) as archive:
        assert (archive.manifest.counts.results, archive.manifest.counts.diffs) == (2, 2)
        assert b"+canary-one" in (archive.diff("ONE") or b"")
        bundle = archive.bundle(tmp_path)
        assert bundle is not None and archive.manifest.commits is not None and archive.manifest.commits.complete
    git(tmp_path, "init", "-q", "--bare", "empty.git")
    git(tmp_path / "empty.git", "fetch", "-q", str(bundle), "+refs/*:refs/*")
    assert git(tmp_path / "empty.git", "show", f"{tasks['TWO']['commit']}:two.txt") == "canary-one"

    assert git(tmp_path / "empty.git", "show", f"{kept}:half.txt") == "hopeless"

    assert suite.command("import", str(file), "--digest", "0" * 64).status == 2
    taken = suite.command("import", str(file), "--digest", told["digest"], "--json")
    assert taken.status == 0, taken.err
    imported = json.loads(taken.out)["id"]
    assert suite.command("status", imported).status == 0
    assert "canary-one" in suite.command("diff", "ONE", "--plan", imported).out
    for looked_at in (imported, str(file), str(hidden)):
        verified = suite.command("replay", looked_at, "--verify")
        assert verified.status == 0, verified.out + verified.err
        why = suite.command("why", "BAD", "--plan", looked_at)
        assert why.status == 0 and "BAD" in why.out

    with Archive.open(hidden) as archive:
        assert archive.manifest.redacted and archive.manifest.commits is None
        for name in archive.names():
            text = b"".join(archive.contents(name) or ())
            assert not any(word in text for word in (b"anary", b"hopeless", str(repo).encode())), name
