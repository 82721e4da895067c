"""JSON bodies are taken as they are written: `"1"` is no number and `"true"` no boolean.

Litestar converts bodies as leniently as query parameters, which have no types of their own.
"""

import re
from typing import Any

import msgspec
from litestar import Request
from litestar.exceptions import ClientException, ValidationException

_AT = re.compile(r" - at `\$\.?(.*)`$")


class StrictRequest(Request[Any, Any, Any]):
    """A request whose JSON is decoded as the route's `data` at once."""

    async def json(self) -> Any:
        """The body as the type of `data`. Raises Litestar's exceptions for 400."""
        field = self.route_handler.parsed_data_field
        wanted = Any if field is None else field.raw
        try:
            return msgspec.json.decode(await self.body(), type=wanted)
        except msgspec.ValidationError as error:
            raise ValidationException(extra=[_fault(str(error))]) from error
        except msgspec.DecodeError as error:
            raise ClientException(f"the body is not JSON that can be read: {error}") from error


def _fault(told: str) -> dict[str, str]:
    """As Litestar tells of other faults."""
    at = _AT.search(told)
    return {"message": _AT.sub("", told), "key": at.group(1) if at and at.group(1) else "data", "source": "body"}
