"""A git server of one repository, over https with a token: what a runner's git talks to. Runs inside a container.

    python git_server.py REPOSITORY CERTIFICATE KEY TOKEN_FILE

Prints the commit that the repository begins with.
"""

import base64
import os
import ssl
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

PORT = 8443


def make_repository(path: Path) -> str:
    """A bare repository with one commit on `main`; it takes pushes."""
    _git("init", "--quiet", "--bare", "--initial-branch=main", str(path))
    _git("-C", str(path), "config", "http.receivepack", "true")
    blob = _git("-C", str(path), "hash-object", "-w", "--stdin", stdin="The first file.\n")
    tree = _git("-C", str(path), "mktree", stdin=f"100644 blob {blob}\tREADME\n")
    someone = ["-c", "user.name=Someone", "-c", "user.email=someone@example.org"]
    commit = _git("-C", str(path), *someone, "commit-tree", tree, "-m", "Begin")
    _git("-C", str(path), "update-ref", "refs/heads/main", commit)
    return commit


def _git(*words: str, stdin: str = "") -> str:
    return subprocess.run(["git", *words], input=stdin, text=True, check=True, capture_output=True).stdout.strip()


class Handler(BaseHTTPRequestHandler):
    """Hands each request to git's own CGI program."""

    protocol_version = "HTTP/1.1"
    root: Path
    token: str

    def do_GET(self) -> None:
        self._serve(b"")

    def do_POST(self) -> None:
        self._serve(self._body())

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _serve(self, body: bytes) -> None:
        kind, _, credentials = self.headers.get("Authorization", "").partition(" ")
        if kind != "Basic" or not base64.b64decode(credentials).decode().endswith(f":{self.token}"):
            self._answer(401, [("WWW-Authenticate", 'Basic realm="git"')], b"")
            return
        path, _, query = self.path.partition("?")
        environment = {
            "PATH": os.environ["PATH"],
            "GIT_PROJECT_ROOT": str(self.root),
            "GIT_HTTP_EXPORT_ALL": "1",
            "REQUEST_METHOD": self.command,
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(len(body)),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            "HTTP_GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
            "REMOTE_USER": "runner",
        }
        done = subprocess.run(["git", "http-backend"], env=environment, input=body, capture_output=True, check=True)
        head, _, answer = done.stdout.partition(b"\r\n\r\n")
        headers = [tuple(line.split(": ", 1)) for line in head.decode().split("\r\n")]
        status = next((int(value.split()[0]) for name, value in headers if name == "Status"), 200)
        self._answer(status, [(name, value) for name, value in headers if name != "Status"], answer)

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.send_response(status)
        for name, value in (*headers, ("Content-Length", str(len(body)))):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def main(repository: str, certificate: str, key: str, token_file: str) -> None:
    """Serves until it is killed."""
    sys.stdout.write(make_repository(Path(repository)) + "\n")
    sys.stdout.flush()
    Handler.root, Handler.token = Path(repository).parent, Path(token_file).read_text().strip()
    server = ThreadingHTTPServer(("0.0.0.0", PORT), Handler)  # noqa: S104 - in a container of its own
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
