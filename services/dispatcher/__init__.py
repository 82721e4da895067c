"""Decides, from the folded log of each plan, what is ready, and dispatches it."""
