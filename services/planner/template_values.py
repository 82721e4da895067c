"""What a template asks for, and what it is given: agents for its slots, values for its inputs."""

import math
import re
from collections.abc import Mapping, Sequence

from services.planner.faults import FaultList, found, label, listed, shown, shown_number
from shared.requests import TemplateInput, TemplateText
from shared.spec import AGENTS_MAX, DESCRIPTION_MAX_BYTES, UNPRINTABLE_TEXT

Given = str | float | bool
INPUTS_MAX = 100
CHOICES_MAX = 100
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
_NAMES_RULE = 'letters, digits, "-" and "_", at most 63, beginning with a letter or digit'
_WHOLE_MAX = 10**15
"""Whole numbers up to here are written without a point or an exponent."""
_WANTED = {"text": "a text", "number": "a number", "boolean": "true or false", "choice": "one of its choices"}


class Definition:
    """What a template says about itself, and what is given for it."""

    def __init__(self, template: TemplateText, faults: FaultList) -> None:
        self.faults = faults
        self.inputs = {one.name: one for one in template.inputs}
        self.slots = {role.slot: role.description for role in template.roles}
        self._names([role.slot for role in template.roles], "roles", AGENTS_MAX)
        self._names([one.name for one in template.inputs], "inputs", INPUTS_MAX)
        for one in template.inputs:
            self._check_input(one)
        faults.raise_if_any()  # what follows rests on it

    def agents(self, roles: Mapping[str, str]) -> dict[str, str]:
        """By slot, the agent: every slot has one, and no agent two."""
        filled: dict[str, str] = {}
        by_agent: dict[str, str] = {}
        for slot, slug in roles.items():
            place = f"roles.{label(slot)}"
            if slot not in self.slots:
                hint = self.faults.did_you_mean(slot, self.slots) or there_are("it has", self.slots)
                self.faults.add(f"the template has no such slot{hint}", field=place)
                continue
            filled[slot] = slug
            if not slug.strip() or not slug.isprintable():
                self.faults.add("an agent's slug is wanted", field=place)
            elif other := by_agent.get(slug.casefold()):
                self.faults.add(f"{shown(slug)} has the slot {label(other)} already: each needs its own", field=place)
            by_agent.setdefault(slug.casefold(), slot)
        for slot, description in self.slots.items():
            if slot not in roles:
                self.faults.add(f"is missing: name an agent{_that(description)}", field=f"roles.{slot}")
        return filled

    def values(self, inputs: Mapping[str, Given]) -> dict[str, Given | None]:
        """By name, what stands in the plan; None where nothing does."""
        values: dict[str, Given | None] = {}
        for name in inputs:
            if name not in self.inputs:
                hint = self.faults.did_you_mean(name, self.inputs) or there_are("it has", self.inputs)
                self.faults.add(f"the template has no such input{hint}", field=f"inputs.{label(name)}")
        for name, one in self.inputs.items():
            place = f"inputs.{name}"
            given = _trimmed(inputs.get(name))
            if given is None and one.default is None and one.required:
                self.faults.add(f"is missing: {_WANTED[one.type]} is wanted{_that(one.description)}", field=place)
            if given is not None and (why := _misfit(one, given)):
                self.faults.add(why, field=place)
                given = None
            values[name] = one.default if given is None else given
        return values

    def made_up(self, names: Sequence[str]) -> dict[str, Given]:
        """A value for each of these inputs."""
        values: dict[str, Given] = {}
        for name in names:
            one = self.inputs[name]
            examples: dict[str, Given] = {"text": "example", "number": 1.0, "boolean": True}
            example = one.choices[0] if one.type == "choice" else examples[one.type]
            values[name] = example if one.default is None else one.default
        return values

    def _names(self, names: list[str], place: str, limit: int) -> None:
        if len(names) > limit:
            self.faults.add(f"{len(names):,} are too many: at most {limit}", field=place)
        seen: set[str] = set()
        for name in names:
            if not _NAME.fullmatch(name):
                self.faults.add(f"{shown(name)} is no name for it: {_NAMES_RULE}", field=place)
            elif name.casefold() in seen:
                self.faults.add(f"{shown(name)} is there twice; names must differ in more than case", field=place)
            seen.add(name.casefold())

    def _check_input(self, one: TemplateInput) -> None:
        place = f"inputs.{label(one.name)}"
        if (one.type == "choice") != bool(one.choices):
            told = "a choice needs its choices" if one.type == "choice" else f"a {one.type} has no choices"
            self.faults.add(told, field=place)
        elif len(one.choices) > CHOICES_MAX or len(set(one.choices)) < len(one.choices):
            self.faults.add(f"choices are at most {CHOICES_MAX}, each there once", field=place)
        elif any(not choice.strip() or _text_fault(choice) for choice in one.choices):
            self.faults.add("a choice is blank, too long, or holds a control character", field=place)
        elif one.default is not None and (why := _misfit(one, one.default)):
            self.faults.add(f"its default does not fit: {why}", field=place)


def _misfit(one: TemplateInput, value: Given) -> str:
    """Why the input can't be this; empty: it can."""
    match one.type:
        case "boolean":
            fits = isinstance(value, bool)
        case "number":
            fits = isinstance(value, int | float) and not isinstance(value, bool)
        case _:
            fits = isinstance(value, str)
    if not fits:
        return f"expected {_WANTED[one.type]}, found {found(value)}"
    if isinstance(value, float) and not math.isfinite(value):
        return f"{shown_number(value)} is no number that a plan could hold"
    if isinstance(value, str):
        if one.type == "choice" and value not in one.choices:
            return f"{shown(value)} is none of its choices: {listed(one.choices, 20)}"
        return _text_fault(value)
    return ""


def _text_fault(text: str) -> str:
    if odd := UNPRINTABLE_TEXT.search(text):
        return f"holds the control character U+{ord(odd.group()):04X}"
    if (size := len(text.encode())) > DESCRIPTION_MAX_BYTES:
        return f"has {size:,} bytes; at most {DESCRIPTION_MAX_BYTES:,}"
    return ""


def _trimmed(value: Given | None) -> Given | None:
    """A text with one kind of line break and without empty lines around it; a blank one is none."""
    if not isinstance(value, str):
        return value
    text = value.replace("\r\n", "\n").replace("\r", "\n")
    return text.strip("\n") if text.strip() else None


def written(value: Given) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return value
    is_whole = value == int(value) and abs(value) < _WHOLE_MAX
    return str(int(value)) if is_whole else repr(value)


def is_needed(one: TemplateInput) -> bool:
    return one.required and one.default is None


def there_are(what: str, names: Mapping[str, object]) -> str:
    return f"; {what} {listed(names, 20)}" if names else "; it has none"


def _that(description: str) -> str:
    return f" ({shown(description)[1:-1]})" if description else ""
