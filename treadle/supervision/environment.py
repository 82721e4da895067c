"""What the suite's processes may know of the user's environment, and the secrets that never go through one."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

_EVERYBODY = {"PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "XDG_CONFIG_HOME"}
# What git and ssh need to reach the repositories that the user reaches.
_GIT = {"GIT_SSH", "GIT_SSH_COMMAND", "GIT_ASKPASS", "GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM", "GIT_CONFIG_NOSYSTEM"}
_SSH = {"SSH_AUTH_SOCK", "SSH_ASKPASS"}
_TLS = {"GIT_SSL_CAINFO", "GIT_SSL_CAPATH", "SSL_CERT_FILE", "SSL_CERT_DIR", "NODE_EXTRA_CA_CERTS"}
_PROXY = {"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"}
_SANDBOX = {"TREADLE_SANDBOX_READ"}
_DISK = {"TREADLE_DISK_FLOOR_MB", "TREADLE_CACHE_MB"}
_WATCH = {"TREADLE_WATCH"}
_RUNNER = _GIT | _SSH | _TLS | _PROXY | _SANDBOX | _DISK | _WATCH | {name.lower() for name in _PROXY}


def service_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """What every service is given: a log that is not held back, and the basics."""
    return _only(_EVERYBODY, environment) | {"PYTHONUNBUFFERED": "1"}


def runner_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """What a runner is given in addition; a supervisor in the background has it, to hand on."""
    return service_environment(environment) | _only(_RUNNER, environment)


def _only(names: set[str], environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name in names}


class Secrets(msgspec.Struct, frozen=True):
    """What reaches a runner as one line of JSON on its standard input: never in an argument, environment or file."""

    anthropic_api_key: str | None = None
    anthropic_base_url: str | None = None
    environment_to_allow: dict[str, str] = {}
    """The rest of the user's environment: what a plan's `env_allow` may name, and nobody else sees."""

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Secrets:
        """Those that the user's environment holds."""
        rest = {k: v for k, v in environment.items() if not k.startswith(("TREADLE_", "ANTHROPIC_", "CLAUDE_"))}
        return cls(environment.get("ANTHROPIC_API_KEY") or None, environment.get("ANTHROPIC_BASE_URL") or None, rest)

    def line(self) -> bytes:
        return msgspec.json.encode(self) + b"\n"

    def __repr__(self) -> str:
        return "Secrets(…)"
