"""Takes secrets out of what is published: transcripts, failure messages, summaries.

Two kinds are found: values that somebody named (`Redactor.learn`), also as they look inside JSON, an address or Base64;
and texts that by their form can only be a credential. It is the last line and not the first: the agents are given no
secret but those that a project's `env_allow` names.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from urllib.parse import quote

REDACTED = "[redacted]"
LEASE_TOKEN = "treadle-lease-"  # noqa: S105 - how tokens begin, none itself
"""How the key proxy's tokens begin, so that they are known wherever they turn up."""
SECRET_MIN_CHARS = 6
"""What is shorter is no secret worth the name, and would take the sense out of every text."""

_LINE_MIN_CHARS = 16
_RANDOM_MIN_CHARS = 20
_RANDOM_MIN_BITS = 3.5
_RANDOM = re.compile(r"[A-Za-z0-9+/=_.~-]+")
_SECRET_NAME = re.compile(
    r"(?:^|_)(?:(?:API|ACCESS|AUTH|PRIVATE|SECRET|DEPLOY|SIGNING|ENCRYPTION|SSH|GPG|PGP)?KEYS?|[A-Z0-9]*TOKENS?"
    r"|[A-Z0-9]*SECRETS?|[A-Z0-9]*PASSWORD|PASSWD|PASS|PASSPHRASE|PWD|PAT|AUTH|[A-Z0-9]*CREDENTIALS?|COOKIE|DSN|SIGNATURE)(?:_|[0-9]*$)"
)
_NAME_OF_A_PLACE = ("_SOCK", "_FILE", "_PATH", "_DIR")
"""Such a variable says where a secret is; that is none."""

_PEM_LABEL = r"[A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?"
_PEM_END = re.compile(rf"-----END {_PEM_LABEL}-----")
_PEM_LINE = re.compile(r"[A-Za-z0-9+/=]{0,80}")

# A needle, in lower case, without which the pattern can't match (finding one is a hundred times as fast), and the
# pattern; what its group `kept` matches stays. What must not stand before comes behind the first letters, for the same
# reason: a pattern that begins with letters is searched for, others are tried at every place.
_SHAPES: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("private key", re.compile(rf"-----BEGIN {_PEM_LABEL}-----.*?(?:-----END {_PEM_LABEL}-----|\Z)", re.DOTALL)),
    ("sk-", re.compile(r"sk-(?<![A-Za-z0-9]sk-)(?:ant-|proj-|svcacct-|or-)?[A-Za-z0-9_-]{16,}")),
    ("gh", re.compile(r"gh[opusr]_(?<![A-Za-z0-9]gh._)[A-Za-z0-9]{16,}")),
    ("github_pat_", re.compile(r"github_pat_[A-Za-z0-9_]{16,}")),
    ("gl", re.compile(r"gl(?<![A-Za-z0-9]gl)(?:pat|dt|ptt|rt|cbt|soat|ft|agent|imt|oas)-[A-Za-z0-9_.-]{16,}")),
    ("akia", re.compile(r"AKIA(?<![A-Z0-9]AKIA)[A-Z0-9]{16}(?![A-Z0-9])")),
    ("asia", re.compile(r"ASIA(?<![A-Z0-9]ASIA)[A-Z0-9]{16}(?![A-Z0-9])")),
    ("xox", re.compile(r"xox[abceoprs]-(?<![A-Za-z0-9]xox.-)[A-Za-z0-9-]{10,}")),
    ("aiza", re.compile(r"AIza(?<![A-Za-z0-9]AIza)[A-Za-z0-9_-]{35}")),
    ("k_live_", re.compile(r"[sr]k_live_(?<![A-Za-z0-9].k_live_)[A-Za-z0-9]{16,}")),
    ("npm_", re.compile(r"npm_(?<![A-Za-z0-9]npm_)[A-Za-z0-9]{30,}")),
    ("pypi-", re.compile(r"pypi-(?<![A-Za-z0-9]pypi-)[A-Za-z0-9_-]{50,}")),
    ("hf_", re.compile(r"hf_(?<![A-Za-z0-9]hf_)[A-Za-z0-9]{30,}")),
    (LEASE_TOKEN, re.compile(rf"{LEASE_TOKEN}[A-Za-z0-9_-]{{16,}}")),
    ("eyj", re.compile(r"eyJ(?<![A-Za-z0-9_-]eyJ)[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*")),
    ("://", re.compile(r"(?P<kept>://[^\s/?#@:\"'<>]*:)[^\s/?#\"'<>]+(?=@)")),
    # A token in the place of the user's name.
    ("://", re.compile(r"(?P<kept>://)[A-Za-z0-9_.~%-]{20,}(?=@)")),
    ("bearer ", re.compile(r"(?P<kept>(?:[Bb]earer|BEARER) )[A-Za-z0-9_.~+/=-]{16,}")),
    ("authorization: ", re.compile(r"(?P<kept>(?:[Aa]uthorization|AUTHORIZATION): [Bb]asic )[A-Za-z0-9+/=]{8,}")),
)


