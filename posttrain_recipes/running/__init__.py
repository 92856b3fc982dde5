"""What a plan does: stages that train, make data and are evaluated, within limits."""
