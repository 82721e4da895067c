"""The container engine of this machine, if there is one: whether it answers, and whether it can build our images."""

import os
import shutil
import subprocess
from pathlib import Path

BASE_IMAGES = ("python:3.11-slim-bookworm", "nats:2.15.1", "postgres:15-bookworm")
ANSWER_S = 20.0
PULL_S = 300.0


def use_compose(directory: Path) -> str | None:
    """Makes `docker compose` work, also where it is installed as `docker-compose` alone. Says why it can't be used."""
    if shutil.which("docker") is None:
        return "no container engine: there is no program docker"
    if not _works("docker", "info"):
        return "no container engine: docker info fails"
    if not _works("docker", "compose", "version"):
        alone = shutil.which("docker-compose")
        if alone is None:
            return "no docker compose: neither the plugin nor docker-compose is installed"
        plugins = directory / "cli-plugins"
        plugins.mkdir(parents=True)
        (plugins / "docker-compose").symlink_to(alone)
        os.environ["DOCKER_CONFIG"] = str(directory)
    missing = [image for image in BASE_IMAGES if not _works("docker", "image", "inspect", image)]
    for image in missing:
        if not _works("docker", "pull", "--quiet", image, within_s=PULL_S):
            return f"the base image {image} is not here and can't be pulled"
    return None


def _works(*argv: str, within_s: float = ANSWER_S) -> bool:
    try:
        return subprocess.run(argv, capture_output=True, timeout=within_s).returncode == 0
    except subprocess.TimeoutExpired:
        return False
