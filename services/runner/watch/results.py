"""What a person delivered: the text of a `result.json` becomes a `Result`, or every fault of it in words. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, Never

import msgspec

from services.runner.git import printable
from services.runner.reviews import BadReview, read_review
from shared.events import ARTIFACTS_MAX, Result, Review, Usage

RESULT_MAX_BYTES = 1024 * 1024
USAGE_MAX_BYTES = 64 * 1024
SUMMARY_MAX_BYTES = 8 * 1024
"""It is told to everybody who does a task behind this one."""
PATH_MAX_CHARS = 4096
TOKENS_MAX = 10**12
COST_MAX_USD = 1e6

# Possessive (`+` behind a quantifier): a long row of its signs that is no fence is walked once, not for each sign.
_FENCE = re.compile(r"^ {0,3}+(`{3,}+|~{3,}+)[^\n`]*+$", re.MULTILINE)
_STRING_OR_COMMA = re.compile(r'"(?:[^"\\]|\\.)*"?|,(?=[ \t\r\n]*[}\]])', re.DOTALL)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_FAULTS_SHOWN_MAX = 20


class Asked(msgspec.Struct, frozen=True):
    """What the result is asked to be."""

    task: str
    reviews: str = ""
    """The task that it judges; empty: it is no review."""
    round: int = 1
    commit: str = ""
    """What it judges."""


class Given(msgspec.Struct, frozen=True):
    """A valid result."""

    result: Result
    commit: str = ""
    """Full object id of the work's commit, which nobody has looked for yet; empty: none was named."""


class NotValid(ValueError):
    """What was delivered is not what was asked for; `faults` say all that is wrong."""

    def __init__(self, faults: Sequence[str]) -> None:
        self.faults = tuple(faults)
        super().__init__("; ".join(faults))


def read_result(content: bytes, asked: Asked) -> Given:
    """The result that a file holds. Raises `NotValid`."""
    said = _object(content)
    faults: list[str] = []
    task_code, summary = said.get("task_code"), _summary(said.get("summary"), faults)
    if task_code is None:
        faults.insert(0, f"`task_code` is missing: it is {asked.task}")
    elif task_code != asked.task:
        faults.insert(0, f"`task_code` is {_shown(task_code)}, but this is the result of {asked.task}")
    artifacts = _artifacts(said.get("artifacts"), faults)
    commit = _commit(said.get("commit"), faults)
    review = _review(said.get("review"), asked, faults) if asked.reviews else None
    if faults:
        raise NotValid(faults)
    return Given(Result(task_code=asked.task, summary=summary, artifacts=artifacts, review=review), commit)


def read_usage(content: bytes) -> Usage:
    """What a `usage.json` says was consumed. Raises `NotValid`."""
    said = _object(content)
    faults: list[str] = []
    values: dict[str, Any] = {}
    for name in Usage.__struct_fields__:
        value = said.get(name)
        if value is None:
            continue
        is_cost = name == "cost_usd"
        fits = isinstance(value, int | float if is_cost else int) and not isinstance(value, bool)
        if fits and 0 <= value <= (COST_MAX_USD if is_cost else TOKENS_MAX):
            values[name] = float(value) if is_cost else value
        else:
            faults.append(f"`{name}` is {_shown(value)}, which is no {'amount in US dollars' if is_cost else 'count'}")
    if faults:
        raise NotValid(faults)
    return Usage(**values)


def in_words(faults: Sequence[str], path: str, where: str) -> str:
    """For the person who delivered it: what is wrong, and what to do."""
    shown = [f"- {fault}" for fault in faults[:_FAULTS_SHOWN_MAX]]
    if len(faults) > _FAULTS_SHOWN_MAX:
        shown.append(f"- and {len(faults) - _FAULTS_SHOWN_MAX} more")
    listed = "\n".join(shown)
    return f"What lies at {printable(path)} in {where} is no valid result:\n{listed}\nCorrect it and push it again."


