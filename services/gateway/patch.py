"""PATCH with three values per field: left out leaves it, null clears it, anything else sets it.

A body's fields are `T | None | UnsetType = UNSET`, without `None` where a field can't be empty: null is then refused as
a value of the wrong type.
"""

from typing import Any

import msgspec


def given(body: msgspec.Struct) -> dict[str, Any]:
    """The fields that a body has, with their values; None for those to be cleared."""
    fields = ((name, getattr(body, name)) for name in body.__struct_fields__)
    return {name: value for name, value in fields if value is not msgspec.UNSET}
