"""No secret in what is published, and nothing else missing from it."""

from __future__ import annotations

import base64
import json
import time
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.runner.agents import ACTIVITY_MAX_BYTES, activity
from services.runner.lease import Parked
from services.runner.redaction import LEASE_TOKEN, REDACTED, SECRET_MIN_CHARS, Redactor, redact, secret_values
from services.runner.transcript import published, without_secrets

BODY = "\n".join("MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7VJTUt9Us8cKj"[:64] for _ in range(12))
PEM = f"-----BEGIN RSA PRIVATE KEY-----\n{BODY}\nshort==\n-----END RSA PRIVATE KEY-----"
SHAPES = {
    "anthropic": "sk-ant-api03-" + "aB3_" * 20,
    "another model's": "sk-proj-" + "aB3x" * 10,
    "github": "ghp_" + "a1B2" * 9,
    "github's server": "ghs_" + "a1B2" * 9,
    "github, fine-grained": "github_pat_" + "11AB_cd0" * 8,
    "gitlab": "glpat-" + "aB3-" * 5,
    "aws": "AKIAIOSFODNN7EXAMPLE",
    "slack": "xoxb-123456789012-abcdefABCDEF",
    "npm": "npm_" + "aB3x" * 9,
    "jwt": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U",
    "the proxy's": LEASE_TOKEN + "aB3_" * 10,
    "a key": PEM,
}

any_secret = st.text(st.characters(codec="utf-8"), min_size=SECRET_MIN_CHARS, max_size=60).filter(
    lambda s: len(s.strip()) >= SECRET_MIN_CHARS and s.strip() not in REDACTED
)
any_text = st.text(max_size=200)


