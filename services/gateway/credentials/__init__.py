"""Secrets at rest and on their way to a runner: encrypted by the keyring, leased while a lease is live."""
