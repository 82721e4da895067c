"""Templates: plans with slots for agents and inputs, those of accounts and those that come with Treadle."""
