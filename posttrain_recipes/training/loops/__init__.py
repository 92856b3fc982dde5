"""The two training loops, over a data set and over rollouts, and what they share."""