class Redactor:
    """Takes secrets out of texts; it may learn of more of them at any time."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._forms: set[str] = set()
        self._known: re.Pattern[str] | None = None
        self.learn(*secrets)

    def learn(self, *secrets: str) -> None:
        """These are secret from now on. What is shorter than `SECRET_MIN_CHARS` is passed over."""
        forms = {form for secret in secrets for form in _forms(secret)}
        if not forms <= self._forms:
            self._forms |= forms
            # The longest first: one may begin with another.
            ordered = sorted(self._forms, key=lambda form: (-len(form), form))
            self._known = re.compile("|".join(map(re.escape, ordered)))

    def __call__(self, text: str) -> str:
        """The text with `[redacted]` in the place of every secret. Redacting twice changes nothing more."""
        if self._known is not None and any(form in text for form in self._forms):
            text = self._known.sub(REDACTED, text)
        lowered = text.lower()
        for needle, shape in _SHAPES:
            if needle in lowered:
                text = shape.sub(_replaced, text)
        return _without_ends_of_keys(text) if "-----end " in lowered else text


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """`Redactor`, for one text."""
    return Redactor(secrets)(text)


def secret_values(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Those values of the variables that are secret, as far as their names or their looks tell."""
    return tuple(
        value
        for name, value in environment.items()
        if len(value) >= SECRET_MIN_CHARS and (_is_secret_name(name.upper()) or _is_random(value))
    )


def _is_secret_name(name: str) -> bool:
    return _SECRET_NAME.search(name) is not None and not name.endswith(_NAME_OF_A_PLACE)


def _replaced(found: re.Match[str]) -> str:
    kept = found.groupdict().get("kept") or ""
    return kept + REDACTED


def _forms(secret: str) -> set[str]:
    """How a secret may stand in a text: as it is, line by line, and in what texts are commonly wrapped in."""
    secret = secret.strip()
    if len(secret) < SECRET_MIN_CHARS:
        return set()
    lines = {line.strip() for line in secret.splitlines() if len(line.strip()) >= _LINE_MIN_CHARS}
    plain = {secret, *lines}
    wrapped = {base64.b64encode(secret.encode(errors="replace")).decode().rstrip("=")}
    for one in plain:
        wrapped |= {json.dumps(one)[1:-1], json.dumps(one, ensure_ascii=False)[1:-1]}
        wrapped |= {quote(one, safe="", errors="replace"), quote(one, errors="replace")}
    return {form for form in plain | wrapped if form not in REDACTED}


def _without_ends_of_keys(text: str) -> str:
    """Without the last lines of private keys that began in an earlier piece of output."""
    pieces, begin = [], 0
    # Each line is looked at once: what an agent prints must not cost more than its length.
    for end in _PEM_END.finditer(text):
        before, last = text[begin : end.start()].split("\n"), 0
        while last < len(before) and _PEM_LINE.fullmatch(before[-1 - last].strip()):
            last += 1
        pieces += [f"{line}\n" for line in before[: len(before) - last]]
        pieces.append(REDACTED)
        begin = end.end()
    return "".join([*pieces, text[begin:]])


def _is_random(value: str) -> bool:
    """Whether the value looks as if a machine had drawn it: long, without words or structure."""
    value = value.strip()
    if len(value) < _RANDOM_MIN_CHARS or not _RANDOM.fullmatch(value) or value.startswith(("/", "~/", "./")):
        return False
    digits = sum(c.isdigit() for c in value)
    letters = sum(c.isalpha() for c in value)
    if digits < 3 or letters < 3:
        return False
    counted = Counter(value).values()
    return -sum(n / len(value) * math.log2(n / len(value)) for n in counted) >= _RANDOM_MIN_BITS
