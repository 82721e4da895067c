"""The templates that come with Treadle: files of this package, rows with fixed ids in the database.

Each gateway puts them there at its start as its version has them. Where several versions run, the one that was started
last has the last word; all of them read rows only, and plans keep what they were made from.
"""

from datetime import datetime
from hashlib import sha256
from importlib.resources import files

import msgspec
import msgspec.yaml
from sqlalchemy import delete, select
from sqlalchemy.exc import IntegrityError

from services.gateway.database.engine import Database
from services.gateway.database.tables import Template
from services.gateway.templates.bodies import NewTemplate, checked
from shared.clock import utc_now

_ID_CHARS = 24
_SUFFIX = ".yaml"


def shipped_templates() -> dict[str, NewTemplate]:
    """By id, which follows from the file's name and stays when the template is changed."""
    found = {}
    for file in files(__package__).iterdir():
        if file.name.endswith(_SUFFIX):
            text = file.read_text(encoding="utf-8")
            found[shipped_id(file.name.removesuffix(_SUFFIX))] = msgspec.yaml.decode(text, type=NewTemplate)
    return found


def shipped_id(stem: str) -> str:
    """The id of the template in the file of that name."""
    return sha256(f"treadle template {stem}".encode()).hexdigest()[:_ID_CHARS]


async def keep_shipped(db: Database) -> None:
    """Brings the rows in step with the files. Several gateways may do so at once."""
    try:
        await _keep(db, utc_now())
    except IntegrityError:  # another gateway was faster by a moment: now its rows are seen
        await _keep(db, utc_now())


async def _keep(db: Database, now: datetime) -> None:
    wanted = {
        id_: checked({field: getattr(template, field) for field in template.__struct_fields__})
        for id_, template in shipped_templates().items()
    }
    ours = select(Template).where(Template.owner_id.is_(None))
    async with db.read() as session:
        there = {row.id: row for row in await session.scalars(ours)}
    if there.keys() == wanted.keys() and not any(_differing(row, wanted[id_]) for id_, row in there.items()):
        return
    async with db.write() as session:
        await session.execute(delete(Template).where(Template.owner_id.is_(None), Template.id.not_in(wanted)))
        there = {row.id: row for row in await session.scalars(ours.with_for_update())}
        for id_, columns in wanted.items():
            row = there.get(id_)
            if row is None:
                session.add(Template(id=id_, owner_id=None, created_at=now, version=1, **columns))
            elif fields := _differing(row, columns):
                for field in fields:
                    setattr(row, field, columns[field])
                row.version += 1


def _differing(row: Template, columns: dict[str, object]) -> list[str]:
    return [field for field, value in columns.items() if getattr(row, field) != value]
