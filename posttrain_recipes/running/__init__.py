"""Running a plan: stages that train, make data and are evaluated, within a budget."""
