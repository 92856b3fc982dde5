"""What each request means, in which order it runs, and what is known while it does."""
