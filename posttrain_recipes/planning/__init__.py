"""What a recipe means: stages in order, what can be reused, what it costs, what it must reach."""
