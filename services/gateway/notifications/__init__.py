"""Decides from the log which webhooks are told what, and brings it to them."""
