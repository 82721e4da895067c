"""compose.yaml as a team runs it: three runners, a private git server, and a person who has nothing but HTTP."""

import json
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import httpx
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from testcontainers.compose import DockerCompose

from deploy.make_secrets import CONTAINERS_ID, make_secrets

ROOT = Path(__file__).parents[2]
PROJECT = "treadle-test"
TAG = "test"
"""Nobody's own images are replaced."""
RUNNERS = 3
SLOTS = 1
GIT_SERVER = "repository"
GIT_HOST = "git.example.org"
GIT_URL = f"https://{GIT_HOST}:8443/code.git"
SERVED = "/tmp/code.git"  # noqa: S108 - of the git server's container
GIT_TOKEN = "glpat-canary-7f3a9c51e2d84b60"
BUILD_WITHIN_S = 900.0
DONE_WITHIN_S = 600.0
LOOK_AGAIN_S = 0.2


class Team:
    """The running suite. Everything is asked as `admin`, over HTTP."""

    def __init__(self, compose: DockerCompose, secrets: Path) -> None:
        self._compose = compose
        self.secrets = secrets
        host, port = compose.get_service_host_and_port("gateway", 8640)
        self._http = httpx.Client(base_url=f"http://{host}:{port}/api", timeout=30)

    def log_in(self) -> dict[str, Any]:
        """Later requests are the admin's."""
        password = (self.secrets / "admin_password").read_text()
        session: dict[str, Any] = self.ask("POST", "auth/login", {"name": "admin", "password": password})
        self._http.headers["Authorization"] = f"Bearer {session['token']}"
        return session

    def ask(self, method: str, path: str, body: object = None) -> Any:
        """The answer's JSON; a refusal fails the test in the gateway's words."""
        answer = self._http.request(method, path, json=body)
        assert answer.is_success, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json() if answer.content else None

    def until(self, path: str, holds: Callable[[Any], bool]) -> Any:
        """Asks until the answer holds. Fails with the last one and the logs."""
        deadline = monotonic() + DONE_WITHIN_S
        while not holds(answer := self.ask("GET", path)):
            if monotonic() > deadline:
                raise AssertionError(f"{path} stayed {answer}\n{self.logs()[-8000:]}")
            sleep(LOOK_AGAIN_S)
        return answer

    def wait_for_health(self, container: str, health: str) -> None:
        """Until docker says so of that container."""
        deadline = monotonic() + DONE_WITHIN_S
        while (told := docker("inspect", "--format", "{{.State.Health.Status}}", container).strip()) != health:
            assert monotonic() < deadline, f"{container} stayed {told}\n{docker('logs', '--tail', '50', container)}"
            sleep(LOOK_AGAIN_S)

    def git(self, *words: str) -> str:
        """Runs git in the served repository."""
        out, _, _ = self._compose.exec_in_container(["git", "-C", SERVED, *words], GIT_SERVER)
        return out.strip()

    def run_in(self, service: str, *argv: str) -> str:
        """Runs a program in a service's first container."""
        out, _, _ = self._compose.exec_in_container(list(argv), service)
        return out

    def logs(self) -> str:
        return "".join(self._compose.get_logs())

    def containers(self) -> dict[str, dict[str, Any]]:
        """`docker inspect` of every container of compose.yaml, the ended ones too, by their names."""
        ids = docker("ps", "--all", "--quiet", "--filter", f"label=com.docker.compose.project={PROJECT}").split()
        all_ = json.loads(docker("inspect", *ids))
        ours = [one for one in all_ if one["Config"]["Labels"]["com.docker.compose.service"] != GIT_SERVER]
        return {one["Name"].strip("/"): one for one in ours}

    def new_key(self) -> None:
        """As an operator makes one, while the gateway runs."""
        make_secrets(self.secrets.parent, CONTAINERS_ID, new_key=True)


def docker(*words: str) -> str:
    """Output of a docker command that must succeed."""
    done = subprocess.run(["docker", *words], capture_output=True, text=True)
    assert done.returncode == 0, f"docker {words}: {done.stdout}\n{done.stderr}"
    return done.stdout


@contextmanager
def team(directory: Path) -> Iterator[Team]:
    """Builds the images, starts everything, and removes the containers and volumes in the end."""
    make_secrets(directory, CONTAINERS_ID)
    settings = directory / ".env"
    own = {
        "TREADLE_SECRETS": directory / "secrets",
        "TREADLE_SLOTS": SLOTS,
        "TREADLE_PUBLISH": "127.0.0.1:",
        "TREADLE_TAG": TAG,
        "COMPOSE_PROJECT_NAME": PROJECT,
    }
    settings.write_text(settings.read_text() + "".join(f"{name}={value}\n" for name, value in own.items()))
    (directory / "test.yaml").write_text(yaml.safe_dump(_additions(directory)))
    compose = DockerCompose(
        ROOT,
        compose_file_name=["compose.yaml", "deploy/host-network.yaml", str(directory / "test.yaml")],
        env_file=str(settings),
    )
    command = compose.docker_compose_command()
    _run([*command, "build", "--quiet"], BUILD_WITHIN_S)
    try:
        _run([*command, "up", "--wait", "--scale", f"runner={RUNNERS}"], DONE_WITHIN_S)
        yield Team(compose, directory / "secrets")
    finally:
        compose.stop()


def _run(argv: list[str], within_s: float) -> None:
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=within_s)
    if done.returncode:
        logs = subprocess.run(
            [*argv[: argv.index("compose") + 1], "-p", PROJECT, "logs"], capture_output=True, text=True
        )
        raise AssertionError(f"{argv} failed:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}\n{logs.stdout[-8000:]}")


def _additions(directory: Path) -> Mapping[str, Any]:
    """A git server with a certificate of its own, which the runners trust."""
    tls = directory / "tls"
    tls.mkdir()
    _make_certificate(tls)
    (tls / "token").write_text(GIT_TOKEN)
    server = ["python", "-P", "/srv/git_server.py", SERVED]
    return {
        "services": {
            GIT_SERVER: {
                "image": f"treadle-runner:{TAG}",
                "command": [*server, "/srv/tls/cert.pem", "/srv/tls/key.pem", "/srv/tls/token"],
                "volumes": [f"{Path(__file__).parent / 'git_server.py'}:/srv/git_server.py:ro", f"{tls}:/srv/tls:ro"],
                "networks": {"outside": {"aliases": [GIT_HOST]}},
                "healthcheck": {"test": ["CMD", "git", "-C", SERVED, "rev-parse", "main"], "interval": "1s"},
            },
            "runner": {
                "environment": {"GIT_SSL_CAINFO": "/srv/cert.pem"},
                "volumes": [f"{tls / 'cert.pem'}:/srv/cert.pem:ro"],
            },
        }
    }


def _make_certificate(directory: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, GIT_HOST)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(GIT_HOST)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    (directory / "cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (directory / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
