"""The gateway over real HTTP, on SQLite and on PostgreSQL."""
