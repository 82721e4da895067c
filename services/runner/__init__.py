"""Takes dispatched attempts, runs their agents in git worktrees, and reports how each ended."""
