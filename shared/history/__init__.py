"""Looking back: a plan's events in a local file, and what they say of any moment. Nothing here can have an effect."""
