"""Where a member stands: the states that it holds, the averages that lead to them, and its own work as it travels."""
