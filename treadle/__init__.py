"""The command, and the supervisor of one machine's suite."""
