"""The schema that migrations make is the one that the code wants."""

import asyncio
from collections.abc import AsyncIterator

import alembic.command
import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, text
from sqlalchemy.exc import IntegrityError

from services.gateway.database.engine import Database
from services.gateway.database.engine import database_url as checked_url
from services.gateway.database.migrate import alembic_config, check_migrated, migrate
from services.gateway.database.tables import Project, Table
from services.gateway.projects.settings_of import settings_of
from shared.spec import CollabRules, PlanSettings


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    made = Database(checked_url(database_url))
    yield made
    await made.close()


def _differences(connection: Connection) -> list[object]:
    return list(compare_metadata(MigrationContext.configure(connection), Table.metadata))


async def test_a_migrated_database_has_exactly_the_tables_of_the_code(database: Database) -> None:
    await migrate(database.url)
    async with database.connection() as connection:
        assert await connection.run_sync(_differences) == []


async def test_the_comparison_notices_a_difference(database: Database) -> None:
    await migrate(database.url)
    async with database.connection() as connection, connection.begin():
        await connection.execute(text("DROP INDEX ix_task_place"))
        await connection.execute(text("ALTER TABLE project ADD COLUMN surprise INTEGER"))
    async with database.connection() as connection:
        assert len(await connection.run_sync(_differences)) == 2


async def test_a_project_of_an_older_schema_keeps_what_it_had_and_gets_the_rest(database: Database) -> None:
    async with database.connection() as connection, connection.begin():
        await connection.run_sync(lambda c: alembic.command.upgrade(alembic_config(c), "0001"))
        await connection.execute(
            text(
                "INSERT INTO user_account (id, name, role, password_hash, is_frozen, session_version, created_at) "
                "VALUES ('u', 'ann', 'user', NULL, :no, 1, '2026-01-01 00:00:00')"
            ),
            {"no": False},
        )
        await connection.execute(
            text(
                "INSERT INTO project (id, owner_id, name, goal, mode, code_repo_url, collab_dir, planning_mode, "
                "task_timeout_minutes, max_parallel, delivery, setup, env_allow, allow_concurrent_plans, created_at, "
                "version) VALUES ('p', 'u', 'P', '', 'auto', 'https://git.example.com/a/b.git', 'treadle', "
                "'balanced', 30, 4, 'branch', '[\"make\"]', '[]', :no, '2026-01-01 00:00:00', 3)"
            ),
            {"no": False},
        )
    await migrate(database.url)
    async with database.read() as session:
        project = await session.get_one(Project, "p")
    assert (project.setup, project.version) == (["make"], 3)
    assert (project.auto_finalize, project.prompt_plan_id) == (False, None)
    collab = CollabRules(repo_url="https://git.example.com/a/b.git")
    assert settings_of(project) == PlanSettings(max_parallel=4, setup=("make",), collab=collab)


async def test_an_unmigrated_database_is_refused_with_the_command_that_migrates_it(database: Database) -> None:
    with pytest.raises(ValueError, match=r"python -m services\.gateway migrate"):
        await check_migrated(database)
    await migrate(database.url)
    await check_migrated(database)


async def test_a_database_of_a_newer_version_is_refused(database: Database) -> None:
    await migrate(database.url)
    async with database.connection() as connection, connection.begin():
        await connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(ValueError, match="schema 9999"):
        await check_migrated(database)


async def test_several_migrations_at_once_make_one_schema(database: Database) -> None:
    await asyncio.gather(*(migrate(database.url) for _ in range(4)))
    await check_migrated(database)


async def test_migrating_again_keeps_what_is_there(database: Database) -> None:
    await migrate(database.url)
    head = text("INSERT INTO projection_head (generation, position, is_current) VALUES (1, 7, :current)")
    async with database.write() as session:
        await session.execute(head, {"current": True})
    await migrate(database.url)
    with pytest.raises(IntegrityError):
        async with database.write() as session:
            await session.execute(head, {"current": False})
