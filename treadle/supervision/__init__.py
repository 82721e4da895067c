"""The one-machine supervisor: a data directory, and the processes that run on it."""
