"""What receivers get is what they asked for, and nothing in it does more than it says."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from datetime import UTC, datetime

import pytest

from services.gateway.notifications.happenings import Happening
from services.gateway.notifications.post import retry_after_s
from services.gateway.notifications.target import BadTarget, checked_target, resolved, shown
from services.gateway.notifications.words import (
    NAME_MAX_CHARS,
    REASON_MAX_CHARS,
    body,
    counted,
    headers,
    notice_of,
    plain,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)
HOSTILE = '<!channel> \x1b[31m<at user_id="all">\u202e&\x00 evil\r\nsecond \ud800line'


def happening(reason: str = "it broke", name: str = "Shop") -> Happening:
    return Happening(
        event="needs_attention", seq=7, time=NOW, plan="paaaaaaaaaaaa", plan_name=name, project="f" * 24, task="T1",
        task_name="First", reason=reason,
    )  # fmt: skip


def test_a_generic_body_is_the_facts_and_nothing_else() -> None:
    notice = notice_of(happening(), "Web", "https://treadle.example.com")
    assert json.loads(body("generic", notice, "s", NOW)) == {
        "event": "needs_attention",
        "time": "2026-01-01T00:00:00Z",
        "plan": {
            "id": "paaaaaaaaaaaa",
            "name": "Shop",
            "project": "Web",
            "project_id": "f" * 24,
            "url": "https://treadle.example.com/api/plans/paaaaaaaaaaaa",
        },
        "task": {"code": "T1", "name": "First"},
        "reason": "it broke",
        "more": 0,
    }


def test_a_gateway_that_does_not_know_its_address_does_not_make_one_up() -> None:
    plan = notice_of(happening(), "Web", None).plan
    assert plan is not None and plan.url is None


def test_hostile_texts_are_one_plain_bounded_line() -> None:
    notice = notice_of(happening(HOSTILE + "x" * 100_000, HOSTILE + "y" * 100_000), HOSTILE, None)
    assert notice.plan is not None
    for text, chars_max in ((notice.reason, REASON_MAX_CHARS), (notice.plan.name, NAME_MAX_CHARS)):
        assert len(text) == chars_max
        assert text.startswith('<!channel> [31m<at user_id="all">& evil second line')
        assert text.isprintable()


def test_slack_is_given_no_mention_and_no_link() -> None:
    text = json.loads(body("slack", notice_of(happening(HOSTILE), "Web", None), "", NOW))["text"]
    assert "<" not in text and ">" not in text
    assert "&lt;!channel&gt;" in text and "&amp; evil" in text
    assert text.startswith("Treadle: task T1 First of plan Shop (Web) needs attention: ")


def test_feishu_is_given_no_mention_and_the_signature_that_it_checks() -> None:
    told = json.loads(body("feishu", notice_of(happening(HOSTILE), "Web", None), "feishu secret", NOW))
    assert told["msg_type"] == "text" and "<" not in told["content"]["text"]
    key = f"{told['timestamp']}\nfeishu secret".encode()
    assert told["timestamp"] == str(int(NOW.timestamp()))
    assert base64.b64decode(told["sign"]) == hmac.digest(key, b"", hashlib.sha256)
    assert json.loads(body("feishu", notice_of(happening(), "", None), "", NOW)).keys() == {"msg_type", "content"}


def test_a_number_stands_for_no_task_in_particular() -> None:
    notice = counted(notice_of(happening(), "Web", None), 490)
    assert (notice.more, notice.task, notice.reason) == (490, None, "490 more of its tasks need attention")


def test_only_what_is_generic_carries_headers_of_ours() -> None:
    assert "Treadle-Signature" in headers("generic", "test", "d", "s", b"{}", NOW)
    assert not [name for name in headers("slack", "test", "d", "", b"{}", NOW) if name.startswith("Treadle")]


@pytest.mark.parametrize(
    "url",
    [
        "ftp://example.com/",
        "https://user:pass@example.com/",
        "https://token@example.com/",
        "https://example.com/#part",
        "https://",
        "https://example.com:0/",
        "https://example.com:99999/",
        "https://exa mple.com/",
        "https://example.com/\\evil",
        "https://bücher.example/",
        "http://127.0.0.1/",
        "http://localhost/",
        "http://169.254.169.254/latest/meta-data",
        "http://metadata.google.internal/",
        "http://[::1]/",
        "http://[::ffff:127.0.0.1]/",
        "http://[64:ff9b::7f00:1]/",
        "http://0x7f000001/",
        "http://2130706433/",
        "http://0177.0.0.1/",
        "http://10.0.0.1/",
        "http://nats/",
        "http://100.64.0.1/",
        "not a url",
        "https://example.com/" + "x" * 2048,
    ],
)
def test_an_address_that_must_not_be_reached_is_refused(url: str) -> None:
    with pytest.raises(BadTarget):
        checked_target(url, allow_private=False)


@pytest.mark.parametrize(
    "url", ["http://169.254.169.254/latest", "http://[fe80::1]/", "http://[::ffff:169.254.169.254]/"]
)
def test_where_machines_keep_their_metadata_nothing_is_sent_whatever_the_operator_allows(url: str) -> None:
    with pytest.raises(BadTarget):
        checked_target(url, allow_private=True)
    assert checked_target("http://127.0.0.1:9000/hook", allow_private=True).host == "127.0.0.1"


def test_the_operator_may_allow_private_hosts_but_never_credentials() -> None:
    assert checked_target("http://127.0.0.1:8080/x?y=1", allow_private=True).rest == "/x?y=1"
    with pytest.raises(BadTarget):
        checked_target("http://a:b@127.0.0.1/", allow_private=True)


def test_an_address_is_shown_without_what_is_secret_of_it() -> None:
    target = checked_target("https://hooks.slack.com/services/T000/B000/very-secret-part", allow_private=False)
    assert shown(target) == "https://hooks.slack.com/…part"
    assert shown(checked_target("https://example.com:8443/abc", allow_private=False)) == "https://example.com:8443/…"


async def test_a_name_that_resolves_to_a_private_address_is_refused_when_it_is_sent_to() -> None:
    # As a public name whose owner points it at this machine: its text says nothing.
    target = checked_target("http://localhost/", allow_private=True)
    with pytest.raises(BadTarget, match="private"):
        await resolved(target, allow_private=False)
    assert set(await resolved(target, allow_private=True)) <= {"127.0.0.1", "::1"}


@pytest.mark.parametrize(
    ("header", "wait_s"),
    [
        ("", 0),
        ("120", 120),
        ("-5", 0),
        ("99999999999999999999", 3600),
        ("²", 0),
        ("Thu, 01 Jan 2026 00:01:00 GMT", 60),
        ("Thu, 01 Jan 2099 00:01:00 GMT", 3600),
        ("Thu, 01 Jan 2020 00:01:00 GMT", 0),
        ("soon", 0),
        ("Thu, 99 Jan 99999 00:01:00 GMT", 0),
    ],
)
def test_what_a_receiver_says_of_when_to_come_again_is_bounded(header: str, wait_s: float) -> None:
    assert retry_after_s(header, NOW) == wait_s


def test_text_that_is_short_stays_as_it_is() -> None:
    assert plain("Größe 漢字 😀", 50) == "Größe 漢字 😀"
