"""Turns HTTP requests into commands, and the folded log into answers."""
