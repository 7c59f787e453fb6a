"""Our plans against other ways to choose, within the same latency budgets."""
