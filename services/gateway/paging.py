"""Lists in pages: ordered by one column and then by id, continued behind the last row that was shown.

Never by counting rows: what is added or removed between two pages makes no other row appear twice or be left out.

    PROJECTS = Order({"name": Project.name, "created_at": Project.created_at}, id_=Project.id, default="-created_at")

    @get("/projects", dependencies={"asked": Provide(asked_page)})
    async def list_projects(state: State, asked: NamedDependency[Asked]) -> Page[ProjectView]:
        async with state.db.read() as session:
            rows, next_ = await PROJECTS.fetch(session, select(Project), asked)
        return Page([view(row) for row in rows], next_)

`asked_page` and its types are imported at run time: Litestar reads the parameters for `/schema` off them.
"""

import base64
import binascii
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, Generic, TypeVar, TypeVarTuple

import msgspec
from litestar.params import QueryParameter
from sqlalchemy import BigInteger, Row, Select, String, TypeDecorator, literal, tuple_
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstrumentedAttribute

from services.gateway.problems import ProblemError

LIMIT = 50
LIMIT_MAX = 200
CURSOR_MAX_CHARS = 4096
SORT_MAX_CHARS = 64

Flag = Annotated[str | None, QueryParameter(pattern=r"^(true|false)(?!\n)$", description="`true` or `false`.")]
"""A filter by yes or no. Not a `bool | None`, which Litestar would read `null` as, and `1`."""

T = TypeVar("T")
R = TypeVar("R")
Rs = TypeVarTuple("Rs")


class Page(msgspec.Struct, Generic[T], frozen=True):
    """Some rows of a list. `next` is the `cursor` that continues it, null at its end."""

    items: list[T]
    next: str | None


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """Which page a caller wants."""

    cursor: str | None = None
    limit: int = LIMIT
    sort: str | None = None
    """A field's name, `-` before it for descending; None: the list's own order."""


async def asked_page(
    cursor: Annotated[
        str | None,
        QueryParameter(max_length=CURSOR_MAX_CHARS, description="`next` of the page before; the same `sort`."),
    ] = None,
    limit: Annotated[int, QueryParameter(ge=1, le=LIMIT_MAX)] = LIMIT,
    sort: Annotated[
        str | None, QueryParameter(max_length=SORT_MAX_CHARS, description="A field, `-` before it for descending.")
    ] = None,
) -> Asked:
    """The dependency `asked` of a route that answers a list."""
    return Asked(cursor=cursor, limit=limit, sort=sort)


class Order:
    """The orders that one list offers. Columns must not be nullable: null is neither before nor behind anything."""

    def __init__(self, columns: Mapping[str, InstrumentedAttribute[Any]], *, id_: Any, default: str) -> None:
        self._columns = columns
        self._id = id_
        self._default = default

    async def fetch(self, session: AsyncSession, query: Select[R], asked: Asked) -> tuple[list[R], str | None]:
        """The page's rows, and the cursor that continues it. `query` selects one entity, filtered, without an order.

        Raises `ProblemError` 400 `bad_cursor` or `bad_sort`.
        """
        return self._shown((await session.scalars(self._page(query, asked))).all(), asked)

    async def fetch_columns(
        self, session: AsyncSession, query: Select[*Rs], asked: Asked
    ) -> tuple[list[Row[*Rs]], str | None]:
        """The same for a query of columns, of which the id and those that it may be sorted by must be some."""
        return self._shown((await session.execute(self._page(query, asked))).all(), asked)

    def page_of(self, items: Iterable[T], asked: Asked) -> tuple[list[T], str | None]:
        """The same of things that are in no table: attributes of theirs are called as the columns are.

        Raises as `fetch`.
        """
        spelling, column, descending = self._chosen(asked.sort)
        keyed = [((getattr(item, column.key), getattr(item, self._id.key)), item) for item in items]
        if asked.cursor is not None:
            behind = _decoded(asked.cursor, spelling, column, self._id)
            keyed = [(key, item) for key, item in keyed if (key < behind if descending else key > behind)]
        keyed.sort(key=lambda pair: pair[0], reverse=descending)
        return self._shown([item for _, item in keyed[: asked.limit + 1]], asked)

    def cursor(self, value: object, id_: str) -> str:
        """The cursor behind a row, in the list's own order."""
        return _encoded(self._default, value, id_)

    def _page(self, query: Select[*Rs], asked: Asked) -> Select[*Rs]:
        spelling, column, descending = self._chosen(asked.sort)
        if asked.cursor is not None:
            behind = _decoded(asked.cursor, spelling, column, self._id)
            last = tuple_(literal(behind[0], type_=column.type), literal(behind[1], type_=self._id.type))
            here = tuple_(column, self._id)
            query = query.where(here < last if descending else here > last)
        ends = (column.desc(), self._id.desc()) if descending else (column, self._id)
        return query.order_by(*ends).limit(asked.limit + 1)

    def _shown(self, rows: Sequence[T], asked: Asked) -> tuple[list[T], str | None]:
        if len(rows) <= asked.limit:
            return list(rows), None
        shown = list(rows[: asked.limit])
        spelling, column, _ = self._chosen(asked.sort)
        return shown, _encoded(spelling, getattr(shown[-1], column.key), getattr(shown[-1], self._id.key))

    def _chosen(self, sort: str | None) -> tuple[str, InstrumentedAttribute[Any], bool]:
        """The order's one spelling, its column, and whether it goes downwards."""
        wish = sort if sort is not None else self._default
        column = self._columns.get(wish.removeprefix("-"))
        if column is None:
            known = ", ".join(sorted(self._columns))
            raise ProblemError(
                400, "bad_sort", "No such order", f"this list is sorted by one of {known}, with `-` before it downwards"
            )
        return wish, column, wish.startswith("-")


def _encoded(sort: str, value: object, id_: str) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode((sort, value, id_))).rstrip(b"=").decode()


def _decoded(cursor: str, sort: str, column: Any, id_: Any) -> tuple[Any, Any]:
    try:
        body = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        of_sort, value, id_value = msgspec.json.decode(body, type=tuple[str, Any, Any])
        if of_sort == sort:
            return _fitting(value, column), _fitting(id_value, id_)
    except (binascii.Error, ValueError) as error:  # msgspec's errors are ValueErrors
        raise _bad_cursor() from error
    raise _bad_cursor()


def _fitting(value: Any, column: Any) -> Any:
    """The value as the column's type has it: a cursor comes from outside, and the database must not choke on it.

    Raises ValueError.
    """
    plain = column.type.impl_instance if isinstance(column.type, TypeDecorator) else column.type
    found = msgspec.convert(value, plain.python_type, strict=True)
    if isinstance(found, datetime) and (found.tzinfo is None or not 1 < found.year < 9999):
        raise ValueError("a time that the column can't hold")
    if isinstance(found, int) and abs(found) >= (2**63 if isinstance(plain, BigInteger) else 2**31):
        raise ValueError("a number that the column can't hold")
    if isinstance(plain, String) and "\x00" in found:
        raise ValueError("text that the column can't hold")
    return found


def _bad_cursor() -> ProblemError:
    detail = "the cursor is not one of this list in this order: ask for the first page again, without a cursor"
    return ProblemError(400, "bad_cursor", "Not a cursor of this list", detail)
