"""The gateway's SQL database: its tables, its connections, its migrations."""