def _object(content: bytes) -> dict[str, Any]:
    """The JSON object in a file, as people and models write it: in a fence, with commas too many, behind a BOM."""
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise NotValid(["it is UTF-16: save it as UTF-8"])
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise NotValid([f"byte {error.start + 1} is not UTF-8: save it as UTF-8"]) from None
    if not text.strip():
        raise NotValid(["it is empty"])
    try:
        said = json.loads(_without_trailing_commas(_without_fence(text)), parse_constant=_no_number)
        json.dumps(said, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise NotValid(
            [f"it can't be read as JSON: {error.msg} in line {error.lineno}, column {error.colno}"]
        ) from None
    except UnicodeEncodeError:
        raise NotValid(["it has half a character in it (a lone surrogate): write that character anew"]) from None
    except RecursionError:
        raise NotValid(["it is nested too deeply"]) from None
    except ValueError as error:
        raise NotValid([f"it can't be read as JSON: {printable(str(error))}"]) from None
    if not isinstance(said, dict):
        raise NotValid([f"it is {_kind(said)}, and has to be an object: {{…}}"])
    return said


def _without_fence(text: str) -> str:
    """What is in the first Markdown fence of a text that does not begin as an object; else the text.

    Line breaks stand for what was left out, so that faults name the file's own lines.
    """
    if text.lstrip().startswith(("{", "[")):
        return text
    opening = _FENCE.search(text)
    if opening is None:
        return text
    closing = next((m for m in _FENCE.finditer(text, opening.end()) if m[1].startswith(opening[1])), None)
    inner = text[opening.end() : closing.start() if closing else None]
    return "\n" * text.count("\n", 0, opening.end()) + inner


def _without_trailing_commas(text: str) -> str:
    return _STRING_OR_COMMA.sub(lambda found: " " if found[0] == "," else found[0], text)


def _no_number(word: str) -> Never:
    raise ValueError(f"{word} is no number in JSON")


def _summary(value: object, faults: list[str]) -> str:
    if value is None:
        faults.append("`summary` is missing: say what was done")
        return ""
    if not isinstance(value, str):
        faults.append(f"`summary` is {_kind(value)}, and has to be a text")
        return ""
    summary = "".join(c if c.isprintable() or c == "\n" else " " for c in value.replace("\r\n", "\n")).strip()
    if not summary:
        faults.append("`summary` is empty: say what was done")
    elif (size := len(summary.encode())) > SUMMARY_MAX_BYTES:
        faults.append(f"`summary` has {size} bytes, and may have {SUMMARY_MAX_BYTES}: shorten it")
    return summary


def _artifacts(value: object, faults: list[str]) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        faults.append(f"`artifacts` is {_kind(value)}, and has to be a list of paths")
        return ()
    if len(value) > ARTIFACTS_MAX:
        faults.append(f"`artifacts` has {len(value)} paths, and may have {ARTIFACTS_MAX}")
        return ()
    for number, path in enumerate(value, 1):
        if why := _why_no_path(path):
            faults.append(f"`artifacts`, number {number}: {_shown(path)} {why}")
    return tuple(dict.fromkeys(path for path in value if isinstance(path, str)))


def _why_no_path(path: object) -> str:
    if not isinstance(path, str):
        return f"is {_kind(path)}, and has to be a path"
    if not path.strip():
        return "is empty"
    if len(path) > PATH_MAX_CHARS or not path.isprintable():
        return "is too long for a path" if path.isprintable() else "has control characters in it"
    if path.startswith(("/", "~")) or re.match(r"[A-Za-z]:", path):
        return "is absolute: write it from the repository's root"
    if "\\" in path:
        return 'has a backslash in it: write "/"'
    if ".." in path.split("/"):
        return "leads out by `..`: write it from the repository's root"
    return ""


def _commit(value: object, faults: list[str]) -> str:
    if value is None or value == "":
        return ""
    if isinstance(value, str) and _COMMIT.fullmatch(value.strip().lower()):
        return value.strip().lower()
    faults.append(f"`commit` is {_shown(value)}, which is no full commit id (40 hex digits): git rev-parse prints one")
    return ""


def _review(value: object, asked: Asked, faults: list[str]) -> Review | None:
    if value is None:
        faults.append(f"`review` is missing: the verdict on {asked.reviews}, with `approve` and `findings`")
        return None
    if not isinstance(value, dict):
        faults.append(f"`review` is {_kind(value)}, and has to be an object with `approve` and `findings`")
        return None
    round_, commit = value.get("round"), value.get("commit")
    if round_ is not None and (round_ != asked.round or isinstance(round_, bool)):
        faults.append(f"`review.round` is {_shown(round_)}, but this is round {asked.round}")
    if commit not in (None, "") and commit != asked.commit:
        faults.append(
            f"`review.commit` is {_shown(commit)}, but the work of {asked.reviews} is {asked.commit}: look at that one"
        )
    try:
        return read_review({"findings": [], **value}, None, round_=asked.round, commit=asked.commit)
    except BadReview as error:
        faults.extend(f"`review`: {line.removeprefix('- ')}" for line in str(error).splitlines())
        return None


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _shown(value: object) -> str:
    return (
        printable(json.dumps(value, ensure_ascii=False)[:200])
        if not isinstance(value, str)
        else f'"{printable(value[:200])}"'
    )
