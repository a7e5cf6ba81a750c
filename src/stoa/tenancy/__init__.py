"""Organizations, projects, keys, limits, budgets: who may do what, how much of it, and who did."""
