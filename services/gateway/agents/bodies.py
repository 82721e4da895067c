"""What is asked and answered about agent types and agents, and which values can't be."""

import re
import unicodedata
from datetime import datetime, timedelta
from typing import Annotated
from urllib.parse import urlsplit

import msgspec

from services.gateway.agents.availability import Availability, Limit
from services.gateway.problems import ProblemError, bad_request
from shared.repo_url import BadRepoUrl, check_repo_url
from shared.spec import (
    AGENT_NAME_MAX_CHARS,
    CAPABILITIES_MAX_CHARS,
    COMMAND_MAX_BYTES,
    COMMANDS_MAX,
    MODEL_NAME,
    UNPRINTABLE_TEXT,
    SdkType,
)

SLUG = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
MODELS_MAX = 100
API_KEY_MAX_CHARS = 8192
URL_MAX_CHARS = 2048
WINDOW_MAX_HOURS = 366 * 24.0
RESET_MAX = timedelta(hours=WINDOW_MAX_HOURS)
_YEAR_MAX = 9000
"""Databases and time zones have no room behind 9999."""
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=AGENT_NAME_MAX_CHARS)]
Slug = Annotated[str, msgspec.Meta(min_length=1, max_length=AGENT_NAME_MAX_CHARS, pattern=r"^[a-z0-9][a-z0-9-]*\Z")]
Capabilities = Annotated[str, msgspec.Meta(max_length=CAPABILITIES_MAX_CHARS)]
Models = Annotated[list[str], msgspec.Meta(max_length=MODELS_MAX)]
Command = Annotated[list[str], msgspec.Meta(max_length=COMMANDS_MAX)]
Url = Annotated[str, msgspec.Meta(max_length=URL_MAX_CHARS)]
ApiKey = Annotated[str, msgspec.Meta(min_length=1, max_length=API_KEY_MAX_CHARS)]
Hours = Annotated[float, msgspec.Meta(gt=0, le=WINDOW_MAX_HOURS)]
Time = Annotated[datetime, msgspec.Meta(tz=True)]
Unset = msgspec.UnsetType
UNSET = msgspec.UNSET


