"""Makes a validated candidate plan of what a person wrote, or names every fault of it."""
