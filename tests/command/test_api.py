"""The command's calls to a gateway, over real HTTP: what is repeated, what is not, and which project is taken."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from shared.spec import MAX_PARALLEL_MAX
from treadle.api import Address, ApiError, Gateway
from treadle.bad_input import BadInput
from treadle.instance import Instance
from treadle.projects import project_for

Answer = tuple[int, dict[str, Any]] | None
"""None: the connection is closed without one."""


class Stub:
    """Answers as it is told, in order, and keeps what it was asked; routes themselves are the gateway's own tests."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.asked: list[tuple[str, str, str | None, bytes]] = []
        self.if_match: str | None = None
        """As it was sent last."""
        self.tags: dict[str, str] = {}
        """Headers of every answer."""
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                stub.asked.append((self.command, self.path, self.headers["Idempotency-Key"], body))
                stub.if_match = self.headers["If-Match"] or stub.if_match
                answer = stub.answers.pop(0)
                if answer is None:
                    self.close_connection = True
                    return
                content = json.dumps(answer[1]).encode()
                self.send_response(answer[0])
                self.send_header("Content-Length", str(len(content)))
                for name, value in stub.tags.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            do_POST = do_PATCH = do_GET

            def log_message(self, *_: object) -> None:
                """Says nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    @property
    def port(self) -> int:
        return self._server.server_port

    def gateway(self) -> Gateway:
        return Gateway(Address(f"http://127.0.0.1:{self.port}", "token"))

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def stub() -> Iterator[Stub]:
    made = Stub()
    yield made
    made.close()


def test_post_whose_answer_was_lost_is_repeated_with_the_same_key_and_body(stub: Stub) -> None:
    in_progress = {"code": "in_progress", "detail": "still at work"}
    stub.answers = [None, (409, in_progress), (201, {"id": "x"})]
    assert stub.gateway().post("/projects", {"name": "x"}) == {"id": "x"}
    assert len(stub.asked) == 3
    assert len(set(stub.asked)) == 1
    assert stub.asked[0][2]


def test_refusal_is_not_repeated_and_the_next_post_has_another_key(stub: Stub) -> None:
    refused = {"code": "refused", "detail": "the plan is \x1b[31mcompleted"}
    stub.answers = [(409, refused), (409, refused)]
    for _ in range(2):
        with pytest.raises(ApiError, match="completed") as error:
            stub.gateway().post("/plans/p/pause")
        assert "\x1b" not in str(error.value)
    assert stub.asked[0][2] != stub.asked[1][2]


def test_list_is_read_to_its_last_page(stub: Stub) -> None:
    stub.answers = [(200, {"items": [{"n": 1}, {"n": 2}], "next": "c"}), (200, {"items": [{"n": 3}], "next": None})]
    assert [item["n"] for item in stub.gateway().pages("/plans", sort="-created_at")] == [1, 2, 3]
    assert "cursor=c" in stub.asked[1][1] and all("sort=-created_at" in asked[1] for asked in stub.asked)


def project(id_: str, **more: object) -> dict[str, object]:
    usual = {"name": "r", "mode": "auto", "code_repo_url": "/r", "deleting_since": None}
    return {"id": id_, **usual, **more}


def test_oldest_automatic_project_of_the_repository_is_taken(stub: Stub) -> None:
    others = [project("a", mode="manual"), project("b", code_repo_url="/x"), project("c", deleting_since="2026")]
    stub.answers = [(200, {"items": [*others, project("d"), project("e")], "next": None})]
    assert project_for(stub.gateway(), "/r", None) == "d"


def test_project_is_made_where_there_is_none(stub: Stub) -> None:
    stub.answers = [(200, {"items": [], "next": None}), (201, {"id": "new"})]
    assert project_for(stub.gateway(), "git@host:team/loom.git", None) == "new"
    made = json.loads(stub.asked[1][3])
    assert (made["name"], made["mode"], made["allow_concurrent_plans"]) == ("loom", "auto", True)
    assert made["max_parallel"] == MAX_PARALLEL_MAX, "a plan's own wish would be cut"


def test_every_fault_of_a_plan_comes_with_the_refusal(stub: Stub) -> None:
    faults = [{"message": f"task T{n}, assignee: unknown (line {n})", "task": f"T{n}"} for n in range(40)]
    stub.answers = [(422, {"code": "invalid_plan", "detail": "the first of them", "faults": faults})]
    with pytest.raises(ApiError) as error:
        stub.gateway().post("/projects/p/plans")
    assert error.value.faults == tuple(fault["message"] for fault in faults)


def test_wanted_project_is_found_by_id_or_name_and_a_doubtful_name_is_refused(stub: Stub) -> None:
    listed: Answer = (200, {"items": [project("a"), project("b"), project("c", name="one")], "next": None})
    stub.answers = [listed] * 4
    assert project_for(stub.gateway(), "/r", "b") == "b"
    assert project_for(stub.gateway(), "/r", "one") == "c"
    with pytest.raises(BadInput, match=r"2 projects are called r: .*\(a, b\)"):
        project_for(stub.gateway(), "/r", "r")
    with pytest.raises(BadInput, match="no project nine"):
        project_for(stub.gateway(), "/r", "nine")


@pytest.mark.parametrize(
    "url", ["x", "ftp://x", "https://", "https://u:p@x", "https://x/?token=1", "http://x:99999", "https://x/#a"]
)
def test_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(BadInput, match="gateway's address"):
        Instance.chosen(None, url, {"TREADLE_TOKEN": "t"})


def test_token_comes_from_a_file_or_the_environment_and_is_never_shown(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("trd_of_file\n")
    both = {"TREADLE_TOKEN_FILE": str(file), "TREADLE_TOKEN": "trd_of_environment"}
    chosen = Instance.chosen(None, "https://treadle.example.com/", both).elsewhere
    assert chosen is not None
    assert (chosen.url, chosen.token, chosen.through_proxies) == ("https://treadle.example.com", "trd_of_file", True)
    assert "trd_of_file" not in repr(chosen)
    local = Instance.chosen(None, "http://127.0.0.1:8640/api", {"TREADLE_TOKEN": "t"}).elsewhere
    assert local is not None and (local.url, local.through_proxies) == ("http://127.0.0.1:8640", False)
    for bad in ("", "two words", "line\nbreak", "ümlaut"):
        with pytest.raises(BadInput, match="token"):
            Instance.chosen(None, "https://x", {"TREADLE_TOKEN": bad})