class NewAgentType(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A kind of agent."""

    name: Name
    sdk_type: SdkType | None = None
    """null: a person does the work."""
    command: Command = []
    """Only of the type `command`: the program and its arguments."""
    api_base_url: Url | None = None
    """null: the model's own address."""
    models: Models = []
    """What agents of this type may use; empty: any."""
    api_key: ApiKey | None = None
    """Is stored encrypted and never shown."""

    def __repr__(self) -> str:
        return f"NewAgentType({self.name!r}, …)"


class AgentTypeChanges(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is to be different: a field left out stays, null clears it."""

    name: Name | Unset = UNSET
    sdk_type: SdkType | Unset | None = UNSET
    command: Command | Unset | None = UNSET
    api_base_url: Url | Unset | None = UNSET
    models: Models | Unset | None = UNSET
    api_key: ApiKey | Unset | None = UNSET
    clear_credentials: bool = False
    """Says that another `sdk_type` or another host of `api_base_url` may remove the key that is stored."""

    def __repr__(self) -> str:
        return "AgentTypeChanges(…)"


class AgentTypeView(msgspec.Struct, frozen=True, kw_only=True):
    """An agent type. Of its key only that it is there, and only to whom may change it."""

    id: str
    owner_id: str
    name: str
    sdk_type: SdkType | None
    command: list[str]
    api_base_url: str | None
    models: list[str]
    is_auto: bool
    is_public: bool
    """An admin's: everybody may use it."""
    has_api_key: bool | None
    """null to whom it does not concern."""
    api_key_hint: str | None
    """The key's last four characters; null for a short key and to whom it does not concern."""
    created_at: datetime
    version: int


class NewAgent(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Somebody whom tasks can be given to."""

    name: Name
    slug: Slug | None = None
    """null: made from the name."""
    agent_type_id: str
    model: str | None = None
    """null: the type's first one."""
    capabilities: Capabilities = ""
    """What it is good at, in words for whoever makes a plan."""
    is_active: bool = True
    short_window_hours: Hours | None = None
    """How long a subscription's short limit lasts once it is hit."""
    long_window_hours: Hours | None = None
    expires_at: Time | None = None


class AgentChanges(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is to be different: a field left out stays, null clears it."""

    name: Name | Unset = UNSET
    slug: Slug | Unset = UNSET
    agent_type_id: str | Unset = UNSET
    model: str | Unset | None = UNSET
    capabilities: Capabilities | Unset | None = UNSET
    is_active: bool | Unset = UNSET
    short_window_hours: Hours | Unset | None = UNSET
    long_window_hours: Hours | Unset | None = UNSET
    expires_at: Time | Unset | None = UNSET


class AgentView(msgspec.Struct, frozen=True, kw_only=True):
    """An agent."""

    id: str
    owner_id: str
    name: str
    slug: str
    agent_type_id: str
    agent_type_name: str
    model: str | None
    capabilities: str
    is_active: bool
    is_auto: bool
    """A runner does its tasks, not a person."""
    is_public: bool
    short_window_hours: float | None
    long_window_hours: float | None
    expires_at: datetime | None
    availability: Availability
    created_at: datetime
    version: int


class LimitReport(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An agent has hit a limit, or is available again. One of `limit` and `available` is wanted."""

    limit: Limit | None = None
    resets_at: Time | None = None
    """When that limit ends; null: after the agent's window for it."""
    available: bool = False


class TestWish(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to try an agent type out with."""

    model: str | None = None
    """null: the type's first one."""


# Values that can't be ---------------------------------------------------------------------------------------------


def checked_name(name: str) -> str:
    """Raises `ProblemError` 400 for a name that people could not read."""
    if not name.isprintable() or name != name.strip():
        raise bad_request("name", "a name has no control characters, and no blanks around it")
    return name


def checked_capabilities(text: str) -> str:
    """Raises `ProblemError` 400 for what would not be read as it was written."""
    if odd := UNPRINTABLE_TEXT.search(text):
        raise bad_request("capabilities", f"holds the control character U+{ord(odd.group()):04X}")
    return text.strip()


def slug_of(name: str) -> str:
    """A slug made from a name: its letters without their accents, everything else a dash. Raises `ProblemError` 400."""
    ascii_name = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    slug = re.sub(r"[^a-z0-9]+", "-", ascii_name).strip("-")[:AGENT_NAME_MAX_CHARS].rstrip("-")
    if not SLUG.fullmatch(slug):
        raise bad_request("slug", f"no slug can be made from the name {name!r}: give one of a-z, 0-9 and -")
    return slug


def checked_api_key(key: str) -> str:
    """The key without what copying puts around it. Raises `ProblemError` 400."""
    key = key.strip()
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise bad_request("api_key", "a key has only printable ASCII characters and no blanks in it: copy it again")
    return key


def checked_models(models: list[str]) -> list[str]:
    """Each once, in their order. Raises `ProblemError` 400."""
    for model in models:
        checked_model("models", model)
    return list(dict.fromkeys(models))


def checked_model(field: str, model: str) -> str:
    """Raises `ProblemError` 400 for what can't be a model's name."""
    if not MODEL_NAME.fullmatch(model):
        raise bad_request(field, f"{model[:128]!r} is no model's name")
    return model


def checked_command(command: list[str], sdk_type: str | None) -> list[str]:
    """Raises `ProblemError` 400 where there is a command too many, none, or one that can't be started."""
    if sdk_type != "command":
        if command:
            raise bad_request("command", "only agent types of the sdk_type command have one: clear it with null")
        return []
    if not command or not command[0]:
        raise bad_request("command", "name the program and its arguments, such as ['my-agent', '--quiet']")
    if any("\x00" in word for word in command) or sum(len(word.encode()) for word in command) > COMMAND_MAX_BYTES:
        raise bad_request("command", f"a command has at most {COMMAND_MAX_BYTES} bytes, and no zero byte among them")
    return command


def checked_time(field: str, time: datetime) -> datetime:
    """Raises `ProblemError` 400 for a time that no database can hold."""
    if not 1 < time.year < _YEAR_MAX:
        raise bad_request(field, f"a time is before the year {_YEAR_MAX}")
    return time


def checked_base_url(url: str, *, allow_local: bool, allow_private_hosts: bool) -> str:
    """An address that a runner may send the key to. Raises `ProblemError` 400.

    `allow_local` lets http through, to loopback only.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise _bad_url("is no URL") from None
    if not url.isascii() or not url.isprintable() or any(c in url for c in ' \\<>"{}|^`'):
        raise _bad_url("has blanks or characters in it that no URL has")
    if "@" in parts.netloc:
        raise _bad_url("carries credentials: the key belongs into api_key")
    if "?" in url or "#" in url:
        raise _bad_url("has a query or a fragment")
    if not host or port == 0:
        raise _bad_url("names no host and port that could be reached")
    if parts.scheme == "http" and allow_local and host in _LOOPBACK:
        return url.rstrip("/")
    if parts.scheme != "https":
        raise _bad_url("must begin with https://")
    try:
        # A repository's host is held to the very same rules: private ones, and numbers that hide one.
        check_repo_url(f"https://{parts.netloc}/a/b.git", allow_local=False, allow_private_hosts=allow_private_hosts)
    except BadRepoUrl:
        raise _bad_url("names a private host, which only an admin may do, or no valid one") from None
    return url.rstrip("/")


def _bad_url(why: str) -> ProblemError:
    return bad_request("api_base_url", f"the address {why}; such as https://api.example.com")
