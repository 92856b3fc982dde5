"""What is there to sample from, by the names that people give it, and talking to it."""
