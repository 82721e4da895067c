"""What a file says, and whether that is a result: pure."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping

import pytest

from services.runner.watch.results import SUMMARY_MAX_BYTES, Asked, NotValid, in_words, read_result, read_usage
from shared.events import ARTIFACTS_MAX, FINDINGS_MAX, Finding, Review, Usage

T1 = Asked("T1")
GOOD = {"task_code": "T1", "summary": "Done.", "artifacts": ["src/a.py", "docs/ä b.md"]}
HEAD = "b" * 40
REVIEW = Asked("R1", "T1", 3, HEAD)


def faults_of(content: str | bytes | Mapping[str, object], asked: Asked = T1) -> str:
    text = json.dumps(content) if isinstance(content, Mapping) else content
    with pytest.raises(NotValid) as found:
        read_result(text if isinstance(text, bytes) else text.encode(), asked)
    return "\n".join(found.value.faults)


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(GOOD),
        "\ufeff" + json.dumps(GOOD),
        json.dumps(GOOD, indent=2).replace("\n", "\r\n"),
        f"```json\n{json.dumps(GOOD)}\n```\n",
        f"Here it is:\n\n~~~\n{json.dumps(GOOD)}\n~~~\nI hope that it helps.",
        f"````\n{json.dumps(GOOD)}\n````",
        '{"task_code": "T1", "summary": "Done.", "artifacts": ["src/a.py", "docs/ä b.md",],}',
        '{"task_code": "T1", "summary": "Done.", "artifacts": ["src/a.py", "docs/ä b.md" , \n], \n}',
        json.dumps({**GOOD, "whatever": {"else": 1}, "commit": None, "review": {"approve": True}}),
    ],
)
def test_a_result_is_read_in_the_forms_in_which_people_and_models_write_it(text: str) -> None:
    given = read_result(text.encode(), T1)
    assert (given.result.task_code, given.result.summary, given.commit) == ("T1", "Done.", "")
    assert given.result.artifacts == ("src/a.py", "docs/ä b.md")
    assert given.result.review is None


def test_what_looks_like_a_trailing_comma_or_a_fence_inside_a_text_stays() -> None:
    summary = 'a,] b,} "c\\",]" \n```\nd\n```'
    assert read_result(json.dumps({**GOOD, "summary": summary}).encode(), T1).result.summary == summary


def test_every_fault_is_told_at_once() -> None:
    words = faults_of({"task_code": "t1", "summary": " \n", "artifacts": ["/a", "ok", 7, ""], "commit": "abc"})
    for word in ('"t1"', "T1", "`summary` is empty", '"/a"', "number 3", "number 4", '"abc"', "40 hex digits"):
        assert word in words
    assert len(words.splitlines()) == 6


@pytest.mark.parametrize(
    ("path", "word"),
    [
        ("/etc/passwd", "absolute"), ("C:/x", "absolute"), ("~/x", "absolute"), ("a\\b", "backslash"),
        ("../x", "`..`"), ("a/../../x", "`..`"), ("a\nb", "control"), ("a\x00b", "control"), (" ", "empty"),
        ("a" * 5000, "too long"), (None, "null"), (["a"], "a list"),
    ],
)  # fmt: skip
def test_an_artifact_is_a_path_from_the_repositorys_root(path: object, word: str) -> None:
    assert word in faults_of({**GOOD, "artifacts": [path]})


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "empty"), (b"   \n", "empty"), (b"\xff\xfe{\x00", "UTF-16"), (b'{"a": "\xe9"}', "byte 8 is not UTF-8"),
        ("[]", "a list"), ("null", "null"), ('"T1"', "a text"), ('{"task_code": "T1"', "line 1"),
        ('{\n "task_code": oops}', "line 2"), ('{"task_code": NaN}', "NaN"), ("[" * 100_000, "nested"),
        ('{"summary": "\\ud800"}', "surrogate"), ("Done, boss!", "line 1"), ("1" * 6000, "JSON"),
        ("```json\n{\n oops\n}\n```", "line 3"),
    ],
)  # fmt: skip
def test_what_is_no_json_object_is_told_with_its_place(content: str | bytes, word: str) -> None:
    assert word in faults_of(content)


@pytest.mark.parametrize(
    "text",
    [
        *('\\"' * 500_000, '"' * 999_999, ",]" * 400_000, "```\n" * 250_000, "{" + " ," * 500_000),
        *("~" * 50_000 + "`", "`" * 50_000 + "x`", "   ~~~" * 100_000 + "`", ("~" * 1000 + "`\n") * 500),
    ],
)
def test_a_hostile_text_is_refused_quickly(text: str) -> None:
    began = time.process_time()
    faults_of(text)
    assert time.process_time() - began < 15


def test_a_hostile_usage_is_refused_quickly() -> None:
    began = time.process_time()
    with pytest.raises(NotValid):
        read_usage(b"~" * 50_000 + b"`")
    assert time.process_time() - began < 15


def test_a_summary_is_bounded_and_has_no_control_characters() -> None:
    given = read_result(json.dumps({**GOOD, "summary": " a\x1b[31mb\x07\r\nc\u202e "}).encode(), T1)
    assert given.result.summary == "a [31mb \nc"
    assert "shorten" in faults_of({**GOOD, "summary": "ä" * (SUMMARY_MAX_BYTES // 2 + 1)})
    assert str(ARTIFACTS_MAX) in faults_of({**GOOD, "artifacts": ["a"] * (ARTIFACTS_MAX + 1)})
    assert "a number" in faults_of({**GOOD, "summary": 3})
    assert "an object" in faults_of({**GOOD, "artifacts": {}})


def test_a_commit_is_taken_in_either_case() -> None:
    assert read_result(json.dumps({**GOOD, "commit": "AB" * 20}).encode(), T1).commit == "ab" * 20
    assert "40 hex" in faults_of({**GOOD, "commit": 12})


def test_a_review_is_wanted_of_a_task_that_reviews_and_fits_its_round_and_commit() -> None:
    base = {"task_code": "R1", "summary": "Seen."}
    finding = {"message": "No test.", "severity": "minor", "file": "a.py", "line": 4}
    review = {"approve": True, "findings": [finding], "round": 3, "commit": HEAD}
    for said in (review, {"approve": True, "findings": [finding]}):
        given = read_result(json.dumps({**base, "review": said}).encode(), REVIEW)
        expected = Finding(message="No test.", severity="minor", file="a.py", line=4)
        assert given.result.review == Review(approve=True, findings=(expected,), round=3, commit=HEAD)
    assert "`review` is missing" in faults_of(base, REVIEW)
    assert "a text" in faults_of({**base, "review": "fine"}, REVIEW)
    for bad, word in (
        ({"round": 2}, "this is round 3"),
        ({"round": True}, "this is round 3"),
        ({"commit": "c" * 40}, HEAD),
        ({"approve": "yes"}, "approve"),
        ({"findings": [{"message": "x", "severity": "bad"}]}, "severity"),
        ({"findings": [{"message": " ", "severity": "note"}]}, "no message"),
        ({"findings": [{"message": "x", "severity": "note", "file": "/a"}]}, "/a"),
        ({"findings": [finding] * (FINDINGS_MAX + 1)}, str(FINDINGS_MAX)),
    ):
        assert word in faults_of({**base, "review": {**review, **bad}}, REVIEW)


def test_usage_is_counts_and_dollars_and_nothing_else() -> None:
    said = {"input_tokens": 3, "output_tokens": 4, "cost_usd": 0.25, "model": "x"}
    assert read_usage(json.dumps(said).encode()) == Usage(3, 4, cost_usd=0.25)
    assert read_usage(b"{}") == Usage()
    for bad in (
        {"input_tokens": -1},
        {"output_tokens": 1.5},
        {"cost_usd": True},
        {"cost_usd": 1e30},
        {"input_tokens": "3"},
    ):
        with pytest.raises(NotValid):
            read_usage(json.dumps(bad).encode())


def test_many_faults_are_told_in_few_words() -> None:
    words = in_words([f"fault {number}" for number in range(100)], "treadle/p/T1/result.json", "https://h/r.git")
    assert "fault 19" in words and "fault 20" not in words and "80 more" in words
    assert "treadle/p/T1/result.json" in words and "https://h/r.git" in words
