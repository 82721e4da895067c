"""Plans as files: what leaves as an archive, and what is read-only here because it came as one."""
