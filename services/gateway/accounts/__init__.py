"""Who may ask: accounts, sessions, tokens, and what each change of them leaves in the audit log."""
