"""Stand-ins for the services: programs that do nothing but tell what they were given. `stand_in.py ROLE [migrate]`."""

from __future__ import annotations

import http.server
import json
import os
import signal
import sys
import time
from pathlib import Path

DATA = Path(os.environ.get("TREADLE_DATA", "."))


def tell(event: str) -> None:
    """Appends a line to a file that the test reads."""
    said = {"event": event, "role": sys.argv[1], "pid": os.getpid(), "time": time.monotonic()}
    with (DATA / "work" / "told.jsonl").open("a") as file:
        file.write(json.dumps(said) + "\n")


class Gateway(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        allowed = (
            self.headers["Authorization"] == "Bearer " + Path(os.environ["TREADLE_GATEWAY_TOKEN_FILE"]).read_text()
        )
        usage = DATA / "work" / "usage.json"
        body = usage.read_bytes() if usage.exists() else b'{"busy": true, "clients": 0}'
        self.send_response(200 if allowed else 401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def serve_http() -> None:
    address = (os.environ["TREADLE_GATEWAY_HOST"], int(os.environ["TREADLE_GATEWAY_PORT"]))
    http.server.ThreadingHTTPServer(address, Gateway).serve_forever()


def main() -> None:
    role = sys.argv[1]
    if "migrate" in sys.argv and role != "unmigrated":
        tell("migrated")
        return
    if role in ("misconfigured", "unmigrated"):
        sys.stderr.write("reading the settings\n\x1b[31mthe setting X is wrong\n\n")
        sys.exit(os.EX_CONFIG)

    def leave(*_: object) -> None:
        tell("asked to stop")
        if role != "stubborn":
            os._exit(0)

    signal.signal(signal.SIGTERM, leave)
    given = sys.stdin.read()
    if role == "runner":
        (DATA / "work" / f"stdin-{os.getpid()}").write_text(given)
    tell("started")
    if role == "gateway":
        serve_http()
    while True:
        signal.pause()


main()
