"""Run by Alembic for every command: works on the connection that `database.migrate` hands it, and on no other."""

from typing import Any, Literal

from alembic import context

from services.gateway.database.tables import Table, UtcTime


def render_item(type_: str, item: Any, _: object) -> str | Literal[False]:
    """A migration must not change with our types: it names SQLAlchemy's own."""
    return "sa.DateTime(timezone=True)" if type_ == "type" and isinstance(item, UtcTime) else False


context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Table.metadata,
    render_item=render_item,
)
with context.begin_transaction():
    context.run_migrations()
