"""Work, two reviews and a decision: what one reviewer finds is mended, reviewed again, and handed to the forge."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.end_to_end.plans import Plan, files, git, make_repo, shell
from tests.end_to_end.suite import Suite, types

FINDING = {"file": "greeting.txt", "line": 1, "severity": "major", "message": "Nobody is greeted."}


def coder() -> dict[str, Any]:
    """Greets only once it is told what was found."""
    script = """
    case "$(cat)" in
    *"## What review-a found"*"[major] greeting.txt:1: Nobody is greeted."*) echo "Hello, Ada." > greeting.txt ;;
    *) echo "Bye." > greeting.txt ;;
    esac
    echo "I wrote the greeting."
    """
    return {"sdk_type": "command", "command": ["sh", "-ec", script]}


def reviewer(approves_if: str) -> dict[str, Any]:
    """Answers with JSON behind other words, and leaves files lying about."""
    yes = json.dumps({"approve": True, "findings": []})
    no = json.dumps({"approve": False, "findings": [FINDING]})
    return shell(
        f"echo mine > stray.txt; echo spoilt >> greeting.txt; git show HEAD:greeting.txt\n"
        f"if git show HEAD:greeting.txt | {approves_if}; then echo '{yes}'; else echo '{no}'; fi"
    )


def reviewed(rounds: int, critic: str = "grep -q Hello") -> Plan:
    return {
        "name": "Greet people",
        "agents": {"coder": coder(), "critic": reviewer(critic), "friend": reviewer("cat > /dev/null")},
        "tasks": [
            {"code": "T1", "name": "Greet", "assignee": "coder", "expected_output": "greeting.txt"},
            {"code": "review-a", "name": "Is it polite?", "assignee": "critic", "reviews": "T1"},
            {"code": "review-b", "name": "Is it there?", "assignee": "friend", "reviews": "T1"},
            {
                "code": "decide",
                "name": "Is it good?",
                "depends_on": ["review-a", "review-b"],
                "max_review_rounds": rounds,
            },
        ],
    }


def delivering(suite: Suite, repo: Path, told: Path) -> None:
    """Plans for the repository end in a command that writes down what one that opens a pull request would be told."""
    names = ("TREADLE_PLAN", "TREADLE_BRANCH", "TREADLE_COMMIT", "TREADLE_REPO_URL")
    pairs = " ".join(f'"{name}=${name}"' for name in names)
    body = {
        "name": repo.name,
        "code_repo_url": str(repo),
        "delivery": "command",
        "delivery_command": f"printf '%s\\n' {pairs} >> {told}",
    }
    suite.use_project(repo, suite.post("/projects", body)["id"])


def test_what_a_review_finds_is_mended_and_the_approved_branch_goes_to_the_delivery_command(
    suite: Suite, tmp_path: Path
) -> None:
    repo, told = make_repo(tmp_path / "greeting"), tmp_path / "told"
    delivering(suite, repo, told)
    plan = suite.submit(reviewed(3), repo)
    view = suite.standing(plan, "completed")
    tasks = suite.tasks(plan)
    assert {task["status"] for task in tasks.values()} == {"completed"}
    assert set(tasks) == {
        *("T1", "review-a", "review-b", "decide"),
        *("fix-2", "review-a-2", "review-b-2", "_deliver"),
    }

    # Both rounds, each of the commit that it judged.
    rounds = {code: tasks[code]["review"] for code in tasks if "review" in code}
    assert {code: (said["approve"], said["round"]) for code, said in rounds.items()} == {
        "review-a": (False, 1),
        "review-b": (True, 1),
        "review-a-2": (True, 2),
        "review-b-2": (True, 2),
    }
    for code, said in rounds.items():
        assert said["commit"] == tasks["fix-2" if said["round"] == 2 else "T1"]["commit"], code
    assert rounds["review-a"]["findings"] == [FINDING]
    assert "Nobody is greeted." in tasks["review-a"]["summary"]
    events = suite.events(plan)
    assert types(events, None)[-2:] == ["extended", "completed"]
    [decided] = [event for event in events if event["type"] == "decided"]
    assert (decided["task"], decided["approved"], decided["round"]) == ("decide", True, 2)

    # Reviews leave nothing behind; the branch is the mended work, and the command is told of it.
    arrived = files(repo, view["branch"])
    assert arrived["greeting.txt"] == "Hello, Ada."
    assert "stray.txt" not in arrived
    assert git(repo, "rev-parse", view["branch"]) == view["head_commit"]
    assert told.read_text().splitlines() == [
        f"TREADLE_PLAN={plan}",
        f"TREADLE_BRANCH=treadle/{plan}",
        f"TREADLE_COMMIT={view['head_commit']}",
        f"TREADLE_REPO_URL={repo}",
    ]


def test_what_is_never_approved_is_not_delivered_until_a_person_says_so(suite: Suite, tmp_path: Path) -> None:
    repo, told = make_repo(tmp_path / "never"), tmp_path / "told"
    delivering(suite, repo, told)
    plan = suite.submit(reviewed(2, critic="grep -q nothing-like-this"), repo)
    suite.standing(plan, "needs_attention")
    decision = suite.tasks(plan)["decide"]
    assert decision["status"] == "needs_attention"
    assert "not approved after 2 rounds" in decision["message"] and "review-a-2: 1 finding" in decision["message"]
    assert not told.exists()
    suite.post(f"/plans/{plan}/tasks/decide/complete", {"note": "good enough"})
    suite.standing(plan, "completed")
    assert told.exists()
