"""What is asked and answered about templates, and which values can't be."""

from datetime import datetime
from typing import Annotated, Any

import msgspec

from services.gateway.problems import bad_request
from shared.requests import TemplateInput, TemplateRole, TemplateText
from shared.spec import NAME_MAX_CHARS, UNPRINTABLE_LINE, UNPRINTABLE_TEXT

DESCRIPTION_MAX_CHARS = 4000
TEXT_MAX_BYTES = 1024 * 1024

_YAML = """name: "{{title}}"
tasks:
- {code: do, name: Do it, description: "{{title}}", assignee: agent-1}
"""
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=NAME_MAX_CHARS)]
Description = Annotated[str, msgspec.Meta(max_length=DESCRIPTION_MAX_CHARS)]
Text = Annotated[str, msgspec.Meta(min_length=1, max_length=TEXT_MAX_BYTES, examples=[_YAML])]
Unset = msgspec.UnsetType
UNSET = msgspec.UNSET
Value = str | float | bool


class NewTemplate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A plan with slots and inputs. A template's YAML file has the same fields."""

    name: Name
    description: Description = ""
    text: Text
    """A plan file, YAML or JSON. `{{input}}` stands for an input; an assignee or fixer is one of the slots."""
    roles: tuple[TemplateRole, ...] = ()
    inputs: tuple[TemplateInput, ...] = ()


class TemplateChanges(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is to be different: a field left out stays."""

    name: Name | Unset = UNSET
    description: Description | Unset = UNSET
    text: Text | Unset = UNSET
    roles: tuple[TemplateRole, ...] | Unset = UNSET
    inputs: tuple[TemplateInput, ...] | Unset = UNSET


class TemplateItem(msgspec.Struct, frozen=True, kw_only=True):
    """A template in a list: all but its text."""

    id: str
    owner_id: str | None
    """null: it comes with Treadle; nobody changes it, everybody may copy it."""
    name: str
    description: str
    roles: list[TemplateRole]
    inputs: list[TemplateInput]
    created_at: datetime
    version: int


class TemplateView(TemplateItem, frozen=True, kw_only=True):
    """A template."""

    text: str


class Filled(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a template's slots and inputs are filled with."""

    roles: dict[str, str] = {}
    """By slot, an agent's slug. Every slot has one, and no agent two."""
    inputs: dict[str, Value] = {}


class FromTemplate(Filled, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A plan of the project's, made from a template. The roles' agents are the project's: slugs or ids."""

    template_id: str
    base_commit: str | None = None
    """Full object id that every task starts from; null: the head of the code repository's default branch."""


class Preview(msgspec.Struct, frozen=True):
    """The plan file that comes out."""

    text: str


# Values that can't be ---------------------------------------------------------------------------------------------


def checked(fields: dict[str, Any]) -> dict[str, Any]:
    """The columns that these fields of a body are stored in. Raises `ProblemError` 400."""
    if "name" in fields and (UNPRINTABLE_LINE.search(fields["name"]) or fields["name"] != fields["name"].strip()):
        raise bad_request("name", "a name has no control characters, and no blanks around it")
    if "text" in fields and len(fields["text"].encode()) > TEXT_MAX_BYTES:
        raise bad_request("text", f"a template has at most {TEXT_MAX_BYTES // 1024**2} MiB")
    _check_words("description", fields.get("description", ""))
    for field in ("roles", "inputs"):
        for one in fields.get(field, ()):
            _check_words(field, one.description)
    # As the database gives them back: lists, where bodies have tuples.
    stored: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(fields))
    return stored


def _check_words(field: str, text: str) -> None:
    if len(text) > DESCRIPTION_MAX_CHARS:
        raise bad_request(field, f"a description has at most {DESCRIPTION_MAX_CHARS} characters")
    if odd := UNPRINTABLE_TEXT.search(text):
        raise bad_request(field, f"a description holds the control character U+{ord(odd.group()):04X}")


def template_text(columns: dict[str, Any]) -> TemplateText:
    """What the planner wants to know of a template."""
    return msgspec.convert({field: columns[field] for field in TemplateText.__struct_fields__}, TemplateText)