@pytest.mark.parametrize("secret", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("around", ["{}", "export X='{}'; echo", 'a line\n{"x": "{}"}\n', "key={},", "→{}←"])
def test_what_can_only_be_a_credential_is_taken_out(secret: str, around: str) -> None:
    before, after = around.split("{}") if around.count("{}") == 1 else around.rsplit("{}", 1)
    assert redact(f"{before}{secret}{after}") == f"{before}{REDACTED}{after}"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:hunter2!@host/r.git", "https://me:[redacted]@host/r.git"),
        ("postgresql+asyncpg://u:p%40ss@db:5432/x", "postgresql+asyncpg://u:[redacted]@db:5432/x"),
        ("https://0123456789abcdef0123@host/r", "https://[redacted]@host/r"),
        ("redis://:sesame-open@h", "redis://:[redacted]@h"),
        ("Authorization: Bearer abcdefghijklmnop1", "Authorization: Bearer [redacted]"),
        ("authorization: basic dXNlcjpwYXNz", "authorization: basic [redacted]"),
    ],
)
def test_of_an_address_or_a_header_only_the_secret_goes(text: str, shown: str) -> None:
    assert redact(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "https://host:8080/a@b git@github.com:a/b.git mail@example.com",
        "task-sk-1 sk-learn ghp_ AKIA eyJ risk-assessment-of-the-whole-project",
        "commit 2c1f7b0a9d8e7f6a5b4c3d2e1f0a9b8c7d6e5f40",
        "the bearer of this letter; authorization: basic",
        "-----BEGIN PUBLIC KEY-----\nMIIB\n-----END PUBLIC KEY-----",
        "a private key is needed",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact(text) == text


@given(any_text, any_secret, any_text)
def test_a_known_secret_is_in_no_text(before: str, secret: str, after: str) -> None:
    hidden = Redactor([secret])
    wrapped = [secret, json.dumps(secret), quote(secret), base64.b64encode(secret.strip().encode()).decode()]
    for form in wrapped:
        shown = hidden(f"{before}{form}{after}")
        assert secret.strip() not in shown
        assert form.strip('"= ') not in shown or form.strip('"= ') in REDACTED or not form.strip('"= ')


@given(st.text(max_size=300), st.lists(any_secret, max_size=3))
def test_redacting_again_changes_nothing(text: str, secrets: list[str]) -> None:
    hidden = Redactor(secrets)
    once = hidden(text + "".join(secrets))
    assert hidden(once) == once


@given(st.text(st.characters(codec="ascii", categories=("Ll", "Zs")), max_size=400))
def test_plain_words_stay_as_they_are(text: str) -> None:
    assert Redactor(["XX-never-in-it-XX"])(text) == text


def test_a_key_that_comes_in_pieces_goes_at_both_ends() -> None:
    begin, end = PEM[:300], PEM[300:]
    assert redact(f"see:\n{begin}") == f"see:\n{REDACTED}"
    assert redact(f"{end}\nand on") == f"{REDACTED}\nand on"
    assert redact(f"a sentence before\n{end}\nand on") == f"a sentence before\n{REDACTED}\nand on"


def test_each_line_of_a_secret_of_several_lines_is_secret() -> None:
    hidden = Redactor([PEM])
    line = PEM.splitlines()[1]
    assert hidden(f"cat shows {line} here") == f"cat shows {REDACTED} here"


def test_secrets_are_told_by_name_or_by_looks() -> None:
    environment = {
        "DEPLOY_KEY": "correct-horse",
        "GITHUB_TOKEN": "whatever",
        "DB_PASSWORD": "hunter22",
        "MYSECRET": "sesame",
        "SENTRY_DSN": "plainwords",
        "BUILD_ID": "f3Kq09vXz7LmPw2RtYbC",
        "PATH": "/usr/local/bin:/usr/bin",
        "SSH_AUTH_SOCK": "/run/user/1000/keyring/ssh",
        "TOKEN_FILE": "/run/secrets/token",
        "KEYBOARD": "qwertz-de",
        "MONKEY_ISLAND": "guybrush",
        "LANG": "en_US.UTF-8",
        "AN_EMPTY_TOKEN": "",
        "JAVA_VERSION": "corretto-21.0.1.12.1",
        "SHORT_TOKEN": "abc",
    }
    secret = set(secret_values(environment))
    assert secret == {"correct-horse", "whatever", "hunter22", "sesame", "plainwords", "f3Kq09vXz7LmPw2RtYbC"}


def test_a_secret_across_the_limit_is_not_published_by_half() -> None:
    secret = "correct-horse-battery-staple-" * 4
    for before in range(ACTIVITY_MAX_BYTES - len(secret) - 20, ACTIVITY_MAX_BYTES + 9000, 97):
        shown = published(activity("output", "x" * before + secret + "y" * 20_000), Redactor([secret])).text
        assert "correct" not in shown and len(shown.encode()) <= ACTIVITY_MAX_BYTES
        assert shown.endswith("[cut]")
    many = f"{secret} " * 1000  # what is taken out makes room, which must not be filled from behind the cut
    assert "correct" not in published(activity("output", many), Redactor([secret])).text


def test_a_text_of_the_size_of_the_limit_is_published_whole() -> None:
    text = "x" * ACTIVITY_MAX_BYTES
    assert published(activity("text", text), Redactor()).text == text
    assert published(activity("text", "short"), Redactor()).text == "short"


@pytest.mark.parametrize(
    "piece",
    [
        "-----BEGIN PRIVATE KEY-----\n",
        "A" * 64 + "\n",
        "-----END PRIVATE KEY-----\n",
        "sk-",
        "://",
        "://a:",
        "eyJaaaaaaaaaa.",
        "Bearer bearer ",
        "ghp_aaaaaaaaaaaaaaaaaaaa@",
        "gl",
        "treadle-lease-",
        "x",
    ],
)
def test_no_text_costs_more_than_its_length_allows(piece: str) -> None:
    text = piece * (1_000_000 // len(piece)) + "private key gh_ sk- :// eyj bearer -----end "
    hidden = Redactor([f"secret number {n}" for n in range(20)])
    started = time.process_time()
    hidden(text)
    assert time.process_time() - started < 10  # a quadratic one would take minutes


def test_what_a_person_is_asked_holds_no_secret_and_a_result_keeps_its_commits() -> None:
    redactor = Redactor(["c0ffee", "hunter2-deploy"])
    call = {"url": "https://x/?p=hunter2-deploy", "more": [{"hunter2-deploy": 1}], "n": 1}
    asked = without_secrets(Parked(kind="tool", tool="WebFetch", input=call, why="for hunter2-deploy"), redactor)
    assert "hunter2" not in repr(asked) and asked.input["n"] == 1
    result = {"summary": "used hunter2-deploy", "commit": "c0ffee" * 6 + "0000", "artifacts": ["c0ffee.txt"]}
    shown = without_secrets(Parked(kind="result", input=result, why="used hunter2-deploy"), redactor)
    assert "hunter2" not in repr(shown)
    assert shown.input == {**result, "summary": f"used {REDACTED}"}
