"""Connections: one engine per process, transactions in two kinds."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import event, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, create_async_engine

BUSY_TIMEOUT_S = 10.0
"""How long a writer waits for another one, of this or another process, on SQLite."""
POOL_SIZE = 10
_DRIVERS = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg"}


class Database:
    """The gateway's database: SQLite (WAL, one writer at a time) or PostgreSQL."""

    def __init__(self, url: URL) -> None:
        self.url = url
        self.engine = _engine(url)
        if self.is_sqlite:  # no transaction is ever begun on these connections: none need be rolled back
            self._looking = _engine(url, pool_reset_on_return=None)
        else:
            self._looking = self.engine.execution_options(isolation_level="AUTOCOMMIT")

    @property
    def is_sqlite(self) -> bool:
        return self.url.get_backend_name() == "sqlite"

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncSession]:
        """A transaction that is committed at the block's end, and undone by an exception.

        On SQLite it has the one write lock from its beginning: it can't fail half-way because of another writer.
        """
        async with AsyncSession(self.engine, expire_on_commit=False) as session, session.begin():
            if self.is_sqlite:
                await session.execute(text("BEGIN IMMEDIATE"))
            yield session

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncSession]:
        """A consistent look, of which nothing is kept."""
        async with AsyncSession(self.engine, expire_on_commit=False) as session:
            if self.is_sqlite:
                await session.execute(text("BEGIN"))
            else:  # where each statement would else see what was committed just before it
                options = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
                await session.connection(execution_options=options)
            yield session

    @asynccontextmanager
    async def look(self) -> AsyncIterator[AsyncConnection]:
        """For one statement, which is consistent by itself: without the two that would begin and end a transaction."""
        async with self._looking.connect() as connection:
            yield connection

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[AsyncConnection]:
        """A bare connection, for migrations."""
        async with self.engine.connect() as connection:
            yield connection

    async def close(self) -> None:
        await self.engine.dispose()
        await self._looking.dispose()


def database_url(written: str, password_file: Path | None = None) -> URL:
    """The address with the driver that we use, and the password from its file.

    Raises ValueError for another kind of database, or for a password in the address, which process lists would show.
    """
    try:
        url = make_url(written)
    except ArgumentError as error:
        raise ValueError("the database's address is not of the form sqlite:///file or postgresql://…") from error
    driver = _DRIVERS.get(url.get_backend_name())
    if driver is None:
        raise ValueError(f"{url.get_backend_name()} is no database that Treadle knows: sqlite:///file, postgresql://…")
    if url.password is not None:
        raise ValueError("the database's address holds a password: put it into a file, TREADLE_DATABASE_PASSWORD_FILE")
    password = password_file.read_text().strip() if password_file else None
    return url.set(drivername=driver, password=password)


def _engine(url: URL, **more: Any) -> AsyncEngine:
    if url.get_backend_name() != "sqlite":
        options = {"pool_size": POOL_SIZE, "max_overflow": POOL_SIZE, "pool_pre_ping": True}
        return create_async_engine(url, hide_parameters=True, **options)  # parameters may be secrets: not into logs
    engine = create_async_engine(url, hide_parameters=True, connect_args={"timeout": BUSY_TIMEOUT_S}, **more)

    @event.listens_for(engine.sync_engine, "connect")
    def prepare(connection: Any, _: object) -> None:
        # The driver must begin nothing by itself: `write` says BEGIN IMMEDIATE.
        connection.isolation_level = None
        cursor = connection.cursor()
        timeout_ms = round(BUSY_TIMEOUT_S * 1000)
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", f"busy_timeout={timeout_ms}"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    return engine
