"""A decision, a command or a state as people read it: field by field, long texts cut."""

from typing import Any

import msgspec

VALUE_MAX_CHARS = 300


def as_said(value: Any) -> dict[str, str]:
    """What is not as by default, as JSON; empty for None, and `{"": …}` for what is words already."""
    if value is None:
        return {}
    if isinstance(value, str):
        return {"": cut(value)}
    named = getattr(type(value), "name", None)  # an event's; elsewhere it may be a field, which is no text
    said: dict[str, str] = {"": named if isinstance(named, str) else type(value).__name__}
    for field in msgspec.structs.fields(value):
        content = getattr(value, field.name)
        default = field.default
        if field.default_factory is not msgspec.NODEFAULT:
            default = field.default_factory()
        if default is msgspec.NODEFAULT or content != default:
            said[field.name] = cut(msgspec.json.encode(content).decode())
    return said


def cut(text: str) -> str:
    """The text, or its beginning and how long it was."""
    if len(text) <= VALUE_MAX_CHARS:
        return text
    return f"{text[:VALUE_MAX_CHARS]}… ({len(text):,} characters)"
