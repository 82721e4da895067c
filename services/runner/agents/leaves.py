"""The texts in what JSON can hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec


def storable(value: Any) -> Any:
    """The same as UTF-8 can hold it: a half of a surrogate pair, which a model may write, becomes a question mark."""
    try:
        msgspec.json.encode(value)
    except UnicodeEncodeError:
        return leaves_changed(value, lambda text: text.encode(errors="replace").decode())
    return value


def leaves_changed(value: Any, change: Callable[[str], str]) -> Any:
    """The same with `change` made to each text in it, the names of fields included."""
    match value:
        case str():
            return change(value)
        case dict():
            return {change(str(name)): leaves_changed(one, change) for name, one in value.items()}
        case list() | tuple():
            return [leaves_changed(one, change) for one in value]
    return value
