"""Plans and tasks: commands to the log, and views of it."""
