"""Planning: stages in order, reuse of earlier results, cost estimates, bounds on results."""
