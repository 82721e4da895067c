"""Recorded histories: each was made once, by the version that its file names, and must verify for ever."""
