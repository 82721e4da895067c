"""Schemathesis over `/schema`, all checks, as an admin and as a user: no 5xx, no answer that is not documented.

`TREADLE_SCHEMA_EXAMPLES` asks for more requests per route than the few that every run makes.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gateway.gateway_process import GatewayProcess
from tests.gateway.service_process import service
from tests.nats_process import NatsServer

EXAMPLES = os.environ.get("TREADLE_SCHEMA_EXAMPLES", "5")
TIMEOUT_S = 900.0
SCHEMATHESIS = str(Path(sys.executable).with_name("schemathesis"))
CONFIG = """
[checks.positive_data_acceptance]
# A schema can't say what a valid plan, an address or an If-Match is: data that fits it may still be refused.
expected-statuses = ["2xx", "400", "401", "403", "404", "409", "412", "413", "422", "428", "429", "503"]
"""
ENDLESS = r"/stream$"
"""These never end; tests/gateway/projection/test_streams.py looks at them."""


@pytest.fixture(scope="module")
def served(
    gateway: GatewayProcess, nats_url: NatsServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GatewayProcess]:
    """With a planner, or an import would answer 503."""
    with service("planner", nats_url, tmp_path_factory.mktemp("planner")):
        yield gateway


@pytest.mark.timeout(TIMEOUT_S)
@pytest.mark.parametrize("role", ["admin", "user"])
def test_what_is_answered_is_what_the_schema_says(served: GatewayProcess, role: str, tmp_path: Path) -> None:
    who = "admin" if role == "admin" else "ada"
    if role == "user":
        served.as_user(who)
    (tmp_path / "schemathesis.toml").write_text(
        f'headers = {{ Authorization = "Bearer {served.token_of(who)}" }}\n{CONFIG}'
    )
    done = subprocess.run(
        [
            *(SCHEMATHESIS, "--config-file", str(tmp_path / "schemathesis.toml"), "run", "--no-color"),
            *("--checks", "all", "--max-examples", EXAMPLES, "--seed", "1", "--generation-database", "none"),
            *("--exclude-path-regex", ENDLESS, "--request-timeout", "60"),
            f"{served.url}/schema/openapi.json",
        ],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2_000:]
    assert " passed" in done.stdout
